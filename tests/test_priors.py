"""Class priors: EM and logit adjustment against plain versions, properties, bad input, and what runs do with them."""
import functools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from fer_bench.catalogue import make_method, registered
from fer_bench.config import ADJUSTMENTS, RunConfig, baseline, given_prior
from fer_bench.core import BenchError
from fer_bench.evaluate.priors import FLOOR, adjust, class_shares, em_prior, training_prior
from fer_bench.methods.base import Method
from fer_bench.methods.supervised import Supervised, cross_entropy, loss_log_prior, loss_weights
from fer_bench.models.backbones import create_classifier
from fer_bench.runs.adjustment import adjusted_scores, settle_prior, shift_bias, some_of
from fer_bench.runs.evaluation import evaluate_logits
from fer_bench.runs.experiment import build, run
from fer_bench.runs.networks import load_classifier
from fer_bench.runs.task import prepare_data
from fer_bench.schema import example_metrics

WILD = [.36, .26, .13, .12, .09, .03, .01]

def simulated(prior, n=6000, seed=0, apart=3.0):
    "Labels (N,) of classes on a circle in the shares `prior` (K,), and the best logits (N, K) for equal shares."
    rng, k = np.random.default_rng(seed), len(prior)
    angles = 2 * np.pi * np.arange(k) / k
    centres = apart * np.stack([np.cos(angles), np.sin(angles)], 1)
    labels = rng.choice(k, size=n, p=prior)
    points = centres[labels] + rng.normal(size=(n, 2))
    return labels, -np.square(points[:, None] - centres).sum(2) / 2

def uniform(k): return np.full(k, 1 / k)

shares = st.lists(st.floats(0.02, 1), min_size=2, max_size=8).map(lambda v: np.array(v) / sum(v))

# EM

