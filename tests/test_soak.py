"""Two hundred tiny runs (or FER_BENCH_SOAK) in one process: memory, open files and the time of a run stay flat."""
import gc
import os
import time

import numpy as np
import psutil
import pytest

from fer_bench.config import RunConfig
from fer_bench.record import load_runs
from fer_bench.runs.experiment import run

RUNS = int(os.environ.get("FER_BENCH_SOAK", 200))
METHODS = ("supervised", "dtm", "simfle", "eac")
WARM = 2 * len(METHODS)  # runs until every method has had its buffers

def measure(i: int, results) -> tuple[float, float, float]:
    "(seconds of processor, MiB held after it, open files after it) of the run number `i`."
    method = METHODS[i % len(METHODS)]
    config = RunConfig(preset="tiny", device="cpu", threads=1, method=method, seed=i, results_dir=str(results))
    began = time.process_time()
    assert run(config).finished
    seconds = time.process_time() - began
    gc.collect()
    return seconds, psutil.Process().memory_info().rss / 2**20, psutil.Process().num_fds()

def growth(values: np.ndarray) -> float:
    "Slope a run by Theil and Sen, the median over all pairs: one run that a busy machine disturbs does not move it."
    i, j = np.triu_indices(len(values), 1)
    return float(np.median((values[j] - values[i]) / (j - i)))

@pytest.mark.soak
def test_many_runs_in_one_process(tmp_path, capsys):
    found = np.array([measure(i, tmp_path) for i in range(WARM + RUNS)])[WARM:]
    whole = len(found) // len(METHODS) * len(METHODS)
    rounds = found[:whole].reshape(-1, len(METHODS), 3)  # (rounds, a run of each method, 3)
    seconds, memory, files = rounds.mean(1).T
    slopes = [growth(values) / len(METHODS) for values in (seconds, memory, files)]
    with capsys.disabled():
        print(f"\n{RUNS} runs: {np.median(seconds):.2f} s of processor each, {memory[0]:.0f} → {memory[-1]:.0f} MiB, "
              f"{files[0]:.0f} → {files[-1]:.0f} files; a run more: {1000 * slopes[0]:+.2f} ms, "
              f"{1024 * slopes[1]:+.0f} KiB, {slopes[2]:+.3f} files")
    assert len(load_runs(tmp_path)) == WARM + RUNS
    assert slopes[0] * RUNS < 0.5 * np.median(seconds), "the last run takes half as long again as the first"
    assert slopes[1] < 0.25 and slopes[2] < 0.01, "MiB, files a run"

@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_growth_is_seen_through_noise(slope):
    noise = np.random.default_rng(0).normal(size=50) + 40 * (np.random.default_rng(1).random(50) < 0.1)
    assert abs(growth(slope * np.arange(50) + noise) - slope) < 0.05
