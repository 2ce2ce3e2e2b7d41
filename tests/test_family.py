"""The family's newer choices: each rule against a plain version of its paper's equations, in a step, and refused where
it has no meaning."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fer_bench.catalogue import METHODS, methods_of
from fer_bench.config import RunConfig, baseline, recorded_config
from fer_bench.core import BenchError
from fer_bench.methods.semisupervised import semisupervised
from fer_bench.methods.supervised import cross_entropy
from fer_bench.methods.targets import (
    Alignment,
    aligned,
    annealed_cross_entropy,
    annealing_limit,
    make_alignment,
    negative_losses,
    sharpened,
)
from fer_bench.methods.thresholds import (
    FlexMatch,
    FreeMatch,
    Labelled,
    Relative,
    SoftMatch,
    flexmatch_thresholds,
    labelled_confidence_thresholds,
    make_policy,
    mean_momentum,
)
from fer_bench.models.backbones import Head, create_classifier
from fer_bench.runs.experiment import find_record, run
from fer_bench.runs.inference import export, load_model
from fer_bench.runs.inference import predict as classify
from fer_bench.train.loop import learning_rate

SEEDS, CLASSES, FACES = st.integers(0, 2**31), st.integers(2, 6), st.integers(2, 12)

def rows(rng, n, k, concentration=0.5): return (rng.dirichlet([concentration] * k, n) + 1e-5).astype(np.float32)

def softmax(row):
    e = [math.exp(v - max(row)) for v in row]
    return [v / sum(e) for v in e]

# the rules against slow plain versions

@settings(max_examples=60, deadline=None)
@given(SEEDS, CLASSES, st.integers(2, 9), st.floats(0.5, 0.999))
def test_softmatch_against_a_plain_version(seed, k, n, m):
    rng, policy = np.random.default_rng(seed), SoftMatch(k, m).double()
    mean, variance = 1 / k, 1.0
    for _ in range(5):
        q = rows(rng, n, k).astype(float)
        thresholds = policy(torch.tensor(q), None)
        sure = [max(row) for row in q.tolist()]
        centre = sum(sure) / n
        mean = m * mean + (1 - m) * centre
        variance = m * variance + (1 - m) * sum((s - centre) ** 2 for s in sure) / (n - 1)
        plain = [math.exp(-((s - mean) ** 2) / (2 * variance)) if s < mean else 1.0 for s in sure]
        np.testing.assert_allclose(policy.weigh(torch.tensor(q), thresholds), plain, atol=1e-6)
        np.testing.assert_allclose(thresholds, [mean] * k, atol=1e-6)
    np.testing.assert_allclose(policy.variance, variance, atol=1e-6)

def test_softmatch_is_in_warm_up_like_freematch():
    assert [SoftMatch(4).warm_up(s) for s in (692, 693)] == [FreeMatch(4).warm_up(s) for s in (692, 693)] == [1, 0]

@settings(max_examples=60, deadline=None)
@given(SEEDS, CLASSES, FACES, st.floats(0, 2))
def test_alignment_against_a_plain_version(seed, k, n, strength):
    rng = np.random.default_rng(seed)
    p, running, target = rows(rng, n, k), rows(rng, 1, k, 3)[0], rows(rng, 1, k, 3)[0]
    ours = aligned(*(torch.tensor(v, dtype=torch.float64) for v in (p, running, target)), strength)
    for row, mine in zip(p.tolist(), ours.tolist(), strict=True):
        plain = [v * (t / r) ** strength for v, t, r in zip(row, target.tolist(), running.tolist(), strict=True)]
        np.testing.assert_allclose(mine, [v / sum(plain) for v in plain], atol=1e-6)

@settings(max_examples=60, deadline=None)
@given(SEEDS, CLASSES, FACES, st.floats(0, 1))
def test_debiased_labels_are_those_of_debiased_logits(seed, k, n, strength):
    "DebiasPL: softmax(logits − λ log p̂)."
    rng = np.random.default_rng(seed)
    logits, running = rng.normal(size=(n, k)) * 2, rows(rng, 1, k, 3)[0]
    ours = aligned(torch.tensor(logits).softmax(1), torch.tensor(running), torch.full((k,), 1 / k), strength)
    plain = [softmax([z - strength * math.log(r) for z, r in zip(row, running.tolist(), strict=True)])
             for row in logits.tolist()]
    np.testing.assert_allclose(ours, plain, atol=1e-6)

@settings(max_examples=40, deadline=None)
@given(SEEDS, CLASSES, FACES, st.floats(0.5, 0.999), st.sampled_from(["uniform", "labelled", "debias"]))
def test_the_running_mean_of_an_alignment(seed, k, n, m, align):
    rng, counts = np.random.default_rng(seed), np.arange(1, k + 1)
    config = RunConfig(method="fixmatch", align=align, margin=0.7, debias=0.3)
    module, running = make_alignment(config, counts, m).double(), [1 / k] * k
    target = counts / counts.sum() if align == "labelled" else np.full(k, 1 / k)
    for _ in range(4):
        p = rows(rng, n, k).astype(float)
        of_label, of_weight = module(torch.tensor(p))
        running = [m * r + (1 - m) * sum(row[c] for row in p.tolist()) / n for c, r in enumerate(running)]
    strength = 0.3 if align == "debias" else 1
    q = p * (target / np.array(running)) ** strength
    q = q / q.sum(1, keepdims=True)
    np.testing.assert_allclose(of_weight, q, atol=1e-6)
    np.testing.assert_allclose(of_label, p if align == "uniform" else q, atol=1e-6)
    np.testing.assert_allclose(module.with_margin(torch.zeros(1, k))[0], 0.7 * np.log(running), atol=1e-6)
    assert list(module.state_dict()) == ["running"] and make_alignment(RunConfig(method="dtm"), counts, m) is None

@settings(max_examples=60, deadline=None)
@given(SEEDS, CLASSES, FACES, st.floats(0.1, 3))
def test_sharpening_against_a_plain_version(seed, k, n, temperature):
    logits = np.random.default_rng(seed).normal(size=(n, k))
    plain = [softmax([z / temperature for z in row]) for row in logits.tolist()]
    np.testing.assert_allclose(sharpened(torch.tensor(logits).softmax(1), temperature), plain, atol=1e-6)

def test_a_cold_pseudo_label_is_the_class():
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    np.testing.assert_allclose(sharpened(p, 0.01), F.one_hot(p.argmax(1), 3), atol=1e-6)

@settings(max_examples=60, deadline=None)
@given(SEEDS, CLASSES, FACES, st.floats(0, 1), st.sampled_from(["linear", "log", "exp"]), st.booleans())
def test_annealing_against_a_plain_version(seed, k, n, t, schedule, soft):
    rng = np.random.default_rng(seed)
    logits, shares = 2 * rng.normal(size=(n, k)), rng.dirichlet([0.3] * k, n)
    if not soft: shares = np.eye(k)[shares.argmax(1)]
    alpha = {"linear": t, "log": 1 - math.exp(-5 * t), "exp": math.exp(5 * (t - 1))}[schedule]
    limit = alpha * (1 - 1 / k) + 1 / k
    assert annealing_limit(t, k, schedule) == pytest.approx(limit, abs=1e-12)
    losses = []
    for row, y in zip(logits.tolist(), shares.tolist(), strict=True):
        p = softmax(row)
        sure = sum(a * b for a, b in zip(p, y, strict=True))
        if abs(sure - limit) < 1e-5: return  # float32 may say otherwise
        if sure <= limit: losses.append(-sum(b * math.log(a) for a, b in zip(p, y, strict=True)))
    targets = torch.tensor(shares) if soft else torch.tensor(shares.argmax(1))
    ours = annealed_cross_entropy(torch.tensor(logits), targets, limit)
    assert ours.item() == pytest.approx(sum(losses) / len(losses) if losses else 0, abs=1e-6)

def test_annealing_without_a_face_left_learns_nothing_and_at_the_end_everything():
    logits, targets = (8 * torch.eye(4)).requires_grad_(), torch.arange(4)
    loss = annealed_cross_entropy(logits, targets, 0.25)
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()
    assert annealed_cross_entropy(logits, targets, 1.0).item() == pytest.approx(cross_entropy(logits, targets).item())

def test_annealing_in_two_processes_is_the_mean_over_all_faces_left(monkeypatch):
    torch.manual_seed(1)
    logits, targets = torch.randn(12, 4), torch.randint(4, (12,))
    kept = logits.softmax(1)[range(12), targets] <= 0.3
    assert 0 < kept[:6].sum() != kept[6:].sum() > 0, "the parts are to differ"
    whole = annealed_cross_entropy(logits, targets, 0.3)
    monkeypatch.setattr("fer_bench.methods.targets.all_reduce_mean", lambda x: kept.float().mean())
    parts = [annealed_cross_entropy(logits[part], targets[part], 0.3) for part in (slice(6), slice(6, 12))]
    assert torch.isclose(sum(parts) / 2, whole, atol=1e-6)

@settings(max_examples=60, deadline=None)
@given(SEEDS, CLASSES, FACES)
def test_what_a_face_is_not_against_a_plain_version(seed, k, n):
    rng = np.random.default_rng(seed)
    weak, strong, p, below = (*rng.normal(size=(2, n, k)), rng.dirichlet([1] * k, n), rng.random(n) < 0.5)
    ours = negative_losses(*(torch.tensor(v) for v in (weak, strong, p, below.astype(float))))
    log = lambda row: [math.log(v) for v in softmax(row)]
    separation = [-log(w)[q.index(min(q))] for w, q in zip(weak.tolist(), p.tolist(), strict=True)]
    consistency = [-sum(a * b for a, b in zip(softmax(w), log(s), strict=True)) if low else 0
                   for w, s, low in zip(weak.tolist(), strong.tolist(), below, strict=True)]
    np.testing.assert_allclose([v.item() for v in ours], [sum(separation) / n, sum(consistency) / n], atol=1e-6)

@settings(max_examples=40, deadline=None)
@given(SEEDS, CLASSES, FACES, st.floats(0.1, 1))
def test_the_relative_threshold_against_a_plain_version(seed, k, n, tau):
    labelled = rows(np.random.default_rng(seed), n, k)
    ours = Relative(k, tau)(torch.full((3, k), 1 / k), None, torch.tensor(labelled))
    np.testing.assert_allclose(ours, [tau * sum(max(r) for r in labelled.tolist()) / n] * k, atol=1e-6)

@settings(max_examples=80, deadline=None)
@given(SEEDS, st.integers(1, 30), st.integers(1, 6), st.floats(0, 20), st.sampled_from(["stage", "class"]))
def test_stage_or_class_alone_against_a_plain_version(seed, n, k, t, by):
    rng = np.random.default_rng(seed)
    logits, targets = (4 * rng.normal(size=(n, k))).astype(np.float32), rng.integers(0, k, n)
    means = {}
    for c in range(k):
        right = [max(softmax(row)) for row, y in zip(logits.tolist(), targets, strict=True)
                 if y == c and row.index(max(row)) == c]
        if right: means[c] = sum(right) / len(right)
    if by == "class": plain = [0.97 * means.get(c, 0) for c in range(k)]
    else: plain = [0.97 / (1 + math.e**-t) * sum(means.values()) / max(1, len(means))] * k
    ours = labelled_confidence_thresholds(torch.tensor(logits), torch.tensor(targets), t, by=by)
    np.testing.assert_allclose(ours, [min(1, max(0.8, v)) for v in plain], atol=1e-6)

def test_by_takes_one_dependency_away():
    "By stage all classes are one and the epochs tell; by class the epochs are one."
    logits, y = torch.tensor([[6.0, 0, 0], [0, 3.0, 0], [0, 0, 2.5]]), torch.arange(3)
    at = lambda by, progress: (p := Labelled(3, floor=0.2, by=by)).update(progress, logits, y) or p.thresholds.tolist()
    assert len({round(v, 6) for v in at("stage", 0.1)}) == 1 and at("stage", 0.1) != at("stage", 0.2)
    assert len({round(v, 6) for v in at("class", 0.1)}) == 3 and at("class", 0.1) == at("class", 0.2)
    np.testing.assert_allclose(at("both", 1.0), at("class", 0.1), atol=1e-6)

# warm-ups in passes over the pool

@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-2, 3), min_size=1, max_size=40))
def test_flexmatch_counts_the_faces_seen_so_far(latest):
    seen = [v for v in latest if v > -2]
    sigma = [seen.count(c) for c in range(4)]
    below = max(*sigma, len(seen) - sum(sigma), 1)
    plain = [0.9 * (s / below) / (2 - s / below) for s in sigma]
    np.testing.assert_allclose(flexmatch_thresholds(torch.tensor(latest, dtype=torch.int16), 4, 0.9), plain, atol=1e-6)

def test_after_a_pass_both_counts_are_the_same():
    torch.manual_seed(0)
    steps, passes = FlexMatch(3, 60, 0.7), FlexMatch(3, 60, 0.7, seen_only=True)
    for i, index in enumerate(torch.randperm(60).split(10)):
        p = (3 * torch.randn(10, 3)).softmax(1)
        one, other = (policy(p, index) for policy in (steps, passes))
        assert torch.equal(one, other) == (i == 0), "unseen faces are in the first, and at the start neither knows any"
    assert torch.equal(steps.latest, passes.latest)
    assert steps.warm_up(6) == passes.warm_up(6)

@pytest.mark.parametrize("mu, batch, pool", [(2, 32, 27000), (1, 16, 900), (7, 64, 50000)])
def test_a_mean_keeps_one_in_e_of_its_start_in_a_pass(mu, batch, pool):
    config = RunConfig(method="freematch", mu=mu, batch_size=batch, warm_up="passes")
    assert mean_momentum(pool, config) ** (pool / (mu * batch)) == pytest.approx(1 / math.e)
    assert mean_momentum(pool, RunConfig(method="freematch", mu=mu, batch_size=batch)) == 0.999
    for name in ("freematch", "softmatch"):
        assert make_policy(name, 4, pool, config).momentum == mean_momentum(pool, config)

# in a step

def step(name, n=4, mu=2, progress=0.5, **fields):
    "(method, batch) of `name` on random pictures, in training mode, with confidences that differ."
    torch.manual_seed(0)
    config = RunConfig(method=name, preset="tiny", **{"ema": 0.9, **fields})
    method = semisupervised(create_classifier("test_resnet", 8, 32)[0], config, range(1, 9), n_unlabelled=50).train()
    with torch.no_grad(): method.net.head.weight *= 100
    batch = {"labelled": [torch.rand(n, 3, 32, 32)], "targets": torch.arange(n), "progress": progress,
             "index": torch.arange(mu * n),
             "unlabelled": [torch.rand(mu * n, 3, 32, 32) for _ in method.views["unlabelled"]]}
    return method, batch

def plain_parts(name, weigh, soft=None, lean=None, margin=0.0, **fields):
    """(its parts, plain parts, method) of a step of `name` with one weak view.

    `weigh(q, labelled)`: weights from corrected predictions; `soft(q)`: targets; `lean(p)`: correction for the label
    and for the weight."""
    (method, batch), (other, _) = step(name, **fields), step(name, **fields)
    weak, strong = batch["unlabelled"]
    with torch.no_grad(): p = other.net(weak).softmax(1)
    both = other.net(torch.cat([batch["labelled"][0], strong]))
    of_label, of_weight = lean(p) if lean else (p, p)
    targets = soft(of_label) if soft else F.one_hot(of_label.argmax(1), 8).float()
    running = (0.999 / 8 + 0.001 * p.mean(0)).log()
    log_q = (both[4:] + margin * running).log_softmax(1)
    weights = weigh(of_weight, both[:4].detach().softmax(1))
    wanted = {"labelled": F.cross_entropy(both[:4], batch["targets"]), "unlabelled": 0.0}
    for t, q, w in zip(targets, log_q, weights, strict=True): wanted["unlabelled"] -= w * (t * q).sum() / 8
    _, parts = method(batch)
    for part, value in wanted.items(): assert parts[part].item() == pytest.approx(value.item(), abs=1e-5), part
    return parts, weights, method

def over(threshold): return lambda q, labelled: (q.max(1).values >= threshold).float()

def corrected(target, strength, label=True):
    def lean(p):
        q = p * (target / (0.999 / 8 + 0.001 * p.mean(0))) ** strength
        q = q / q.sum(1, keepdim=True)
        return (q if label else p), q
    return lean

def test_a_step_of_uda():
    soft = lambda p: (p.log() / 0.4).softmax(1)
    _, weights, _ = plain_parts("uda", over(0.6), soft, threshold=0.6)
    assert 0 < weights.sum() < 8

def test_a_step_of_debiaspl():
    even = torch.full((8,), 1 / 8)
    _, weights, _ = plain_parts("debiaspl", over(0.6), lean=corrected(even, 0.5), margin=0.5, threshold=0.6)
    assert 0 < weights.sum() < 8

def test_a_step_of_adamatch():
    weigh = lambda q, labelled: (q.max(1).values >= 0.9 * labelled.max(1).values.mean()).float()
    _, weights, method = plain_parts("adamatch", weigh, lean=corrected(torch.arange(1, 9) / 36, 1))
    assert 0 < weights.sum() < 8 and len(set(method.thresholds.tolist())) == 1

def test_a_step_of_softmatch():
    "The weights are of aligned predictions, the pseudo-labels are not."
    def weigh(q, labelled):
        sure = q.max(1).values
        mean, variance = 0.999 / 8 + 0.001 * sure.mean(), 0.999 + 0.001 * sure.var()
        return torch.where(sure < mean, (-((sure - mean) ** 2) / (2 * variance)).exp(), 1.0)
    lean = corrected(torch.full((8,), 1 / 8), 1, label=False)
    _, weights, method = plain_parts("softmatch", weigh, lean=lean)
    assert (method.last_pseudo_label[:8] >= 0).all()
    np.testing.assert_allclose(method.last_weight[:8], weights, atol=1e-6)
    assert method.after_epoch(0.5, None)["use"] == pytest.approx(weights.mean().item(), abs=1e-4)

def test_a_step_of_the_averaged_teacher_learns_hard_labels_by_the_threshold():
    "Its other numbers are in test_semisupervised: `pseudo = ema` with a threshold."
    method, batch = step("ema_teacher", threshold=0.2)
    with torch.no_grad(): method.ema.head.weight.mul_(-100)  # teacher and student differ
    pseudo = method.ema(batch["unlabelled"][0]).argmax(1)
    method(batch)
    used = method.last_pseudo_label[:8] >= 0
    assert used.any() and torch.equal(method.last_pseudo_label[:8][used].long(), pseudo[used])

def test_the_second_head_of_mutexmatch():
    "It learns without moving the network, its consistency moves the network, and the classifier is evaluated alone."
    parts, weights, method = plain_parts("mutexmatch", over(0.6), threshold=0.6)
    assert 0 < weights.sum() < 8 and set(parts) == {"labelled", "unlabelled", "separation", "negative"}
    first = next(method.net.backbone.parameters())
    gradient = lambda part: torch.autograd.grad(parts[part], [first], retain_graph=True, allow_unused=True)[0]
    assert gradient("separation") is None and gradient("negative").abs().sum() > 0
    (head,) = torch.autograd.grad(parts["separation"], [method.negative.weight])
    assert head.abs().sum() > 0
    assert {"negative.weight", "negative.bias"} <= method.state_dict().keys()
    assert not any("negative" in name for name in method.evaluated.state_dict())

def test_annealing_in_a_step():
    (method, batch), (other, _) = step("fixmatch", anneal="linear", progress=0.2), step("fixmatch")
    both = other.net(torch.cat([batch["labelled"][0], batch["unlabelled"][1]]))[:4]
    with torch.no_grad(): other.net(batch["unlabelled"][0])
    sure, losses = both.softmax(1)[range(4), range(4)], F.cross_entropy(both, batch["targets"], reduction="none")
    kept = sure <= 0.2 * 7 / 8 + 1 / 8
    assert 0 < kept.sum() < 4, "the example is to tell the faces that wait"
    assert method(batch)[1]["labelled"].item() == pytest.approx(losses[kept].mean().item(), abs=1e-5)

# whole runs

def test_use_is_the_mean_weight(tiny):
    hard, soft = (run(tiny(method=name, threshold=0.13)) for name in ("fixmatch", "softmatch"))
    np.testing.assert_allclose(hard.history["use"], hard.history["pool_used"] / hard.history["pool_seen"], atol=1e-5)
    assert ((soft.history["use"] > 0) & (soft.history["use"] <= 1)).all()
    assert (soft.history["pool_used"] == soft.history["pool_seen"]).all()
    assert all(len(set(values)) == 1 for values in soft.history["thresholds"]), "its mean, for every class"
    assert "use" not in run(tiny(method="mean_teacher")).history

NEW = [name for name in methods_of("semi-supervised") if name in ("softmatch", "adamatch", "debiaspl", "uda",
                                                                  "mutexmatch", "ema_teacher")]

def test_the_new_methods_share_the_presets_of_the_family():
    assert len(NEW) == 6
    for name in NEW:
        assert METHODS[name].presets == METHODS["fixmatch"].presets and not METHODS[name].recipe
        same = {n: v for n, v in RunConfig(method=name).model_dump().items() if n in RunConfig.model_fields}
        assert same | {"method": "fixmatch"} == {n: v for n, v in RunConfig(method="fixmatch").model_dump().items()
                                                 if n in RunConfig.model_fields}

@pytest.mark.parametrize("name", NEW)
def test_new_methods_in_bf16_with_everything_else_on(tiny, name):
    record = run(tiny(method=name, precision="bf16", targets="soft", anneal="log", label_smoothing=0.1, threshold=0.2,
                      **({"warm_up": "passes"} if name in ("softmatch", "adamatch", "debiaspl") else {})))
    assert record.finished and record.metrics.precision == "bf16"

# Ada-CM's network and schedule

def test_a_head_of_unit_features_sees_only_the_direction():
    head, features = Head(5, 3, unit=True), torch.randn(4, 5)
    assert torch.allclose(head(features), head(7 * features), atol=1e-6)
    np.testing.assert_allclose(head(features).detach(), (features / features.norm(dim=1, keepdim=True)) @
                               head.weight.detach().T, atol=1e-6)
    assert Head(5, 3).state_dict().keys() == head.state_dict().keys() == torch.nn.Linear(5, 3).state_dict().keys()

def test_dropout_is_for_training_alone():
    torch.manual_seed(0)
    head, ones = Head(1000, 2, dropout=0.25), torch.ones(1, 1000)
    torch.nn.init.ones_(head.weight)
    assert head.eval()(ones)[0, 0] == 1000
    many = torch.stack([head.train()(ones)[0, 0] for _ in range(50)])
    assert many.std() > 0 and abs(many.mean() - 1000) < 30

def test_a_run_with_unit_features_is_loaded_and_exported_as_it_was_trained(tiny, tmp_path):
    record = run(tiny(method="ada_cm", unit_features=True, dropout=0.5, schedule="constant"))
    assert (record.history["lr"] == 0.01).all()
    faces = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), dtype=np.uint8)
    one, other = (classify(load_model(m), faces).drop(columns="note").to_numpy()
                  for m in (record, export(record, tmp_path/"out")))
    np.testing.assert_allclose(one, other, atol=1e-6)
    assert load_model(record).head.unit and load_model(tmp_path/"out").head.unit
    ids = {find_record(tiny(method="ada_cm", **f)).id
           for f in ({}, dict(unit_features=True), dict(dropout=0.5), dict(schedule="constant"))}
    assert len(ids) == 4

def test_a_constant_rate_keeps_the_warm_up():
    rates = [learning_rate(s, 100, 10, 0.5, "constant") for s in range(100)]
    assert rates[:10] == [learning_rate(s, 100, 10, 0.5) for s in range(10)] and set(rates[10:]) == {0.5}

def test_the_paper_preset_of_ada_cm_and_records_from_before():
    config = RunConfig(method="ada_cm", preset="paper")
    assert (config.schedule, config.unit_features, config.dropout) == ("constant", True, 0.5)
    assert baseline(config).schedule == "cosine" and baseline(config).dropout == 0.5, "the network stays, the rate not"
    before = {n: v for n, v in config.model_dump().items() if n not in ("schedule", "unit_features", "dropout", "by")}
    old = recorded_config(before)
    assert (old.schedule, old.unit_features, old.dropout, old.by) == ("cosine", False, 0.0, "both")

# what a user can get wrong

@pytest.mark.parametrize("fields, says", [
    (dict(method="mean_teacher", align="uniform"), "align = 'uniform' changes a pseudo-label"),
    (dict(method="mean_teacher", sharpen=0.4), "sharpen = 0.4 changes a pseudo-label"),
    (dict(method="fixmatch", margin=0.5), "Set align"),
    (dict(method="fixmatch", by="stage"), "for policy='labelled', not for 'fixed'"),
    (dict(method="dtm", warm_up="passes"), "for what counts steps or faces"),
    (dict(method="fixmatch", below="negative", pseudo="ema"), "needs pseudo='weak' and a policy"),
    (dict(method="mutexmatch", policy="none"), "needs pseudo='weak' and a policy"),
    (dict(method="ada_cm", below="negative"), "not pseudo='two_weak'"),
    (dict(method="softmatch", below="fairness"), "policy='freematch'"),
    (dict(method="dtm", by="face"), "'by' = 'face'"), (dict(method="uda", sharpen=-1.0), "'sharpen' = -1.0"),
    (dict(method="debiaspl", debias=-0.5), "'debias' = -0.5"), (dict(method="uda", anneal="cos"), "'anneal' = 'cos'"),
    (dict(method="adamatch", threshold=0.0), "'threshold' = 0.0"),
    (dict(method="supervised", align="uniform"), "'align' is for other methods"),
    (dict(method="ema_teacher", ema=0.0), "ema must be above 0"),
    (dict(method="byol", dropout=0.5), "its probe takes features as they are"),
    (dict(method="linear_probe", unit_features=True), "its probe takes features as they are"),
    (dict(method="linear_probe", schedule="constant"), "has no training"),
    (dict(method="eac", unit_features=True), "unit_features=True"),
    (dict(dropout=1.0), "'dropout' = 1.0"), (dict(schedule="step"), "'schedule' = 'step'"),
], ids=lambda v: str(v)[:50])
def test_choices_without_meaning_are_refused(tiny, fields, says):
    with pytest.raises(BenchError, match=says): run(tiny(**fields))

def test_an_alignment_needs_no_class_to_be_predicted():
    "A class whose mean falls to 0 stays finite."
    module = Alignment(torch.full((3,), 1 / 3), momentum=0.0, margin=0.5)
    q, _ = module(torch.tensor([[1.0, 0, 0], [1.0, 0, 0]]))
    assert q.isfinite().all() and module.with_margin(torch.zeros(1, 3)).isfinite().all()
