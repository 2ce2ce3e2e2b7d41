"""Sweeps on this machine: the grid, a few runs, failures, two at once, kills, time limits."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from math import prod
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import untimed

from fer_bench.cli import main
from fer_bench.config import BY_HASH, NO_NUMBER, NUMERICS, PROBE, RunConfig, former_values, recorded_config, run_id
from fer_bench.core import BenchError, make_folder, write_json
from fer_bench.data.faceset import build_faceset
from fer_bench.data.sources.fixtures import fake
from fer_bench.record import Record, load_runs, runs_folder, write_status
from fer_bench.sweeps.grid import expand, read_value
from fer_bench.sweeps.plan import Plan
from fer_bench.sweeps.sweep import sweep
from fer_bench.train.checkpoint import checkpoints

RESULTS = Path(__file__).parent.parent/"results"
TINY = dict(preset="tiny", threads=1, device="cpu")

def write(path, text):
    path.write_text(text)
    return path

def states(outcome): return [c.state for c in outcome.cells]

# the grid

@pytest.mark.parametrize("text, says", [
    ("seed: 0\nbakbone: resnet18", r"line 2: There is no parameter 'bakbone'. Did you mean 'backbone'"),
    ("runs:\n  - method: dtm\n    lr: [0.1, fast]", r"line 3: Parameter 'lr' = 'fast'"),
    ("runs:\n  - seed: 1\n  - method: dmt", r"line 3: There is no method 'dmt'. Did you mean 'dtm'"),
    ("runs:\n  - seed: 1\n    dataset: ferplus", r"line 2: Data set 'ferplus' needs data_root"),
    ("method: linear_probe\ninit:\n  metod: byol", r"line 3: There is no parameter 'metod'"),
    ("method: linear_probe\ninit:\n  method: byol\n  epochs: 0", r"line 4: Parameter 'epochs' = 0"),
    ("epochs: 3\nruns:\n  - seed: 0\n  - warmup_epochs: 3", r"line 4: warmup_epochs \(3\) must be smaller"),
    ("seed: 0\nlr: 0.1\nseed: 1", r"line 3: 'seed' is given twice"),
    ("seed: []", r"line 1: 'seed' is an empty list"),
    ("runs: 3", r"line 1: 'runs' must be a list of blocks"),
    ("runs: []", r"line 1: 'runs' must be a list of blocks"),
    ("- seed", "a grid must be a mapping"),
    ("seed: {a: 1}", r"Parameter 'seed' = \{'a': 1\}"),
    ("seed: [[0]]", r"Parameter 'seed' = \[0\]"),
    ("seed: [0", "cannot be read as YAML"),
    ("a: &a [*a]", "contains itself"),
])
def test_a_wrong_grid_is_refused_with_its_place(tmp_path, text, says):
    with pytest.raises(BenchError, match=says) as error: expand(write(tmp_path/"grid.yaml", text))
    assert "grid.yaml" in str(error.value)

def test_no_grid_and_no_text(tmp_path):
    with pytest.raises(BenchError, match="cannot be read"): expand(tmp_path/"nothing.yaml")
    (tmp_path/"binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BenchError, match="cannot be read"): expand(tmp_path/"binary.yaml")

def test_numbers_as_people_write_them():
    means = {"1e-3": 0.001, "1.5e3": 1500.0, "3": 3, "none": "none", "[0, 1]": [0, 1], "run:a-s0-1": "run:a-s0-1",
             "null": None}
    assert {text: read_value(text) for text in means} == means

def test_settings(tmp_path):
    grid = write(tmp_path/"grid.yaml", "preset: tiny\nseed: [0, 1]\nruns:\n  - {lr: 0.2}\n  - {epochs: 3}")
    assert [c.config.seed for c in expand(grid, {"seed": 5})] == [5, 5]
    with pytest.raises(BenchError, match="no parameter 'sed'"): expand(grid, {"sed": 5})
    with pytest.raises(BenchError, match="line 4: 'lr' is given in this block"): expand(grid, {"lr": 0.1})

def test_a_pretraining_takes_what_the_top_says_and_is_shared():
    cells = expand({"preset": "tiny", "seed": [0, 1], "runs": [
        {"method": ["supervised", "linear_probe"], "labels_per_class": 1, "label_seed": [0, 1],
         "init": ["scratch", {"method": "byol", "lr": [0.1, 0.2]}]}]})
    starts = [c for c in cells if c.config.method == "byol"]
    assert len(starts) == 4 and len(cells) == 4 + 2 * 2 * 2 * 3
    for c in cells:
        if c.needs:
            assert c.needs in starts and c.needs.config.seed == c.config.seed and cells.index(c.needs) < cells.index(c)
            assert c.needs.config.labels_per_class is None

OWN = """
import torch.nn.functional as F
from pydantic import Field

