"""The cost of a step against what is known of the networks; rows of measured speed; usual training beside ours."""
import json
import math
import multiprocessing
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fer_bench.catalogue import registered
from fer_bench.config import RunConfig
from fer_bench.core import BenchError
from fer_bench.data.views import VIEWS
from fer_bench.methods.base import Method
from fer_bench.speed import benchmark
from fer_bench.speed import step as speed_step
from fer_bench.speed.benchmark import cases, growth, measure, save_rows, times
from fer_bench.speed.cost import step_cost
from fer_bench.speed.device import PeakMemory, device_name, in_turns, peaks
from fer_bench.speed.faces import generated, patterns, write_files
from fer_bench.speed.step import SECTIONS, Sections, Step, Traffic
from fer_bench.speed.usual import UsualLoader, UsualTraining, divide_workers, pil_views

PLAIN = dict(device="cpu", threads=1)

def tiny(method="supervised", **fields): return RunConfig(method=method, preset="tiny", **PLAIN, **fields)

def shapes(batch):
    return {k: [tuple(x.shape) for x in v] if isinstance(v, list) else tuple(v.shape) for k, v in batch.items()}

# what a step needs, counted

def test_cost_of_resnet18():
    "1.82 G multiply-adds forward at 224 px, twice the FLOPs, three times with backward; the images need no gradient."
    cost = step_cost(RunConfig(preset="standard", image_size=224, ema=0.0, **PLAIN))
    assert cost["GFLOPs a face"] == pytest.approx(2 * (3 * 1.82 - 0.118), rel=0.01)
    assert cost["MiB fixed"] == pytest.approx(3 * 4 * 11.18, rel=0.1)  # 11.18 M weights, gradients, momentum of 4 bytes
    assert cost["GiB a step"] == pytest.approx((cost["MiB fixed"] + 128 * cost["MiB a face"]) / 1024)

def test_cost_grows_with_what_a_method_does():
    "A second view of each face, and a target network without gradient: 2 · 3 + 2 · 1 passes instead of 3."
    plain, byol = (step_cost(tiny(m, min_map=4, ema=0.0)) for m in ("supervised", "byol"))
    assert 2.5 < byol["GFLOPs a face"] / plain["GFLOPs a face"] < 3
    assert byol["MiB fixed"] > plain["MiB fixed"]

def test_bytes_that_operations_move():
    x = torch.ones(3, 4)
    for work, moved in ((lambda: x.T.contiguous(), 48 + 48), (lambda: x[1:], 0), (lambda: x.add_(1), 48 + 48),
                        (lambda: x[:1].expand(100, 4) + x[:1], 48 + 16 + 1600)):  # an expanded row is read once
        with Traffic() as traffic: work()
        assert traffic.bytes == moved

# a step taken apart

def test_sections_count_what_is_inside_once(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(speed_step, "now", lambda device: next(clock))
    sections = Sections("cpu")
    inner = sections.around("inner", lambda: "given")
    outer = sections.around("outer", lambda: (inner(), inner()))
    assert outer() == ("given", "given")  # clock: outer 0, inner 1 to 2, inner 3 to 4, outer 5
    assert sections.seconds == {"inner": 2, "outer": 3}

def test_sections_leave_an_object_what_it_is():
    sections, thing = Sections("cpu"), SimpleNamespace(work=lambda x: x + 1, other="other")
    wrapped = sections.calls(thing, work="section")
    assert (wrapped.work(1), wrapped.other, list(sections.seconds)) == (2, "other", ["section"])

@pytest.mark.parametrize("method", ["supervised", "dtm", "simfle", "mae", "mocov2", "eac", "scn", "rul"])
def test_step_and_usual_way_train_on_the_same_kind_of_batch(method, tmp_path):
    "Every section of a step takes time, both ways move the weights, and their batches have the same names and shapes."
    config = tiny(method)
    with generated(64, 32) as data:
        write_files(data[0], tmp_path)
        ours, usual = Step(config, *data), UsualTraining(config, tmp_path, 8, workers=0, device="cpu")
        batch = next(iter(usual.loader))
        assert shapes(batch) == shapes({k: v for k, v in ours.batch_at(0).items() if k in batch})
        before = [[p.detach().clone() for p in m.parameters() if p.requires_grad] for m in (ours.method, usual.method)]
        ours.step()
        usual.step(batch)
        shares = ours.shares(1)
    assert set(shares) == set(SECTIONS) and sum(shares.values()) == pytest.approx(1)
    assert all(share > 0 for name, share in shares.items())
    for old, m in zip(before, (ours.method, usual.method), strict=True):
        new = [p for p in m.parameters() if p.requires_grad]
        assert any(not torch.equal(a, b) for a, b in zip(old, new, strict=True))

def test_passes_leave_weights_and_gradients_alone():
    with generated(64, 32) as data: ours = Step(tiny("dtm"), *data)
    before = [p.detach().clone() for p in ours.method.parameters()]
    ours.passes()
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, ours.method.parameters(), strict=True))

