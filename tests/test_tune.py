"""`fer-bench tune`: the same trials for all, the choice by validation faces alone, what the record says of it."""
import contextlib
import io
import json

import pandas as pd
import pytest

from fer_bench.catalogue import method_entry, methods_of
from fer_bench.cli import main
from fer_bench.config import RunConfig
from fer_bench.core import BenchError
from fer_bench.record import load_run, load_runs, runs_folder
from fer_bench.report.card import model_card
from fer_bench.report.tables import notes
from fer_bench.runs.experiment import redo
from fer_bench.schema import Status, Tuned, checked
from fer_bench.store import merge, pack, verify
from fer_bench.sweeps import tune as module
from fer_bench.sweeps.grid import expand
from fer_bench.sweeps.tune import pick, trial_grid, tried_fields, tune, val_war


def tried(*pairs): return [{"run_id": f"r{lr}", "values": {"lr": lr}, "val_WAR": war} for lr, war in pairs]

@pytest.mark.parametrize("method", ["supervised", "dtm", "fixmatch", "byol"])
def test_every_method_gets_the_same_trials_and_its_own_values_first(method, tiny):
    config = tiny(method=method, view="geometric", lr=0.03)
    cells = [c.config for c in expand(trial_grid(config, 1 + config.warmup_epochs))]
    assert [(c.lr, c.view_strength) for c in cells] == [(lr, s) for lr in (0.03, 0.01, 0.09) for s in (1.0, 0.5, 1.5)]
    assert {c.epochs for c in cells} == {1 + config.warmup_epochs}
    other = {"lr", "view_strength", "epochs", "results_dir"}
    assert all(c.model_dump(exclude=other) == config.model_dump(exclude=other) for c in cells)

@pytest.mark.parametrize("method", methods_of("self-supervised"))
def test_every_pretraining_gets_nine_trials_of_how_fast_and_how_hard(method, tiny):
    "The strength of the views where they are compared, else the share of masked patches; all are runs that can be."
    config = tiny(method=method)
    grid, masks = trial_grid(config), "compares_views" not in method_entry(method).flags
    cells = [c.config for c in expand(grid)]
    assert len(cells) == len({(c.lr, c.view_strength, c.options.get("mask_ratio")) for c in cells}) == 9
    assert tried_fields(config) == ["lr", "mask_ratio" if masks else "view_strength"]
    assert cells[0].model_dump(exclude={"results_dir"}) == config.model_dump(exclude={"results_dir"})
    shares = {0.75: {0.75, 0.5, 0.9}, 0.6: {0.6, 0.4, 0.72}}
    if masks: assert {c.options["mask_ratio"] for c in cells} == shares[config.options["mask_ratio"]]

def test_a_pretraining_is_tuned_by_its_nearest_neighbours_on_validation_faces(tiny, monkeypatch, capsys):
    monkeypatch.setattr(module, "FACTORS", {"lr": (1, 3), "view_strength": (1,)})
    config = tiny(method="byol")
    record = tune(config, trial_epochs=1, workers=1)
    facts, trials = record.status.tuned, {r.id: r for r in load_runs(config.path("results_dir")/"tuning")}
    assert {t.run_id: t.val_WAR for t in facts.trials} == {n: r.history["val_WAR"].iloc[-1] for n, r in trials.items()}
    assert all(r.metrics.probe and "spread" in r.history for r in trials.values()), "k-NN, for there is no classifier"
    assert max(facts.trials, key=lambda t: t.val_WAR).values == facts.picked
    assert record.config["lr"] == facts.picked["lr"] and record.metrics.kind == "self-supervised"
    assert capsys.readouterr().out.count("by nearest neighbours on validation faces") == 2

def test_without_the_geometric_view_only_the_learning_rate_is_tried(tiny):
    assert [c.config.lr for c in expand(trial_grid(tiny(lr=0.05)))] == [0.05, 0.0167, 0.15]

def test_the_first_of_the_best_is_picked():
    assert pick(tried((1.0, 0.3), (2.0, 0.5), (3.0, 0.5), (4.0, None))) == {"lr": 2.0}
    with pytest.raises(BenchError, match="every trial"): pick(tried((1.0, None)))

def test_the_reported_epoch_counts():
    history = pd.DataFrame({"epoch": [1, 2, 3], "val_WAR": [0.2, 0.9, 0.4], "test_WAR": [1.0, 0.0, 0.0]})
    assert val_war(history) == 0.4 and val_war(history, "val") == 0.9

@pytest.mark.parametrize("fields, says", [
    ({"method": "linear_probe"}, "no learning rate"), ({"select": "oracle"}, "looks at test faces"),
    ({"view": "geometric", "view_strength": 1.5}, "view_strength' = 2.25"), ({"epochs": 0}, "epochs"),
    ({"lr": 500.0}, "'lr' = 1500")])
def test_what_cannot_be_tuned_is_refused_before_anything_is_trained(tmp_path, fields, says):
    with pytest.raises(BenchError, match=says): tune({"preset": "tiny", "results_dir": str(tmp_path)} | fields)
    assert not list(tmp_path.iterdir())

