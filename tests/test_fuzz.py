"""A thousand inputs (`make nightly`: ten thousand): each is done or refused in a sentence, without a traceback of ours.

None hangs."""
import contextlib
import io
import json
import shutil
import signal
from keyword import iskeyword
from pathlib import Path

import pytest
import typer
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from papermill.translators import PythonTranslator

from fer_bench import cli
from fer_bench.catalogue import DATASETS, METHODS
from fer_bench.config import PRESETS, RunConfig, baseline, notebook_parameters, run_id
from fer_bench.core import BenchError
from fer_bench.data.faceset import build_faceset
from fer_bench.data.sources.folders import FolderSource
from fer_bench.record import SEALED, load_runs
from fer_bench.report.tables import comparable, compare, notes
from fer_bench.runs.experiment import find_record, run
from fer_bench.store import verify
from fer_bench.sweeps.grid import expand

NOTEBOOK = Path(__file__).parent.parent/"nbs/run_benchmark.ipynb"

def tries(n): return settings(max_examples=n, suppress_health_check=list(HealthCheck))

@contextlib.contextmanager
def named(*also):
    "Whatever is done inside either works or is a `BenchError` with a sentence (or one of `also`), within a minute."
    def hangs(*_): raise TimeoutError("it hangs")
    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(60)
    try: yield
    except BenchError as e: assert len(str(e)) > 10
    except also: pass
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)

@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder with a finished record in `results`, faces in `tree` and `set`, and two grids; deep, for paths with `..`."
    home = tmp_path_factory.mktemp("fuzz")
    place = home/"a/b/c/d"
    place.mkdir(parents=True)
    run(RunConfig(preset="tiny", device="cpu", threads=1, results_dir=str(place/"results")))
    from PIL import Image
    for i in range(8):
        folder = place/"tree"/("train" if i < 4 else "test")/("fear", "anger")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), 20 * i).save(folder/f"{i}.png")
    build_faceset(FolderSource(place/"tree", colour="grey"), place/"set")
    (place/"grid.yaml").write_text("preset: tiny\nseed: [0, 1]")
    (place/"bad.yaml").write_text("- : {")
    with pytest.MonkeyPatch.context() as m:
        m.chdir(place)
        m.setenv("HOME", str(home))
        yield place

def below(text): return text.lstrip("/~")  # tests may be run by root: nothing is written outside the test's folders

ODD = ["", " ", "..", "../x", "nothing", "a b", "'; rm -rf x; '", '"', "$(x)", "\n", "é😀", "-", "--", "0", "-1",
       "1e999", "nan", "None", "null", "[0, 1]", "run:", "run:x", "run:../..", "x.csv", "tree", "set", "results",
       "set/meta.json", "grid.yaml", "bad.yaml", "fold:1/5", "fold:9/5", "fold:/", "subject:", "subject:x", "timm",
       "ada_cm-400", "ada_cm-", "tensorboard", "%s", "{}", "\\",
       "~nobody-of-that-name", "x" * 300]
TEXT = st.sampled_from(ODD) | st.text(max_size=6).map(below)
EXTREME = st.sampled_from([0.0, 0.5, 1e-3, -1.0, 1e308, float("nan"), float("inf"), 10**30])
NUMBER = st.integers(-3, 20) | EXTREME | st.floats()
VALUE = st.none() | st.booleans() | NUMBER | TEXT | st.sampled_from(["\0", "\ud800"])
NESTED = VALUE | st.lists(VALUE, max_size=2) | st.dictionaries(TEXT, VALUE, max_size=2)
FIELDS = list(RunConfig.model_fields)
KNOWN = st.sampled_from([*METHODS, *DATASETS, *PRESETS, "sampler", "weights", "soft", "val", "oracle", "pool", "both",
                         "rest", "bf16", "argmax", "contrast", "fairness", "freematch", "two_weak", "adam", "random",
                         "sgd", "cross_split", "cpu", "m.csv"])

