"""SCN: ranking and new labels against plain loops, which labels are kept, its doubt, and what it refuses."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fer_bench import check_method, run
from fer_bench.catalogue import make_method
from fer_bench.config import RunConfig
from fer_bench.core import BenchError
from fer_bench.methods.scn import new_labels, rank_regularisation
from fer_bench.models.backbones import create_classifier

COUNTS = [4, 4, 4]

def make(**fields):
    torch.manual_seed(0)
    config = RunConfig(**{"method": "scn", "preset": "tiny", "ema": 0.0, **fields})
    return make_method(config, create_classifier("test_resnet", 3, 32)[0], COUNTS)

def batch(**values):
    torch.manual_seed(1)
    return {"labelled": [torch.rand(6, 3, 32, 32)], "targets": torch.tensor([0, 1, 2] * 2),
            "place": torch.tensor([7, 2, 5, 0, 11, 3]), "step": 0, "progress": 0.5} | values

@given(st.lists(st.floats(0, 1), min_size=2, max_size=40), st.floats(0.01, 0.99), st.floats(0, 1))
def test_ranking_is_that_of_a_plain_loop(weights, share, margin):
    ordered = sorted(weights, reverse=True)
    n = min(max(int(share * len(ordered)), 1), len(ordered) - 1)
    wanted = max(0.0, sum(ordered[n:]) / len(ordered[n:]) - sum(ordered[:n]) / n + margin)
    found = rank_regularisation(torch.tensor(weights, dtype=torch.float64), share, margin)
    assert found.item() == pytest.approx(wanted, abs=1e-6)

def test_ranking_raises_the_high_and_lowers_the_low():
    a = torch.tensor([0.5, 0.6, 0.55, 0.52], requires_grad=True)
    rank_regularisation(a, 0.5, 0.3).backward()
    torch.testing.assert_close(a.grad, torch.tensor([0.5, -0.5, -0.5, 0.5]))

@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_new_labels_are_those_of_a_plain_loop(seed, margin):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(9, 4)) * 3, rng.integers(4, size=9)
    wanted = []
    for row, y in zip(logits, labels, strict=True):
        p = np.exp(row) / np.exp(row).sum()
        wanted.append(int(p.argmax()) if p.max() - p[y] > margin else int(y))
    assert new_labels(torch.from_numpy(logits), torch.from_numpy(labels), margin).tolist() == wanted

def test_loss_is_that_of_weighted_logits():
    "In evaluation mode, and before the first new label."
    method, b = make(rank_margin=0.9).eval(), batch(progress=0.0)
    loss, parts = method(b)
    with torch.no_grad():
        f = method.net.encode(b["labelled"][0])
        a = [torch.sigmoid(method.weighting(v)).item() for v in f]
        rows = [a_i * (method.net.head.weight @ v + method.net.head.bias) for a_i, v in zip(a, f, strict=True)]
        wanted = sum(F.cross_entropy(r[None], y[None]).item() for r, y in zip(rows, b["targets"], strict=True)) / 6
    ranked = sorted(a, reverse=True)  # int(.7 · 6) = 4 high ones
    assert parts["cross_entropy"].item() == pytest.approx(wanted, rel=1e-5)
    assert parts["ranking"].item() == pytest.approx(0.9 - sum(ranked[:4]) / 4 + sum(ranked[4:]) / 2, rel=1e-5)
    assert loss.item() == pytest.approx(sum(parts.values()).item()) and (method.relabelled == -1).all()

def test_a_changed_label_is_learned_and_kept_and_may_go_back():
    method = make(relabel_margin=0.0).eval()
    with torch.no_grad(): method.net.head.bias.copy_(torch.tensor([0.0, 5.0, 0.0]))  # it says class 1 of all faces
    b = batch()
    first = method(b)[1]["cross_entropy"]
    wanted = torch.full((12,), -1, dtype=torch.int16)
    wanted[b["place"][b["targets"] != 1]] = 1
    assert torch.equal(method.relabelled, wanted)
    assert method.targets_of(b).tolist() == [1] * 6 and b["targets"].tolist() == [0, 1, 2] * 2
    assert method(b)[1]["cross_entropy"] < first
    with torch.no_grad(): method.net.head.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    method(b)
    wanted[b["place"]] = torch.tensor([-1, 0, 0] * 2, dtype=torch.int16)
    assert torch.equal(method.relabelled, wanted), "class 0 is the given label of two faces"

@pytest.mark.parametrize("since, progress, changes", [(0.5, 0.49, False), (0.5, 0.5, True), (1, 0.99, False)])
def test_labels_change_from_a_share_of_the_training_on(since, progress, changes):
    method = make(relabel_from=since, relabel_margin=0.0).eval()
    with torch.no_grad(): method.net.head.bias.copy_(torch.tensor([0.0, 5.0, 0.0]))
    method(batch(progress=progress))
    assert (method.relabelled is not None and (method.relabelled >= 0).any().item()) == changes

def test_doubt_is_one_less_the_weight_of_the_evaluated_network():
    for ema in (0.0, 0.9):
        method, b = make(ema=ema), batch()
        for step in range(2):
            method(b)[0].backward()
            with torch.no_grad():
                for p in method.parameters():
                    if p.grad is not None: p -= 0.1 * p.grad
            method.after_step(step)
        method.eval()
        faces, layer = b["labelled"][0], method.believed
        with torch.no_grad(): wanted = 1 - torch.sigmoid(layer(method.evaluated.encode(faces)))[:, 0]
        torch.testing.assert_close(method.doubt(faces), wanted)
        assert wanted.shape == (6,) and (not ema or not torch.equal(layer.weight, method.weighting.weight))

@pytest.mark.parametrize("fields", [dict(targets="soft"), dict(mixup=0.2), dict(cutmix=1.0), dict(frames="every:2")],
                         ids=str)
def test_faces_without_one_label_are_weighted_but_not_relabelled(fields):
    with pytest.raises(BenchError, match="set relabel_from=1"): make(**fields)
    method = make(**fields, relabel_from=1)
    loss, _ = method(batch(targets=torch.full((6, 3), 1 / 3)))
    assert method.relabelled is None and loss.isfinite()

@pytest.mark.parametrize("fields", [dict(rank_share=1.0), dict(rank_margin=-0.1), dict(relabel_from=1.1)], ids=str)
def test_options_outside_their_range_are_refused(fields):
    with pytest.raises(BenchError, match=next(iter(fields))): make(**fields)

@pytest.mark.parametrize("fields", [dict(), dict(ema=0.0), dict(label_smoothing=0.1, balance="weights")], ids=str)
def test_contract(fields): check_method("scn", **fields)

def test_a_run_in_bf16_with_soft_targets_and_mixup(tmp_path):
    record = run(RunConfig(method="scn", preset="tiny", precision="bf16", targets="soft", mixup=0.2, relabel_from=1,
                           logit_adjustment="loss", device="cpu", results_dir=str(tmp_path)))
    assert record.finished and record.loss_parts == ["cross_entropy", "ranking"]

def test_the_recipe_is_the_papers():
    c = RunConfig(method="scn", preset="paper")
    assert (c.backbone, c.optimizer, c.lr, c.epochs, c.batch_size) == ("resnet18", "adam", 1e-3, 70, 64)
    assert c.relabel_from * c.epochs == pytest.approx(10)
