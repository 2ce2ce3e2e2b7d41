"""RUL: mixtures, uncertainty and loss against plain loops, its network, its doubt, and what it refuses."""
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fer_bench import check_method, load_model, run
from fer_bench.catalogue import make_method
from fer_bench.config import RunConfig
from fer_bench.core import BenchError
from fer_bench.data.views import seeded
from fer_bench.methods.rul import mixed, uncertainty
from fer_bench.runs.networks import create_network


def make(**fields):
    torch.manual_seed(0)
    config = RunConfig(**{"method": "rul", "preset": "tiny", "ema": 0.0, "map_dropout": 0.0, **fields})
    return make_method(config, create_network(config, 3)[0], [4, 4, 4])

def batch(**values):
    torch.manual_seed(1)
    return {"labelled": [torch.rand(6, 3, 32, 32)], "targets": torch.tensor([0, 1, 2] * 2), "step": 3,
            "progress": 0.5} | values

@given(st.integers(0, 2**32 - 1))
def test_mixture_and_uncertainty_are_those_of_plain_loops(seed):
    rng = np.random.default_rng(seed)
    mu, other, log_variance, other_log = rng.normal(size=(4, 5, 3)) * 2
    u, v = ([sum(np.exp(x) for x in row) / 3 for row in values] for values in (log_variance, other_log))
    wanted = [[(u[b] * mu[b][d] + v[b] * other[b][d]) / (u[b] + v[b]) for d in range(3)] for b in range(5)]
    tensors = map(torch.from_numpy, (mu, log_variance, other, other_log))
    mu, log_variance, other, other_log = tensors
    found = mixed(mu, uncertainty(log_variance), other, uncertainty(other_log))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6, atol=1e-6)

def plain_features(layers, maps):
    "What `MapFeatures` says in evaluation mode, cell by cell."
    norm, linear, last = layers.layers[0], layers.layers[3], layers.layers[4]
    rows = []
    for face in maps:
        cells = [(x - m) / (v + 2e-5).sqrt() for x, m, v in
                 zip(face, norm.running_mean, norm.running_var, strict=True)]
        y = linear.weight @ torch.cat([c.flatten() for c in cells]) + linear.bias
        rows.append((y - last.running_mean) / (last.running_var + 2e-5).sqrt() * last.weight + last.bias)
    return torch.stack(rows)

def test_loss_is_that_of_plain_pairs():
    method, b = make(label_smoothing=0.1), batch()
    for _ in range(3): method(b)  # so that the running statistics are not those of the start
    method.eval()
    loss, parts = method(b)
    with torch.no_grad():
        maps = method.net.backbone.forward_features(method.net.normalise(b["labelled"][0]))
        mu, u = plain_features(method.net.neck, maps), plain_features(method.spread, maps).exp().mean(1)
        pairs, wanted = torch.randperm(6, generator=seeded(0, 3)).tolist(), {"own": 0.0, "other": 0.0}
        for i, j in enumerate(pairs):
            z = (u[i] * mu[i] + u[j] * mu[j]) / (u[i] + u[j])
            log_p = (method.net.head.weight @ z + method.net.head.bias).log_softmax(0)
            for name, k in (("own", i), ("other", j)):
                wanted[name] -= (0.9 * log_p[b["targets"][k]] + 0.1 * log_p.mean()).item() / 12
    for name, value in wanted.items(): assert parts[name].item() == pytest.approx(value, abs=1e-5)
    assert loss.item() == pytest.approx(sum(wanted.values()), abs=1e-5)
    torch.testing.assert_close(method.doubt(b["labelled"][0]), u, rtol=1e-4, atol=1e-5)

def test_the_harder_of_two_faces_gets_more_weight():
    "Both labels are in the loss; a face that a small share does not show raises its uncertainty."
    weight, mu = torch.eye(2), torch.tensor([[4.0, 0.0], [0.0, 1.0]])  # the first is easy, the second hard
    log_variance = torch.zeros(2, 1, requires_grad=True)
    u = uncertainty(log_variance)
    log_p = (mixed(mu[:1], u[:1], mu[1:], u[1:]) @ weight.T).log_softmax(1)[0]
    (-log_p.mean()).backward()
    easy, hard = log_variance.grad[:, 0]
    assert hard < 0 < easy, "a step downhill raises that of the hard one"

def test_doubt_is_that_of_the_evaluated_network():
    method, b = make(ema=0.5), batch()
    for step in range(3):
        method(b)[0].backward()
        with torch.no_grad():
            for p in method.parameters():
                if p.grad is not None: p -= 0.1 * p.grad
        method.after_step(step)
    assert not method.train().measured.training and method.spread.training
    faces = b["labelled"][0]
    with torch.no_grad():
        maps = method.eval().ema.backbone.forward_features(method.net.normalise(faces))
        wanted = plain_features(method.measured, maps).exp().mean(1)
        torch.testing.assert_close(method.doubt(faces), wanted, rtol=1e-4, atol=1e-5)

def test_both_branches_learn_and_start_apart():
    method = make()
    one, two = method.net.neck.layers[3], method.spread.layers[3]
    assert one.weight.shape == two.weight.shape and not torch.equal(one.weight, two.weight)
    method(batch())[0].backward()
    assert one.weight.grad.abs().max() > 0 and two.weight.grad.abs().max() > 0

@pytest.mark.parametrize("fields, message", [
    (dict(backbone="test_vit", image_size=160), "makes no map of channels"),
    (dict(backbone="test_vit", image_size=160, min_map=0), "makes no map of channels"),
    (dict(backbone="pixels"), "4 × 4 are needed"), (dict(map_dropout=1.0), "map_dropout"),
    (dict(head_width=0), "head_width")], ids=str)
def test_refusals(fields, message):
    with pytest.raises(BenchError, match=message): make(**fields)

@pytest.mark.parametrize("fields", [dict(), dict(ema=0.0, map_dropout=0.0), dict(balance="weights", head_width=8)],
                         ids=str)
def test_contract(fields): check_method("rul", **fields)

def test_a_run_in_bf16_with_soft_targets_and_mixup(tmp_path):
    record = run(RunConfig(method="rul", preset="tiny", precision="bf16", targets="soft", mixup=0.2,
                           logit_adjustment="loss", device="cpu", results_dir=str(tmp_path)))
    assert record.loss_parts == ["own", "other"] and load_model(record).head.in_features == 64

def test_the_recipe_is_the_papers():
    c = RunConfig(method="rul", preset="paper")
    assert (c.backbone, c.optimizer, c.lr, c.epochs, c.batch_size) == ("resnet18", "adam", 2e-4, 60, 64)
