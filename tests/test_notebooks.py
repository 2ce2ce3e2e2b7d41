"""The house: notebooks and library are one, names mirror, imports go down only, what papermill needs is in place."""
import ast
import functools
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest

import fer_bench
from fer_bench.config import RunConfig, assigned_names
from fer_bench.core import project_path

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
PAPERMILL = [p for p in NOTEBOOKS if p.parent.name == "nbs" and p.stem in
             ("run_benchmark", "compare_methods", "paper_figures", "throughput")]
# Each layer may import itself and what stands here (DESIGN, the table of layers).
BASE = {"core", "catalogue", "config", "schema"}
TORCH = BASE | {"distributed"}
ALL = TORCH | {"record", "external", "data", "models", "methods", "train", "evaluate"}
RUN = ALL | {"runs"}
MAY_IMPORT = {
    "core": set(), "catalogue": {"core"}, "config": {"core", "catalogue"},
    "schema": {"core", "catalogue"}, "external": BASE | {"data.labels"},
    "record": BASE | {"evaluate.metrics", "evaluate.smoothing", "data.frames", "external"},
    "distributed": {"core"},
    "data": TORCH, "models": TORCH, "methods": TORCH | {"models", "data.views", "evaluate.priors"},
    "train": TORCH | {"data"},
    "evaluate": TORCH | {"data", "models", "train"}, "runs": ALL | {"report.card"},
    "store": BASE | {"record", "external", "evaluate.metrics"},
    "report": BASE | {"record", "external", "evaluate.statistics", "evaluate.dunnett", "evaluate.ranks",
                      "data.frames"},
    "sweeps": RUN | {"store"},
    "show": RUN | {"report"}, "speed": RUN | {"report"}, "doctor": BASE,
    "cli": RUN | {"speed", "report", "show", "store", "sweeps", "doctor"},
    "__init__": RUN | {"speed", "report", "show", "store", "sweeps"},
}
NO_TORCH = ("core", "catalogue", "config", "schema", "external", "record", "store", "report", "doctor", "cli",
            "__init__", "evaluate.metrics", "evaluate.statistics", "evaluate.dunnett", "evaluate.ranks",
            "evaluate.priors", "evaluate.smoothing", "data.frames")

def read(path): return nbformat.read(path, as_version=4)

@functools.cache
def modules() -> dict[str, Path]:
    "Every module by its dotted name below fer_bench."
    return {".".join(p.relative_to(ROOT/"fer_bench").with_suffix("").parts): p for p in (ROOT/"fer_bench").rglob("*.py")
            if p.name not in ("_modidx.py",) and (p.name != "__init__.py" or p.parent.name == "fer_bench")}

def imported(name, path):
    "Modules of ours that module `name` imports anywhere, as dotted names below fer_bench, and all others."
    inside = name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import): yield from (a.name for a in node.names)
        if isinstance(node, ast.ImportFrom):
            if node.level:
                yield ".".join(["fer_bench", *inside[:len(inside) - node.level + 1], *filter(None, [node.module])])
            else: yield node.module

def tool(*command, cwd):
    return subprocess.run([sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True)

@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    "A copy of the notebooks with the library exported from them anew, then cleaned."
    copy = tmp_path_factory.mktemp("rebuilt")
    for name in ("settings.ini", "setup.py", "pyproject.toml"): shutil.copy(ROOT/name, copy)
    shutil.copytree(ROOT/"nbs", copy/"nbs", ignore=shutil.ignore_patterns(".*"))
    for command in ("nbdev.doclinks:nbdev_export", "nbdev.clean:nbdev_clean"):
        module, function = command.split(":")
        subprocess.run([sys.executable, "-c", f"from {module} import {function}; {function}()"], cwd=copy, check=True,
                       capture_output=True, env={"PATH": "/usr/bin:/bin", "HOME": str(copy)})
    return copy

def test_library_is_what_the_notebooks_export(rebuilt):
    ours, theirs = ({p.relative_to(root): p.read_bytes() for p in (root/"fer_bench").rglob("*.py")}
                    for root in (ROOT, rebuilt))
    assert ours.keys() == theirs.keys()
    stale = [str(p) for p in ours if ours[p] != theirs[p]]
    assert stale == [], "run `make export` and commit notebooks and library together"

def test_notebooks_are_clean(rebuilt):
    dirty = [str(p.relative_to(ROOT)) for p in NOTEBOOKS
             if p.read_bytes() != (rebuilt/p.relative_to(ROOT)).read_bytes()]
    assert dirty == [], "run `nbdev-clean`"

@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: str(p.relative_to(ROOT/"nbs")))
def test_names_mirror(path):
    "nbs/data/feed.ipynb exports data.feed; the notebooks that papermill runs export nothing."
    exports = [line.split()[-1] for c in read(path).cells for line in c.source.splitlines()
               if line.startswith("#| default_exp")]
    names = {"api": "__init__", "index": None, "own_method": None, "own_data": None}
    mirror = names.get(path.stem, ".".join(path.relative_to(ROOT/"nbs").with_suffix("").parts))
    assert exports == ([] if path in PAPERMILL or mirror is None else [mirror])

