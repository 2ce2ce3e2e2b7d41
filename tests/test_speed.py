"""What makes a step fast changes no number: each is held against the plain way."""
import contextlib
import copy
import shutil
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import clip_grad_norm_

from fer_bench import run
from fer_bench.catalogue import METHODS, methods_of
from fer_bench.config import RunConfig
from fer_bench.core import BenchError
from fer_bench.data.views import VIEWS, apply_view, make_view
from fer_bench.speed import ablation, benchmark
from fer_bench.speed.faces import generated
from fer_bench.speed.step import Step
from fer_bench.speed.usual import OPTIMIZERS
from fer_bench.train.loop import clip_gradients, fit, make_accelerator, make_optimizer, seed_step
from fer_bench.train.memory import memory_kept

TINY = dict(preset="tiny", device="cpu", threads=1)
TRAINED = [name for name in methods_of() if METHODS[name].kind != "probe"]

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.floats(0.01, 20), st.sampled_from([0.5, 0.999, 1 - 1e-7, 1.0, 1 + 1e-7, 1.001, 3.0]),
       st.booleans())
def test_clipping_gives_the_bits_of_torch(seed, most, share, missing):
    torch.manual_seed(seed)
    ours = [nn.Parameter(torch.randn(n)) for n in (3, 1, 7)]
    for p in ours[missing:]: p.grad = torch.randn_like(p)
    norm = torch.cat([p.grad for p in ours[missing:]]).norm()
    for p in ours[missing:]: p.grad *= most * share / norm
    theirs = copy.deepcopy(ours)
    for a, b in zip(ours, theirs, strict=True): b.grad = None if a.grad is None else a.grad.clone()
    clip_gradients(iter(ours), most)
    clip_grad_norm_(theirs, most)
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad is b.grad is None or torch.equal(a.grad, b.grad)

def test_clipping_passes_on_what_is_not_finite():
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, float("nan")])
    clip_gradients([parameter], 1.0)
    assert parameter.grad.isnan().any()  # and the loop says that the loss is not finite

def test_a_step_draws_the_same_whatever_was_drawn_before():
    draws = []
    for before in (0, 5):
        torch.rand(before)
        seed_step(3, 8)
        draws.append(torch.rand(4))
    seed_step(3, 9)
    assert torch.equal(*draws) and not torch.equal(draws[0], torch.rand(4))
    torch.manual_seed(int(np.random.SeedSequence([3, 8]).generate_state(1)[0]))
    assert torch.equal(draws[0], torch.rand(4))

@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("size, channels", [(48, 1), (112, 3)])
def test_no_view_asks_its_device(name, size, channels):
    "On torch's meta device there are shapes and no values, so whatever waits for a value, as `.item()` does, fails."
    faces = torch.empty(4, channels, size, size, dtype=torch.uint8, device="meta")
    assert apply_view(make_view(name), faces, size, 0, 0, 0).shape == (4, 3, size, size)

@pytest.mark.parametrize("method", TRAINED)
def test_no_step_asks_its_device(method, monkeypatch):
    with generated(64, 32) as data: step = Step(RunConfig(**TINY, method=method, ema=0.9), *data)
    bare = lambda v: v.to("meta") if torch.is_tensor(v) else [bare(x) for x in v] if isinstance(v, list) else v
    batch = {name: bare(v) for name, v in step.ready.items()}
    step.method.to("meta")
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())  # it refuses this device
    loss, parts = step.method(batch)
    loss.backward()
    step.method.after_step(3)
    assert all(v.device.type == "meta" for v in (loss, *parts.values()))

