"""Backbones, weights, EMA, losses and the loop, against slow plain versions."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fer_bench.catalogue import METHODS, make_method
from fer_bench.config import RunConfig
from fer_bench.core import BenchError
from fer_bench.methods.supervised import class_weights, cross_entropy
from fer_bench.models.backbones import create_classifier, feature_width, load_weights, read_weights
from fer_bench.models.ema import averaged_copy, ema_decay, update_ema
from fer_bench.train.checkpoint import load_checkpoint, save_checkpoint
from fer_bench.train.loop import learning_rate, make_accelerator


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(2, 5), st.floats(0, 0.9), st.booleans(), st.booleans(), st.integers(0, 999))
def test_cross_entropy_against_plain_loops(n, k, smoothing, soft, weighted, seed):
    rng = np.random.default_rng(seed)
    logits, w = rng.normal(0, 3, (n, k)), rng.uniform(0.2, 5, k) if weighted else np.ones(k)
    hard = rng.integers(0, k, n)
    shares = rng.dirichlet(np.ones(k), n) if soft else np.eye(k)[hard]
    total = 0.0
    for row, share in zip(logits, shares, strict=True):
        log_z = math.log(sum(math.exp(v) for v in row))
        for c in range(k): total -= ((1 - smoothing) * share[c] + smoothing / k) * w[c] * (row[c] - log_z)
    targets = torch.from_numpy(shares if soft else hard)
    got = cross_entropy(torch.from_numpy(logits), targets, smoothing, torch.from_numpy(w) if weighted else None)
    assert got.item() == pytest.approx(total / n, rel=1e-9)

def test_class_weights_average_to_one_over_faces():
    counts = torch.tensor([5, 50, 500])
    w = class_weights(counts)
    assert (w * counts).sum().item() == pytest.approx(counts.sum().item()) and torch.allclose(w[0] * 5, w[2] * 500)

def test_ema_against_the_plain_formula():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ema = averaged_copy(net)
    plain = {k: v.clone() for k, v in net.state_dict().items()}
    for step in range(30):
        with torch.no_grad():
            for p in net.parameters(): p.add_(torch.randn_like(p))
        net(torch.randn(8, 3))
        d = min(0.95, (1 + step) / (10 + step))
        update_ema(ema, net, ema_decay(step, 0.95))
        for k, v in net.state_dict().items(): plain[k] = d * plain[k] + (1 - d) * v if v.is_floating_point() else v
    for k, v in ema.state_dict().items(): torch.testing.assert_close(v, plain[k])

def test_schedule():
    rates = [learning_rate(s, 100, 10, 0.5) for s in range(100)]
    assert max(rates) == 0.5 and rates[0] == 0.05 and rates[-1] < 0.001 and rates[9:] == sorted(rates[9:], reverse=True)
    assert learning_rate(0, 10, 0, 1.0) == 1.0

def test_precision_changes_between_runs():
    assert [make_accelerator("cpu", p).mixed_precision for p in ("bf16", "fp32", "auto")] == ["bf16", "no", "no"]

def test_features_as_wide_as_the_network_makes_them():
    "MobileNetV3 widens its 288 channels to 1024 after the pool; others end as they are."
    for name, width in (("mobilenetv3_small_050", 1024), ("test_resnet", None)):
        net, images = create_classifier(name, 8, 32)[0].eval(), torch.rand(2, 3, 32, 32)
        assert net.encode(images).shape == (2, width or net.backbone.num_features) and net(images).shape == (2, 8)

# weights files

@pytest.mark.parametrize("write, says", [
    (lambda p: p.write_bytes(b""), "cannot be read"), (lambda p: p.write_text("not weights"), "cannot be read"),
    (lambda p: torch.save({"fc.weight": torch.ones(2)}, p), "0 of"), (lambda p: torch.save([1, 2], p), "0 of"),
    (lambda p: torch.save({"a": print}, p), "cannot be read")], ids=["empty", "text", "other net", "a list", "code"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_bad_weights(tmp_path, write, says, suffix):
    path = tmp_path/f"weights{suffix}"
    write(path)
    with pytest.raises(BenchError, match=f"{says}|cannot be read"): create_classifier("test_resnet", 8, 32, init=str(path))

def test_half_of_other_sizes_does_not_count(tmp_path):
    backbone = create_classifier("test_resnet", 8, 32)[0].backbone
    torch.save({k: v.reshape(-1).repeat(2) for k, v in backbone.state_dict().items()}, tmp_path/"w.pt")
    with pytest.raises(BenchError, match="does not fit"): load_weights(backbone, tmp_path/"w.pt")
    assert len(read_weights(tmp_path/"w.pt")) == len(backbone.state_dict())

def test_pretrained_without_network_or_weights(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BenchError, match="could not be fetched|no pretrained weights"): create_classifier("test_resnet", 8, 32, init="timm")
    with pytest.raises(BenchError, match="no pretrained weights"): create_classifier("resnet10t.nobody", 8, 32, init="timm")

def test_checkpoints_hold_no_code(tmp_path):
    save_checkpoint(tmp_path, 1, {"weights": {"a": torch.ones(2)}, "history": [{"loss": 1.0}], "best": None})
    assert load_checkpoint(tmp_path)["history"] == [{"loss": 1.0}]
    save_checkpoint(tmp_path, 2, {"code": print})
    with pytest.warns(UserWarning, match="00002.*left out"): assert load_checkpoint(tmp_path)["history"] == [{"loss": 1.0}]

# the contract of every method in the catalogue

TRAINED = [name for name in METHODS if name != "linear_probe"]

def make(name):
    torch.manual_seed(0)
    config = RunConfig(preset="tiny", method=name)
    return make_method(config, create_classifier(config.backbone, 8, 32, min_map=config.min_map)[0], np.full(8, 4), n_unlabelled=20)

@pytest.fixture(params=TRAINED)
def method(request): return make(request.param)

def batch_for(method, n=8):
    common = {"targets": torch.arange(n) % 8, "step": 1, "progress": 0.5, "index": torch.arange(n)}
    return {**common, **{role: [torch.rand(n, 3, 32, 32) for _ in views]
                                                               for role, views in method.views.items()}}

def test_method_contract(method):
    "One forward gives a finite loss with gradients and named parts; steps move weights; evaluation changes nothing."
    loss, parts = method.train()(batch_for(method))
    loss.backward()
    method.forward_only(batch_for(method)).backward()  # what the speed of a step is measured against
    assert loss.ndim == 0 and loss.isfinite() and parts and all(v.ndim == 0 for v in parts.values())
    grads = [p.grad for p in method.net.parameters() if p.requires_grad]
    assert all(g is not None and g.isfinite().all() for g in grads)
    torch.optim.SGD(method.net.parameters(), 0.1).step()
    before = {k: v.clone() for k, v in method.evaluated.state_dict().items()}
    method.after_step(0); method.after_epoch(0.5, lambda: (torch.randn(9, 8), torch.arange(9) % 8))
    assert method.ema is None or any(not torch.equal(v, before[k]) for k, v in method.evaluated.state_dict().items())
    state = {k: v.clone() for k, v in method.state_dict().items()}
    with torch.no_grad(): logits, features = method.eval().classify(torch.rand(3, 3, 32, 32)), method.encode(torch.rand(3, 3, 32, 32))
    assert logits.shape == (3, 8) and features.shape == (3, feature_width(method.net.backbone))
    assert all(torch.equal(v, state[k]) for k, v in method.state_dict().items())

def test_method_under_bf16(method):
    "The forward runs in bf16 where autocast says so; weights and gradients stay float32."
    kinds = []
    for layer in method.net.backbone.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear): layer.register_forward_hook(lambda m, i, out: kinds.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16): loss, _ = method.train()(batch_for(method))
    loss.backward()
    assert torch.bfloat16 in kinds and loss.dtype == torch.float32
    assert {p.grad.dtype for p in method.net.parameters() if p.requires_grad} == {torch.float32}

@pytest.mark.parametrize("name", TRAINED)
def test_method_state_resumes(name):
    "All state lies in parameters and buffers: a copy made from them goes on the same way."
    method, twin = make(name), make(name)
    method.train()(batch_for(method))[0].backward()
    torch.optim.SGD(method.net.parameters(), 0.1).step(); method.after_step(0)
    twin.load_state_dict(method.state_dict())
    images, twin = torch.rand(2, 3, 32, 32), twin.eval()
    with torch.no_grad(): assert torch.equal(method.eval().classify(images), twin.classify(images))