def test_a_split_without_validation_faces_is_refused(tiny, monkeypatch):
    class Split: val = ()
    monkeypatch.setattr(module, "prepare_data", lambda config: (None, Split, None))
    with pytest.raises(BenchError, match="no validation face"): tune(tiny())

@pytest.mark.parametrize("facts", [
    {"epochs": 1, "trials": tried((1.0, 0.3), (2.0, 0.5)), "picked": {"lr": 1.0}},
    {"epochs": 1, "trials": [], "picked": {}}, {"epochs": 1, "trials": tried((1.0, 1.5)), "picked": {"lr": 1.0}}])
def test_facts_that_no_tuning_wrote_are_refused(facts):
    with pytest.raises(BenchError, match="tuned|val_WAR"): checked(Tuned, facts, "status.json")
    with pytest.raises(BenchError): checked(Status, {"state": "running", "tuned": facts}, "status.json")

TINY = dict(preset="tiny", threads=1, device="cpu", dataset="folder", steps_per_epoch=8)

def swapped(tree, where):
    "A copy of `tree` in which the classes of the test pictures are exchanged."
    import shutil
    shutil.copytree(tree, where)
    test = where/"test"
    for old, new in (("fear", "x"), ("happiness", "fear"), ("x", "happiness")): (test/old).rename(test/new)
    return where

@pytest.fixture
def tuned(tree, tmp_path):
    "(config, record) of a tuning whose trials have one epoch."
    config = RunConfig(**TINY, data_root=str(tree), results_dir=str(tmp_path/"results"), lr=0.05)
    return config, tune(config, trial_epochs=1, workers=1)

def test_tuning_is_recorded_resumed_and_blind_to_test_faces(tuned, tree, tmp_path, capsys):
    config, record = tuned
    facts = record.status.tuned
    assert record.config["lr"] == facts.picked["lr"] and record.config["epochs"] == config.epochs
    assert [t.values["lr"] for t in facts.trials] == [0.05, 0.0167, 0.15] and facts.epochs == 1
    trials = {r.id: r for r in load_runs(tmp_path/"results/tuning")}
    assert {t.run_id: t.val_WAR for t in facts.trials} == {n: r.history["val_WAR"].iloc[-1] for n, r in trials.items()}
    assert [r.id for r in load_runs(tmp_path/"results")] == [record.id], "no table shows the trials"
    # shown, sound, and it travels
    assert any("tuned: 3 trials of 1 epoch" in note for note in notes([record]))
    assert "Tuned: 3 trials of 1 epoch" in model_card(record, {**record.metrics.faces.model_dump()}, [])
    assert {f.outcome for f in verify(tmp_path/"results")} == {"sound"}
    merge(pack([record], tmp_path/"all.zip"), tmp_path/"there")
    assert load_run(record.id, tmp_path/"there").status.tuned == facts
    # again: nothing is trained
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path/"results").rglob("predictions.parquet")}
    assert tune(config, trial_epochs=1).id == record.id
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path/"results").rglob("predictions.parquet")}
    # done again, it still says so
    (record.folder/"weights.safetensors").unlink()
    before, after = redo(record.id, tmp_path/"results")
    assert before.folder != after.folder and after.status.tuned == before.status.tuned == facts
    # a status that was edited
    status = json.loads((after.folder/"status.json").read_text())
    for t in status["tuned"]["trials"]: t["values"]["lr"] *= 2
    status["tuned"]["picked"]["lr"] *= 2
    (after.folder/"status.json").write_text(json.dumps(status))
    assert [f.outcome for f in verify(tmp_path/"results") if f.name == record.id] == ["damaged"]
    # the test faces poisoned: the same choice
    poisoned = config.model_copy(update={"data_root": str(swapped(tree, tmp_path/"swapped")),
                                         "results_dir": str(tmp_path/"poisoned")})
    other = tune(poisoned, trial_epochs=1, workers=1)
    assert [(t.values, t.val_WAR) for t in other.status.tuned.trials] == [(t.values, t.val_WAR) for t in facts.trials]
    assert other.status.tuned.picked == facts.picked and other.metrics.test.WAR != record.metrics.test.WAR

def test_a_loss_that_is_not_finite_is_told_from_other_failures(tiny):
    from fer_bench.runs.experiment import run
    with pytest.raises(BenchError) as error: run(tiny(lr=1000.0, clip_grad=0.0, steps_per_epoch=20))
    assert module.DIVERGED.search(str(error.value)) and not module.DIVERGED.search("No space left on device")

def test_time_is_up_and_the_command_goes_on(tmp_path):
    out = io.StringIO()
    words = ["tune", "--preset", "tiny", "--threads", "1", "--device", "cpu", "--results-dir", str(tmp_path/"r")]
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended: main([*words, "--minutes", "0.001"])
    assert ended.value.code == 3 and "3 runs: 3 to do" in out.getvalue() and not load_runs(tmp_path/"r")
    assert not list(runs_folder(tmp_path/"r").glob("*"))

def test_options_of_the_method_and_wrong_names(tmp_path):
    err = io.StringIO()
    with contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(["tune", "--preset", "tiny", "--method", "dtm", "--flor", "0.7"])
    assert ended.value.code == 2 and "floor" in err.getvalue()