@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told to keep memory")
def test_kept_memory_is_used_again():
    "Blocks of 128 MiB, over the 32 from which glibc asks the system; in a process that has freed none before."
    code = """
import contextlib, resource, torch
from fer_bench.train.loop import memory_kept  # with the imports of a run, which shape the heap
def faults(way):
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with way:
        for _ in range(20): torch.ones(2**25)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start
print(faults(contextlib.nullcontext()), faults(memory_kept("cpu")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    given, kept = map(int, done.stdout.split())
    assert given > 500_000 > 5 * kept

def test_memory_is_kept_by_nobody_else(monkeypatch):
    "Where there is no glibc, and on a GPU, the context does nothing."
    def absent(name): raise OSError
    monkeypatch.setattr("ctypes.CDLL", absent)
    for device in ("cpu", "cuda"):
        with memory_kept(device): assert torch.ones(2).sum() == 2

def test_memory_goes_back_when_a_run_fails(monkeypatch, tmp_path):
    "The options that `memory_kept` set are set back on the way out of an error."
    told = []
    class Libc:
        mallopt = staticmethod(lambda option, value: told.append((option, value)))
    monkeypatch.setattr("ctypes.CDLL", lambda name: Libc)
    class Broken(nn.Module): ...
    with pytest.raises(Exception):  # noqa: B017
        fit(Broken(), None, RunConfig(**TINY), tmp_path, make_accelerator("cpu"))
    from fer_bench.train.memory import MALLOPT_KEEP, MALLOPT_USUAL
    assert told == [*MALLOPT_KEEP.items(), *MALLOPT_USUAL.items()]

def test_compile_reaches_the_method_and_names_the_run(tmp_path):
    "Without translating anything, so that no compiler is needed: same numbers, another run."
    runs = []
    for fields in ({}, {"compile": True}):
        stance = torch.compiler.set_stance("force_eager") if fields else contextlib.nullcontext()
        with stance: runs.append(run(RunConfig(**TINY, **fields, results_dir=str(tmp_path))))
    plain, compiled = runs
    assert plain.id != compiled.id and compiled.config["compile"]
    assert np.array_equal(*(np.stack(r.predictions["logits"]) for r in runs))

@pytest.mark.soak
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("method", TRAINED)
def test_compiled_methods_learn_what_plain_ones_do(method):
    "The loss of each of six steps, but for rounding."
    with generated(64, 32) as data:
        sums = []
        for compiled in (False, True):
            step = Step(RunConfig(**TINY, method=method, lr=0.003, compile=compiled), *data)
            for _ in range(6): step.step()
            sums.append(float(step.sums["loss"]))
    assert sums[0] == pytest.approx(sums[1], rel=1e-2)
    torch._dynamo.reset()

def test_the_usual_way_knows_every_optimizer():
    assert {*OPTIMIZERS} == {*get_args(get_args(RunConfig.model_fields["optimizer"].annotation)[0])}

def test_a_gpu_would_get_one_kernel():
    "torch's fused optimizers are for parameters on a GPU, and what they keep can be taken up by the other kind."
    net = nn.Linear(2, 2)
    assert not make_optimizer(net, RunConfig(**TINY)).defaults.get("fused")

# what each is worth

def test_every_change_runs_and_is_undone():
    names = [c.name for c in ablation.changes("cpu") if c.name != "torch.compile"]
    with generated(64, 32) as data: rows = ablation.change_gains(RunConfig(**TINY), data, names, repeats=1)
    assert [r["value"] for r in rows] == names
    for r in rows: assert r["gain"] == pytest.approx(r["without_ms"] / r["with_ms"], rel=1e-3)
    assert not torch.are_deterministic_algorithms_enabled()

def test_memory_is_compared_in_processes_of_their_own(monkeypatch, capsys):
    asked = []
    def seconds(config, kept, block):
        asked.append(kept)
        return 1.0 if kept else 2.0
    monkeypatch.setattr(ablation, "seconds_in_new_process", seconds)
    (row,) = ablation.memory_gain(RunConfig(**TINY), repeats=3)
    assert asked == [True, False, False, True, True, False] and (row["value"], row["gain"]) == ("memory kept", 2)
    ablation.print_seconds(RunConfig(**TINY).model_dump_json(), "0", "1")
    assert 0 < float(capsys.readouterr().out) < 60

def test_a_change_that_is_not_known():
    with generated(64, 32) as data, pytest.raises(BenchError, match="Did you mean 'channels last'"):
        ablation.change_gains(RunConfig(**TINY), data, ["channel last"])

def test_the_plain_average_is_the_same_average():
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    net(torch.randn(8, 3))
    from fer_bench.models.ema import averaged_copy, update_ema
    both = [averaged_copy(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))) for _ in range(2)]
    both[1].load_state_dict(both[0].state_dict())
    update_ema(both[0], net, 0.9)
    ablation.update_ema_by_tensor(both[1], net, 0.9)
    assert both[0][1].num_batches_tracked == 1
    states = [ema.state_dict().values() for ema in both]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))

@pytest.mark.parametrize("size", [48, 112])
def test_kornia_makes_the_same_views(size):
    pytest.importorskip("kornia")
    faces = torch.randint(0, 256, (3, 1, size, size), dtype=torch.uint8)
    for chain in ablation.kornia_views(size).values():
        view = chain(faces)
        assert view.shape == (3, 3, size, size) and view.isfinite().all()

def test_worth_says_where_it_was_measured():
    rows = benchmark.worth(RunConfig(**TINY), ["channels last", "bf16"], repeats=1)
    assert [(r["value"], r["used"]) for r in rows] == [("channels last", True), ("bf16", False)]
    assert {r["along"] for r in rows} == {"change"}
    assert {r["faces"] for r in rows} == {8} and all(r["device"] and r["precision"] == "fp32" for r in rows)