import fer_bench

class Plain(fer_bench.Method):
    class Options(fer_bench.Options):
        alpha: float = Field(0.2, gt=0, description="weight of the loss")

    def __init__(self, net, config, counts, n_unlabelled):
        super().__init__(net, config.ema)
        self.alpha = config.alpha

    def forward(self, batch):
        loss = self.alpha * F.cross_entropy(self.net(batch["labelled"][0]), batch["targets"])
        return loss, {"cross_entropy": loss}

class Unlabelled(Plain):
    views = {"unlabelled": ["weak"]}

    def forward(self, batch):
        loss = self.alpha * self.net(batch["unlabelled"][0]).square().mean()
        return loss, {"size": loss}
"""

@pytest.fixture
def own(tmp_path, monkeypatch):
    "The name of a module of the user's own, with two methods that have an option; workers can import it too."
    name = f"own_{tmp_path.name}"
    write(tmp_path/f"{name}.py", OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    return name

def test_an_option_of_a_method_is_an_axis_like_any_field(own, tmp_path):
    grid = {**TINY, "results_dir": str(tmp_path), "method": f"{own}.Plain", "alpha": [0.1, 0.2, 0.4]}
    outcome = sweep(grid, workers=1)
    assert states(outcome) == ["finished"] * 3, outcome.summary()
    assert [r.config["alpha"] for r in outcome.records] == [0.1, 0.2, 0.4] and len({c.id for c in outcome.cells}) == 3
    assert outcome.table()["alpha"].tolist() == ["0.1", "0.2", "0.4"]
    assert states(sweep(grid, dry_run=True)) == ["finished"] * 3

@pytest.mark.parametrize("grid, says", [
    ("method: {own}.Plain\nalhpa: [0.1, 0.2]", "line 2: .*'alhpa'.*Did you mean 'alpha'"),
    ("method: {own}.Plain\nalpha: [0.1, -1.0]", "line 2: Parameter 'alpha' = -1.0"),
    ("runs:\n  - method: dtm\n    treshold: 0.9", "line 3: .*'treshold'.*Did you mean 'threshold'"),
    ("seed: 0\nmethod: [dtm, supervised]\nthreshold: 0.9", "line 3: .*'threshold' is for other methods"),
])
def test_an_option_that_the_method_lacks_is_refused_with_its_place(own, tmp_path, grid, says):
    with pytest.raises(BenchError, match=says): expand(write(tmp_path/"grid.yaml", grid.format(own=own)))

def test_a_start_takes_no_option_that_its_method_lacks(own):
    start, run = expand({"preset": "tiny", "method": f"{own}.Plain", "alpha": 0.3, "init": {"method": "byol"}})
    assert run.needs is start and run.config.options == {"alpha": 0.3} and "alpha" not in start.config.options
    same_method, _ = expand({"preset": "tiny", "method": f"{own}.Plain", "alpha": 0.3, "init": {"seed": 5}})
    assert same_method.config.options == {"alpha": 0.3}

def test_the_id_of_a_plan_is_the_id_of_the_run(own, tmp_path):
    "For an own method with and without a probe too: the probe decides which faces are in the pool."
    from fer_bench.runs.experiment import find_record
    shared = {**TINY, "results_dir": str(tmp_path), "unlabelled": "rest", "mu": 1, "labels_per_class": 2}
    probed = {"method": f"{own}.Unlabelled", "probe": [None, "linear"]}
    cells = expand({**shared, "runs": [probed, {"method": "fixmatch"}]})
    plan = Plan(tmp_path)
    assert [plan.identify(c.config) for c in cells] == [find_record(c.config).id for c in cells]

@pytest.mark.parametrize("fields", [
    {}, {"method": "dtm", "unlabelled": "pool", "pool_dataset": "drawn"}, {"method": "byol"}, {"budget": "ada_cm-400"}])
def test_a_plan_knows_the_fields_that_the_data_depend_on(fields):
    "FaceSet, split and pool are made once for runs that agree in these fields, so no other field may be read."
    from fer_bench.runs.task import load_data, make_pool, split_data
    from fer_bench.sweeps.plan import FACESET_FIELDS, POOL_FIELDS, SPLIT_FIELDS
    class Watched:
        def __init__(self, config): self.config, self.read = config, set()
        def __getattr__(self, name):
            self.read.add(name)
            return getattr(self.config, name)
        def seen(self): return self.read & RunConfig.model_fields.keys()
    config = RunConfig(**TINY, **fields)
    watched = [Watched(config) for _ in range(3)]
    faceset = load_data(watched[0])
    plain = config.model_copy(update={"budget": ""})  # which the few drawn faces cannot give
    if fields.get("budget"):
        with pytest.raises(BenchError): split_data(watched[1], faceset)
    else: split_data(watched[1], faceset)
    make_pool(watched[2], faceset, split_data(plain, faceset))
    for w, names in zip(watched, (FACESET_FIELDS, SPLIT_FIELDS, POOL_FIELDS), strict=True):
        assert w.seen() <= set(names)

VALUES = {"seed": st.integers(0, 5), "lr": st.floats(0.01, 1), "batch_size": st.integers(2, 9),
          "ema": st.floats(0, 0.9), "balance": st.sampled_from(["none", "sampler"]),
          "method": st.sampled_from(["supervised", "eac"])}
BLOCK = st.fixed_dictionaries({}, optional={n: v | st.lists(v, min_size=1, max_size=3) for n, v in VALUES.items()})

def tried(block): return {n: v if isinstance(v, list) else [v] for n, v in block.items()}

@settings(max_examples=60, deadline=None)
@given(BLOCK, st.lists(BLOCK, max_size=3))
def test_expand_makes_every_combination_once(top, blocks):
    grid = {"preset": "tiny", **top, **({"runs": blocks} if blocks else {})}
    merged = [tried({**top, **b}) for b in blocks or [{}]]
    configs = [c.config.model_dump() for c in expand(grid)]
    assert len({json.dumps(c) for c in configs}) == len(configs) <= sum(prod(map(len, m.values())) for m in merged)
    for m in merged:
        for name, values in m.items(): assert {c[name] for c in configs} >= set(values)
    for c in configs: assert any(all(c[n] in values for n, values in m.items()) for m in merged)
    assert configs == [c.config.model_dump() for c in expand(yaml.safe_load(yaml.safe_dump(grid, sort_keys=False)))]

# whole sweeps

def facts(record):
    "What a record says, apart from when and how fast."
    timed = ("train_seconds", "cpu_seconds", "peak_memory_mb")
    metrics = {k: v for k, v in record.metrics.model_dump().items() if k not in timed}
    config = record.config | {"results_dir": "", "cache_dir": ""}
    history, logits = untimed(record.history).to_json(), np.stack(record.predictions["logits"]).tobytes()
    return metrics, config, history, logits

def same(results, other):
    ours, theirs = ({r.id: facts(r) for r in load_runs(folder)} for folder in (results, other))
    assert ours.keys() == theirs.keys()
    assert [i for i in ours if ours[i] != theirs[i]] == []

@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    "The study that the tests below do in other ways: a pretraining, a probe of it, and two plain runs."
    folder = tmp_path_factory.mktemp("undisturbed")
    path = folder/"grid.yaml"
    path.write_text(yaml.safe_dump({**TINY, "epochs": 6, "steps_per_epoch": 10, "runs": [
        {"method": "supervised", "seed": [0, 1], "ema": 0.9}, {"method": "linear_probe", "init": {"method": "byol"}}]}))
    outcome = sweep(path, folder/"results", workers=1)
    assert states(outcome) == ["finished"] * 4 and outcome.exit_code == 0
    return path, folder/"results"

def test_a_sweep_does_what_single_runs_do_and_nothing_twice(undisturbed, tmp_path, monkeypatch):
    from fer_bench.runs.experiment import run
    grid, results = undisturbed
    one = next(c for c in expand(grid) if c.config.seed == 1).config
    assert facts(run(one.model_copy(update={"results_dir": str(tmp_path)}))) == facts(Record(runs_folder(results)/next(
        r.id for r in load_runs(results) if r.config["seed"] == 1)))
    written = {r.id: (r.folder/"status.json").stat().st_mtime_ns for r in load_runs(results)}
    monkeypatch.setattr("fer_bench.sweeps.sweep.LocalEngine", None)  # no worker is needed
    again = sweep(grid, results)
    assert again.exit_code == 0 and [r.id for r in again.records] == [c.id for c in again.cells]
    assert {r.id: (r.folder/"status.json").stat().st_mtime_ns for r in load_runs(results)} == written

def test_finished_runs_are_known_without_the_weights_they_start_from(undisturbed, tmp_path):
    "Records travel without weights; the hash that a run noted of its start stands for them."
    from fer_bench.store import merge, pack
    grid, results = undisturbed
    merge(pack(load_runs(results), tmp_path/"all.zip"), tmp_path/"there")
    assert not list((tmp_path/"there").rglob("*.safetensors"))
    assert states(sweep(grid, tmp_path/"there", dry_run=True)) == ["finished"] * 4
    probe, = (p for p in runs_folder(tmp_path/"there").glob("linear_probe*"))
    for p in probe.iterdir(): p.unlink()
    left = sweep(grid, tmp_path/"there", dry_run=True)
    assert left.exit_code == 1 and "records travel without weights" in left.summary()

def made_before(record, runs, **config):
    "`record` as the code of NUMERICS 1 would have left it in the folder `runs`; → its id."
    metrics, status = (json.loads((record.folder/f"{n}.json").read_text()) for n in ("metrics", "status"))
    config = record.config | former_values(record.config["method"], (1, 2)) | config
    init = metrics.get("init_hash", "")
    pool = (metrics.get("pool") or {}).get("hash", "")
    name = run_id(recorded_config(config), metrics["data_hash"], metrics["split_hash"], init, pool, numerics=(1, 2))
    shutil.copytree(record.folder, runs/name)
    del config["beta2"], metrics["numerics"]  # they say neither
    write_json(runs/name/"config.json", config)
    write_json(runs/name/"metrics.json", metrics | {"run_id": name})
    write_status(runs/name, status["state"])
    return name

def test_runs_of_older_numerics_are_found_and_not_counted(undisturbed, tmp_path, capsys):
    """Their records are sound under their own ids; a dry run says that they would be done again, also for the probe of
    a pretraining whose defaults were others; one that is done counts."""
    from fer_bench.store import verify
    grid, results = undisturbed
    there = {r.config["method"] + str(r.config["seed"]): r for r in load_runs(results)}
    runs = runs_folder(tmp_path/"old")
    byol = made_before(there.pop("byol0"), runs)
    made_before(there.pop("linear_probe0"), runs, init=f"run:{byol}")
    for record in there.values(): made_before(record, runs)
    assert {f.outcome for f in verify(tmp_path/"old")} == {"sound"} and len(load_runs(tmp_path/"old")) == 4
    assert Record(runs/byol).metrics.numerics == [1, 2] and recorded_config(Record(runs/byol).config).momentum == 0.99
    planned = sweep(grid, tmp_path/"old", dry_run=True)
    assert states(planned) == ["to do"] * 4 and {c.former for c in planned.cells} == {p.name for p in runs.iterdir()}
    assert set(planned.table()["state"]) == {"to do (finished with older numerics)"}
    assert f"Of these to do, 4 were finished before with older numerics (now NUMERICS {NUMERICS}" in planned.summary()
    shutil.copytree(record.folder, runs/record.id)
    planned = sweep(grid, tmp_path/"old", dry_run=True)
    assert sorted(states(planned)) == ["finished", *["to do"] * 3] and "3 were finished before" in planned.summary()
    assert "older" not in sweep(grid, results, dry_run=True).summary()
    assert {tuple(r.metrics.numerics) for r in load_runs(results)} == {(NUMERICS, PROBE)}

def test_one_failure_stops_no_other(tmp_path, capfd):
    "A loss that is not finite, labels that are not there, no such backbone, and a start that failed."
    grid = {**TINY, "results_dir": str(tmp_path), "runs": [
        {"lr": 1000.0, "clip_grad": 0.0, "steps_per_epoch": 20}, {"labels_per_class": 50}, {"backbone": "resnet81"},
        {"method": "linear_probe", "init": {"method": "byol", "backbone": "resnet81"}}, {"seed": 3}]}
    outcome = sweep(grid, workers=1)
    assert states(outcome) == ["failed", "cannot run", "failed", "failed", "cannot run", "finished"]
    printed = capfd.readouterr().out
    for says in ("Lower lr", "more than there are", "no backbone 'resnet81'", "and that failed", "(runs[0])"):
        assert says in printed
    assert outcome.exit_code == 1
    log = (runs_folder(tmp_path)/outcome.cells[0].id/"log.txt").read_text()
    assert "Traceback" in log and "Lower lr" in log
    failed = runs_folder(tmp_path)/outcome.cells[0].id/"status.json"
    stamp = failed.stat().st_mtime_ns
    assert sweep(grid, workers=1).exit_code == 1 and failed.stat().st_mtime_ns == stamp, "only on demand"
    assert states(sweep(grid, workers=1, retry_failed=True)) == states(outcome) and failed.stat().st_mtime_ns != stamp

def test_a_sweep_over_failed_runs_fails_and_names_the_way_out(tmp_path, monkeypatch, capsys):
    "After a full disk, say: nothing is started again, and that is no success."
    grid = {**TINY, "results_dir": str(tmp_path), "seed": [0, 1]}
    for cell in sweep(grid, dry_run=True).cells:
        write_status(make_folder(runs_folder(tmp_path)/cell.id), "failed", error="No space left on device")
    monkeypatch.setattr("fer_bench.sweeps.sweep._engine", None)
    for how in ({}, {"dry_run": True}):
        outcome = sweep(grid, **how)
        assert states(outcome) == ["failed"] * 2 and outcome.exit_code == 1
        assert "No space left" in outcome.summary() and "--retry-failed" in outcome.summary()
    (tmp_path/"grid.yaml").write_text(yaml.safe_dump(grid))
    with pytest.raises(SystemExit) as ended: main(["sweep", str(tmp_path/"grid.yaml")])
    assert ended.value.code == 1 and "--retry-failed" in capsys.readouterr().out
    assert sweep(grid, retry_failed=True, dry_run=True).exit_code == 0

LAUGHS = "\n".join(["a0: &a0 [0]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))])
MERGES = "\n".join(["a0: &a0 {seed: 0}",
                    *(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12))])
THOUSAND = list(range(1000))

@pytest.mark.parametrize("text, says", [
    (LAUGHS, "more than 100,000 values"), (MERGES, "more than 100,000 values"), ("seed: &a [*a]", "contains itself"),
    ("[" * 200_000, "cannot be read as YAML"), ("x: " + "y" * 1_100_000, "1,000,000 is the limit"),
    (yaml.safe_dump({"seed": THOUSAND, "label_seed": THOUSAND, "threads": THOUSAND}), "1,000,000,000 runs"),
    (yaml.safe_dump({"seed": THOUSAND, "init": {"method": "byol", "seed": THOUSAND}}), "1,000,000 runs"),
], ids=["aliases", "merges", "itself", "nested", "long", "cells", "starts"])
def test_a_grid_that_is_too_large_is_counted_and_refused(tmp_path, text, says):
    (tmp_path/"grid.yaml").write_text(text)
    with pytest.raises(BenchError, match=says): expand(tmp_path/"grid.yaml")

def test_an_alias_saves_writing(tmp_path):
    (tmp_path/"grid.yaml").write_text("preset: &p tiny\nruns:\n- &a {seed: [0, 1]}\n- {<<: *a, preset: *p, lr: 0.2}")
    found = [(c.config.seed, c.config.lr) for c in expand(tmp_path/"grid.yaml")]
    assert found == [(0, 0.01), (1, 0.01), (0, 0.2), (1, 0.2)]

def test_a_worker_that_is_killed_fails_its_run_alone(tmp_path):
    from fer_bench.sweeps.job import Job
    from fer_bench.sweeps.local import LocalEngine
    config, ended = RunConfig(**TINY, epochs=200, steps_per_epoch=50, results_dir=str(tmp_path)), []
    with LocalEngine(1) as engine:
        engine.start(Job("long", config, id=Plan(tmp_path).identify(config)))
        while not list(tmp_path.glob("runs/*/checkpoint*")): time.sleep(0.05)
        engine.workers[0][0].kill()
        while not ended: ended = engine.poll(1)
        assert ended[0][0] == "long" and "killed by signal 9" in ended[0][1]["error"] and not engine.workers

def command(grid, results, *words):
    return [sys.executable, "-m", "fer_bench.cli", "sweep", str(grid), "--results-dir", str(results), "--workers", "1",
            *map(str, words)]

def start(*args): return subprocess.Popen(command(*args), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

def workers_of(pid):
    "Processes whose parent is `pid`."
    children = [p for p in os.listdir("/proc") if p.isdigit()]
    def parent(p):
        try: return int(open(f"/proc/{p}/stat").read().rsplit(")", 1)[1].split()[1])
        except OSError: return None
    return [int(p) for p in children if parent(p) == pid]

def alive(pid):
    try: return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError: return False

def test_two_sweeps_at_once_share_the_work(undisturbed, tmp_path):
    grid, results = undisturbed
    both = [start(grid, tmp_path/"results") for _ in range(2)]
    said = [p.communicate()[0] for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    same(tmp_path/"results", results)
    logs = "".join(p.read_text() for p in tmp_path.glob("results/runs/*/log.txt"))
    assert "Another process is doing this run" not in logs, "no worker stood idle behind a run of the other sweep"

def killed(grid, results, kills, rng):
    "Sweep `kills` times, each time with a SIGKILL a random moment after a worker wrote something; then to the end."
    def written():
        checkpoints = {p.name for p in results.glob("runs/*/checkpoint*")}
        return checkpoints | {str(p) for p in results.glob("runs/*/metrics.json")}
    for _ in range(kills):
        known, process = written(), start(grid, results)
        while process.poll() is None and written() <= known: time.sleep(0.02)
        time.sleep(rng.uniform(0, 2))
        workers = workers_of(process.pid)
        process.kill()
        process.communicate()
        until = time.monotonic() + 20
        while any(map(alive, workers)):
            assert time.monotonic() < until, "an orphan trains on"
            time.sleep(0.02)
    process = start(grid, results)
    said = process.communicate()[0]
    assert process.returncode == 0, said

def check_kills(undisturbed, tmp_path, kills, seed):
    grid, results = undisturbed
    killed(grid, tmp_path/"results", kills, random.Random(seed))
    same(tmp_path/"results", results)
    assert not [p for r in load_runs(tmp_path/"results") for p in checkpoints(r.folder)]

def test_killed_sweeps_end_with_the_same_records(undisturbed, tmp_path):
    check_kills(undisturbed, tmp_path, kills=1, seed=0)

@pytest.mark.nightly
def test_sweeps_killed_again_and_again(undisturbed, tmp_path):
    check_kills(undisturbed, tmp_path, kills=5, seed=0)

@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1, 5))
def test_many_kills(undisturbed, tmp_path, seed): check_kills(undisturbed, tmp_path, kills=5, seed=seed)

@pytest.mark.parametrize("epochs, minutes", [(24, 0.04), pytest.param(60, 0.1, marks=pytest.mark.nightly)])
def test_time_is_up_then_it_goes_on(tmp_path, epochs, minutes):
    "Stopped by the clock in the middle of a run, by SIGTERM, and then finished: as if nothing had been."
    from fer_bench.runs.experiment import run
    fields = {**TINY, "epochs": epochs, "steps_per_epoch": 10}
    grid, results = write(tmp_path/"grid.yaml", yaml.safe_dump(fields)), tmp_path/"results"
    process = start(grid, results)
    while not list(results.glob("runs/*/checkpoint*")) and process.poll() is None: time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 3 and "the same sweep goes on from here" in said
    folder, = runs_folder(results).iterdir()
    assert Record(folder).status.state == "interrupted" and checkpoints(folder)
    began = time.monotonic()
    second = sweep(grid, results, workers=1, minutes=minutes)
    assert time.monotonic() - began < 30
    assert (second.exit_code, second.why, states(second)) == (3, "time", ["interrupted"])
    assert sweep(grid, results, workers=1).exit_code == 0
    run(RunConfig(**fields, results_dir=str(tmp_path/"whole")))
    same(results, tmp_path/"whole")

def test_dry_run_and_trial_leave_nothing(tmp_path):
    grid = {**TINY, "results_dir": str(tmp_path/"results"), "cache_dir": str(tmp_path/"cache"), "runs": [
        {"method": "fixmatch"}, {"backbone": "resnet81"}, {"method": "linear_probe", "init": {"method": "byol"}}]}
    planned = sweep(grid, dry_run=True, try_steps=True, workers=1)
    assert states(planned) == ["to do", "cannot run", "to do", "to do"] and planned.exit_code == 1
    assert "no backbone 'resnet81'" in planned.summary() and "2 by tried steps" in planned.summary()
    assert not (tmp_path/"results").exists()

def test_estimate_comes_from_runs_like_it(undisturbed):
    grid, results = undisturbed
    methods = [{"method": "supervised"}, {"method": "dtm"}]
    longer = expand({**read_value(grid.read_text()), "epochs": 60, "seed": 7, "runs": methods})
    plan = Plan(results)
    for cell in longer: plan.estimate(cell)
    known = [r.metrics.train_seconds for r in load_runs(results) if r.metrics.method == "supervised"]
    assert longer[0].seconds == pytest.approx(10 * np.median(known)) and longer[1].seconds is None

def test_command(undisturbed, tmp_path, capsys, monkeypatch):
    grid, results = undisturbed
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["fer-bench", "sweep", str(grid), *map(str, words)])
        with pytest.raises(SystemExit) as e: main()
        return e.value.code, "".join(capsys.readouterr())
    code, said = call("--results-dir", results, "--dry-run")
    assert code == 0 and "4 runs: 4 finished" in said and all(r.id in said for r in load_runs(results))
    code, said = call("--results-dir", tmp_path, "--set", "drawn_faces=80", "--dry-run")
    assert code == 0 and "4 runs: 4 to do" in said and not list(tmp_path.iterdir())
    mistakes = {"--set seed": "NAME=VALUE", "--set sed=1": "Did you mean 'seed'", "--engine slurm": "no engine"}
    for words, says in mistakes.items():
        code, said = call("--results-dir", tmp_path, *words.split())
        assert code == 1 and says in said and "Traceback" not in said

def test_pack_verify_merge_commands(undisturbed, tmp_path):
    def call(*words):
        command = [sys.executable, "-m", "fer_bench.cli", "results", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr
    _, results = undisturbed
    assert call("pack", tmp_path/"all.zip", "--results-dir", results)[0] == 0
    code, said = call("verify", tmp_path/"all.zip")
    assert code == 0 and said.count("sound") >= 4
    assert call("merge", tmp_path/"all.zip", "--results-dir", tmp_path/"there")[0] == 0
    same(tmp_path/"there", results)
    path = load_runs(tmp_path/"there")[0].folder/"metrics.json"
    path.write_text(path.read_text().replace('"WAR"', '"WAR" '))
    code, said = call("verify", tmp_path/"there")
    assert code == 1 and "damaged" in said

def test_a_grid_of_one_results_folder_and_one_process_a_run(tmp_path):
    with pytest.raises(BenchError, match="one results folder"):
        sweep({**TINY, "results_dir": [str(tmp_path/"a"), str(tmp_path/"b")]})
    with pytest.raises(BenchError, match="one process"): sweep({**TINY, "processes": 2})
    with pytest.raises(BenchError, match="engine='ray'"): sweep(TINY, address="auto")

def test_the_same_data_under_two_paths_is_one_run(tmp_path):
    from fer_bench.catalogue import make_source
    root = fake("ferplus", tmp_path, faces_per_class=4)
    config = RunConfig(**TINY, dataset="ferplus", data_root=str(root))
    build_faceset(make_source(config), tmp_path/"packed")
    grid = {**TINY, "dataset": "ferplus", "data_root": [str(root), str(tmp_path/"packed")]}
    outcome = sweep(grid, tmp_path/"results", dry_run=True)
    assert len(outcome.cells) == 1

# the committed studies

def deciding(config): return {n: v for n, v in config.model_dump().items() if n not in {*NO_NUMBER, *BY_HASH, "init"}}

def as_then(cell, numerics):
    "What decided the run of `cell` when these `numerics` were in use."
    former = former_values(cell.config.method, numerics)
    return deciding(cell.config) | {n: v for n, v in former.items() if n not in cell.given}

def test_the_committed_study_is_its_grid():
    "Every committed run of FERPlus with 50 labels a class, and the pretrainings, is a run of one of our grids."
    cells = [c for path in (RESULTS/"ferplus-50.yaml", *RESULTS.glob("studies/*.yaml")) for c in expand(path)]
    found = {r.id: r for r in load_runs(RESULTS) if r.metrics.dataset == "ferplus"}
    records = {name: recorded_config(r.config) for name, r in found.items()}
    for name, config in records.items():
        then = found[name].metrics.numerics
        theirs = [(as_then(c, then), as_then(c.needs, then) if c.needs else c.config.init) for c in cells]
        if config.labels_per_class != 50 and config.method not in ("byol", "simfle"): continue
        start = config.init.removeprefix("run:")
        assert (deciding(config), deciding(records[start]) if start in records else start) in theirs, name

def test_the_gpu_study_is_the_same_grid_with_more_draws_and_seeds():
    def methods(name):
        cells = [(c.config, c.needs.config.method if c.needs else c.config.init) for c in expand(RESULTS/name)]
        return {(config.method, config.min_map, init) for config, init in cells}
    assert methods("ferplus-50.yaml") == methods("gpu-study.yaml")
    configs = [c.config for c in expand(RESULTS/"gpu-study.yaml")]
    assert {(c.backbone, c.image_size, c.device) for c in configs} == {("resnet18", 112, "cuda")}
    assert {c.seed for c in configs} == {0, 1, 2} and {c.label_seed for c in configs} == {0, 1, 2, 3, 4}
