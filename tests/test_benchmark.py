"""What a step needs, counted, against what is known of the networks."""
import pytest

from fer_bench.benchmark import step_benchmark, step_cost
from fer_bench.config import RunConfig

PLAIN = dict(drawn_faces=80, device="cpu", threads=1, ema=0.0)

def test_cost_of_resnet18():
    "1.82 G multiply-adds a forward pass at 224 px, twice the FLOPs, three times with the backward pass; faces need no gradient."
    cost = step_cost(RunConfig(preset="standard", image_size=224, **PLAIN))
    assert cost["GFLOPs a face"] == pytest.approx(2 * (3 * 1.82 - 0.118), rel=0.01)
    assert cost["MiB fixed"] == pytest.approx(3 * 4 * 11.18, rel=0.1)  # 11.18 M weights, gradients, momentum, four bytes each
    assert cost["GiB a step"] == pytest.approx((cost["MiB fixed"] + 128 * cost["MiB a face"]) / 1024)

def test_cost_grows_with_what_a_method_does():
    "A second view of each face, and a target network without gradient: 2 · 3 + 2 · 1 passes instead of 3."
    plain, byol = (step_cost(RunConfig(preset="tiny", min_map=4, method=m, **PLAIN)) for m in ("supervised", "byol"))
    assert 2.5 < byol["GFLOPs a face"] / plain["GFLOPs a face"] < 3
    assert byol["MiB fixed"] > plain["MiB fixed"]

def test_memory_of_a_benchmark_is_told():
    assert step_benchmark(RunConfig(preset="tiny", **PLAIN), steps=1).attrs["peak_memory_mb"] > 50
