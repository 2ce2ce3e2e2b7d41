"""DAN: its losses and heads against plain loops, its gradients, what it refuses."""
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fer_bench import check_method, run
from fer_bench.catalogue import make_method, method_entry
from fer_bench.config import RunConfig
from fer_bench.core import BenchError
from fer_bench.methods.dan import AttentionHeads, affinity_loss, head_shares, partition_loss
from fer_bench.models.backbones import create_classifier


def make(backbone="test_resnet", size=32, counts=(4, 4, 4), **fields):
    torch.manual_seed(0)
    k = len(counts)
    config = RunConfig(method="dan", preset="tiny", backbone=backbone, image_size=size, ema=0.0, **fields)
    net = create_classifier(backbone, k, size, min_map=config.min_map, neck=method_entry("dan").neck_of(config))[0]
    torch.nn.init.normal_(net.head.weight)
    return make_method(config, net, counts)

def batch(n=6, k=3, size=32): return {"labelled": [torch.rand(n, 3, size, size)], "targets": torch.arange(n) % k}

def variance(values):
    mean = sum(values) / len(values)
    return sum((v - mean) ** 2 for v in values) / (len(values) - 1)

@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(2, 5), st.integers(1, 7))
def test_affinity_against_plain_loops(seed, b, k, d):
    rng = np.random.default_rng(seed)
    x, centres, y = rng.normal(size=(b, d)), rng.normal(size=(k, d)), rng.integers(0, k, b)
    near = sum(sum((x[i, j] - centres[y[i], j]) ** 2 for j in range(d)) for i in range(b)) / b
    wanted = near / sum(variance(centres[:, j]) for j in range(d))
    found = affinity_loss(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(centres)).item()
    assert found == pytest.approx(wanted, rel=1e-6)
    shares = torch.nn.functional.one_hot(torch.from_numpy(y), k).double()
    assert affinity_loss(torch.from_numpy(x), shares, torch.from_numpy(centres)).item() == pytest.approx(found)

def test_affinity_of_shares_is_the_mean_over_classes():
    x, centres = torch.randn(1, 4), torch.randn(3, 4)
    each = [affinity_loss(x, torch.tensor([k]), centres) for k in range(3)]
    mixed = affinity_loss(x, torch.tensor([[0.5, 0.3, 0.2]]), centres)
    torch.testing.assert_close(mixed, 0.5 * each[0] + 0.3 * each[1] + 0.2 * each[2])

@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 5), st.integers(1, 6), st.floats(0.01, 30))
def test_partition_against_plain_loops(seed, b, h, d, size):
    heads = np.random.default_rng(seed).normal(size=(b, h, d)) * size
    shares = np.zeros_like(heads)
    for i, j, c in np.ndindex(heads.shape):
        most = max(heads[i, :, c])
        shares[i, j, c] = heads[i, j, c] - most - math.log(sum(math.exp(v - most) for v in heads[i, :, c]))
    found = head_shares(torch.from_numpy(heads))
    np.testing.assert_allclose(found.numpy(), shares, atol=1e-9)
    spread = sum(variance(shares[i, :, c]) for i in range(b) for c in range(d)) / (b * d)
    epsilon = np.finfo(np.float32).eps
    assert partition_loss(found).item() == pytest.approx(math.log(1 + h / (spread + epsilon)), rel=1e-6)

def test_equal_heads_have_a_finite_loss_and_gradient():
    heads = torch.ones(2, 4, 5, requires_grad=True)
    loss = partition_loss(head_shares(heads))
    loss.backward()
    assert loss.isfinite() and heads.grad.isfinite().all()

def norm(x, layer):
    return (x - layer.running_mean.numpy()) / np.sqrt(layer.running_var.numpy() + layer.eps) * layer.weight.detach(
        ).numpy() + layer.bias.detach().numpy()

def plain_conv(x, layers):
    "A convolution by loops over (C, h, w), with zeros outside, and its batch norm."
    w = layers[0].weight.detach().numpy()
    out = np.zeros((len(w), *x.shape[1:]))
    for o, r, c in np.ndindex(out.shape):
        for i, a, b in np.ndindex(w.shape[1:]):
            row, column = r + a - w.shape[2] // 2, c + b - w.shape[3] // 2
            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]: out[o, r, c] += w[o, i, a, b] * x[i, row, column]
    return norm(out.transpose(1, 2, 0), layers[1]).transpose(2, 0, 1)

