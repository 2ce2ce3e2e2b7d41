"""Ada-DF: targets, losses and class distributions against plain loops, where gradients go, whose logits it asks for."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fer_bench import check_method, run
from fer_bench.catalogue import make_method
from fer_bench.config import RunConfig
from fer_bench.core import BenchError
from fer_bench.methods.ada_df import LEAST, class_distributions, divergence, stretched, turns
from fer_bench.models.backbones import create_classifier


def make(backbone="test_resnet", size=32, counts=(4, 4, 4), **fields):
    torch.manual_seed(0)
    config = RunConfig(method="ada_df", preset="tiny", backbone=backbone, image_size=size, **{"ema": 0.0, **fields})
    method = make_method(config, create_classifier(backbone, len(counts), size)[0], counts)
    for layer in (method.first, method.net.head): torch.nn.init.normal_(layer.weight, std=0.3)
    return method

def batch(n=7, k=3, progress=0.5):
    return {"labelled": [torch.rand(n, 3, 32, 32)], "targets": torch.arange(n) % k, "progress": progress}

def softmax(row):
    powers = [math.exp(v - max(row)) for v in row]
    return [v / sum(powers) for v in powers]

# the parts

@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(0, 12), st.integers(2, 5), st.floats(0.05, 0.95))
def test_class_distributions_against_plain_loops(seed, n, k, share):
    rng = np.random.default_rng(seed)
    p, labels = rng.dirichlet(np.full(k, 0.2), n), rng.integers(0, k, n)
    found = class_distributions(torch.from_numpy(p.reshape(n, k)), torch.from_numpy(labels), k, share).numpy()
    for c in range(k):
        rows = [p[i] for i in range(n) if labels[i] == c]
        mean = [sum(row[j] for row in rows) / len(rows) for j in range(k)] if rows else [0.0] * k
        start = [share if j == c else (1 - share) / (k - 1) for j in range(k)]
        np.testing.assert_allclose(found[c], mean if rows and mean[c] >= share else start, atol=1e-9)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-9)  # and not 1.1

def test_stretched_keeps_the_order_and_fills_its_range():
    a = torch.rand(20)
    w = stretched(a)
    assert torch.equal(a.argsort(), w.argsort()) and (w.min(), w.max()) == (pytest.approx(LEAST), pytest.approx(1))
    assert stretched(torch.full((3,), 0.4)).tolist() == pytest.approx([LEAST] * 3)

@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_divergence_against_a_plain_loop(seed, k):
    rng = np.random.default_rng(seed)
    t, p = rng.dirichlet(np.full(k, 0.3), 4), rng.dirichlet(np.ones(k), 4)
    wanted = [sum(t[i, j] * (math.log(t[i, j]) - math.log(p[i, j])) for j in range(k) if t[i, j] > 1e-12)
              for i in range(4)]
    found = divergence(torch.from_numpy(t), torch.from_numpy(p).log())
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-6)

def test_a_share_of_zero_has_a_finite_gradient():
    t = torch.tensor([[1.0, 0.0]], requires_grad=True)
    divergence(t, torch.tensor([[0.5, 0.5]]).log()).sum().backward()
    assert t.grad.isfinite().all()

def test_turns():
    assert turns(0.04, 0.04) == (1, 1) and turns(0.0, 0.5) == (math.exp(-1), 1)
    assert turns(0.25, 0.5) == (pytest.approx(math.exp(-0.25)), 1)
    assert turns(1.0, 0.5) == (1, pytest.approx(math.exp(-0.25)))
    path = [turns(x / 100, 0.3) for x in range(100)]
    rise, fall = zip(*path, strict=True)
    assert list(rise) == sorted(rise) and list(fall) == sorted(fall, reverse=True)

# the method

def weighted_logits(method, faces):
    "Logits of both branches and a of each face, one face after another, in plain numbers."
    with torch.no_grad(): features = method.net.encode(faces).double().numpy()
    w, b = (p.detach().double().numpy() for p in (method.weighting.weight, method.weighting.bias))
    out = []
    for f in features:
        weights = [1 / (1 + math.exp(-(w[i] @ f + b[i]))) for i in range(2)]
        heads = [(h.weight.detach().double().numpy() @ f + h.bias.detach().double().numpy())
                 for h in (method.first, method.net.head)]
        out.append(([a * h for a, h in zip(weights, heads, strict=True)], sum(weights) / 2))
    return out

@pytest.mark.parametrize("balance", ["none", "weights"])
@pytest.mark.parametrize("progress", [0.0, 0.02, 0.5])
def test_loss_against_plain_loops(progress, balance):
    method, b, counts = make(balance=balance, counts=(6, 3, 1)).eval(), batch(progress=progress), (6, 3, 1)
    method.distributions.copy_(torch.tensor([[0.8, 0.15, 0.05], [0.1, 0.75, 0.15], [0.2, 0.1, 0.7]]))
    loss, parts = method(b)
    faces, a = zip(*weighted_logits(method, b["labelled"][0]), strict=True)
    class_weight = [10 / (3 * n) if balance == "weights" else 1.0 for n in counts]
    ce = kl = 0.0
    for (first, second), trust, y in zip(faces, a, b["targets"].tolist(), strict=True):
        p1, p2 = softmax(first), softmax(second)
        w = 0.2 + 0.8 * (trust - min(a)) / (max(a) - min(a))
        t = [(1 - w) * p1[k] + w * method.distributions[y, k].item() for k in range(3)]
        ce -= class_weight[y] * math.log(p1[y]) / len(a)
        kl += class_weight[y] * sum(t[k] * (math.log(t[k]) - math.log(p2[k])) for k in range(3)) / len(a)
    x = progress / 0.04
    alpha1, alpha2 = (math.exp(-(1 - x) ** 2), 1) if x <= 1 else (1, math.exp(-(1 - 1 / x) ** 2))
    order = sorted(a, reverse=True)
    high, low = order[:4], order[4:]  # int(.7 * 7)
    wanted = {"cross_entropy": alpha2 * ce, "divergence": alpha1 * kl,
              "ranking": max(0, sum(low) / len(low) - sum(high) / len(high) + 0.07)}
    for name, value in wanted.items(): assert parts[name].item() == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert loss.item() == pytest.approx(sum(wanted.values()), rel=1e-4)

@pytest.mark.parametrize("name, reached, fields", [
    ("divergence", "net.head weighting", dict()), ("cross_entropy", "first weighting", dict()),
    ("divergence", "first net.head weighting", dict(target_gradient=True)),
    ("ranking", "weighting", dict(rank_margin=1.0))])
def test_where_the_gradients_go(name, reached, fields):
    "The divergence teaches branch 2, and through the target branch 1 only as published; the cross-entropy branch 1."
    method = make(**fields)
    method(batch())[1][name].backward()
    found = {n.rpartition(".")[0] for n, p in method.named_parameters()
             if p.grad is not None and p.grad.abs().max() > 0 and "backbone" not in n}
    assert found == set(reached.split()) and not method.distributions.requires_grad

def test_the_target_is_a_number_unless_as_published():
    for published in (False, True):
        method = make(target_gradient=published)
        first, _, a = method.branches(torch.rand(5, 3, 32, 32))
        shares = torch.nn.functional.one_hot(torch.arange(5) % 3, 3)
        assert method.targets_of(method.log_softmax(first), a, shares).requires_grad == published

def test_one_hot_shares_are_labels_and_adjusted_branches_learn_both():
    method, b = make().eval(), batch()
    shares = b | {"targets": torch.nn.functional.one_hot(b["targets"], 3).float()}
    torch.testing.assert_close(method(b)[0], method(shares)[0])
    adjusted = make(counts=(8, 3, 1), logit_adjustment="loss").eval()
    found = [m(b)[1] for m in (method, adjusted)]
    for name in ("cross_entropy", "divergence"): assert found[0][name].item() != pytest.approx(found[1][name].item())

@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_distributions_are_those_of_branch_1(ema):
    "By the network as it is, not by its average; and afterwards `classify` is the evaluated network's again."
    method = make(ema=ema, class_share=0.34)
    for layer in (method.first, method.net.head): torch.nn.init.normal_(layer.weight, std=3)
    faces, labels = torch.rand(12, 3, 32, 32), torch.arange(12) % 3
    method.eval()
    before = method.classify(faces)
    with torch.no_grad(): facts = method.after_epoch(0.5, lambda: (method.classify(faces), labels))
    p = torch.tensor([softmax(first) for (first, _), _ in weighted_logits(method, faces)])
    torch.testing.assert_close(method.distributions, class_distributions(p, labels, 3, 0.34).float())
    assert facts["class_share"] == pytest.approx(method.distributions.diagonal().tolist(), abs=1e-5)
    assert torch.equal(method.classify(faces), before) and "classify" not in vars(method)

def test_doubt_is_what_the_weight_leaves():
    method, faces = make().eval(), torch.rand(5, 3, 32, 32)
    wanted = [1 - a for _, a in weighted_logits(method, faces)]
    assert method.doubt(faces).tolist() == pytest.approx(wanted, abs=1e-5)
    averaged = make(ema=0.5)
    with torch.no_grad(): averaged.weighting.bias += 5
    averaged.after_step(0)
    lower, higher = (torch.sigmoid(-m.bias).mean() for m in (averaged.weighting, averaged.believed))
    assert lower < averaged.eval().doubt(faces).mean() and lower < higher

@pytest.mark.parametrize("fields", [dict(), dict(backbone="small_resnet", image_size=48, ema=0.0),
                                    dict(backbone="test_vit", image_size=32, balance="weights", dropout=0.3)], ids=str)
def test_contract(fields): check_method("ada_df", **fields)

@pytest.mark.parametrize("fields, says", [(dict(ramp=0.0), "'ramp' = 0"), (dict(class_share=1.0), "'class_share' = 1"),
                                          (dict(rank_share=1.0), "'rank_share' = 1")], ids=str)
def test_refuses(fields, says):
    with pytest.raises(BenchError, match=says): RunConfig(method="ada_df", preset="tiny", **fields)

def test_a_run_in_bf16_with_shares(tiny):
    record = run(tiny(method="ada_df", precision="bf16", targets="soft", backbone="small_resnet", image_size=48))
    assert record.finished and record.loss_parts == ["cross_entropy", "divergence", "ranking"]
    assert len(record.history["class_share"][0]) == 8
