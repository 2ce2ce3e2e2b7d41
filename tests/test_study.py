"""Studies: several grids in an order of worth, `make study` killed again and again, the files of results/studies."""
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from filelock import FileLock

from fer_bench.config import RunConfig
from fer_bench.core import json_hash, make_folder
from fer_bench.data.sources.fixtures import fake
from fer_bench.record import Record, load_runs, runs_folder
from fer_bench.runs.experiment import run
from fer_bench.schema import SEALED
from fer_bench.sweeps.grid import expand
from fer_bench.sweeps.plan import SPLIT_FIELDS, Plan, faces
from fer_bench.sweeps.scheduler import Scheduler
from fer_bench.sweeps.sweep import sweep

ROOT = Path(__file__).parent.parent
STUDIES = sorted((ROOT/"results/studies").glob("*.yaml"))
TINY = dict(preset="tiny", threads=1, device="cpu")

@pytest.fixture
def grids(tmp_path):
    "grids(a, b, ...) → files 1.yaml, 2.yaml, ... of the fields a, b, ... on the preset tiny."
    def write(*several):
        paths = [tmp_path/f"{i + 1}.yaml" for i in range(len(several))]
        for path, fields in zip(paths, several, strict=True): path.write_text(yaml.safe_dump({**TINY, **fields}))
        return list(map(str, paths))
    return write

def test_the_first_file_comes_first_and_a_run_of_two_files_is_one(grids, tmp_path):
    files = grids({"seed": [0, 2]}, {"seed": [0, 1], "label_seed": [0, 1]})
    outcome = sweep(files, tmp_path/"results", dry_run=True)
    assert [(Path(c.grid).name, c.config.seed) for c in outcome.cells] == [
        ("1.yaml", 0), ("1.yaml", 2), ("2.yaml", 1), ("2.yaml", 0), ("2.yaml", 1)]
    waiting = Scheduler(Plan(tmp_path/"results"), outcome.cells, None, 0).waiting
    assert [(c.config.seed, c.config.label_seed) for c in waiting] == [(0, 0), (2, 0), (0, 1), (1, 0), (1, 1)]
    assert f"{files[0]}: 2 to do\n" in outcome.summary() and f"{files[1]}: 3 to do\n" in outcome.summary()

def test_a_file_without_its_data_is_named_and_the_next_is_done(grids, tmp_path):
    files = grids({"dataset": "ferplus", "data_root": str(tmp_path/"nowhere"), "seed": [0, 1, 2]}, {})
    planned = sweep(files, tmp_path/"results", dry_run=True)
    assert planned.table()["state"].tolist() == ["cannot run"] * 3 + ["to do"]
    outcome = sweep(files, tmp_path/"results", workers=1)
    assert [c.state for c in outcome.cells] == ["cannot run"] * 3 + ["finished"] and outcome.exit_code == 1
    said = outcome.summary()
    assert f"({files[0]}, line" in said and "and 2 more: There is no folder or archive" in said
    assert said.count("nowhere") == 1

def test_a_run_that_another_process_holds_is_passed_over(grids, tmp_path):
    held, other = sweep(grids({}, {"seed": 1}), tmp_path/"results", dry_run=True).cells
    folders = [runs_folder(tmp_path/"results")/c.id for c in (held, other)]
    claim = FileLock(make_folder(folders[0])/"claim", thread_local=False)  # another thread lets it go
    claim.acquire()
    def release():
        while not Record(folders[1]).finished: time.sleep(0.05)
        claim.release()
    (thread := threading.Thread(target=release, daemon=True)).start()
    assert sweep(grids({}, {"seed": 1}), tmp_path/"results", workers=1).exit_code == 0
    thread.join()
    ended = [(folder/"status.json").stat().st_mtime_ns for folder in folders]
    assert ended[1] < ended[0], "the second was done while the first was held, and the first after that"

# make study, killed

def make_study(files, results, minutes=10):
    words = [f"STUDIES={' '.join(files)}", f"RESULTS={results}", f"MINUTES={minutes}", "WORKERS=1", "DATA=unused",
             f"PYTHON={sys.executable}"]
    return subprocess.Popen(["make", "--no-print-directory", "study", *words], cwd=ROOT, text=True,
                            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

def finished(results) -> dict[str, tuple]:
    "Run id → when it was finished, and the bytes of its record."
    return {r.id: ((r.folder/"status.json").stat().st_mtime_ns, *((r.folder/n).read_bytes() for n in SEALED))
            for r in load_runs(results)}

def check_kills(grids, tmp_path, kills: int, seed: int):
    rng, results, known = random.Random(seed), tmp_path/"results", {}
    length = {"epochs": 4, "steps_per_epoch": 10}
    files = grids({"seed": [0, 1], **length}, {"method": "fixmatch", "labels_per_class": 2, **length})
    def written(): return {str(p) for what in ("checkpoint*", "metrics.json") for p in results.glob(f"runs/*/{what}")}
    for _ in range(kills):
        before, process, until = written(), make_study(files, results), time.monotonic() + rng.uniform(1, 30)
        while process.poll() is None and written() <= before and time.monotonic() < until: time.sleep(0.02)
        time.sleep(rng.uniform(0, 1))
        with contextlib.suppress(ProcessLookupError): os.killpg(process.pid, signal.SIGKILL)  # it may have ended
        said, _ = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), said
        assert known.items() <= finished(results).items(), "what was finished stays as it is"
        known = finished(results)
    said, _ = (process := make_study(files, results)).communicate()
    assert process.returncode == 0 and "3 runs: 3 finished." in said, said
    assert known.items() <= (known := finished(results)).items() and len(known) == 3
    assert sweep(files, results).exit_code == 0 and finished(results) == known, "nothing is done twice"
    assert not list(results.glob("runs/*/checkpoint*")) and not list(results.glob("runs/*/.*.part"))

