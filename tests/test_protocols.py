"""The probes against scikit-learn and plain loops, the choice of the penalty, and that a frozen backbone stays so."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from fer_bench.core import BenchError
from fer_bench.data.feed import Feed, Order, batch_rows
from fer_bench.data.views import apply_view, make_view, seeded
from fer_bench.evaluate import protocols
from fer_bench.evaluate.features import calibrate, extract, fingerprint, frozen
from fer_bench.evaluate.metrics import classification_metrics
from fer_bench.evaluate.predict import predict
from fer_bench.evaluate.protocols import cross_validated_probe, knn_logits, linear_probe, probe_head, sgd_probe
from fer_bench.methods.base import Method
from fer_bench.models.backbones import create_classifier
from fer_bench.train.batches import ORDER, VIEW

pytestmark = pytest.mark.filterwarnings("error:A linear probe stopped")


def blobs(n=240, width=12, classes=4, seed=0, spread=1.0, counts=None):
    "Overlapping Gaussian classes whose features are correlated, of unequal scale and far from 0."
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes if counts is None else np.repeat(np.arange(classes), counts)
    fixed = np.random.default_rng(99)
    middles, mix = fixed.normal(size=(classes, width)), fixed.normal(size=(width, width))
    features = (spread * rng.normal(size=(len(labels), width)) + middles[labels]) @ mix
    return (features * 10.0 ** np.linspace(-3, 2, width) + 7).astype(np.float32), labels


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def scikit_learn(x, y, new, strength, balance="none"):
    "Probabilities of `new` by scikit-learn, standardised, converged."
    scaler, weights = StandardScaler().fit(x.astype(np.float64)), {"none": None, "weights": "balanced"}[balance]
    model = LogisticRegression(C=1 / (len(x) * strength), tol=1e-9, max_iter=5000, class_weight=weights)
    return model.fit(scaler.transform(x.astype(np.float64)), y).predict_proba(scaler.transform(new.astype(np.float64)))


@pytest.mark.parametrize("strength", [3.0, 0.1, 0.003, 0.0001])
@pytest.mark.parametrize("balance", ["none", "weights"])
def test_equals_scikit_learn(strength, balance):
    (x, y), (new, new_y) = blobs(counts=(120, 60, 40, 20)), blobs(seed=1)
    ours = linear_probe(x, y, new, new_y, 4, (strength,), balance)
    np.testing.assert_allclose(softmax(ours.logits(new)), scikit_learn(x, y, new, strength, balance), atol=1e-3)


@pytest.mark.parametrize("strengths", [(10.0, 0.1, 0.001), (0.001,)])
def test_equals_scikit_learn_with_more_features_than_faces_after_a_path(strengths):
    (x, y), (new, new_y) = blobs(n=40, width=90), blobs(n=80, width=90, seed=1)
    ours = linear_probe(x, y, new, new_y, 4, strengths)
    np.testing.assert_allclose(softmax(ours.logits(new)), scikit_learn(x, y, new, ours.strength), atol=1e-3)


def test_folding_is_exact():
    x, y = blobs()
    probe = linear_probe(x, y, x, y, 4, (0.01,))
    mean, std = x.astype(np.float64).mean(0), x.astype(np.float64).std(0)
    standard = (x - mean) / std
    on_standard = standard @ (probe.weight * std).T + (probe.bias + probe.weight @ mean)
    np.testing.assert_allclose(softmax(probe.logits(x)), softmax(on_standard), atol=1e-6)
    again = linear_probe(standard, y, standard, y, 4, (0.01,))  # standardising twice changes nothing
    np.testing.assert_allclose(softmax(again.logits(standard)), softmax(probe.logits(x)), atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(-3, 3), st.floats(-50, 50))
def test_scale_and_offset_of_the_features_do_not_matter(seed, power, offset):
    x, y = blobs(n=60, width=5, classes=3, seed=seed)
    moved = (x.astype(np.float64) + offset) * 10**power
    one, other = (linear_probe(f, y, f, y, 3, (0.1,)) for f in (x.astype(np.float64), moved))
    np.testing.assert_allclose(softmax(one.logits(x)), softmax(other.logits(moved)), atol=1e-4)


def test_features_that_do_not_vary_get_no_weight():
    x, y = blobs()
    constant = np.concatenate([x, np.full((len(x), 1), 3.1, np.float32), np.zeros((len(x), 1), np.float32)], 1)
    with_them, without = (linear_probe(f, y, f, y, 4, (0.01,)) for f in (constant, x))
    assert (with_them.weight[:, -2:] == 0).all()
    np.testing.assert_allclose(with_them.logits(constant), without.logits(x), atol=1e-3)
    dead = linear_probe(np.ones((8, 3)), np.repeat([0, 1], (6, 2)), np.ones((2, 3)), np.array([0, 1]), 2, (1.0,))
    np.testing.assert_allclose(softmax(dead.logits(np.ones((1, 3)))), [[0.75, 0.25]], atol=1e-4)  # the bias is left


def test_balance_lifts_a_rare_class():
    x, y = blobs(counts=(200, 200, 200, 12), spread=3)
    new, new_y = blobs(n=400, seed=1, spread=3)
    logits = lambda balance: linear_probe(x, y, new, new_y, 4, (0.01,), balance).logits(new)
    recall = {b: classification_metrics(logits(b), new_y, "abcd")["recall"]["d"]
              for b in ("none", "weights")}
    assert recall["weights"] > recall["none"] + 0.1


def test_validation_faces_alone_choose_the_strength():
    x, y = blobs(n=32, width=30, spread=2)
    new, new_y = blobs(n=1000, width=30, seed=1, spread=2)
    strengths = (0.0001, 10.0, 0.1)
    alone = {s: linear_probe(x, y, new, new_y, 4, (s,)) for s in strengths}
    wars = {s: probe.val_WAR[s] for s, probe in alone.items()}
    assert len(set(wars.values())) == 3, "the case must have something to choose"
    probe = linear_probe(x, y, new, new_y, 4, strengths)
    assert probe.val_WAR == pytest.approx(wars, abs=2e-3) and list(probe.val_WAR) == sorted(strengths, reverse=True)
    assert probe.strength == max(wars, key=wars.get)
    for s in strengths:  # the same labelled faces, but validation labels that this strength alone gets right
        assert linear_probe(x, y, new, alone[s].logits(new).argmax(1), 4, strengths).strength == s


def test_ties_go_to_the_stronger():
    x, y = np.repeat([[-1.0], [1.0]], 10, 0), np.repeat([0, 1], 10)
    probe = linear_probe(x, y, x, y, 2, (0.01, 1.0, 0.1))
    assert probe.strength == 1.0 and set(probe.val_WAR.values()) == {1.0}


@pytest.mark.parametrize("counts, width", [((12, 9, 7, 4), 30), ((40, 40, 40, 1), 6)])  # the last: in no other fold
def test_folds_choose_the_strength_as_plain_cross_validation_does(counts, width):
    x, y = blobs(counts=counts, width=width, spread=2)
    folds = np.random.default_rng(0).integers(0, 5, len(y))
    strengths, found = (1.0, 0.03, 0.001), {}
    for s in strengths:
        hits = 0
        for f in range(5):
            own, known = folds == f, np.unique(y[folds != f])
            p = scikit_learn(x[~own], y[~own], x[own], s)
            hits += (known[p.argmax(1)] == y[own]).sum()
        found[s] = hits / len(y)
    probe = cross_validated_probe(x, y, folds, 4, strengths)
    assert probe.val_WAR == pytest.approx(found, abs=1.01 / len(y)) and probe.weight.shape == (4, width)
    assert probe.strength == max(strengths, key=probe.val_WAR.get)
    alone = linear_probe(x, y, x, y, 4, (probe.strength,))
    np.testing.assert_allclose(softmax(probe.logits(x)), softmax(alone.logits(x)), atol=1e-3)


def test_one_face_a_class_cannot_choose_so_the_strongest_wins():
    x, y = blobs(counts=(1, 1, 1), classes=3)
    probe = cross_validated_probe(x, y, np.arange(3), 3)
    assert probe.strength == max(protocols.STRENGTHS) and set(probe.val_WAR.values()) == {0.0}
    assert (probe.logits(x).argmax(1) == y).all()


@pytest.mark.parametrize("folds", [np.zeros(12, int), np.arange(11), np.zeros((12, 2), int)])
def test_folds_that_do_not_fit(folds):
    with pytest.raises(BenchError, match="at least two folds"): cross_validated_probe(*blobs(12, classes=2), folds, 2)


def test_a_probe_that_stops_short_says_so(monkeypatch):
    monkeypatch.setattr(protocols, "MAX_STEPS", 1)
    x, y = blobs()
    with pytest.warns(UserWarning, match="before its minimum"): linear_probe(x, y, x, y, 4, (0.001,))


def plain_vote(features, labels, query, n_classes, k, temperature):
    cosine = [float(f @ query / np.linalg.norm(f) / np.linalg.norm(query)) for f in features]
    votes = np.zeros(n_classes)
    nearest = sorted(range(len(features)), key=lambda i: -cosine[i])[:k]
    for i in nearest: votes[labels[i]] += np.exp(cosine[i] / temperature)
    return votes / votes.sum()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.sampled_from([0.07, 0.5]), st.sampled_from([1, 64, 10**6]))
def test_neighbours_equal_a_plain_loop(seed, k, temperature, pairs):
    rng = np.random.default_rng(seed)
    features, labels, queries = rng.normal(size=(30, 4)), np.arange(30) % 3, rng.normal(size=(7, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocols, "PAIRS", pairs)  # chunks of one query, of two, of all
        logits = knn_logits(features, labels, queries, 3, k, temperature)
    assert logits.shape == (7, 3) and logits.dtype == np.float32
    expected = [plain_vote(features, labels, q, 3, k, temperature) for q in queries]
    np.testing.assert_allclose(softmax(logits), expected, atol=2e-5)


# --- on a network

def pictures(n=48, seed=0):
    "Grey faces of 32 px of two classes: bright above, or bright below."
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    images = rng.integers(0, 60, (n, 32, 32, 1))
    images[labels == 0, :16] += 180; images[labels == 1, 16:] += 180
    return images.astype(np.uint8), labels


def make_method(decay=0.0, classes=2):
    torch.manual_seed(0)
    return Method(create_classifier("resnet10t", classes, 32)[0], decay).train()


def state_but_head(method): return {k: v.clone() for k, v in method.state_dict().items() if ".head." not in k}


def same(a, b): return a.keys() == b.keys() and all(a[k].numpy().tobytes() == b[k].numpy().tobytes() for k in a)


def extracted(method):
    images, labels = pictures()
    features = extract(method, Feed(images), np.arange(40), 32)
    return features, labels[:40], Feed(images), labels


def probed(method):
    features, y, *_ = extracted(method)
    return probe_head(method.evaluated, linear_probe(features, y, features, y, 2))


def neighboured(method): return knn_logits(*extracted(method)[:2], extracted(method)[0], 2)


def trained(method, **options):
    images, labels = pictures()
    options = {"epochs": 3, "batch_size": 16} | options
    return sgd_probe(method.evaluated, Feed(images), np.arange(40), labels[:40], 32, **options)


@pytest.mark.parametrize("protocol", [probed, neighboured, trained])
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_not_a_bit_of_the_backbone_moves(protocol, decay):
    method = make_method(decay)
    before, modes = state_but_head(method), [m.training for m in method.modules()]
    assert any("running_mean" in name for name in before) and method.net.training
    protocol(method)
    assert same(before, state_but_head(method))
    assert [m.training for m in method.modules()] == modes
    assert all(p.grad is None for p in method.parameters())


class Norms(torch.nn.Module):
    "Two batch norms, of which the second sees what the first makes."
    def __init__(self):
        super().__init__()
        self.one, self.mix, self.two = torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)

    def forward(self, x): return self.two(self.mix(self.one(x)).relu())


def test_calibrated_norms_hold_the_statistics_of_the_faces():
    "One batch: mean and variance of the faces, of the second norm behind the first; weights and mode stay."
    images, _ = pictures()
    torch.manual_seed(0)
    net = Norms().eval()
    before = [p.clone() for p in net.parameters()]
    calibrate(net, Feed(images), np.arange(48), 32)
    x = apply_view(make_view("plain"), Feed(images)(range(48)), 32, 0)
    for norm in (net.one, net.two):
        if norm is net.two: x = net.mix((x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False,
                                                                                   keepdim=True) + 1e-5).sqrt()).relu()
        torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(norm.running_var, x.var((0, 2, 3)), atol=1e-3, rtol=1e-3)
        assert not norm.training and norm.momentum == 0.1
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)) and not net.training


def test_calibrated_batches_count_alike_and_sorted_faces_do_not_matter():
    images, labels = pictures(64)
    ordered = images[np.argsort(labels)]
    found = []
    for faces, size in ((images, 64), (ordered, 16), (images, 30)):  # 30: three batches of 22, 21 and 21
        calibrate(net := Norms(), Feed(faces), np.arange(64), 32, batch_size=size)
        found.append(net.one)
    for norm in found[1:]:
        torch.testing.assert_close(norm.running_mean, found[0].running_mean, atol=0.01, rtol=0)
        torch.testing.assert_close(norm.running_var, found[0].running_var, atol=0.02, rtol=0)


def test_frozen_sees_one_bit_of_a_weight_or_a_buffer():
    net = make_method().net
    for tensor in (net.backbone.conv1[0].weight, net.backbone.bn1.running_var, net.backbone.bn1.num_batches_tracked):
        before = fingerprint(net)
        with pytest.raises(BenchError, match="changed while evaluated"), frozen(net):
            tensor.detach().flatten().view(torch.uint8)[0] ^= 1
        assert fingerprint(net) != before and net.training


def test_probe_in_the_head_classifies_as_on_the_features():
    method = make_method()
    features, y, feed, labels = extracted(method)
    assert features.shape == (40, method.net.backbone.num_features) and features.dtype == np.float32
    probe = linear_probe(features, y, features, y, 2)
    assert probe_head(method.net, probe) is method.net
    logits = predict(method, feed, np.arange(40), 32)
    np.testing.assert_allclose(softmax(logits), softmax(probe.logits(features)), atol=1e-3)
    assert (predict(method, feed, np.arange(40, 48), 32).argmax(1) == labels[40:]).all()


def test_sgd_probe_learns_by_its_seed_and_no_other_randomness():
    heads, histories = [], []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        method = make_method()
        torch.manual_seed(noise)
        histories.append(trained(method, seed=seed))
        heads.append(torch.cat([method.net.head.weight.flatten(), method.net.head.bias]).detach())
    assert torch.equal(heads[0], heads[1]) and histories[0] == histories[1]
    assert not torch.equal(heads[0], heads[2])


def test_sgd_probe_learns_what_is_separable_and_shows_it_epoch_by_epoch():
    images, labels = pictures()
    method, feed = make_method(decay=0.9), Feed(images)
    seen = []

    def after_epoch(progress):
        seen.append(progress)
        return {"val_WAR": float((predict(method, feed, np.arange(40, 48), 32).argmax(1) == labels[40:]).mean())}

    history = sgd_probe(method.evaluated, feed, np.arange(40), labels[:40], 32, 25, lr=2.0, after_epoch=after_epoch)
    assert [row["epoch"] for row in history] == list(range(1, 26)) and seen[-1] == 1
    assert history[-1]["loss"] < 0.95 * history[0]["loss"] and history[-1]["val_WAR"] == 1


def test_sgd_probe_is_the_published_step():
    "Three steps on all faces by hand: the rate follows the batch, momentum .9, no weight decay, crops of (seed, step)."
    images, labels = pictures(40)
    feed, method, rate = Feed(images), make_method(), 0.5 * 40 / 256
    history = sgd_probe(method.net, feed, np.arange(40), labels, 32, epochs=3, seed=5)
    weight = torch.randn(method.net.head.weight.shape, generator=seeded(5, 0, protocols.HEAD)) * 0.01
    bias, order = torch.zeros(2), Order(np.arange(40), 5, ORDER)
    velocity = torch.zeros_like(weight), torch.zeros_like(bias)
    for step in range(3):
        places = batch_rows(order, step, 40)
        crops = apply_view(protocols.Crop(), feed(places), 32, 5, step, VIEW)
        with torch.no_grad(): features = method.net.eval().encode(crops)
        slope = (features @ weight.T + bias).softmax(1) - torch.eye(2)[labels[places]]  # (40, 2)
        velocity = 0.9 * velocity[0] + slope.T @ features / 40, 0.9 * velocity[1] + slope.mean(0)
        weight, bias = weight - rate * velocity[0], bias - rate * velocity[1]
    assert [row["lr"] for row in history] == [rate] * 3
    torch.testing.assert_close((method.net.head.weight, method.net.head.bias), (weight, bias), atol=1e-6, rtol=1e-4)


# --- what is wrong is said

def good():
    return {"features": np.eye(4), "labels": np.arange(4) % 2, "val_features": np.eye(4),
            "val_labels": np.arange(4) % 2, "n_classes": 2}


@pytest.mark.parametrize("change, words", [
    ({"features": np.zeros((0, 4)), "labels": np.zeros(0, int)}, "at least one face"),
    ({"val_features": np.zeros((0, 4)), "val_labels": np.zeros(0, int)}, "validation faces"),
    ({"n_classes": 3}, "class 2 of the 3"),
    ({"features": np.where(np.eye(4) > 0, np.nan, 0)}, "4 of the 4 labelled faces .* NaN or infinite"),
    ({"val_features": np.where(np.eye(4) > 0, np.inf, 0)}, "validation faces .* NaN or infinite"),
    ({"val_features": np.eye(3)}, r"\(faces, 4\)"),
    ({"labels": np.arange(3)}, "an integer from 0 to 1"),
    ({"labels": np.array([0, 1, 0, -1])}, "an integer"),
    ({"labels": np.array([0, 1, 0, 1.0])}, "an integer"),
    ({"val_labels": np.array([0, 1, 0, 2])}, "an integer"),
    ({"strengths": ()}, "at least one L2 strength"),
    ({"strengths": (0.1, 0.0)}, "above 0"),
    ({"balance": "sampler"}, "'none' or 'weights'"),
])
def test_linear_probe_says_what_is_wrong(change, words):
    with pytest.raises(BenchError, match=words): linear_probe(**good() | change)


@pytest.mark.parametrize("change, words", [
    ({"k": 5}, "k = 5 must be from 1 to 4"), ({"k": 0}, "k = 0 must be"), ({"temperature": 0}, "above 0"),
    ({"features": np.full((4, 4), np.nan)}, "NaN"), ({"queries": np.full((1, 4), np.inf)}, "faces to classify"),
    ({"queries": np.ones((1, 3))}, r"\(faces, 4\)"), ({"n_classes": 3}, "class 2"),
])
def test_neighbours_say_what_is_wrong(change, words):
    fine = {"features": np.eye(4), "labels": np.arange(4) % 2, "queries": np.eye(4), "n_classes": 2, "k": 2}
    assert knn_logits(**fine).shape == (4, 2)
    with pytest.raises(BenchError, match=words): knn_logits(**fine | change)


def test_the_rest_says_what_is_wrong():
    method, (images, labels) = make_method(), pictures(8)
    feed = Feed(images)
    with pytest.raises(BenchError, match="no faces to compute features of"): extract(method, feed, [], 32)
    with pytest.raises(BenchError, match="no labelled faces"): sgd_probe(method.net, feed, [], [], 32)
    with pytest.raises(BenchError, match="class 1"): sgd_probe(method.net, feed, [0, 2], labels[[0, 2]], 32)
    with pytest.raises(BenchError, match="'none' or 'weights'"): trained(method, balance="sampler")
    with pytest.raises(BenchError, match="does not fit a head"): probe_head(method.net, linear_probe(**good()))
    method.net.backbone.conv1[0].weight.data.fill_(float("nan"))
    with pytest.raises(BenchError, match="became nan in epoch 1"): sgd_probe(method.net, feed, np.arange(8), labels, 32)
