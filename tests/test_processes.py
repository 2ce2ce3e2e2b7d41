"One run in two processes is the run of one: losses, gradients, state, metrics; and each face is counted once."
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shared_run
import torch

from fer_bench import distributed
from fer_bench.config import RunConfig
from fer_bench.core import BenchError
from fer_bench.runs.experiment import run

QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

def launch(n: int, *command) -> None:
    "Run a Python `command` in `n` processes."
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)] if n > 1 else []
    command = [sys.executable, *start, *map(str, command)]
    done = subprocess.run(command, env=QUIET, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]

@pytest.fixture(scope="module")
def steps(request, tmp_path_factory) -> list[dict]:
    "What `shared_run` found in one process and in two, for the methods whose tests were asked for."
    asked = [item.callspec.params["method"] for item in request.session.items
             if item.originalname == "test_steps_in_two_processes"]
    places = [tmp_path_factory.mktemp(f"processes{n}") for n in (1, 2)]
    for n, place in zip((1, 2), places, strict=True): launch(n, shared_run.__file__, place, *asked)
    found = [json.loads((place/"found.json").read_text()) for place in places]
    assert [f["processes"] for f in found] == [1, 2]
    return found

NIGHTLY = [pytest.param(m, marks=pytest.mark.nightly) for m in shared_run.METHODS if m not in shared_run.FEW]

@pytest.mark.parametrize("method", [*shared_run.FEW, *NIGHTLY])
def test_steps_in_two_processes(steps, method):
    one, two = (s[method] for s in steps)
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-5)
    assert len(set(one["losses"])) == shared_run.STEPS[method]  # something is learned; equal zeros would prove nothing
    assert two["gradients_apart"] == two["state_apart"] == 0

def test_a_stopped_training_is_taken_up_by_all(steps):
    one, two = (s["stopped"] for s in steps)
    np.testing.assert_allclose(two, one, rtol=1e-5)

@pytest.fixture(scope="module")
def records(tmp_path_factory):
    "records(method) → the same run in one process and in two, which the run starts itself."
    place = tmp_path_factory.mktemp("shared")
    base = dict(preset="tiny", drawn_faces=203, threads=1, device="cpu", cache_dir=str(place/"cache"))
    config = lambda m, n: RunConfig(**base, method=m, processes=n, results_dir=str(place/f"results{n}"))
    return lambda m: [run(config(m, n)) for n in (1, 2)]

NIGHTLY = [pytest.param(name, marks=pytest.mark.nightly) for name in ("supervised", "byol")]

@pytest.mark.parametrize("method", ["dtm", *NIGHTLY])
def test_records_of_two_processes(records, method):
    one, two = records(method)
    assert one.id == two.id and two.environment["processes"] == 2
    assert len(one.predictions) % 2  # so that one face is there to fill up, and must not be counted
    assert two.predictions["key"].tolist() == one.predictions["key"].tolist()
    logits, others = (np.stack(r.predictions["logits"]) for r in (one, two))
    np.testing.assert_array_equal(others.argmax(1), logits.argmax(1))
    if not one.config["probe"]: np.testing.assert_allclose(others, logits, atol=1e-3)  # a probe magnifies rounding
    assert two.metrics["test"]["confusion"] == one.metrics["test"]["confusion"]
    np.testing.assert_allclose(two.history["loss"], one.history["loss"], rtol=1e-4)
    counts = [c for c in one.history if c.startswith(("pool_", "pseudo_"))]
    assert two.history[counts].to_dict() == one.history[counts].to_dict()

def test_a_failure_is_told_in_a_sentence(tmp_path):
    with pytest.raises(BenchError, match="in 2 processes stopped: BenchError: .*Lower lr"):
        run(RunConfig(preset="tiny", lr=1000.0, clip_grad=0.0, ema=0.0, steps_per_epoch=20, processes=2, threads=1,
                      device="cpu", results_dir=str(tmp_path)))

def test_batches_that_cannot_be_shared():
    with pytest.raises(BenchError, match=r"batch_size \(9\) cannot be shared by 2 processes"):
        RunConfig(batch_size=9, processes=2)
    with pytest.raises(BenchError, match="A batch of 9 faces"): distributed.part_of(range(9), (0, 2))

@pytest.mark.nightly
def test_notebook_launcher(tmp_path):
    "As in a notebook, whose cell forks; `run` itself is the function."
    config = dict(preset="tiny", threads=1, device="cpu", results_dir=str(tmp_path))
    with socket.socket() as s:
        s.bind(("", 0))
        port = s.getsockname()[1]
    launch(1, "-c", "import accelerate, fer_bench\n"
           f"accelerate.notebook_launcher(fer_bench.run, ({config!r},), num_processes=2, use_port='{port}')")
    (environment,) = Path(tmp_path).glob("runs/*/environment.json")
    assert json.loads(environment.read_text())["processes"] == 2

def test_one_process_is_untouched():
    x = torch.randn(4, 3, requires_grad=True)
    assert distributed.all_gather(x) is x and distributed.all_reduce(x) is x and distributed.broadcast(x) is x
    with distributed.patched_batch_norm(): assert torch.nn.functional.batch_norm is not distributed.sync_batch_norm

def test_accelerate_launch(tmp_path):
    "The command of the README, on the CPU: both processes train, the first prints the table."
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
                "--mixed_precision", "no", "--dynamo_backend", "no"]
    run_tiny = ["fer_bench.cli", "run", "--preset", "tiny", "--device", "cpu", "--results-dir", tmp_path]
    launch(1, "-m", *launcher, "-m", *run_tiny)
    (environment,) = Path(tmp_path).glob("runs/*/environment.json")
    assert json.loads(environment.read_text())["processes"] == 2
