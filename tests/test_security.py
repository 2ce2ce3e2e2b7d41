"""Names, paths and files from outside are data and never code. Archives: see test_archives and test_store."""
import ast
import contextlib
import io
import os
import pickle
import shutil
import socket
import stat
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import fer_bench
from fer_bench import RunConfig, cli, run
from fer_bench.config import recorded_config, run_id
from fer_bench.core import BenchError, sha256, write_json
from fer_bench.data.audit.audit import audit, to_markdown
from fer_bench.data.sources.archives import open_files
from fer_bench.models.weights import read_weights
from fer_bench.record import load_runs, write_status
from fer_bench.report.exports import save_tables
from fer_bench.report.figures import confusion_matrix, contact_sheet, save_figure
from fer_bench.report.leaderboard import leaderboard
from fer_bench.report.tables import compare, notes
from fer_bench.runs.attribution import look
from fer_bench.runs.networks import load_classifier
from fer_bench.runs.task import load_data
from fer_bench.schema import kind_of
from fer_bench.show.gallery import figure_features
from fer_bench.store import merge, pack

ROOT = Path(__file__).parent.parent
# a path that ends in `..`
PLACE = "a b/-rf '\"$(touch pwned) `touch pwned` ; touch pwned # {seed} {0} %s üñ\U0001f600 <b>\nx/.."
CLASSES = ["$(touch pwned)", "-rf", "<img src=x onerror=alert(1)>", "\\input{pwned} $\\frac$ $", "[red]{0}%s**b**|",
           "new\nline", "../x"]

# what stands in the code

TREES = {p.relative_to(ROOT).as_posix(): list(ast.walk(ast.parse(p.read_text(encoding="utf-8"))))
         for p in sorted((ROOT/"fer_bench").rglob("*.py"))}
CALLS = [(f"{file}:{n.lineno}", ast.unparse(n.func), n) for file, tree in TREES.items() for n in tree
         if isinstance(n, ast.Call) and isinstance(n.func, (ast.Name, ast.Attribute))]  # (place, name as written, call)
IMPORTED = [(file, a.name) for file, tree in TREES.items() for n in tree if isinstance(n, ast.Import)
            for a in n.names] + [
    (file, n.module) for file, tree in TREES.items() for n in tree if isinstance(n, ast.ImportFrom) and not n.level]

def given(call: ast.Call, name: str): return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), None)

def test_no_text_becomes_code_and_no_file_is_unpickled():
    never = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp", "pd.read_pickle",
             "torch.hub.load",
             "pickle.load", "pickle.loads", "pickle.Unpickler", "subprocess.getoutput", "subprocess.getstatusoutput",
             "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"}
    endings = (".extractall", ".to_pickle", ".load_state", ".save_state")
    assert [place for place, name, _ in CALLS if name in never or name.endswith(endings)] == []
    assert [place for place, name, call in CALLS if name == "torch.load"
            and given(call, "weights_only") != "True"] == []
    assert [place for place, name, call in CALLS if name == "np.load"
            and given(call, "allow_pickle") not in (None, "False")] == []
    assert [place for place, _, call in CALLS if given(call, "shell") not in (None, "False")] == []
    assert {"fer_bench/sweeps/grid.py"} >= {place.split(":")[0] for place, name, _ in CALLS if name == "yaml.load"}
    from fer_bench.sweeps.grid import GridLoader, read_value
    assert issubclass(GridLoader, yaml.SafeLoader)
    with pytest.raises(BenchError): read_value("!!python/object/apply:os.system ['touch pwned']")

def test_nothing_is_imported_that_unpickles_or_talks_to_a_network():
    never = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "urllib", "http", "requests", "httpx",
             "aiohttp", "ftplib",
             "smtplib", "webbrowser", "huggingface_hub", "wandb", "mlflow", "xml", "lxml"}
    allowed = {("fer_bench/models/weights.py", "pickle"),  # an unpickler that admits numpy arrays: see test_weights
               ("fer_bench/models/backbones.py", "huggingface_hub")}  # the client of timm's pretrained weights
    assert {found for found in IMPORTED if found[1].split(".")[0] in never} == allowed
    # does the named cluster answer?
    assert {file for file, module in IMPORTED if module == "socket"} <= {"fer_bench/sweeps/ray.py"}

def test_text_from_outside_imports_only_what_a_method_is_called():
    ways = {place.split(":")[0] for place, name, call in CALLS
            if name.split(".")[-1] == "import_module" and not isinstance(call.args[0], ast.Constant)}
    assert ways <= {"fer_bench/__init__.py", "fer_bench/catalogue.py"}

# hostile names, from end to end