def test_a_method_of_your_own_is_measured_without_telling_its_passes():
    "All views go through `net` once; nothing else is asked of the method."
    class Own(Method):
        views = {"labelled": ["weak"], "unlabelled": ["weak", "strong"]}
        def __init__(self, net, config, counts, n_unlabelled): super().__init__(net, config.ema)
        def forward(self, batch):
            loss = self.net(torch.cat([*batch["labelled"], *batch["unlabelled"]])).square().mean()
            return loss, {"size": loss}
    with registered("own", Own):
        config = tiny("own", unlabelled="rest", mu=2, labels_per_class=1)
        row = measure(config, usual=False, repeats=1, faces=64)
        case, = cases(["own"], [32], [24], preset="tiny", unlabelled="rest", mu=2, labels_per_class=1)
    assert row["faces"] == 24 and row["passes_ms"] > 0 and case.batch_size == 8

def test_the_limit_has_the_memory_order_that_convolutions_like():
    with generated(64, 32) as data: ours = Step(tiny("dtm"), *data)
    views = [v for kind in ("labelled", "unlabelled") for v in ours.ready[kind]]
    assert len(views) == 3 and all(v.is_contiguous(memory_format=torch.channels_last) for v in views)

# the usual way

@pytest.mark.parametrize("size", [48, 112])
def test_every_view_has_its_counterpart(size):
    views, face = pil_views(size), Image.fromarray(patterns(112)[0])
    assert views.keys() == VIEWS.keys()
    for view in views.values():
        for _ in range(5):
            x = view(face)
            assert x.shape == (3, size, size) and x.min() >= 0 and x.max() <= 1

def test_files_are_the_faces(tmp_path):
    "PNG keeps every pixel; JPEG nearly; each lies in the folder of its class."
    for size, ending, error in ((48, "png", 0), (64, "jpg", 12)):
        with generated(16, size) as (faceset, _, _):
            written = write_files(faceset, tmp_path/ending)
            assert written == sum(p.stat().st_size for p in (tmp_path/ending).rglob("*.*"))
            for path in (tmp_path/ending).rglob(f"*.{ending}"):
                i = int(path.stem)
                assert path.parent.name == faceset.index["label"][i]
                read = np.asarray(Image.open(path), float).reshape(faceset.images[i].shape)
                assert np.abs(read - faceset.images[i]).mean() <= error

def test_processes_are_shared_out():
    assert divide_workers(16, [128, 512]) == [3, 13] and divide_workers(2, [64]) == [2]
    assert divide_workers(1, [8, 8]) == [1, 1] and divide_workers(0, [8, 8]) == [0, 0]

def test_a_block_ends_its_processes(tmp_path):
    with generated(64, 32) as (faceset, _, _):
        write_files(faceset, tmp_path)
        way = UsualTraining(tiny(), tmp_path, 8, workers=1, device="cpu")
        way.block(1)
    assert way.done == way.warmup + 1 and not multiprocessing.active_children()

def test_loader_goes_on_for_ever(tmp_path):
    with generated(16, 32) as (faceset, _, _): write_files(faceset, tmp_path)
    batches = iter(UsualLoader(tiny(), tmp_path, {"labelled": ["plain"]}, 0, "cpu"))
    seen = torch.cat([next(batches)["targets"] for _ in range(20)])  # 160 of 16 pictures
    assert seen.bincount().min() > 5

# the device and the faces

def test_generated_faces():
    with generated(600, 48, 10) as (faceset, split, pool):
        assert faceset.images.shape == (600, 48, 48, 1) and isinstance(faceset.images, np.memmap)
        assert (np.bincount(faceset.labels) == 60).all() and len(split.labelled) == len(pool) == 600
        assert (faceset.images[599] == patterns(48)[599 - 512]).all()
    with pytest.raises(BenchError, match="5 faces cannot show 8 classes"), generated(5, 32): pass

def test_memory_is_seen_again_after_it_was_freed():
    def taken():
        with PeakMemory("cpu") as memory:
            held = torch.ones(2**25)
            time.sleep(0.15)
        return memory.mebibytes, held.sum()
    assert all(100 < taken()[0] < 160 for _ in range(2))

def test_device():
    assert device_name("cpu")
    assert peaks("cpu", "fp32", torch.get_num_threads()).keys() == {"matmul", "convolution", "copy"}

# rows

def test_turns_begin_with_each():
    order = []
    in_turns({name: lambda name=name: order.append(name) for name in "abc"}, 4)
    assert "".join(order) == "abc" "bca" "cab" "abc"

@pytest.fixture(scope="module")
def row(): return measure(tiny("dtm"), repeats=3, block=2, workers=0, faces=64)

