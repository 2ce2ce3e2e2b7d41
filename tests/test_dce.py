"""DCE: which faces are kept and the loss of them against plain loops, its mirror view, and what it refuses."""
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fer_bench import check_method, run
from fer_bench.catalogue import make_method
from fer_bench.config import RunConfig
from fer_bench.core import BenchError
from fer_bench.data.transforms import apply_photometric, cutout
from fer_bench.data.views import Strong, seeded
from fer_bench.methods.dce import believed, strong_mirror
from fer_bench.runs.networks import create_network


def make(**fields):
    torch.manual_seed(0)
    config = RunConfig(**{"method": "dce", "preset": "tiny", "ema": 0.0, **fields})
    return make_method(config, create_network(config, 3)[0], [4, 4, 4])

def batch(**values):
    torch.manual_seed(1)
    return {"labelled": [torch.rand(8, 3, 32, 32)], "targets": torch.tensor([0, 1, 2, 0, 0, 1, 1, 0]), "step": 3,
            "progress": 0.5} | values

def kept_of(p, labels) -> list[bool]:
    kept = []
    for value, y in zip(p, labels, strict=True):
        same = [v for v, k in zip(p, labels, strict=True) if k == y]
        kept.append(value >= sum(same) / len(same) - 1e-6)
    return kept

@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_kept_faces_are_those_of_a_plain_loop(seed, n):
    rng = np.random.default_rng(seed)
    p, labels = rng.choice(np.arange(1, 9) / 10, n), rng.integers(4, size=n)
    found = believed(torch.from_numpy(p), torch.from_numpy(labels), 4).tolist()
    assert found == kept_of(p.tolist(), labels.tolist())
    for k in set(labels.tolist()): assert any(f for f, y in zip(found, labels, strict=True) if y == k)

@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7])
def test_equal_faces_are_all_kept(value):
    "Whichever way their mean is rounded."
    for n in range(1, 50): assert believed(torch.full((n,), value), torch.zeros(n, dtype=torch.long), 2).all()

@pytest.mark.parametrize("progress, smoothing", [(0.5, 0.0), (0.5, 0.2), (0.0, 0.0), (0.0, 0.2)])
def test_loss_is_that_of_two_plain_passes(progress, smoothing):
    "In evaluation mode, where the two images do not share batch statistics."
    method, b = make(label_smoothing=smoothing, lambda_eac=2.0).eval(), batch(progress=progress)
    net, y, selects = method.net, b["targets"].tolist(), progress > 0
    with torch.no_grad(): net.head.weight.mul_(30)
    loss, parts = method(b)
    views = b["labelled"][0], strong_mirror(b["labelled"][0], 0, 3)
    with torch.no_grad():
        logits = [net(v) for v in views]
        p = (sum(v.softmax(1) for v in logits) / 2)[range(8), b["targets"]].tolist()
        maps = [torch.einsum("kc,bchw->bkhw", net.head.weight, net.backbone.forward_features(net.normalise(v)))
                for v in views]
    kept, total, share = kept_of(p, y) if selects else [True] * 8, 0.0, 0.35 if selects else 0.0
    for view in logits:
        for row, k, keep in zip(view.log_softmax(1).tolist(), y, kept, strict=True):
            target = [(1 - share) * (i == k) + share / 3 for i in range(3)]
            target = [(1 - smoothing) * t + smoothing / 3 for t in target]
            total -= keep * sum(t * v for t, v in zip(target, row, strict=True)) / 2
    assert 2 < sum(kept) < 8 or not selects
    assert parts["cross_entropy"].item() == pytest.approx(total / sum(kept), rel=1e-5)
    apart = (maps[0] - maps[1].flip(-1)).square().mean().item()
    assert parts["consistency"].item() == pytest.approx(2 * apart * selects, rel=1e-4)
    assert loss.item() == pytest.approx(sum(parts.values()).item(), rel=1e-6)
    assert method.after_epoch(0.5, None) == {"selected": sum(kept) / 8} and method.seen.tolist() == [0, 0]

