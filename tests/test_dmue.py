"""DMUE: its losses against plain loops, its branches, what gets no gradient, incomplete batches, what it refuses."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fer_bench import check_method, run
from fer_bench.catalogue import make_method, method_entry
from fer_bench.config import RunConfig
from fer_bench.core import BenchError
from fer_bench.methods.ada_df import turns
from fer_bench.methods.dmue import (
    STEEPNESS,
    auxiliary_loss,
    class_similarity,
    last_stage,
    other_classes,
    similarity_loss,
    soft_labels,
    soft_loss,
)
from fer_bench.models.backbones import create_classifier


def make(backbone="test_resnet", size=32, counts=(4, 4, 4), **fields):
    torch.manual_seed(0)
    config = RunConfig(method="dmue", preset="tiny", backbone=backbone, image_size=size, **{"ema": 0.0, **fields})
    neck = method_entry("dmue").neck_of(config)
    method = make_method(config, create_classifier(backbone, len(counts), size, neck=neck)[0], counts)
    for layer in (method.net.head, *method.heads): torch.nn.init.normal_(layer.weight)
    return method

def batch(n=7, k=3, progress=0.5, size=32):
    return {"labelled": [torch.rand(n, 3, size, size)], "targets": torch.arange(n) % k, "progress": progress}

def softmax(row, t=1.0):
    powers = [math.exp((v - max(row)) / t) for v in row]
    return [v / sum(powers) for v in powers]

def one_hot(y, k): return torch.nn.functional.one_hot(torch.as_tensor(y), k).double()

CASES = given(st.integers(0, 10**6), st.integers(1, 7), st.integers(3, 5))

def draws(seed, n, k, d=4):
    "Labels (n,), logits (n, k), logits of branches (n, k, k − 1), features (n, d) and (n, k, d)."
    rng = np.random.default_rng(seed)
    return rng.integers(0, k, n), *(rng.normal(size=s) for s in ((n, k), (n, k, k - 1), (n, d), (n, k, d)))

def shifted(label, k): return label - (label > k)  # labels above k shift by one

@settings(max_examples=30)
@CASES
def test_soft_labels_and_their_loss_against_plain_loops(seed, n, k):
    y, logits, auxiliary, *_ = draws(seed, n, k)
    wanted, loss = np.zeros((n, k)), 0.0
    for i in range(n):
        answer = softmax(auxiliary[i, y[i]])
        powers = [v ** (1 / 1.2) for v in answer]
        for c in range(k):
            if c != y[i]: wanted[i, c] = powers[shifted(c, y[i])] / sum(powers)
        p = softmax(logits[i])
        loss += sum(((p[c] if c != y[i] else 0) - wanted[i, c]) ** 2 for c in range(k)) / (n * k)
    soft = soft_labels(torch.from_numpy(auxiliary), one_hot(y, k), other_classes(k))
    np.testing.assert_allclose(soft.numpy(), wanted, atol=1e-9)
    assert soft_loss(torch.from_numpy(logits), soft, one_hot(y, k)).item() == pytest.approx(loss, rel=1e-6)

@settings(max_examples=30)
@CASES
def test_auxiliary_loss_against_plain_loops(seed, n, k):
    y, _, auxiliary, *_ = draws(seed, n, k)
    total = 0.0
    for branch in range(k):
        each = [-math.log(softmax(auxiliary[i, branch])[shifted(y[i], branch)]) for i in range(n) if y[i] != branch]
        total += sum(each) / len(each) / k if each else 0
    found = auxiliary_loss(torch.from_numpy(auxiliary), one_hot(y, k), other_classes(k))
    assert found.item() == pytest.approx(total, rel=1e-6)

def test_auxiliary_loss_is_weighted_adjusted_and_smoothed():
    y, _, auxiliary, *_ = draws(3, 6, 4)
    w, prior = torch.tensor([0.5, 1, 2, 4]).double(), torch.tensor([0.4, 0.3, 0.2, 0.1]).double().log()
    total = 0.0
    for branch in range(4):
        rest = [c for c in range(4) if c != branch]
        faces = [i for i in range(6) if y[i] != branch]
        for i in faces:
            p = softmax([auxiliary[i, branch, j] + prior[c].item() for j, c in enumerate(rest)])
            for j, c in enumerate(rest):
                q = 0.9 * (c == y[i]) + 0.1 / 3
                total -= q * w[c].item() * math.log(p[j]) / len(faces) / 4
    found = auxiliary_loss(torch.from_numpy(auxiliary), one_hot(y, 4), other_classes(4), 0.1, w, prior)
    assert found.item() == pytest.approx(total, rel=1e-6)

@settings(max_examples=30)
@CASES
def test_similarity_against_plain_loops(seed, n, k):
    y, _, _, main, other = draws(seed, n, k)
    total = 0.0
    for branch in range(k):
        faces = [i for i in range(n) if y[i] != branch]
        rows = []
        for f in (main, other[:, branch]):
            gram = [[float(f[i] @ f[j]) for j in faces] for i in faces]
            rows.append([[v / math.sqrt(sum(u * u for u in row)) for v in row] for row in gram])
        if faces:
            total += sum((a - b) ** 2 for r, s in zip(*rows, strict=True) for a, b in zip(r, s, strict=True)) / (
                len(faces) ** 2 * k)
    found = similarity_loss(torch.from_numpy(main), torch.from_numpy(other), one_hot(y, k))
    assert found.item() == pytest.approx(total, rel=1e-6, abs=1e-12)

@settings(max_examples=30)
@CASES
def test_class_similarity_against_plain_loops(seed, n, k):
    y, _, _, x, _ = draws(seed, n, k)
    found = class_similarity(torch.from_numpy(x), one_hot(y, k)).numpy()
    for i in range(n):
        means = {}
        for c in range(k):
            cosines = [float(x[i] @ x[j] / math.sqrt(x[i] @ x[i]) / math.sqrt(x[j] @ x[j]))
                       for j in range(n) if j != i and y[j] == c]
            if cosines: means[c] = sum(cosines) / len(cosines)
        for c in range(k):
            spread = max(means.values()) - min(means.values()) if means else 0
            wanted = (means[c] - min(means.values())) / spread if c in means and spread else 0
            assert found[i, c] == pytest.approx(wanted, abs=1e-6)

def test_shares_lie_between_the_labels():
    "With half a label each, the soft label is the mean of both, and both branches get half of the face."
    _, _, auxiliary, *_ = draws(0, 1, 3)
    auxiliary, others = torch.from_numpy(auxiliary), other_classes(3)
    half = torch.tensor([[0.5, 0.5, 0]]).double()
    each = [soft_labels(auxiliary, one_hot([c], 3), others) for c in range(2)]
    torch.testing.assert_close(soft_labels(auxiliary, half, others), (each[0] + each[1]) / 2)
    of = lambda branch, label: -auxiliary[0, branch].log_softmax(0)[shifted(label, branch)]
    wanted = (0.5 * of(0, 1) + 0.5 * of(1, 0) + 0.5 * (of(2, 0) + of(2, 1))) / 3  # a branch divides by 1 at least
    torch.testing.assert_close(auxiliary_loss(auxiliary, half, others), wanted)

def test_turns():
    assert turns(0.0, 0.25, STEEPNESS) == (math.exp(-5), 1) and turns(0.25, 0.25, STEEPNESS) == (1, 1)
    assert turns(0.125, 0.25, STEEPNESS) == (pytest.approx(math.exp(-1.25)), 1)
    assert turns(0.5, 0.25, STEEPNESS) == (1, pytest.approx(math.exp(-0.25)))

# the method

@pytest.mark.parametrize("fields", [dict(), dict(branches="layer")], ids=str)
def test_loss_is_the_sum_of_its_parts(fields):
    method, b = make(lambda_soft=2.0, lambda_similarity=3.0, **fields).eval(), batch(progress=0.1)
    loss, parts = method(b)
    q, (rise, fall) = one_hot(b["targets"], 3).float(), turns(0.1, 0.25, STEEPNESS)
    features, logits, others, auxiliary = method.branches(b["labelled"][0])
    torch.testing.assert_close(logits, method.net(b["labelled"][0]))
    torch.testing.assert_close(features, method.net.encode(b["labelled"][0]))
    first, act, last, _ = method.scoring
    x = torch.cat([class_similarity(features, q), q], 1)
    score = torch.sigmoid(last(torch.where((h := first(x)) > 0, h, act.weight * h)))
    wanted = {"cross_entropy": rise * torch.nn.functional.cross_entropy(score * logits, b["targets"]),
              "soft_labels": rise * 2 * soft_loss(logits, soft_labels(auxiliary, q, method.others), q),
              "similarity": rise * 3 * similarity_loss(features, others, q),
              "auxiliary": fall * auxiliary_loss(auxiliary, q, method.others)}
    for name, value in wanted.items(): torch.testing.assert_close(parts[name], value)
    torch.testing.assert_close(loss, sum(wanted.values()))

@pytest.mark.parametrize("backbone, size, name", [("test_resnet", 32, "layer4"), ("small_resnet", 48, "stages.2")])
def test_branches_begin_as_the_last_stage(backbone, size, name):
    method, faces = make(backbone, size).eval(), torch.rand(4, 3, size, size)
    assert method.stage == name and len(method.auxiliary) == 3
    features, _, others, _ = method.branches(faces)
    for k in range(3): torch.testing.assert_close(others[:, k], features)
    weights = [next(m.parameters()) for m in (method.net.backbone.get_submodule(name), *method.auxiliary)]
    assert len({w.data_ptr() for w in weights}) == 4
    assert not any(m._forward_pre_hooks for m in method.modules())

def test_where_the_gradients_go():
    "Soft labels teach the main branch, not those who gave them; the score reads features without a gradient."
    parts_of = {"soft_labels": {"backbone", "neck", "head"}, "similarity": {"backbone", "neck", "auxiliary"},
                "auxiliary": {"backbone", "neck", "auxiliary", "heads"},
                "cross_entropy": {"backbone", "neck", "head", "scoring"}}
    for name, reached in parts_of.items():
        method = make(lambda_similarity=1e6)
        with torch.no_grad():  # copies that are no longer equal
            for p in method.auxiliary.parameters(): p += 0.1 * torch.randn_like(p)
        method(batch())[1][name].backward()
        found = {n.removeprefix("net.").split(".")[0] for n, p in method.named_parameters()
                 if p.grad is not None and p.grad.abs().max() > 0}
        assert found == reached, name
    x = torch.randn(5, 4, requires_grad=True)
    assert not class_similarity(x, one_hot([0, 1, 2, 0, 1], 3).float()).requires_grad

def test_running_statistics_are_those_of_the_main_branch():
    method, faces = make().train(), torch.rand(6, 3, 32, 32)
    before, pooled = method.net.neck.norm.running_mean.clone(), []
    method.net.neck.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0].mean((2, 3))))
    method.branches(faces)
    torch.testing.assert_close(method.net.neck.norm.running_mean, 0.9 * before + 0.1 * pooled[0].mean(0))

def test_incomplete_batches_are_counted_and_lose_no_face():
    method = make(counts=(4, 4, 4))
    for targets in ([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 1, 2], [0] * 6):
        loss, parts = method(batch(6) | {"targets": torch.tensor(targets)})
        loss.backward()
        assert all(v.isfinite() for v in parts.values())
    assert all(p.grad.isfinite().all() for p in method.parameters())
    assert method.after_epoch(0.5, None) == {"complete_batches": pytest.approx(1 / 3, abs=1e-4)}
    assert method.after_epoch(0.6, None) == {"complete_batches": 0}

def test_one_hot_shares_are_labels():
    method, b = make().eval(), batch()
    torch.testing.assert_close(method(b)[0], method(b | {"targets": one_hot(b["targets"], 3).float()})[0])

@pytest.mark.parametrize("fields", [dict(), dict(backbone="small_resnet", image_size=48, balance="weights"),
                                    dict(branches="layer", backbone="test_efficientnet", image_size=48)], ids=str)
def test_contract(fields): check_method("dmue", **fields)

@pytest.mark.parametrize("fields, says", [
    (dict(batch_size=4), "batch_size = 4: .* two faces of each of 3 classes. Set it to 6"),
    (dict(counts=(4, 4)), "at least three; there are 2"), (dict(ramp=0.0), "'ramp' = 0"),
    (dict(branches="two"), "'branches' = 'two'"),
    (dict(backbone="test_efficientnet", size=48), "no stage alone makes the last map. Set branches='layer'"),
    (dict(backbone="test_vit"), "makes no map of channels")], ids=str)
def test_refuses(fields, says):
    with pytest.raises(BenchError, match=says): make(**fields)

def test_looking_for_the_stage_leaves_the_network_as_it_was():
    neck = method_entry("dmue").neck_of(RunConfig(method="dmue"))
    net = create_classifier("test_resnet", 3, 32, neck=neck)[0].train()
    before = {n: v.clone() for n, v in net.state_dict().items()}
    last_stage(net, RunConfig(method="dmue", preset="tiny"))
    assert net.training and all(torch.equal(v, before[n]) for n, v in net.state_dict().items())

def test_a_run_in_bf16_with_shares(tiny):
    record = run(tiny(method="dmue", precision="bf16", targets="soft"))
    assert record.finished and record.loss_parts == ["cross_entropy", "soft_labels", "similarity", "auxiliary"]
    assert record.history["complete_batches"].between(0, 1).all() and record.config["balance"] == "sampler"