def fields(values):
    "Some fields, known or not, of any value; often with a method and a preset that there are."
    sane = st.fixed_dictionaries({}, optional={"method": st.sampled_from(list(METHODS)), "preset": st.just("tiny")})
    odd = st.dictionaries(st.sampled_from(FIELDS) | st.sampled_from(["sed", "lr "]) | TEXT, values, max_size=4)
    return st.builds(lambda odd, sane: odd | sane, odd, sane)

# the config, and what it names

@tries(250)
@given(fields(NESTED | KNOWN))
def test_config(given):
    with named():
        config = RunConfig(**given)
        assert RunConfig(**config.model_dump()) == RunConfig(**json.loads(json.dumps(config.model_dump()))) == config
        assert run_id(config, "d", "s").startswith(config.method)
        for images in ("labelled", "all"): baseline(config, images=images)

NAMING = ["method", "dataset", "data_root", "split", "budget", "dedupe", "label_seed", "labels_per_class", "cap",
          "unlabelled", "mu", "pool_dataset", "pool_root", "batch_size", "init", "select", "label_rule", "backbone",
          "min_map", "results_dir", "processes"]

@tries(100)
@given(st.dictionaries(st.sampled_from(NAMING), TEXT | KNOWN | NUMBER, max_size=3))
def test_what_a_config_names(place, given):
    with named():
        assert not find_record(RunConfig(**{"preset": "tiny", "method": "supervised", **given})).id.startswith(".")

# a notebook's parameters, through what papermill makes of them

@tries(150)
@given(fields(NESTED | KNOWN).map(lambda d: {n: v for n, v in d.items() if n.isidentifier() and not iskeyword(n)}))
def test_notebook_parameters(given):
    ours = next("".join(c["source"]) for c in json.loads(NOTEBOOK.read_text())["cells"]
                if "parameters" in c["metadata"].get("tags", []))
    cells, namespace = [ours, PythonTranslator.codify(given)], {}
    with named():
        for cell in cells: exec(cell, namespace)
        values = notebook_parameters(["", *cells], namespace)
        for name, value in given.items(): assert repr(values[name]) == repr(value)
        values.pop("compare_with")
        RunConfig(**values)

# the command line

def leaves(command, words=()):
    "(words, parameters) of every command."
    for name, sub in getattr(command, "commands", {}).items(): yield from leaves(sub, (*words, name))
    if not hasattr(command, "commands"): yield words, command.params

COMMANDS = dict(leaves(typer.main.get_command(cli.app)))
del COMMANDS[("data", "benchmark")]  # it measures for minutes
# ID stands for the record's
GOOD = st.sampled_from(["ID", "results", "set", "tree", "grid.yaml", "x.zip", "folder", "csv", "ferplus"])
NO_UTF8 = st.just("\udcff")
ODDER = TEXT.map(lambda t: t.replace("\0", "")) | KNOWN.filter(lambda v: v != "drawn") | NUMBER.map(str) | NO_UTF8
WORD = st.booleans().flatmap(lambda good: GOOD if good else ODDER)

@st.composite
def command_lines(draw):
    "Mostly as many arguments as a command takes and options that it has, with odd values; now and then anything."
    words = draw(st.sampled_from(sorted(COMMANDS)))
    line = [draw(WORD) for p in COMMANDS[words] if p.param_type_name == "argument"]
    for p in draw(st.lists(st.sampled_from(COMMANDS[words]), max_size=3)) if COMMANDS[words] else []:
        if p.param_type_name != "argument":
            line += [p.opts[-1], *([] if getattr(p, "is_flag", False) else [draw(WORD)])]
    line = [*words, *line, *draw(st.sampled_from([[]] * 12 + [["--help"], ["--metod", "x"], ["-x"], ["--"], ["more"]]))]
    return line if draw(st.integers(0, 15)) else draw(st.permutations(line))