@pytest.mark.parametrize("prior", [WILD, [1 / 7] * 7, [.05, .05, .9], [.5, .5], [.97, .01, .01, .01]], ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_em_recovers_the_prior_within_two_points(prior, seed):
    _, logits = simulated(prior, seed=seed)
    assert abs(em_prior(softmax(logits, axis=1), uniform(len(prior))) - prior).max() < 0.02

def test_counted_predictions_do_not():
    labels, logits = simulated(WILD)
    counted = np.bincount(logits.argmax(1), minlength=7) / len(labels)
    assert abs(counted - WILD).max() > 0.03

def plain_em(rows, trained, steps):
    prior = list(trained)
    for _ in range(steps):
        total = [0.0] * len(prior)
        for row in rows:
            joint = [p * q / t for p, q, t in zip(row, prior, trained, strict=True)]
            for k, value in enumerate(joint): total[k] += value / sum(joint) / len(rows)
        prior = total
    return prior

@pytest.mark.parametrize("steps", [1, 2, 7])
def test_em_is_that_of_plain_loops(steps):
    trained = np.array([.5, .3, .2])
    probabilities = np.random.default_rng(steps).dirichlet([1, 1, 1], 50)
    np.testing.assert_allclose(em_prior(probabilities, trained, tolerance=0, most=steps),
                               plain_em(probabilities.tolist(), trained.tolist(), steps), atol=1e-12)

def test_em_ends_at_the_greatest_likelihood():
    trained, (_, logits) = np.array([.2, .3, .5]), simulated([.6, .3, .1], n=400, apart=1.5)
    p = softmax(adjust(logits, uniform(3), trained), axis=1)
    negative = lambda w: -np.log((p * softmax(w) / trained).sum(1)).mean()
    best = softmax(minimize(negative, np.zeros(3), tol=1e-12).x)
    np.testing.assert_allclose(em_prior(p, trained), best, atol=2e-4)

@settings(max_examples=25)
@given(st.lists(st.floats(0.05, 1), min_size=4, max_size=4).map(lambda v: np.array(v) / sum(v)))
def test_em_does_not_depend_on_the_prior_of_the_training(trained):
    _, logits = simulated([.5, .25, .2, .05], n=500, apart=2)
    other = softmax(adjust(logits, uniform(4), trained), axis=1)
    np.testing.assert_allclose(em_prior(other, trained), em_prior(softmax(logits, axis=1), uniform(4)), atol=1e-4)

def test_a_class_that_does_not_occur_keeps_the_floor():
    _, logits = simulated([.6, .4, 0, 0], apart=6)
    found = em_prior(softmax(logits, axis=1), uniform(4))
    assert found[2:] == pytest.approx(FLOOR / 4, rel=0.01) and np.isfinite(adjust(logits, uniform(4), found)).all()

def test_one_face_and_one_class():
    assert em_prior([[1.0]], [1.0]) == [1.0]
    assert em_prior([[0.9, 0.1]], [0.5, 0.5]).argmax() == 0
    np.testing.assert_allclose(em_prior(np.eye(3)[[0, 0, 1, 2]], uniform(3)), [.5, .25, .25])

@pytest.mark.parametrize("probabilities, trained, message", [
    (np.empty((0, 3)), uniform(3), "a row a face"), ([.2, .8], uniform(2), "a row a face"),
    ([[np.nan, 1.0]], uniform(2), "the training diverged"), ([[np.inf, 0]], uniform(2), "a probability"),
    ([[-.1, 1.1]], uniform(2), "not negative"), ([[.5, .2]], uniform(2), "1 in sum"),
    ([[.5, .5]], uniform(3), "give 2 numbers"), ([[.5, .5]], [1, 0], "above 0"), ([[.5, .5]], [.6, .6], "sum to 1"),
    ([[.5, .5]], [np.nan, .5], "above 0"), ([[.5, .5]], [[.5, .5]], "give 2 numbers")], ids=str)
def test_em_refuses(probabilities, trained, message):
    with pytest.raises(BenchError, match=message): em_prior(probabilities, trained)

# adjustment

def test_adjustment_is_that_of_plain_loops_and_of_bayes_rule():
    trained, target, (_, logits) = np.array([.5, .3, .2]), np.array([.1, .1, .8]), simulated([.3, .3, .4], n=40)
    found = adjust(logits, trained, target, tau=0.7)
    for i, k in np.ndindex(found.shape):
        assert found[i, k] == pytest.approx(logits[i, k] + 0.7 * math.log(target[k]) - 0.7 * math.log(trained[k]))
    bayes = softmax(logits, axis=1) * target / trained
    np.testing.assert_allclose(softmax(adjust(logits, trained, target), axis=1), bayes / bayes.sum(1, keepdims=True))

@given(shares, st.integers(0, 99))
def test_adjusting_to_the_prior_of_the_training_changes_nothing(prior, seed):
    logits = np.random.default_rng(seed).normal(size=(5, len(prior)), scale=5)
    np.testing.assert_allclose(adjust(logits, prior, prior), logits, atol=1e-12)
    np.testing.assert_array_equal(adjust(logits, prior, uniform(len(prior)), tau=0), logits)

@given(st.data(), shares)
def test_adjusting_there_and_back(data, trained):
    k = len(trained)
    target = data.draw(st.lists(st.floats(0.02, 1), min_size=k, max_size=k).map(lambda v: np.array(v) / sum(v)))
    logits = np.random.default_rng(0).normal(size=(5, k), scale=5)
    np.testing.assert_allclose(adjust(adjust(logits, trained, target), target, trained), logits, atol=1e-9)

@given(shares, st.integers(0, 7), st.floats(1.01, 10))
def test_a_greater_share_never_loses_a_face(prior, c, factor):
    c, greater = c % len(prior), prior.copy()
    greater[c] *= factor
    logits = np.random.default_rng(1).normal(size=(200, len(prior)))
    before, after = (adjust(logits, uniform(len(prior)), p / p.sum()).argmax(1) == c for p in (prior, greater))
    assert (after >= before).all()

def test_the_true_prior_raises_WAR():
    labels, logits = simulated(WILD)
    war = lambda values: (values.argmax(1) == labels).mean()
    assert war(adjust(logits, uniform(7), WILD)) > war(logits) + 0.02

@pytest.mark.parametrize("trained, target, tau, logits, message", [
    ([.5, .5], [.2, .3, .5], 1, [[0, 1]], "target = .*give 2 numbers"), ([.5], [.5, .5], 1, [[0, 1]], "trained"),
    ([.5, .5], [1, 0], 1, [[0, 1]], "above 0"), ([.5, .5], [1.2, -.2], 1, [[0, 1]], "above 0"),
    ([.5, .5], [.5, .6], 1, [[0, 1]], "sum to 1"), ([np.nan, .5], [.5, .5], 1, [[0, 1]], "above 0"),
    ([.5, .5], [np.inf, .5], 1, [[0, 1]], "sum to 1"), ([.5, .5], [.5, .5], -1, [[0, 1]], "tau"),
    ([.5, .5], [.5, .5], np.nan, [[0, 1]], "tau"), ([.5, .5], [.5, .5], 1, [[0, np.nan]], "finite"),
    ([.5, .5], [.5, .5], 1, [0, 1], "finite numbers")], ids=str)
def test_adjustment_refuses(trained, target, tau, logits, message):
    with pytest.raises(BenchError, match=message): adjust(logits, trained, target, tau)

@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=20).filter(any))
def test_class_shares_keep_the_order_and_the_floor(counts):
    found, counts = class_shares(counts), np.array(counts)
    assert found.sum() == pytest.approx(1) and (found >= FLOOR / len(counts) / (1 + FLOOR) - 1e-12).all()
    assert (np.diff(found[np.argsort(counts)]) >= 0).all()
    if (counts >= FLOOR * counts.sum() / len(counts)).all(): np.testing.assert_allclose(found, counts / counts.sum())

