"""Own runs beside shipped ones: read where they lie, marked in tables, done again by `redo`, never mixed with them."""
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from fer_bench.cli import app
from fer_bench.config import RunConfig
from fer_bench.core import OWN_RESULTS, BenchError
from fer_bench.record import load_run, load_runs
from fer_bench.report.leaderboard import leaderboard
from fer_bench.report.names import made_on
from fer_bench.report.rows import leaderboard_table
from fer_bench.report.summary import measured, summarise
from fer_bench.report.tables import compare, notes
from fer_bench.runs.experiment import redo, run
from fer_bench.runs.networks import load_classifier
from fer_bench.schema import example_environment
from fer_bench.show.gallery import FIGURES

ROOT = Path(__file__).parent.parent
TINY = dict(preset="tiny", drawn_faces=200, device="cpu", threads=1)
AMD = dict(processor="AMD EPYC", capability="AVX2", build="2.14.1", device="cpu")

@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    "A results folder as a fresh clone has it: one run, without weights."
    folder = tmp_path_factory.mktemp("clone")/"results"
    record = run(TINY | {"results_dir": str(folder)})
    (record.folder/"weights.safetensors").unlink()
    return folder

@pytest.fixture
def clone(shipped, tmp_path):
    "(its results, the folder of own ones, the id of the shipped run)"
    results = shutil.copytree(shipped, tmp_path/"results")
    return results, results/"own", load_runs(results)[0].id

def tree(folder): return {p: p.read_bytes() for p in Path(folder).glob("runs/**/*") if p.is_file()}

def test_runs_go_to_the_own_folder_which_git_ignores():
    assert RunConfig().results_dir == OWN_RESULTS == "results/own"
    if not (ROOT/".git").exists(): pytest.skip("no git checkout")
    for path in ("results/own/runs/a/metrics.json", "results/own/leaderboard.md", "results/own/throughput/a.jsonl"):
        assert subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT).returncode == 0, path

def test_both_are_read_and_told_apart(clone):
    results, own, shipped_id = clone
    mine = run(TINY | {"results_dir": str(own), "seed": 1})
    runs = load_runs(own)
    assert {r.id: r.shipped for r in runs} == {shipped_id: True, mine.id: False}
    assert [r.id for r in load_runs(results)] == [shipped_id] and not load_runs(results)[0].shipped
    assert load_run(shipped_id, own).shipped
    assert sorted(compare(runs)["record"]) == ["own", "shipped"] and "record" not in compare(load_runs(results))
    assert any("1 of the 2 runs came with the code" in note for note in notes(runs))
    assert leaderboard_table(measured(runs))["runs"].tolist() == ["2 (1 shipped)"] == summarise(runs)["runs"].tolist()
    assert "from the 1 finished runs in `runs` and 1 that came with the code" in " ".join(leaderboard(own).split())

def test_no_command_writes_among_the_shipped_records(clone, monkeypatch):
    results, own, shipped_id = clone
    before = tree(results)
    monkeypatch.chdir(results.parent)
    for words in (["compare"], ["results", "leaderboard"], ["difference", shipped_id, shipped_id]):
        answer = CliRunner().invoke(app, words)
        assert answer.exit_code == 0, answer.output
    run(TINY)  # the shipped one, asked for: its weights are needed, so it is done here
    assert load_run(shipped_id, OWN_RESULTS).folder.parent.parent == Path(OWN_RESULTS)
    assert tree(results) == before and (own/"leaderboard.md").exists() and not (results/"leaderboard.md").exists()

def test_a_shipped_run_is_not_packed_as_an_own_one(clone, tmp_path):
    results, own, _ = clone
    run(TINY | {"results_dir": str(own), "seed": 1})
    answer = CliRunner().invoke(app, ["results", "pack", str(tmp_path/"a.zip"), "--results-dir", str(own)])
    assert answer.output.startswith("1 records in")

def test_redo_of_a_shipped_run(clone):
    "The same logits, weights beside them, and the shipped record as it was."
    results, own, name = clone
    before = tree(results)
    with pytest.raises(BenchError, match=f"fer-bench redo {name}$"): load_classifier(load_run(name, own))
    answer = CliRunner().invoke(app, ["redo", name, "--results-dir", str(own)])
    assert answer.exit_code == 0 and "are the same" in " ".join(answer.output.split()), answer.output
    load_classifier(load_run(name, own))
    assert tree(results) == before and len(load_runs(own)) == 1
    answer = CliRunner().invoke(app, ["redo", name, "--results-dir", str(own)])
    assert "nothing was trained" in answer.output

def test_redo_where_the_weights_are_lost(clone):
    "The old record makes room and stays; a redo that was stopped goes on."
    results, _, name = clone
    old, new = redo(name, results)
    assert old.folder == results/"before"/name and new.folder == results/"runs"/name
    assert old.finished and (new.folder/"weights.safetensors").exists()
    shutil.rmtree(new.folder)
    assert redo(name, results)[1].finished

def test_redo_takes_no_field_that_makes_another_run(clone):
    with pytest.raises(BenchError, match="'seed' would make another run"): redo(clone[2], clone[0], seed=3)
    with pytest.raises(BenchError, match="no finished run"): redo("supervised-drawn-all-s0-0000000000", clone[0])

def test_a_record_says_what_decided_its_rounding(clone):
    env = load_runs(clone[0])[0].environment
    assert env.processor and re.search("AVX|NEON|DEFAULT|SVE|VSX", env.capability) and re.match(r"\d+\.\d+", env.build)
    assert made_on(load_runs(clone[0])[0]) == f"{env.processor}, {env.capability}, torch {env.build}"

@pytest.mark.parametrize("field, other", [("processor", "Xeon"), ("capability", "AVX512"), ("build", "2.14.1+cu130"),
                                          ("device", "NVIDIA H100")])
def test_rows_of_different_processors_are_named(field, other):
    from test_report import record
    same = [record("a", environment=AMD), record("b", environment=AMD)]
    assert not any("kinds of processor" in note for note in notes(same))
    said = [n for n in notes([*same, record("c", environment=AMD | {field: other})]) if "2 kinds of processor" in n]
    assert len(said) == 1 and other in said[0] and "AMD EPYC" in said[0]
    said = " ".join(notes([*same, record("d")]))
    assert "one that its record does not name" in said, "an early record does not say"

def test_an_early_environment_says_nothing():
    assert made_on(SimpleNamespace(environment=example_environment())) == ""

def test_pictures_of_the_readme_are_figures_that_the_notebook_writes():
    shown = re.findall(r"results/figures/drawn/(\w+)\.png", (ROOT/"README.md").read_text())
    assert len(shown) >= 5 and set(shown) <= FIGURES.keys()