def test_a_head_against_plain_loops():
    torch.manual_seed(1)
    neck = AttentionHeads(SimpleNamespace(heads=2), 16, (3, 4)).double().eval()
    for module in neck.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            for value in (module.running_mean, module.running_var, module.weight.data): value.uniform_(0.5, 1.5)
    x = torch.rand(1, 16, 3, 4).double()
    wanted = []
    for head in neck.heads:
        reduced = plain_conv(x[0].numpy(), head.reduce)
        where = np.maximum(sum(plain_conv(reduced, layers) for layers in head.shapes), 0).sum(0)  # (3, 4)
        g = (x[0].numpy() * where).mean((1, 2))
        first, layer, _, last, _ = head.gate
        hidden = np.maximum(norm(first.weight.detach().numpy() @ g + first.bias.detach().numpy(), layer), 0)
        gate = 1 / (1 + np.exp(-(last.weight.detach().numpy() @ hidden + last.bias.detach().numpy())))
        wanted.append((where, g * gate))
    with torch.no_grad():
        np.testing.assert_allclose(neck.attention(x)[0].numpy(), [w for w, _ in wanted], atol=1e-9)
        np.testing.assert_allclose(neck.attend(x)[0].numpy(), [g for _, g in wanted], atol=1e-9)

def test_loss_is_made_of_the_evaluated_network():
    "In evaluation mode: the cross-entropy of `net`, and the two losses on its map."
    method, b = make(lambda_affinity=0.5, lambda_partition=2.0).eval(), batch()
    loss, parts = method(b)
    net = method.net
    maps = net.backbone.forward_features(net.normalise(b["labelled"][0]))
    torch.testing.assert_close(parts["cross_entropy"], torch.nn.functional.cross_entropy(net(b["labelled"][0]),
                                                                                         b["targets"]))
    torch.testing.assert_close(parts["affinity"], 0.5 * affinity_loss(maps.mean((2, 3)), b["targets"], method.centres))
    torch.testing.assert_close(parts["partition"], 2 * partition_loss(head_shares(net.neck.attend(maps))))
    torch.testing.assert_close(loss, sum(parts.values()))

def test_what_each_loss_teaches():
    "Affinity the backbone and the centres, partition the heads; neither the classifier."
    for name, taught, idle in (("affinity", "centres", "neck"), ("partition", "neck", "centres")):
        method = make()
        _, parts = method(batch())
        parts[name].backward()
        reached = {n for n, p in method.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        assert any(taught in n for n in reached) and not any(idle in n for n in reached)
        assert any("backbone" in n for n in reached) and not any(".head." in n for n in reached)

@pytest.mark.parametrize("fields", [dict(balance="weights"), dict(label_smoothing=0.3),
                                    dict(logit_adjustment="loss")], ids=str)
def test_what_changes_the_cross_entropy_changes_nothing_else(fields):
    found = [make(counts=(8, 3, 1), **how).eval()(batch(7))[1] for how in ({}, fields)]
    assert found[0]["cross_entropy"].item() != pytest.approx(found[1]["cross_entropy"].item(), rel=1e-3)
    for name in ("affinity", "partition"): torch.testing.assert_close(found[0][name], found[1][name])

@pytest.mark.parametrize("fields", [dict(), dict(heads=2, min_map=2), dict(backbone="small_resnet", image_size=48)],
                         ids=str)
def test_contract(fields): check_method("dan", **fields)

@pytest.mark.parametrize("fields, says", [
    (dict(min_map=0), "this one has 1 × 1 of them. Set min_map=4"), (dict(heads=1), "'heads' = 1"),
    (dict(backbone="test_vit", image_size=160, min_map=0), "makes no map of channels"),
    (dict(lambda_partition=-1.0), "'lambda_partition'")], ids=str)
def test_refuses(fields, says):
    with pytest.raises(BenchError, match=says): check_method("dan", **fields)

def test_a_run_in_bf16_with_shares(tiny):
    record = run(tiny(method="dan", precision="bf16", targets="soft", backbone="small_resnet", image_size=48))
    assert record.finished and record.loss_parts == ["cross_entropy", "affinity", "partition"]