@pytest.mark.parametrize("counts", [[], [0, 0], [1, -1], [1, np.nan], [1, np.inf], [[1, 2]]], ids=str)
def test_class_shares_refuse(counts):
    with pytest.raises(BenchError, match="not all 0"): class_shares(counts)

# the prior of a training

LABELS = np.repeat([0, 1, 2], [12, 6, 2])
SOFT = np.array([[.8, .1, .1], [.2, .6, .2], [.0, .3, .7]])[LABELS]

@pytest.mark.parametrize("targets", [np.eye(3)[LABELS], SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("how", [{"balance": "none"}, {"balance": "sampler"}, {"balance": "weights"},
                                 {"balance": "none", "logit_adjustment": "loss"}], ids=str)
def test_training_prior_is_what_a_network_learns_that_sees_nothing(targets, how):
    "All it has is a bias, and the least loss makes its softmax the prior. Labels alone, evened out, are uniform."
    counts, config = np.bincount(LABELS), RunConfig(preset="tiny", **how)
    drawn = np.concatenate([np.resize(np.flatnonzero(c == LABELS), 12) for c in range(3)])
    rows = torch.from_numpy(targets[drawn if how["balance"] == "sampler" else slice(None)])
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([bias], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")
    weights, log_prior = loss_weights(config, counts), loss_log_prior(config, counts)

    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(bias.expand(len(rows), 3), rows, 0.0, None if weights is None else weights.double(),
                             log_prior)
        loss.backward()
        return loss
    optimizer.step(closure)
    found = training_prior(targets, LABELS, **how)
    np.testing.assert_allclose(found, bias.detach().softmax(0).numpy(), atol=1e-4)
    if targets is not SOFT: np.testing.assert_allclose(found, counts / 20 if how == {"balance": "none"} else uniform(3))

def test_a_class_without_a_label_keeps_the_floor():
    found = training_prior(np.eye(3)[[0, 1]], np.array([0, 1]), "sampler")
    assert found == pytest.approx(np.array([1, 1, FLOOR / 1.5]) / (2 + FLOOR / 1.5))

# in the loss

def skewed(**fields): return RunConfig(preset="tiny", logit_adjustment="loss", balance="none", **fields)

def test_loss_is_that_of_plain_loops():
    logits, targets = np.random.default_rng(0).normal(size=(5, 3)), [0, 1, 2, 0, 1]
    log_prior = loss_log_prior(skewed(), [70, 20, 10])
    wanted = 0.0
    for row, y in zip(logits.tolist(), targets, strict=True):
        raised = [v + math.log(p) for v, p in zip(row, [.7, .2, .1], strict=True)]
        wanted += (math.log(sum(map(math.exp, raised))) - raised[y]) / 5
    found = cross_entropy(torch.from_numpy(logits), torch.tensor(targets), log_prior=log_prior)
    assert found.item() == pytest.approx(wanted, rel=1e-6)
    assert loss_log_prior(RunConfig(preset="tiny"), [70, 20, 10]) is None

@pytest.mark.parametrize("name, part", [("supervised", "cross_entropy"), ("eac", "cross_entropy"), ("dtm", "labelled"),
                                        ("mean_teacher", "labelled"), ("ada_cm", "labelled")])
def test_every_method_with_labels_adjusts_its_labelled_loss_alone(name, part):
    "In evaluation mode, where the logits of the labelled faces can be asked apart."
    config = skewed(method=name, ema=0.9 if name == "mean_teacher" else 0.0)
    torch.manual_seed(0)
    net = create_classifier("test_resnet", 3, 32)[0]
    methods = [make_method(c, net, [80, 15, 5], 20).eval()
               for c in (config, config.model_copy(update={"logit_adjustment": "none"}))]
    faces, targets = torch.rand(6, 3, 32, 32), torch.tensor([0, 1, 2] * 2)
    views = methods[0].views.get("unlabelled", [])
    batch = {"labelled": [faces], "targets": targets, "unlabelled": [torch.rand(6, 3, 32, 32) for _ in views],
             "index": torch.arange(6), "step": 0, "progress": 0.5}
    (_, found), (_, plain) = (method(batch) for method in methods)
    with torch.no_grad(): logits = methods[0].net(faces).double().numpy() + np.log([.8, .15, .05])
    wanted = -log_softmax(logits, axis=1)[np.arange(6), targets].mean() * getattr(config, "lambda_x", 1.0)
    assert found[part].item() == pytest.approx(wanted, rel=1e-5) != plain[part].item()
    for other in found.keys() - {part}: assert found[other].item() == pytest.approx(plain[other].item(), rel=1e-5)

# configs

@pytest.mark.parametrize("text", [*ADJUSTMENTS, ".5,.5", "0.7, 0.2, 0.1", "1"])
def test_given_prior(text):
    assert given_prior(text) == () if text in ADJUSTMENTS else sum(given_prior(text)) == pytest.approx(1)

@pytest.mark.parametrize("text", ["", "Loss", "0.5,0.6", "0,1", "-.5,1.5", "nan,1", "1,nan", "inf,1", "a,b", ".5,.5,"])
def test_other_adjustments_are_refused(text):
    with pytest.raises(BenchError, match="logit_adjustment = .*shares above 0"):
        RunConfig(preset="tiny", logit_adjustment=text)

@pytest.mark.parametrize("fields, message", [
    (dict(method="simclr", logit_adjustment="loss"), "trains without any"),
    (dict(method="linear_probe", logit_adjustment="loss"), "trains without any"),
    (dict(method="dtm", logit_adjustment="loss"), "balance='none'"),
    (dict(balance="weights", logit_adjustment="loss"), "both even the classes out"),
    (dict(logit_adjustment=0.5), "valid string")], ids=str)
def test_adjustments_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(BenchError, match=message): RunConfig(preset="tiny", **fields)

def test_the_baseline_of_an_adjusted_run_is_adjusted_alike():
    config = RunConfig(method="dtm", preset="tiny", logit_adjustment="unlabelled")
    assert baseline(config).logit_adjustment == "unlabelled"

# runs

SHARES = "0.3,0.1,0.1,0.1,0.1,0.1,0.1,0.1"
FEW = dict(labels_per_class=2, cap=True)

def logits(record): return np.stack(record.predictions["logits"]).astype(np.float64)

def scores(record, values):
    classes = list(record.metrics.classes)
    return evaluate_logits(values, np.array([classes.index(c) for c in record.predictions["label"]]), classes)

@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "done(**fields) → the record of a tiny run, each done once in this module."
    folder = tmp_path_factory.mktemp("runs")
    return functools.cache(lambda **fields: run(RunConfig(preset="tiny", device="cpu", results_dir=str(folder),
                                                          **fields)))

@pytest.mark.parametrize("kind, how", [
    (dict(), "labelled"), (dict(), "unlabelled"), (dict(), SHARES), (dict(ema=0.0), SHARES),
    (dict(method="eac"), SHARES), (dict(method="fixmatch"), "unlabelled"), (dict(method="mean_teacher"), "labelled"),
    (dict(method="simclr", probe="sgd"), "unlabelled"), (dict(method="linear_probe"), SHARES)], ids=str)
def test_after_training_the_logits_are_the_plain_ones_and_the_shift(done, kind, how):
    "One network in record, weights and scores; and the adjusted scores are the same, whichever adjustment it has."
    kind = FEW | kind
    plain, record = done(**kind), done(**kind, logit_adjustment=how)
    prior = record.metrics.prior
    assert plain.metrics.prior.target is None and record.id != plain.id
    assert prior.trained == plain.metrics.prior.trained and prior.estimated == plain.metrics.prior.estimated
    target = {"labelled": class_shares(record.metrics.labelled_counts), "unlabelled": prior.estimated}.get(
        how, given_prior(how))
    np.testing.assert_allclose(prior.target, target)
    np.testing.assert_allclose(logits(record), adjust(logits(plain), prior.trained, target), atol=1e-4)
    network = load_classifier(record)
    shift = network.head.bias - load_classifier(plain).head.bias
    np.testing.assert_allclose(shift.detach(), np.log(target) - np.log(prior.trained), atol=1e-4)
    assert record.metrics.adjusted.confusion == plain.metrics.adjusted.confusion
    again = scores(plain, adjust(logits(plain), prior.trained, prior.estimated))
    assert again["confusion"] == plain.metrics.adjusted.confusion and again["UAR"] == plain.metrics.adjusted.UAR
    if how == "unlabelled": assert record.metrics.test.confusion == record.metrics.adjusted.confusion

@pytest.mark.parametrize("kind", [dict(), dict(method="eac"), dict(method="dtm", balance="none")], ids=str)
def test_in_the_loss_the_test_logits_are_plain(done, kind):
    record = done(**FEW, **kind, logit_adjustment="loss")
    np.testing.assert_allclose(record.metrics.prior.trained, uniform(8))
    assert record.metrics.prior.target is None and record.metrics.adjusted is not None
    assert scores(record, logits(record))["confusion"] == record.metrics.test.confusion

@pytest.mark.parametrize("fields", [dict(), dict(balance="sampler"), dict(balance="weights"), dict(targets="soft")],
                         ids=str)
def test_the_prior_of_each_balance(done, fields):
    m = done(**FEW, **fields).metrics
    if fields == {"targets": "soft"}: assert m.prior.trained != done(**FEW).metrics.prior.trained
    else: np.testing.assert_allclose(m.prior.trained, uniform(8) if fields else class_shares(m.labelled_counts))
    assert sum(m.prior.estimated) == pytest.approx(1) and m.adjusted.n == m.test.n

def test_faces_that_people_could_not_agree_on_say_nothing_of_the_prior(done):
    "They are all that is unlabelled where all labels are used."
    m = done().metrics
    assert m.prior.estimated is None and m.adjusted is None and m.n["unlabelled"] > 0
    assert done(logit_adjustment="labelled").metrics.prior.target == m.prior.trained

@pytest.mark.parametrize("fields, message", [
    (dict(logit_adjustment="unlabelled"), "all training faces of a class are labelled"),
    (dict(logit_adjustment=".5,.5"), "has 2 shares, and the data 8 classes: ")], ids=str)
def test_what_the_data_cannot_give_is_refused_before_anything_is_written(tiny, tmp_path, fields, message):
    with pytest.raises(BenchError, match=message): run(tiny(**fields))
    assert not list((tmp_path/"results").rglob("config.json"))

def test_faces_that_were_never_labelled_are_asked(tiny, tree):
    "A csv file with labels for some pictures alone."
    lines = ["path,label,split"]
    for path in sorted(tree.rglob("*.png")):
        split, name = path.parts[-3:-1]
        lines.append(f"{path.relative_to(tree)},{'' if split == 'train' and int(path.stem) % 2 else name},{split}")
    (tree/"faces.csv").write_text("\n".join(lines), encoding="utf-8")
    m = run(tiny(dataset="csv", data_root=str(tree/"faces.csv"), logit_adjustment="unlabelled")).metrics
    assert m.n["unlabelled"] == 12 and m.prior.target == m.prior.estimated and m.adjusted.n == 8

def prepared(tiny, **fields):
    "A built method of 8 classes with a random head, and its data."
    config = tiny(**fields)
    faceset, split, _ = prepare_data(config)
    _, method, feed, _ = build(config, faceset, split)
    with torch.no_grad(): method.evaluated.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    return config, method, feed, faceset, split

def test_labels_that_are_not_in_the_budget_are_never_read(tiny):
    config, method, feed, faceset, split = prepared(tiny, **FEW, logit_adjustment="unlabelled")
    state = {k: v.clone() for k, v in method.state_dict().items()}
    found = settle_prior(config, method, feed, faceset, split)
    hidden = np.full_like(faceset.labels, -7)
    hidden[split.labelled] = faceset.labels[split.labelled]
    method.load_state_dict(state)
    blind = SimpleNamespace(labels=hidden, meta=faceset.meta, index=faceset.index[["note"]])  # no label, no votes
    assert settle_prior(config, method, feed, blind, split) == found

def test_a_resumed_adjustment_is_not_done_twice(tiny, tmp_path, monkeypatch):
    "A run that stops after the adjustment goes on from its checkpoint, which is from before."
    from fer_bench.runs import experiment
    whole = run(tiny(logit_adjustment=SHARES))
    config, write = tiny(logit_adjustment=SHARES, results_dir=str(tmp_path/"stopped")), experiment._write
    def stop(*args): raise KeyboardInterrupt
    monkeypatch.setattr(experiment, "_write", stop)
    with pytest.raises(KeyboardInterrupt): run(config)
    monkeypatch.setattr(experiment, "_write", write)
    np.testing.assert_array_equal(logits(run(config)), logits(whole))

def test_the_faces_asked_are_spread_at_random():
    "Every seventh face may be of one class."
    rows = np.arange(21_000)
    chosen = some_of(rows)
    assert len(chosen) == 3000 and (np.diff(chosen) > 0).all() and np.array_equal(chosen, some_of(rows))
    assert np.bincount(chosen % 7).min() > 350
    assert np.array_equal(some_of(rows[:50]), rows[:50])

def test_logits_that_are_not_finite_are_refused(tiny):
    config, method, feed, faceset, split = prepared(tiny, **FEW)
    with torch.no_grad(): method.evaluated.head.weight.fill_(torch.nan)
    with pytest.raises(BenchError, match="diverged"): settle_prior(config, method, feed, faceset, split)

def test_shift_bias_adds_to_every_logit():
    head, x = torch.nn.Linear(3, 2), torch.rand(4, 3)
    before = head(x).detach()
    shift_bias(head, np.array([1.0, -2.0]))
    torch.testing.assert_close(head(x).detach(), before + torch.tensor([1.0, -2.0]))
    assert head.bias.requires_grad

def test_adjusted_scores_start_from_the_prior_that_the_logits_are_for():
    labels, values = simulated([.6, .3, .1], n=300)
    prior = {"trained": [.2, .3, .5], "estimated": [.6, .3, .1], "target": None}
    wanted = adjusted_scores(values, labels, "abc", prior)
    moved = adjust(values, prior["trained"], [.1, .1, .8])
    assert adjusted_scores(moved, labels, "abc", prior | {"target": [.1, .1, .8]})["confusion"] == wanted["confusion"]
    assert adjusted_scores(values, labels, "abc", prior | {"estimated": None}) is None

# methods of the user's own

class Own(Method):
    "Cross-entropy by itself."
    def __init__(self, net, config, counts, n_unlabelled): super().__init__(net)

    def forward(self, batch):
        loss = cross_entropy(self.net(batch["labelled"][0]), batch["targets"])
        return loss, {"cross_entropy": loss}

class OwnClassifier(Own):
    "Classifies in a way of its own."
    def classify(self, images): return 2 * self.net(images)

class OwnAdjusted(Supervised):
    "Uses the adjustment of the library."
    def __init__(self, net, config, counts, n_unlabelled):
        super().__init__(net, log_prior=loss_log_prior(config, counts))

@pytest.mark.parametrize("make, how, message", [
    (Own, "loss", "does not use it"), (OwnClassifier, "loss", "does not use it"),
    (OwnClassifier, "labelled", "classifies without one"), (OwnClassifier, SHARES, "classifies without one")])
def test_own_methods_that_cannot_be_adjusted_are_refused_before_training(tiny, monkeypatch, make, how, message):
    monkeypatch.setattr(make, "forward", lambda self, batch: pytest.fail("trained"))
    with registered("mine", make), pytest.raises(BenchError, match=message):
        run(tiny(method="mine", logit_adjustment=how))

@pytest.mark.parametrize("make, how", [
    (Own, "labelled"), (Own, SHARES), (OwnAdjusted, "loss"), (OwnClassifier, "none")])
def test_own_methods_are_adjusted(tiny, make, how):
    with registered("mine", make):
        record = run(tiny(method="mine", **FEW, logit_adjustment=how))
        assert record.metrics.adjusted.n == record.metrics.test.n

# the record

@pytest.mark.parametrize("changes, message", [
    (dict(prior={"trained": [.5, .2, .3]}), "prior.trained must have 2 shares"),
    (dict(prior={"trained": [.5, .2]}), "sum to 0.7"),
    (dict(prior={"trained": [.5, .5], "estimated": [1.0]}), "prior.estimated must have 2 shares"),
    (dict(prior={"trained": [1.5, -.5]}), "prior.trained"), (dict(prior={}), "prior.trained is missing"),
    (dict(prior={"trained": [.5, .5], "target": []}), "target")], ids=str)
def test_priors_that_no_run_has_are_refused(changes, message):
    with pytest.raises(BenchError, match=message): example_metrics(**changes)

def test_adjusted_scores_are_checked_like_the_plain_ones():
    good = example_metrics().test.model_dump()
    assert example_metrics(adjusted=good, prior={"trained": [.5, .5]}).adjusted.WAR == 0.75
    for wrong in ({"n": 7}, {"confusion": [[1]]}, {"recall": {"fear": 1.0}}, {"WAR_ci": [0.8, 0.9]}):
        with pytest.raises(BenchError, match="adjusted"): example_metrics(adjusted=good | wrong)