@pytest.fixture(scope="module")
def no_work(place):
    "Nothing that takes long begins: no kernel, no workers."
    def begins(*_, **__): raise BenchError("It would begin now.")
    with pytest.MonkeyPatch.context() as m:
        m.setattr(cli, "_execute", begins)
        for name in ("_engine", "LocalEngine"): m.setattr(f"fer_bench.sweeps.sweep.{name}", begins)
        yield load_runs(place/"results")[0].id

@tries(250)
@given(command_lines())
def test_command_line(place, no_work, line):
    said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)  # as strict as a terminal
    with named(SystemExit), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try: cli.main([no_work if word == "ID" else word for word in line])
        except SystemExit as e: code = e.code or 0
        assert code in (0, 1, 2, 3)
        assert code in (0, 3) or len(said.buffer.getvalue()) > 20

# records

@st.composite
def damage(draw):
    name = draw(st.sampled_from([*SEALED, "status.json", "status.json", "status.json"]))
    cut, at, bits = draw(st.floats(0, 1)), draw(st.floats(0, 0.999)), draw(st.binary(min_size=1, max_size=4))
    how = draw(st.sampled_from(["cut", "flip", "put in", "json", "gone", "a folder"]))
    return name, how, cut, at, bits, draw(st.recursive(VALUE, lambda x: st.dictionaries(st.sampled_from(
        ["state", "files", "metrics.json", "error"]), x, max_size=3) | st.lists(x, max_size=2), max_leaves=5))

def spoil(path, how, cut, at, bits, value):
    data = path.read_bytes()
    i = int(at * len(data))
    path.unlink()
    if how == "a folder": path.mkdir()
    elif how == "json": path.write_text(json.dumps(value))
    elif how != "gone":
        path.write_bytes({"cut": data[:int(cut * len(data))], "flip": data[:i] + bits + data[i + len(bits):],
                          "put in": data[:i] + bits + data[i:]}[how])

@tries(150)
@given(damage())
def test_records(place, case):
    "A record is read as it was sealed, or not at all; beside it a sound one is still told from it by `verify`."
    name, *how = case
    there = place.parent/"damaged"
    shutil.rmtree(there, ignore_errors=True)
    shutil.copytree(place/"results", there)
    sound = load_runs(place/"results")[0]
    spoil(there/"runs"/sound.id/name, *how)
    with named():
        for record in load_runs(there):
            for part in SEALED: getattr(record, Path(part).stem)
            compare(comparable([record], record)), notes([record])
            assert record.metrics == sound.metrics and record.history.equals(sound.history)
    with named(): assert verify(there) is not None

# grids

VALUES = VALUE | KNOWN | st.lists(VALUE | KNOWN, max_size=3)
GRID = st.recursive(fields(VALUES), lambda block: st.builds(lambda top, n, inner: {**top, n: inner}, fields(VALUES),
                    st.sampled_from(["runs", "init", "runs", "x"]), st.lists(block, max_size=3) | block), max_leaves=3)

@tries(60)
@given(GRID)
def test_grids(given):
    with named(): assert all(isinstance(cell.config, RunConfig) for cell in expand(given))

@tries(40)
@given(GRID, st.floats(0, 1), st.sampled_from(["", ":", "- ", "\t", "&a ", "*a", "{", "!!python/object:os.x ", "\n",
                                               "? ", "'", "<<: "]))
def test_grid_files(place, given, at, more):
    text = yaml.safe_dump(json.loads(json.dumps(given, default=str)), allow_unicode=False)
    i = int(at * len(text))
    (place/"fuzzed.yaml").write_bytes((text[:i] + more + text[i:]).encode("utf-8", "surrogatepass"))
    with named(): expand(place/"fuzzed.yaml")

def test_a_thousand():
    tests = [t for n, t in globals().items() if n.startswith("test_")
             and hasattr(t, "_hypothesis_internal_use_settings")]
    assert sum(t._hypothesis_internal_use_settings.max_examples for t in tests) >= 1000