@pytest.fixture(scope="module")
def alone():
    "Nothing may be asked of a network."
    def refuse(*asked, **_): raise AssertionError(f"a network is asked: {asked}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield

@pytest.fixture(scope="module")
def hostile(alone, tmp_path_factory):
    "(config, record, working folder) of a run on classes that are called like code, in folders that are too."
    home, rng, lines = tmp_path_factory.mktemp("hostile"), np.random.default_rng(0), ["path,label,split"]
    faces = home/PLACE/"$HOME"
    faces.mkdir(parents=True)
    for i in range(18 * len(CLASSES)):
        name = f"{i} $(touch pwned) <i>.png"
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(faces/name)
        label = CLASSES[i % len(CLASSES)]
        lines.append(f'"{name}","{label}",{"train" if i < 12 * len(CLASSES) else "test"}')
    (faces/"list.csv").write_text("\n".join(lines), encoding="utf-8")
    with contextlib.chdir(home):
        config = RunConfig(preset="tiny", device="cpu", threads=1, dataset="csv", data_root=f"{PLACE}/$HOME/list.csv",
                           results_dir=f"{PLACE}/results")
        yield config, run(config), home

def untouched(home: Path) -> bool: return not list(home.rglob("pwned*")) and not Path("pwned").exists()

def test_paths_and_names_are_data(hostile):
    config, record, home = hostile
    assert record.finished and record.metrics["classes"] == sorted(CLASSES) and untouched(home)
    assert record.folder.resolve().parent == (home/PLACE/"results/runs").resolve()
    assert {p.name for p in home.iterdir()} == {"a b"}
    loose = [p for p in (home/PLACE/"results").rglob("*") if p.stat().st_mode & stat.S_IWOTH]
    assert loose == [] or os.umask(os.umask(0o22)) & 0o2 == 0

def test_command_and_papermill_hand_them_on_as_data(hostile, monkeypatch, capsys):
    from papermill.translators import translate_parameters
    config, record, home = hostile
    def execute(notebook, output, parameters):
        "What papermill and the notebook do with them."
        exec(translate_parameters("python3", "python", parameters, "Parameters"), values := {})  # noqa: S102
        values = {name: values[name] for name in parameters}
        assert values == parameters and output.parent.is_dir()
        run(RunConfig(**{k: v for k, v in values.items() if k != "compare_with"}))
    monkeypatch.setattr(cli, "_execute", execute)
    words = ["--preset", "tiny", "--device", "cpu", "--threads", "1", "--dataset", "csv"]
    with contextlib.chdir(home), pytest.raises(SystemExit) as ended:
        cli.main(["run", *words, f"--data-root={config.data_root}", f"--results-dir={config.results_dir}",
                  "--compare-with="])
    assert ended.value.code == 0 and record.id.split("-")[0] in capsys.readouterr().out and untouched(home)

def test_papermill_does_not_fill_in_a_path_with_braces(monkeypatch, tmp_path):
    import papermill
    from papermill.parameterize import parameterize_path
    there, asked = tmp_path/"{seed} {nobody} {0}"/"out.ipynb", []
    monkeypatch.setattr(papermill, "execute_notebook", lambda *a,
                        **_: asked.extend(parameterize_path(str(p), {"seed": 3}) for p in a[:2]))
    cli._execute(there, there, {"seed": 3})
    assert asked == [str(there)] * 2

def test_pages_hold_names_as_text(hostile):
    config, record, home = hostile
    sentence = "Of <script>alert(1)</script> and ![](http://x.test/y.png)\n# there are 3."
    table = compare([record]).assign(method="\n".join(CLASSES))
    with contextlib.chdir(home):
        faces = load_data(config)
        md, tex, page, _ = (p.read_text(encoding="utf-8")
                            for p in save_tables(table, home/"a b/tables", "t", [sentence, *CLASSES]))
        record.metrics = record.metrics.model_copy(update={"audit": [sentence]})
        texts = [md, page, to_markdown(replace(found := audit(faces),
                                               findings=[replace(found.findings[0], sentence=sentence)]))]
    assert all("<script>alert" not in text and "<img src=x" not in text for text in texts)
    assert "![](" not in md and all(line.startswith(("|", "- ")) or not line
                                    for line in md.splitlines()), "a name broke out of its line"
    assert "\\input" not in tex and "\\frac" not in tex and "there are 3." in tex
    assert sentence in notes([record])[-1], "on the terminal it stands as it is"

def test_figures_write_names_as_text(hostile):
    _, record, home = hostile
    with contextlib.chdir(home):
        sheet = contact_sheet(np.zeros((7, 8, 8, 3), np.uint8), CLASSES)
        for figure in (confusion_matrix(record), figure_features([record]), sheet):
            for ending in ("png", "pdf"): save_figure(figure, home/f"a b/figure.{ending}")
    assert untouched(home)

# what comes with a run, a FaceSet or an archive

class Evil:
    def __reduce__(self): return (os.mkdir, ("pwned",))

@pytest.fixture(scope="module")
def once(alone, tmp_path_factory):
    return run(RunConfig(preset="tiny", device="cpu", threads=1,
                         results_dir=str(tmp_path_factory.mktemp("once")/"results")))

@pytest.fixture
def drawn(once, tmp_path, monkeypatch):
    "(config, record) of a tiny run on drawn faces, a copy for each test; the working folder is the test's."
    monkeypatch.chdir(tmp_path)
    shutil.copytree(once.folder.parents[1], tmp_path/"results")
    return RunConfig(**once.config | {"results_dir": str(tmp_path/"results")}), load_runs(tmp_path/"results")[0]

def test_pickles_beside_a_run_are_not_opened(drawn, tmp_path):
    config, record = drawn
    data = pickle.dumps({"epoch": 1, "method": Evil()})
    (record.folder/"weights.safetensors").write_bytes(data)
    with pytest.raises(Exception, match="(?i)header|safetensors|damaged"): load_classifier(record)
    torch.save({"net": Evil()}, tmp_path/"evil.pt")
    for path in (record.folder/"weights.safetensors", tmp_path/"evil.pt"):
        with pytest.raises(BenchError, match="cannot be read as weights"): read_weights(path)
    write_status(record.folder, "interrupted")
    torch.save({"epoch": 1, "method": Evil()}, tmp_path/"checkpoint.pt")
    data = (tmp_path/"checkpoint.pt").read_bytes()
    (record.folder/f"checkpoint-00001-{sha256(data)[:12]}.pt").write_bytes(data)
    with contextlib.suppress(pickle.UnpicklingError): run(config)
    assert not Path("pwned").exists()

@pytest.mark.parametrize("name", ["images.npy", "index.parquet"])
def test_pickles_in_a_faceset_are_not_opened(drawn, tmp_path, name):
    shutil.copytree(load_data(drawn[0]).folder, tmp_path/"set")
    if name == "images.npy": np.save(tmp_path/"set"/name, np.array([Evil()] * 64, object), allow_pickle=True)
    else: (tmp_path/"set"/name).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(BenchError, match="damaged"): fer_bench.open_faceset(tmp_path/"set")
    assert not Path("pwned").exists()

def test_the_name_of_a_faceset_is_no_path(drawn, tmp_path):
    config, record = drawn
    faces = load_data(config)
    before = set(tmp_path.rglob("*"))
    scores = look(record, replace(faces, meta=faces.meta | {"name": "../../../out/$(touch pwned)"}), most=4)
    assert len(scores) and {p.parent for p in set(tmp_path.rglob("*")) - before} == {record.folder}

@pytest.mark.parametrize("field", ["method", "dataset", "budget"])
def test_no_field_leads_out_of_the_results(drawn, tmp_path, field):
    config, record = drawn
    split = next((tmp_path/"results/splits").glob("*.csv"))
    before = set(tmp_path.rglob("*"))
    with pytest.raises(BenchError):
        run({"preset": "tiny", "device": "cpu", "threads": 1, "results_dir": config.results_dir, "split": str(split),
             "data_root": "x",
             field: "../../../../out"})
    assert set(tmp_path.rglob("*")) == before

def test_a_member_without_a_name_refuses_the_archive(tmp_path):
    "Python reads a name up to its NUL, and stumbles over one of which nothing is left."
    with zipfile.ZipFile(packed := io.BytesIO(), "w") as archive: archive.writestr("Xed.png", b"")
    data = packed.getvalue().replace(b"Xed.png", b"\0ed.png")
    (tmp_path/"faces.zip").write_bytes(data)
    with pytest.raises(BenchError, match="no file of a record"): merge(data, tmp_path/"results")
    assert open_files(tmp_path/"faces.zip").rejected == [("\\0ed.png", "its name holds a NUL byte")]

def forged(record, folder: Path, metrics: dict = {}, **config) -> Path:  # noqa: B006
    "A record like `record` with other fields, its id and seals right, in the results folder `folder`; → its folder."
    config = record.config | config
    kind = {"method": config["method"], "kind": kind_of(config)}
    metrics = record.metrics.model_dump() | kind | metrics
    name = run_id(recorded_config(config), metrics["data_hash"], metrics["split_hash"], metrics.get("init_hash", ""))
    place = shutil.copytree(record.folder, folder/"runs"/name, ignore=shutil.ignore_patterns("lock", "figures"))
    write_json(place/"config.json", config)
    write_json(place/"metrics.json", metrics | {"run_id": name})
    write_status(place, "finished")
    return place

def test_a_record_from_outside_imports_nothing(drawn, tmp_path):
    "Its method may be the name of a module that lies in the working folder."
    _, record = drawn
    (tmp_path/"lurking.py").write_text("open('pwned', 'w')", encoding="utf-8")
    forged(record, tmp_path/"theirs", method="lurking.Method")
    archive = pack(load_runs(tmp_path/"theirs"), tmp_path/"runs.zip", weights=True)
    assert [f.outcome for f in merge(archive, tmp_path/"ours")] == ["added"]
    theirs, = load_runs(tmp_path/"ours")
    assert "lurking" in compare([theirs]).to_string() + leaderboard(tmp_path/"ours")
    fer_bench.load_classifier(theirs)
    assert not Path("pwned").exists()

def test_what_a_record_from_outside_says_is_text(drawn, tmp_path):
    _, record = drawn
    said = "<script>alert(1)</script>"
    forged(record, tmp_path/"theirs", {"audit": [said], "dataset": said, "device": said}, dataset="ck+", data_root="x")
    assert [f.outcome for f in merge(pack(load_runs(tmp_path/"theirs"), tmp_path/"runs.zip"),
                                     tmp_path/"ours")] == ["added"]
    assert "<script>" not in leaderboard(tmp_path/"ours")