def test_a_row_hangs_together(row):
    setting = {name: row[name] for name in ("faces", "batch_size", "set", "repeats", "block", "workers")}
    assert setting == {"faces": 24, "batch_size": 8, "set": 64, "repeats": 3, "block": 2, "workers": 0}
    assert row["images_a_second"] == pytest.approx(24e3 / row["step_ms"], rel=1e-3)
    assert row["flops_a_second"] == pytest.approx(1e12 * row["gflops"] / row["step_ms"], rel=1e-2)
    peak = max(row["peak_matmul"], row["peak_convolution"])
    assert row["of_peak"] == pytest.approx(row["flops_a_second"] / peak, rel=1e-2)
    assert row["step_ms_low"] <= row["step_ms"] <= row["step_ms_high"]
    assert sum(row[f"share_{name}"] for name in SECTIONS) == pytest.approx(1, abs=1e-3)
    assert row["precision"] == "fp32" and row["memory_mib"] > 0
    for v in row.values(): assert isinstance(v, str) or (isinstance(v, (int, float)) and math.isfinite(v))

def test_ratios_are_medians_of_ratios():
    "A slow moment that hits one turn of all ways leaves the ratios as they are."
    table = pd.DataFrame({"step": [1.0, 10, 1], "passes": [0.9, 9, 0.9], "usual": [1.5, 15, 1.5]})
    row = times(table, 10)
    assert (row["of_limit"], row["over_usual"], row["usual_of_limit"]) == (0.9, 1.5, 0.6)
    assert row["step_ms"] == 1000 and row["images_a_second"] == 10

def test_rows_without_the_usual_way():
    row = measure(tiny(processes=2), usual=False, repeats=1, faces=64)
    assert not {"usual_ms", "over_usual", "workers"} & row.keys() and row["processes"] == 1

def test_growth_changes_one_thing():
    size = growth(tiny(), "image_size", (32, 64), repeats=1)
    assert [(r["image_size"], r["along"], r["value"]) for r in size] == [(32, "image_size", 32), (64, "image_size", 64)]
    assert size[1]["gflops"] / size[0]["gflops"] == pytest.approx(4, rel=0.1)
    faces = growth(tiny(), "faces", (64, 640), repeats=1)
    classes = growth(tiny(), "classes", (4, 40), repeats=1)
    assert [r["set"] for r in faces] == [64, 640] and [r["classes"] for r in classes] == [4, 40]
    with pytest.raises(BenchError, match="no axis of growth 'batch'"): growth(tiny(), "batch")

def test_growth_along_processes(monkeypatch):
    "Seconds of an epoch of ten steps, the first left out, as milliseconds a step."
    history = pd.DataFrame({"seconds": [9.0, 0.1, 0.2, 0.3]})
    metrics = SimpleNamespace(images_seen=960, peak_memory_mb=100, device="cpu")
    asked = []
    def run(config):
        asked.append(config)
        return SimpleNamespace(history=history, metrics=metrics)
    monkeypatch.setattr(benchmark, "run", run)
    rows = growth(tiny("dtm"), "processes")
    assert [c.processes for c in asked] == [1, 2] == [r["processes"] for r in rows]
    assert all((r["step_ms"], r["faces"], r["precision"]) == (20, 24, "fp32") for r in rows)

def test_cases():
    found = cases(("supervised", "dtm", "simfle", "mae"), (48, 112), (60, 24), preset="standard", backbone="resnet10t")
    assert [(c.method, c.image_size, c.batch_size) for c in found[:4]] == [
        ("supervised", 48, 60), ("dtm", 48, 20), ("simfle", 48, 60), ("mae", 48, 60)]
    assert {c.backbone for c in found} == {"resnet10t", "facemae_small"} and found[4].batch_size == 24
    with pytest.raises(BenchError, match="3 numbers of faces for 1 sizes"): cases(["dtm"], [48], [1, 2, 3])
    with pytest.raises(BenchError, match="Did you mean 'dtm'"): cases(["dmt"], [48], [30])

def test_too_few_faces():
    with pytest.raises(BenchError, match="10 faces are fewer than the 16 of a step"): measure(tiny("dtm"), faces=10)

def test_rows_are_added_and_stamped(tmp_path, row):
    (first,) = save_rows([row], tmp_path)
    (second,) = save_rows([row | {"seed": 1}, row], tmp_path)
    lines = [json.loads(line) for line in first.read_text().splitlines()]
    assert first == second and len(lines) == 3 and lines[1]["seed"] == 1
    for line in lines:
        assert line["date"] in first.name and line["versions"]["torch"] and line["step_ms"] == row["step_ms"]
    gpu, cpu = sorted(save_rows([row, row | {"device": "NVIDIA H200"}], tmp_path), key=lambda p: p.name, reverse=True)
    assert gpu.name.startswith("nvidia-h200-2") and cpu == first