needs_make = pytest.mark.skipif(not shutil.which("make"), reason="no make")

@needs_make
def test_a_killed_study_goes_on(grids, tmp_path): check_kills(grids, tmp_path, kills=2, seed=0)

@needs_make
@pytest.mark.nightly
def test_a_study_killed_ten_times(grids, tmp_path): check_kills(grids, tmp_path, kills=10, seed=1)

@needs_make
def test_a_study_stops_in_time_and_that_is_no_failure(grids, tmp_path):
    process = make_study(grids({"epochs": 5000, "steps_per_epoch": 50}), tmp_path/"results", minutes=0.2)
    said, _ = process.communicate()
    assert process.returncode == 0 and "the same sweep goes on from here" in said, said

# the files of results/studies

def test_the_studies_have_an_order_of_worth():
    numbers = [int(path.name.split("-")[0]) for path in STUDIES]
    assert numbers == sorted(set(numbers)) and len(numbers) >= 3

@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_a_kill_costs_a_study_little_and_its_numbers_are_honest(path):
    for cell in expand(path, {"data_root": "there"}):
        config: RunConfig = cell.config
        assert faces(config)/config.epochs <= 50_000, "an epoch, after which a checkpoint is written, is minutes"
        assert (config.threads, config.device, config.select, config.dedupe) == (1, "cpu", "last", "cross_split")

def test_the_studies_of_few_labels_share_their_draws():
    drawn = [{tuple(getattr(c.config, n) for n in SPLIT_FIELDS) for c in expand(path)} for path in STUDIES
             if path.stem.endswith("-50")]
    assert len(drawn) >= 2 and all(draws == drawn[0] for draws in drawn) and len(drawn[0]) == 5

# the grids for a GPU

GPU = [ROOT/f"results/{name}.yaml" for name in ("gpu-pretraining", "gpu-study")]
SHORT = dict(device="cpu", threads=1, precision="fp32", epochs=1, steps_per_epoch=2, batch_size=4, warmup_epochs=0,
             keep_epochs="", seed=0, label_seed=0, labels_per_class=None)
SMALL = dict(facemae="tiny", proj_hidden=64, proj_dim=32, prototypes=64)  # the widths change no row's meaning

@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    "two_steps(cell) → the record of its row after two steps of four faces on the CPU, started as the row is."
    folder, done = tmp_path_factory.mktemp("gpu"), {}
    data, places = fake("ferplus", folder, faces_per_class=3), {n: str(folder/n) for n in ("results_dir", "cache_dir")}
    def do(cell):
        values = cell.config.model_dump() | SHORT | places | {"data_root": str(data)}
        if values["labels_per_class"] is None and values["balance"] == "sampler": values["labels_per_class"] = 2
        values |= {name: small for name, small in SMALL.items() if name in values}
        if values["backbone"] == "facemae_small": values["backbone"] = "facemae_tiny"
        values["init"] = f"run:{do(cell.needs).id}" if cell.needs else "scratch"
        key = json_hash(values)
        if key not in done: done[key] = run(RunConfig(**values))
        return done[key]
    return do

def rows(path):
    "A cell of each row of the grid: seeds, draws and lengths aside."
    names = ("method", "backbone", "batch_size", "min_map", "view_strength")
    named = lambda c: tuple(getattr(c.config, name) for name in names)
    return {(*named(c), *(named(c.needs) if c.needs else ())): c for c in expand(path, {"data_root": "there"})}.values()

@pytest.mark.parametrize("path", [GPU[0], pytest.param(GPU[1], marks=pytest.mark.nightly)], ids=lambda p: p.stem)
def test_each_row_of_a_gpu_grid_makes_two_steps_on_the_cpu(two_steps, path):
    for cell in rows(path):
        record = two_steps(cell)
        assert record.finished and np.isfinite(record.history["loss"]).all()
        if record.metrics.kind != "probe": assert record.metrics.epoch == 1

def test_the_gpu_pretrainings_are_long_honest_and_in_an_order_of_worth():
    cells = expand(GPU[0], {"data_root": "there"})
    for c in cells:
        assert (c.config.device, c.config.dedupe, c.config.select) == ("cuda", "cross_split", "last")
        assert faces(c.config)/c.config.epochs <= 60_000, "a kill costs an epoch"
    trained = [c.config for c in cells if c.config.method != "linear_probe"]
    long = [c for c in trained if c.epochs == 200]
    assert {(c.method, c.seed) for c in long} == {
        (m, s) for m in ("simfle", "byol", "simfle_random", "dino", "mae") for s in (0, 1, 2)}
    assert all(c.steps_per_epoch * c.batch_size == 109 * 256 for c in trained), "an epoch is a pass over 27,924 faces"
    waiting = [c.config for c in Scheduler(Plan(Path("nowhere")), cells, None, 0).waiting]
    first = [(c.method, c.epochs) for c in waiting if c.method != "linear_probe"][:7]
    assert waiting[0].method == "linear_probe" and first == [("simfle", 20), ("byol", 20)] + [
        (m, 200) for m in ("simfle", "byol", "simfle_random", "dino", "mae")]

def test_the_gpu_study_starts_from_the_long_pretrainings():
    theirs = {json_hash(c.config.model_dump()) for c in expand(GPU[0])}
    starts = [c.needs.config for c in expand(GPU[1]) if c.needs]
    assert {c.method for c in starts} == {"simfle", "byol"} and {json_hash(c.model_dump()) for c in starts} <= theirs