@pytest.mark.parametrize("name", modules())
def test_imports_go_down_only(name):
    layer = name.split(".")[0]
    for target in imported(name, modules()[name]):
        if target == "fer_bench" or not target.startswith("fer_bench."): continue
        target = target.removeprefix("fer_bench.")
        allowed = MAY_IMPORT[layer] | {layer}
        assert target.split(".")[0] in allowed or target in allowed, f"{name} imports {target}"

def private(name): return name.startswith("_") and not name.startswith("__")

def private_names(name, path):
    "Private names of other modules of ours that module `name` imports, or takes from a module that it has imported."
    tree, ours = ast.parse(path.read_text()), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "fer_bench"):
            for alias in node.names:
                ours[alias.asname or alias.name] = alias.name
                if private(alias.name): yield f"line {node.lineno}: {alias.name}"
        if isinstance(node, ast.Import):
            ours |= {(a.asname or "fer_bench"): a.name for a in node.names if a.name.split(".")[0] == "fer_bench"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            root = node.value
            while isinstance(root, ast.Attribute): root = root.value
            if isinstance(root, ast.Name) and root.id in ours: yield f"line {node.lineno}: {ast.unparse(node)}"

@pytest.mark.parametrize("name", modules())
def test_no_private_name_crosses_modules(name):
    assert list(private_names(name, modules()[name])) == []

def test_few_modules_at_the_root():
    root = [n for n in modules() if "." not in n and n != "__init__"]
    assert len(root) <= 10, f"put one of {root} into a folder"

@pytest.mark.parametrize("name", [n for n in modules() if n in NO_TORCH or n.split(".")[0] in NO_TORCH])
def test_torch_stays_out(name):
    heavy = [t for t in imported(name, modules()[name])
             if t.split(".")[0] in ("torch", "torchvision", "timm", "kornia", "accelerate")]
    assert heavy == []

@pytest.mark.parametrize("path", PAPERMILL, ids=lambda p: p.stem)
def test_parameters_cell(path):
    "One tagged cell of plain annotated assignments with a comment each; executed by papermill alone."
    tagged = [c for c in read(path).cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1 and "skip_exec: true" in read(path).cells[0].source
    first, *lines = tagged[0].source.splitlines()
    assert first == "# The parameters"
    for line in lines:
        (node,) = ast.parse(line).body
        assert isinstance(node, ast.AnnAssign) and "  # " in line, line
        assert "=" not in line.split("  # ")[1], "papermill --help-notebook cannot read a comment with an equals sign"
        ast.literal_eval(node.value)

def test_run_benchmark_takes_every_field_of_the_config():
    cell = next(c.source for c in read(ROOT/"nbs/run_benchmark.ipynb").cells
                if "parameters" in c.metadata.get("tags", []))
    values = {}
    exec(cell, values)
    given = {name: values[name] for name in assigned_names(cell) if name != "compare_with"}
    assert list(given) == list(RunConfig.model_fields)
    assert RunConfig(**given) == RunConfig(), "defaults of the notebook and of RunConfig differ"
    comments = dict(line.split(": ", 1) for line in cell.splitlines()[1:])
    for name, field in RunConfig.model_fields.items(): assert comments[name].endswith(f"  # {field.description}")

def test_facts_agree():
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT/"settings.ini")
    facts = settings["DEFAULT"]
    assert facts["version"] == fer_bench.__version__
    assert "Apache License" in (ROOT/"LICENSE").read_text() and facts["license"] == "Apache-2.0"

def test_no_pixels_weights_or_executed_notebooks_in_git():
    if not (ROOT/".git").exists(): pytest.skip("no git checkout")
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True,
                           check=True).stdout.split("\0")
    bad = [f for f in files if f.startswith("results/")
           and not f.endswith((".json", ".jsonl", ".parquet", ".csv", ".md", ".yaml"))]
    assert [f for f in bad if not f.startswith("results/figures/") and not f.endswith(".npz")] == []  # see test_results
    forbidden = (".npy", ".pt", ".safetensors", ".jpg", ".jpeg", ".tar", ".xz", ".zip")
    assert [f for f in files if f.endswith(forbidden)] == []

def test_import_needs_no_torch():
    code = "import sys, fer_bench, fer_bench.cli; assert not {'torch', 'timm', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

@pytest.mark.parametrize("folder", [".", "nbs", "nbs/models", "nbs/data/sources"])
def test_paths_start_at_the_project_from_every_folder_of_notebooks(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(Path(__file__).parent.parent/folder)
    assert project_path("results") == Path(__file__).parent.parent/"results"
    monkeypatch.chdir(tmp_path)
    assert project_path("results") == tmp_path/"results"
