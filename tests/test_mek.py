"""MEK: its weights, targets and consistency against plain loops, where gradients go, and what it refuses."""
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fer_bench import check_method, run
from fer_bench.catalogue import make_method
from fer_bench.config import RunConfig
from fer_bench.core import BenchError
from fer_bench.methods.mek import rarity, rebalanced_consistency, rebalanced_targets
from fer_bench.runs.networks import create_network

COUNTS = [12, 6, 2]

def make(**fields):
    torch.manual_seed(0)
    config = RunConfig(**{"method": "mek", "preset": "tiny", "ema": 0.0, **fields})
    return make_method(config, create_network(config, 3)[0], COUNTS)

def batch(**values):
    torch.manual_seed(1)
    return {"labelled": [torch.rand(4, 3, 32, 32)], "targets": torch.tensor([0, 1, 2, 0]), "step": 0,
            "progress": 0.5} | values

@given(st.lists(st.integers(1, 5000), min_size=2, max_size=9).filter(lambda c: max(c) < 90 * min(c)),
       st.floats(0, 0.99))
def test_weights_and_targets_are_those_of_plain_loops(counts, epsilon):
    w = [sum(counts) / (10 * n) for n in counts]
    np.testing.assert_allclose(rarity(counts), w, rtol=1e-6)
    found = rebalanced_targets(torch.tensor(w, dtype=torch.float64), epsilon)
    for y, row in enumerate(found.tolist()):
        rest = sum(v for k, v in enumerate(w) if k != y)
        wanted = [1 - epsilon if k == y else epsilon * v / rest for k, v in enumerate(w)]
        assert row == pytest.approx(wanted, abs=1e-9) and sum(row) == pytest.approx(1)

def test_weights_are_the_published_ones_of_raf_db():
    "Surprise, fear, disgust, happiness, sadness, anger, neutral."
    assert rarity([1290, 281, 717, 4772, 1982, 705, 2524]).tolist() == pytest.approx(
        [.951, 4.367, 1.711, .257, .619, 1.741, .486], abs=1e-3)
    assert rarity([100, 0]).isfinite().all()

@given(st.integers(0, 2**32 - 1))
def test_consistency_is_that_of_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    (maps, other), w = rng.normal(size=(2, 2, 3, 2, 3)), rng.uniform(0.1, 5, size=3)
    total = sum(w[k] * (maps[b, k, i, j] - other[b, k, i, 2 - j])**2 / 6 for b, k, i, j in np.ndindex(maps.shape))
    found = rebalanced_consistency(*map(torch.from_numpy, (maps, other, w)))
    assert found.item() == pytest.approx(total / 2, abs=1e-6)

@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_is_that_of_two_plain_passes(smoothing):
    "In evaluation mode, where the two images do not share batch statistics."
    method, b = make(label_smoothing=smoothing, lambda_eac=2.0).eval(), batch()
    loss, parts = method(b)
    net, faces = method.net, b["labelled"][0]
    with torch.no_grad():
        f, m = (net.backbone.forward_features(net.normalise(x)) for x in (faces, faces.flip(-1)))
        maps = [torch.einsum("kc,bchw->bkhw", net.head.weight, x) for x in (f, m)]
        apart, w, wanted = (maps[0] - maps[1].flip(-1)).square().mean((2, 3)), [20 / (10 * n) for n in COUNTS], 0.0
        for row, y in zip(net(faces).log_softmax(1), b["targets"].tolist(), strict=True):
            rest = sum(v for k, v in enumerate(w) if k != y)
            target = [0.7 if k == y else 0.3 * v / rest for k, v in enumerate(w)]
            target = [(1 - smoothing) * t + smoothing / 3 for t in target]
            wanted -= sum(t * p.item() for t, p in zip(target, row, strict=True)) / 4
    assert parts["cross_entropy"].item() == pytest.approx(wanted, rel=1e-5)
    assert parts["consistency"].item() == pytest.approx(2 * sum(
        w[k] * apart[b, k].item() / 4 for b in range(4) for k in range(3)), rel=1e-4)
    assert loss.item() == pytest.approx(sum(parts.values()).item())

def test_soft_targets_are_mixed_and_hard_ones_a_case_of_them():
    method = make()
    shares = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    hard = method.targets_of(torch.arange(3))
    torch.testing.assert_close(method.targets_of(shares), torch.stack([(hard[0] + hard[1]) / 2, hard[2]]))
    with torch.autocast("cpu", torch.bfloat16): rounded = method.targets_of(shares)
    assert torch.equal(rounded, method.targets_of(shares)), "under bf16 too"

def test_the_head_learns_from_the_labels_alone():
    method, grads = make(), []
    for factor in (0.0, 5.0):
        method.lambda_eac = factor
        loss, _ = method(batch())
        grads.append(torch.autograd.grad(loss, [method.net.head.weight, next(method.net.backbone.parameters())]))
    torch.testing.assert_close(grads[0][0], grads[1][0])
    assert not torch.allclose(grads[0][1], grads[1][1])

def test_doubt_is_the_disagreement_of_a_face():
    method, faces = make().eval(), batch()["labelled"][0]
    net = method.net
    with torch.no_grad():
        f, m = (net.backbone.forward_features(net.normalise(x)) for x in (faces, faces.flip(-1)))
        maps = [torch.einsum("kc,bchw->bkhw", net.head.weight, x) for x in (f, m)]
        wanted = (maps[0] - maps[1].flip(-1)).square().mean((1, 2, 3))
        torch.testing.assert_close(method.doubt(faces), wanted, rtol=1e-4, atol=1e-7)

@pytest.mark.parametrize("fields, message", [
    (dict(backbone="test_vit", image_size=160), "makes no map of channels"),
    (dict(unit_features=True), "Method 'mek' compares class-activation maps"), (dict(epsilon=1.0), "epsilon")], ids=str)
def test_refusals(fields, message):
    with pytest.raises(BenchError, match=message): make(**fields)

@pytest.mark.parametrize("fields", [dict(), dict(ema=0.0, label_smoothing=0.1, balance="weights")], ids=str)
def test_contract(fields): check_method("mek", **fields)

def test_a_run_in_bf16_with_soft_targets_and_mixup(tmp_path):
    record = run(RunConfig(method="mek", preset="tiny", precision="bf16", targets="soft", mixup=0.2,
                           logit_adjustment="loss", device="cpu", results_dir=str(tmp_path)))
    assert record.loss_parts == ["cross_entropy", "consistency"]

def test_the_recipe_is_the_papers():
    c = RunConfig(method="mek", preset="paper")
    assert (c.optimizer, c.lr, c.image_size, c.batch_size) == ("adamw", pytest.approx(5e-4 * 32 / 512), 112, 32)
    assert (c.epochs * c.steps_per_epoch, c.warmup_epochs * c.steps_per_epoch) == (20_000, 2000)