def test_faces_that_are_left_out_say_nothing():
    method, b = make(lambda_eac=0.0).eval(), batch()
    with torch.no_grad(): method.net.head.weight.mul_(30)
    kept = torch.tensor([1.0, 0, 1, 0, 0, 1, 1, 0])
    method.select = lambda logits, targets: kept
    others = torch.where(kept[:, None, None, None] > 0, b["labelled"][0], torch.rand(8, 3, 32, 32))
    loss, other, changed = (method(batch(labelled=[v]))[0].item() for v in (b["labelled"][0], others, others.flip(0)))
    assert loss == pytest.approx(other, rel=1e-6) and loss != pytest.approx(changed, rel=1e-3)

def test_the_head_learns_from_the_labels_alone():
    method, grads = make(), []
    for factor in (0.0, 5.0):
        method.lambda_eac = factor
        grads.append(torch.autograd.grad(method(batch())[0], [method.net.head.weight]))
    torch.testing.assert_close(grads[0][0], grads[1][0])

def test_the_mirror_view_is_the_mirror_with_operations_on_pixels():
    faces = torch.rand(32, 3, 24, 24, generator=seeded(7))
    drawn = Strong().sample(seeded(0, 1), 32)
    wanted = cutout(apply_photometric(faces.flip(-1).clone(), drawn["op"], drawn["magnitude"]), drawn["square"])
    torch.testing.assert_close(strong_mirror(faces, 0, 1), wanted.clamp(0, 1), atol=1e-2, rtol=0)  # 1/255 of posterize
    assert not torch.allclose(wanted, faces.flip(-1), atol=0.1) and torch.equal(faces, torch.rand(
        32, 3, 24, 24, generator=seeded(7)))

def test_soft_targets_have_the_class_of_most_votes():
    method, b = make().eval(), batch()
    with torch.no_grad(): logits = [method.net(v) for v in (b["labelled"][0],) * 2]
    shares = 0.6 * torch.eye(3)[b["targets"]] + 0.4 / 3
    assert torch.equal(method.select(logits, b["targets"]), method.select(logits, shares))

@pytest.mark.parametrize("fields, message", [
    (dict(mixup=0.2), "mixed of two .*select_from=1"), (dict(cutmix=1.0), "mixed of two .*select_from=1"),
    (dict(backbone="test_vit", image_size=160), "makes no map of channels"),
    (dict(unit_features=True), "Method 'dce' compares class-activation maps"), (dict(select_from=2.0), "select_from")],
    ids=str)
def test_refusals(fields, message):
    with pytest.raises(BenchError, match=message): make(**fields)

def test_mixed_faces_are_all_kept():
    method = make(mixup=0.2, select_from=1)
    loss, _ = method(batch(targets=torch.full((8, 3), 1 / 3), progress=0.99))
    assert loss.isfinite() and method.after_epoch(0.5, None) == {"selected": 1.0}

@pytest.mark.parametrize("fields", [dict(), dict(ema=0.0, label_smoothing=0.1, balance="weights")], ids=str)
def test_contract(fields): check_method("dce", **fields)

def test_a_run_in_bf16_with_soft_targets(tmp_path):
    record = run(RunConfig(method="dce", preset="tiny", precision="bf16", targets="soft", logit_adjustment="loss",
                           device="cpu", results_dir=str(tmp_path)))
    assert record.loss_parts == ["cross_entropy", "consistency"]
    assert all(0 < v <= 1 for v in record.history["selected"])

def test_the_recipe_is_the_papers():
    c = RunConfig(method="dce", preset="paper")
    assert (c.optimizer, c.lr, c.epochs, c.steps_per_epoch, c.batch_size) == ("adam", 1e-4, 40, 400, 150)
    assert c.select_from * c.epochs == 1 and c.view is None
