"""Backbones, weights, EMA, losses and the loop, against slow plain versions."""
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fer_bench.catalogue import BACKBONES, make_method, method_entry, methods_of
from fer_bench.config import RunConfig
from fer_bench.core import BenchError
from fer_bench.methods.supervised import class_weights, cross_entropy
from fer_bench.models.backbones import create_backbone, create_classifier, feature_width
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

# backbones of one's own

SMALL = """
import torch
from torch import nn

class Small(nn.Module):
    num_features, pretrained_cfg = 8, {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    def __init__(self, image_size, stride=4):
        super().__init__()
        self.image_size, self.conv = image_size, nn.Conv2d(3, 8, stride, stride)
    def forward_features(self, x): return self.conv(x)
    def forward(self, x): return self.forward_features(x).mean((2, 3))

def coarse(image_size): return Small(image_size, 16)
def bare(image_size): return nn.Identity()
def half(image_size):
    net = Small(image_size)
    net.pretrained_cfg = {"mean": (0.5,) * 3}
    return net
def pair(image_size):
    net = Small(image_size)
    net.forward = lambda x: (x, x)
    return net
def no_module(image_size): return "resnet18"
number = 3
"""

@pytest.fixture
def own_backbones(tmp_path, monkeypatch):
    "A module of backbones in the working folder; → its name."
    (tmp_path/"mynets.py").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    yield "mynets"
    sys.modules.pop("mynets", None)

def test_a_backbone_of_ones_own(own_backbones, tmp_path):
    "It is built, checked, normalised, loaded and asked for a map as timm's are."
    net, report = create_classifier("mynets.Small", 5, 32, min_map=4)
    assert net.backbone.image_size == 32 and report == {} and net(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    assert net.mean.flatten().tolist() == [0.5] * 3 and net.std.flatten().tolist() == [0.25] * 3
    torch.save(net.state_dict(), tmp_path/"w.pt")
    again, report = create_classifier("mynets.Small", 7, 32, init=str(tmp_path/"w.pt"))
    assert report["missing"] == [] and torch.equal(again.backbone.conv.weight, net.backbone.conv.weight)

@pytest.mark.parametrize("name, says", [
    ("mynets.bare", "returns Identity, which lacks num_features, forward_features, pretrained_cfg. Return a module"),
    ("mynets.half", r"Small, which lacks pretrained_cfg\['std'\]"), ("mynets.pair", "returns a tuple and no tensor"),
    ("mynets.no_module", "str, which lacks the methods of a torch module"),
    ("mynets.number", "is of type int. Give a function"),
    ("mynets.smal", "^Backbone 'mynets.smal': the module 'mynets' has no 'smal'"),
    ("nowhere.of.mine", "cannot be imported: ModuleNotFoundError"),
    ("resnet81.a1_in1k", "no backbone 'resnet81.a1_in1k'. Did you mean 'resnet.* cannot be imported"),
    ("mynets", "no backbone 'mynets'.*package.module.function")])
def test_what_is_no_backbone_is_said(own_backbones, name, says):
    with pytest.raises(BenchError, match=says): create_backbone(name, 32)

def test_what_a_backbone_of_ones_own_cannot_do(own_backbones):
    with pytest.raises(BenchError, match="no pretrained weights for 'mynets.Small'"):
        create_classifier("mynets.Small", 8, 32, init="timm")
    with pytest.raises(BenchError, match="makes a map of 2 × 2 cells from a face of 32 px; 4 × 4 are needed"):
        create_classifier("mynets.coarse", 8, 32, min_map=4)

@pytest.mark.parametrize("name", BACKBONES)
def test_built_in_backbones(name):
    "Each entry of the catalogue makes what `create_backbone` promises."
    net = create_backbone(name, 48)
    assert net.training and net(torch.rand(2, 3, 48, 48)).shape == (2, feature_width(net))

# weights files

def test_pretrained_without_network_or_weights(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BenchError, match="could not be fetched|no pretrained weights"):
        create_classifier("test_resnet", 8, 32, init="timm")
    with pytest.raises(BenchError, match="no pretrained weights"):
        create_classifier("resnet10t.nobody", 8, 32, init="timm")

def test_checkpoints_hold_no_code(tmp_path):
    save_checkpoint(tmp_path, 1, {"weights": {"a": torch.ones(2)}, "history": [{"loss": 1.0}], "best": None})
    assert load_checkpoint(tmp_path)["history"] == [{"loss": 1.0}]
    save_checkpoint(tmp_path, 2, {"code": print})
    with pytest.warns(UserWarning, match="00002.*was skipped"): found = load_checkpoint(tmp_path)
    assert found["history"] == [{"loss": 1.0}]

# the contract of every method in the catalogue

TRAINED = methods_of("supervised", "semi-supervised", "self-supervised")

def make(name):
    torch.manual_seed(0)
    config = RunConfig(preset="tiny", method=name)
    neck = method_entry(name).neck_of(config)
    net, _ = create_classifier(config.backbone, 8, 32, min_map=config.min_map, neck=neck)
    return make_method(config, net, np.full(8, 4), n_unlabelled=20)

@pytest.fixture(params=TRAINED)
def method(request): return make(request.param)

def batch_for(method, n=8):
    faces = {role: [torch.rand(n, 3, 32, 32) for _ in views] for role, views in method.views.items()}
    if method.needs_landmarks: faces["landmarks"] = torch.rand(len(method.views["unlabelled"]), n, 68, 2)
    return {"targets": torch.arange(n) % 8, "step": 3, "progress": 0.5, "index": torch.arange(n),
            "place": torch.arange(n), **faces}

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
    method.after_step(0)
    method.after_epoch(0.5, lambda: (torch.randn(9, 8), torch.arange(9) % 8))
    assert method.ema is None or any(not torch.equal(v, before[k]) for k, v in method.evaluated.state_dict().items())
    state = {k: v.clone() for k, v in method.state_dict().items()}
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad(): logits, features = method.eval().classify(images), method.encode(images)
    assert logits.shape == (3, 8) and features.shape == (3, method.net.head.in_features)
    assert all(torch.equal(v, state[k]) for k, v in method.state_dict().items())

def test_method_under_bf16(method):
    "The forward runs in bf16 where autocast says so; weights and gradients stay float32."
    kinds = []
    for layer in method.net.backbone.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(lambda m, i, out: kinds.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16): loss, _ = method.train()(batch_for(method))
    loss.backward()
    assert torch.bfloat16 in kinds and loss.dtype == torch.float32
    assert {p.grad.dtype for p in method.net.parameters() if p.requires_grad} == {torch.float32}

@pytest.mark.parametrize("name", TRAINED)
def test_method_state_resumes(name):
    "All state lies in parameters and buffers: a copy made from them goes on the same way."
    method, twin = make(name), make(name)
    method.train()(batch_for(method))[0].backward()
    torch.optim.SGD(method.net.parameters(), 0.1).step()
    method.after_step(0)
    twin.load_state_dict(method.state_dict())
    images, twin = torch.rand(2, 3, 32, 32), twin.eval()
    with torch.no_grad(): assert torch.equal(method.eval().classify(images), twin.classify(images))
