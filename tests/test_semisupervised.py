"""The semi-supervised family: rules against plain versions, what a step learns, resume, pools, bad input."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import untimed

from fer_bench.catalogue import method_entry, methods_of
from fer_bench.config import RunConfig, baseline
from fer_bench.core import BenchError
from fer_bench.data.drawn.faces import DrawnSource
from fer_bench.data.faceset import build_faceset
from fer_bench.data.feed import Feed
from fer_bench.data.sources.fixtures import fake
from fer_bench.data.splits import save_manifest
from fer_bench.evaluate.metrics import pseudo_label_counts
from fer_bench.methods.contrast import nt_xent
from fer_bench.methods.semisupervised import semisupervised
from fer_bench.methods.thresholds import (
    POLICIES,
    Fixed,
    FlexMatch,
    FreeMatch,
    Labelled,
    fairness_loss,
    flexmatch_thresholds,
    labelled_confidence_thresholds,
)
from fer_bench.models.backbones import create_classifier
from fer_bench.record import load_runs
from fer_bench.runs.experiment import find_record, run
from fer_bench.runs.task import load_data, make_pool, split_data
from fer_bench.train.batches import make_batches

# the rules against slow plain versions

@pytest.mark.parametrize("name", ["dtm", "fixmatch"])
@pytest.mark.parametrize("floor", [0.13, 0.9999])
def test_pseudo_labels_of_the_average_are_hard_and_masked(name, floor):
    "`pseudo = ema` with a threshold: cross-entropy of the strong view, by face, where the average is confident enough."
    options = {"floor": floor} if name == "dtm" else {"threshold": floor}
    torch.manual_seed(0)
    net = create_classifier("test_resnet", 8, 32)[0]
    method = semisupervised(net, RunConfig(method=name, preset="tiny", pseudo="ema", **options), [1] * 8, 40).train()
    assert method.views["unlabelled"] == ["weak", "strong"]
    with torch.no_grad(): method.ema.head.weight.add_(torch.randn(method.ema.head.weight.shape))
    batch = {"labelled": [torch.rand(8, 3, 32, 32)], "targets": torch.arange(8),
             "unlabelled": [torch.rand(16, 3, 32, 32) for _ in range(2)], "index": torch.arange(16), "step": 0,
             "progress": 0.0}
    with torch.no_grad():
        taught = [softmax(row) for row in method.ema(batch["unlabelled"][0]).tolist()]
        rows = net(torch.cat([batch["labelled"][0], batch["unlabelled"][1]]))[8:].tolist()
    wanted = [-math.log(softmax(row)[p.index(max(p))]) if max(p) >= floor else 0
              for p, row in zip(taught, rows, strict=True)]
    _, parts = method(batch)
    assert parts["unlabelled"].item() == pytest.approx(sum(wanted) / 16, abs=1e-4)
    used = (method.last_pseudo_label[:16] >= 0).tolist()
    assert used == [max(p) >= floor for p in taught] and any(used) == (floor < 0.5)

def test_mean_teacher_alone_has_no_threshold():
    "Its target is soft, its view weak, and it starts with nearly no weight."
    net = create_classifier("test_resnet", 8, 32)[0]
    method = semisupervised(net, RunConfig(method="mean_teacher", preset="tiny"), [1] * 8, 40)
    assert method.consistency and method.views["unlabelled"] == ["weak", "weak"]

def softmax(row):
    e = [math.exp(v - max(row)) for v in row]
    return [v / sum(e) for v in e]

def plain_labelled(logits, targets, t, beta=0.97, gamma=math.e, floor=0.8):
    out = []
    for c in range(len(logits[0])):
        right = []
        for row, y in zip(logits, targets, strict=True):
            if y == c and row.index(max(row)) == c: right.append(max(softmax(row)))
        value = beta / (1 + gamma ** (-t)) * sum(right) / len(right) if right else 0.0
        out.append(min(max(value, floor), 1.0))
    return out

@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 8), st.floats(0, 30), st.floats(0.1, 12))
def test_labelled_confidence_against_a_plain_version(seed, n, k, t, sharp):
    rng = np.random.default_rng(seed)
    logits, targets = (sharp * rng.normal(size=(n, k))).astype(np.float32), rng.integers(0, k, n)
    ours = labelled_confidence_thresholds(torch.tensor(logits), torch.tensor(targets), t)
    assert ours.shape == (k,)
    np.testing.assert_allclose(ours, plain_labelled(logits.tolist(), targets.tolist(), t), atol=1e-6)

def test_labelled_confidence_at_the_published_points():
    sure, y = torch.eye(8) * 100, torch.arange(8)
    for t, value in zip(range(1, 6), (0.8, 0.8544, 0.9240, 0.9526, 0.9635), strict=True):
        np.testing.assert_allclose(labelled_confidence_thresholds(sure, y, t), [value] * 8, atol=5e-5)
    assert labelled_confidence_thresholds(sure, y, 0).tolist() == pytest.approx([0.8] * 8)
    wrong = labelled_confidence_thresholds(sure, (y + 1) % 8, 5)
    assert wrong.tolist() == pytest.approx([0.8] * 8), "a class with none right keeps the floor"

@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-1, 4), min_size=1, max_size=60), st.floats(0.5, 1))
def test_flexmatch_against_a_plain_version(latest, tau):
    sigma = [sum(v == c for v in latest) for c in range(5)]
    below = max(*sigma, len(latest) - sum(sigma))
    plain = [tau * (s / below) / (2 - s / below) for s in sigma]
    np.testing.assert_allclose(flexmatch_thresholds(torch.tensor(latest, dtype=torch.int16), 5, tau), plain, atol=1e-6)

def test_flexmatch_keeps_the_latest_confident_class_and_answers_before_it_counts():
    policy = FlexMatch(2, n_unlabelled=4, threshold=0.9)
    sure0, sure1, unsure = [0.95, 0.05], [0.05, 0.95], [0.6, 0.4]
    assert policy(torch.tensor([sure0, sure0, sure1]), torch.tensor([0, 1, 2])).tolist() == [0, 0]
    # face 0 keeps its class, face 1 changes it after the answer
    now = policy(torch.tensor([unsure, sure1]), torch.tensor([0, 1]))
    np.testing.assert_allclose(now, [0.9 * 1 / 1, 0.9 * 0.5 / 1.5], atol=1e-6)
    assert policy.latest.tolist() == [0, 1, 1, -1]

@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6), st.floats(0.5, 0.999))
def test_freematch_against_a_plain_version(seed, k, m):
    rng, policy = np.random.default_rng(seed), FreeMatch(k, m)
    tau, p, h = 1 / k, [1 / k] * k, [1 / k] * k
    for _ in range(5):
        q = rng.dirichlet([0.4] * k, 7).astype(np.float32)
        ours = policy(torch.tensor(q), None)
        tau = m * tau + (1 - m) * sum(max(row) for row in q.tolist()) / 7
        p = [m * a + (1 - m) * sum(row[c] for row in q.tolist()) / 7 for c, a in enumerate(p)]
        h = [m * a + (1 - m) * sum(int(row.argmax() == c) for row in q) / 7 for c, a in enumerate(h)]
        np.testing.assert_allclose(ours, [tau * v / max(p) for v in p], atol=1e-6)
    np.testing.assert_allclose(policy.h, h, atol=1e-6)

# --- warm-up ---

def test_a_fixed_threshold_has_no_warm_up():
    assert Fixed(3).warm_up(0) == Fixed(3, 0.1).warm_up(9) == 0

def test_a_labelled_threshold_is_in_warm_up_at_its_floor():
    policy = Labelled(4, floor=0.8)
    assert policy.warm_up(0) == 1
    policy.update(1.0, torch.tensor([[9.0, 0, 0, 0], [0, 0.5, 0, 0], [9.0, 0, 0, 0]]), torch.tensor([0, 1, 2]))
    assert (policy.thresholds > 0.8).tolist() == [True, False, False, False]  # sure, unsure, wrong, without a face
    assert policy.warm_up(0) == 0.75

@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-1, 4), min_size=1, max_size=60))
def test_flexmatch_is_in_warm_up_until_a_threshold_reaches_tau(latest):
    policy = FlexMatch(5, len(latest), 0.9)
    policy.latest.copy_(torch.tensor(latest))
    reached = flexmatch_thresholds(policy.latest, 5, 0.9).max() > 0.9 - 1e-6
    assert policy.warm_up(0) == float(not reached)

def test_freematch_is_in_warm_up_while_its_start_outweighs_the_steps():
    "The weight of 1/K in a running mean of zeros is what is left of it."
    policy = FreeMatch(4, momentum=0.9)
    for step in range(1, 12):
        policy(torch.zeros(2, 4), None)
        assert policy.warm_up(step) == float(policy.tau > 0.5 / 4)
    assert FreeMatch(4).warm_up(692) == 1 and FreeMatch(4).warm_up(693) == 0

def test_the_history_says_who_is_in_warm_up(tiny):
    "In so few steps FlexMatch leaves its warm-up never; without a threshold there is none."
    for method, share in {"fixmatch": 0, "flexmatch": 1}.items():
        run(tiny(method=method))
        assert (find_record(tiny(method=method)).history["warm_up"] == share).all()
    run(tiny(method="mean_teacher"))
    assert "warm_up" not in find_record(tiny(method="mean_teacher")).history

def plain_fairness(logits, used, p, h):
    k, rows = len(p), [softmax(r) for r, u in zip(logits, used, strict=True) if u]
    if not rows: return 0.0
    p_bar = [sum(r[c] for r in rows) / len(rows) for c in range(k)]
    h_bar = [sum(r.index(max(r)) == c for r in rows) / len(rows) for c in range(k)]
    a, b = [x / y for x, y in zip(p, h, strict=True)], [x / y if y else 0 for x, y in zip(p_bar, h_bar, strict=True)]
    a, b = [v / sum(a) for v in a], [v / sum(b) for v in b]
    return sum(x * math.log(y) for x, y in zip(a, b, strict=True) if y)

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6), st.integers(1, 12))
def test_fairness_against_a_plain_version(seed, k, n):
    rng = np.random.default_rng(seed)
    logits, used = 2 * rng.normal(size=(n, k)), rng.random(n) < 0.6
    p, h = rng.dirichlet([3] * k), rng.dirichlet([3] * k) * 0.9 + 0.1 / k
    ours = fairness_loss(torch.tensor(logits, dtype=torch.float64), *(torch.tensor(v) for v in (used, p, h)))
    assert ours.item() == pytest.approx(plain_fairness(logits.tolist(), used, p, h), abs=1e-5)

def plain_nt_xent(z1, z2, temperature, among):
    z = np.concatenate([z1, z2])
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    rows, n = [i for i in range(len(z)) if among[i % len(z1)]], len(z1)
    e = lambda i, j: math.exp(z[i] @ z[j] / temperature)
    losses = [-math.log(e(i, (i + n) % (2 * n)) / sum(e(i, j) for j in rows if j != i)) for i in rows]
    return sum(losses) / len(losses) if losses else 0.0

@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 8), st.floats(0.07, 2), st.floats(0, 1))
def test_nt_xent_against_a_plain_version(seed, n, temperature, share):
    rng = np.random.default_rng(seed)
    z1, z2, among = rng.normal(size=(n, 5)), rng.normal(size=(n, 5)), rng.random(n) < share
    ours = nt_xent(torch.tensor(z1), torch.tensor(z2), temperature, torch.tensor(among))
    assert ours.item() == pytest.approx(plain_nt_xent(z1, z2, temperature, among), abs=1e-4)

@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(-1, 2)), min_size=1, max_size=30))
def test_pseudo_label_counts(faces):
    decided, truth = zip(*faces, strict=True)
    facts = pseudo_label_counts(decided, truth, 3)
    assert facts["pool_seen"] == sum(d != -2 for d in decided) and facts["pool_used"] == sum(facts["pseudo_labels"])
    assert facts["pseudo_labels"] == [decided.count(c) for c in range(3)]
    if max(truth) < 0: assert "pseudo_right" not in facts
    else: assert facts["pseudo_right"] == [faces.count((c, c)) for c in range(3)]

# what a step learns

def step(name, n=4, mu=2, **fields):
    "(method, batch) of `name` on random pictures, in training mode."
    torch.manual_seed(0)
    config = RunConfig(method=name, preset="tiny", **{"ema": 0.9, **fields})
    method = semisupervised(create_classifier("test_resnet", 8, 32)[0], config, [1] * 8, n_unlabelled=50).train()
    batch = {"labelled": [torch.rand(n, 3, 32, 32)], "targets": torch.arange(n), "progress": 0.5,
             "index": torch.arange(mu * n),
             "unlabelled": [torch.rand(mu * n, 3, 32, 32) for _ in method.views["unlabelled"]]}
    return method, batch

@pytest.mark.parametrize("bn", ["joint", "apart"])
@pytest.mark.parametrize("name", methods_of("semi-supervised"))
def test_every_method_of_the_family(name, bn):
    "Parts add up, gradients reach the network and not its average, no gradient goes through the teaching views."
    method, batch = step(name, unlabelled_bn=bn, threshold=0.01, floor=0.01)
    for view in batch["unlabelled"]: view.requires_grad_()
    loss, parts = method(batch)
    loss.backward()
    assert torch.isclose(loss, sum(parts.values())) and loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.net.parameters())
    *weak, learned = batch["unlabelled"]
    assert learned.grad.abs().sum() > 0
    assert all((view.grad is not None) == (RunConfig(method=name).below == "contrast") for view in weak)
    assert (method.last_pseudo_label >= -1).sum() == 8 and (method.last_pseudo_label[8:] == -2).all()
    before = [p.clone() for p in method.ema.parameters()]
    with torch.no_grad(): [p.add_(1) for p in method.net.parameters()]
    method.after_step(100)
    assert all(not torch.equal(a, b) for a, b in zip(before, method.ema.parameters(), strict=True))

def test_fixmatch_step_against_a_plain_version():
    # the same weights, from one seed
    (method, batch), (other, _) = step("fixmatch", threshold=0.6), step("fixmatch", threshold=0.6)
    for m in (method, other): m.net.head.weight.data *= 100  # so that confidences differ
    loss, _ = method(batch)
    weak, strong = batch["unlabelled"]
    with torch.no_grad(): confidence, pseudo = other.net(weak).softmax(1).max(1)
    both = other.net(torch.cat([batch["labelled"][0], strong]))
    rows = (confidence >= 0.6).nonzero().flatten()
    assert 0 < len(rows) < 8, "the example is to tell used faces from others"
    plain = torch.nn.functional.cross_entropy(both[:4], batch["targets"])
    for i in rows: plain = plain + torch.nn.functional.cross_entropy(both[4 + i:5 + i], pseudo[i:i + 1]) / 8
    assert torch.allclose(loss, plain, atol=1e-6)
    assert [i for i in range(8) if method.last_pseudo_label[i] >= 0] == rows.tolist()

def test_running_statistics_from_labelled_faces_only():
    stats = lambda m: torch.cat([v.flatten() for k, v in m.net.state_dict().items() if "running" in k])
    (apart, batch), (alone, _) = step("dtm", unlabelled_bn="apart"), step("dtm", unlabelled_bn="apart")
    apart(batch)
    alone.net(batch["labelled"][0])
    assert torch.equal(stats(apart), stats(alone))
    joint, _ = step("dtm")
    joint(batch)
    assert not torch.equal(stats(joint), stats(alone))

# whole runs

@pytest.mark.parametrize("name", methods_of("semi-supervised"))
def test_interrupted_run_ends_with_the_same_bits(tiny, tmp_path, name, monkeypatch):
    "Thresholds, counts and weights of a run that was stopped after its second epoch are those of one that was not."
    fields = dict(method=name, epochs=4, ema=0.9, lr=0.2, threshold=0.15, floor=0.14)
    whole = run(tiny(**fields, results_dir=str(tmp_path/"whole")))
    import fer_bench.train.loop as loop
    real = loop.save_checkpoint
    def stop(folder, epoch, state):
        real(folder, epoch, state)
        if epoch == 2: raise KeyboardInterrupt
    monkeypatch.setattr(loop, "save_checkpoint", stop)
    with pytest.raises(KeyboardInterrupt): run(tiny(**fields))
    monkeypatch.undo()
    record = run(tiny(**fields))
    assert untimed(record.history).equals(untimed(whole.history))
    assert np.array_equal(*(np.stack(r.predictions["logits"]) for r in (record, whole)))
    assert (record.folder/"weights.safetensors").read_bytes() == (whole.folder/"weights.safetensors").read_bytes()
    used = record.history["pool_used"]
    assert used.max() > 0 and (record.history["pool_seen"] == 32).all()

def test_bf16_and_soft_targets(tiny):
    for name in ("dtm", "freematch", "ada_cm"): assert run(tiny(method=name, precision="bf16", targets="soft")).finished

def test_baseline_sees_the_same_labelled_batches(tiny):
    dtm = tiny(method="dtm", mu=3)
    same, all_ = (baseline(dtm, images=images) for images in ("labelled", "all"))
    assert same.batch_size == 8 and all_.batch_size == 32 and same.balance == "sampler" and same.mu is None
    faces = load_data(dtm)
    split = split_data(dtm, faces)
    batches = []
    for config in (dtm, same):
        method = type("M", (), {"views": {"labelled": ["weak"], "unlabelled": ["weak", "strong"]}})
        pool = make_pool(config, faces, split)
        batches.append(make_batches(config, method, Feed(faces.images), faces, split, pool)(1))
    assert torch.equal(batches[0]["labelled"][0], batches[1]["labelled"][0]) and "unlabelled" not in batches[1]
    assert torch.equal(batches[0]["targets"], batches[1]["targets"]) and len(batches[0]["index"]) == 24
    one, two = run(dtm), run(same)
    assert one.metrics["images_seen"] == 4 * 32 and two.metrics["images_seen"] == 4 * 8
    assert run(baseline(dtm, "fixmatch")).config["policy"] == "fixed"

def test_pools(tiny, tmp_path):
    "The rest, a separate pool, both. Copies of test faces are dropped. Each is another run, but another path is not."
    config = tiny(method="dtm")
    faces = load_data(config)
    split = split_data(config, faces)
    build_faceset(DrawnSource(64, 32), tmp_path/"copy")  # by mistake the labelled set itself
    build_faceset(DrawnSource(40, 32, seed=5), tmp_path/"other")
    held_out = split.counts["val"] + split.counts["test"]
    both = tiny(method="dtm", unlabelled="both", pool_root=str(tmp_path/"copy"))
    assert make_pool(both, faces, split).dropped == [0, held_out]
    other = tiny(method="dtm", unlabelled="pool", pool_root=str(tmp_path/"other"), labels_per_class=1)
    (tmp_path/"other").rename(tmp_path/"moved")
    moved = RunConfig(**{**other.model_dump(), "pool_root": str(tmp_path/"moved")})
    ids = {run(c).id for c in (config, both, moved)}
    assert len(ids) == 3
    record = run(moved)
    assert record.metrics["pool"]["faces"] == [40] and "pseudo_right" not in record.history
    assert len(make_pool(tiny(method="dtm", unlabelled="pool", pool_dataset="drawn"), faces, split)) == 64
    unlabelled = fake("identities", tmp_path/"people", faces_per_class=4)
    named = tiny(method="fixmatch", unlabelled="pool", pool_root=str(unlabelled))
    assert named.labels_per_class is None and make_pool(named, faces, split).images.shape[1:] == (32, 32, 3)

@pytest.mark.parametrize("name, dataset, faces, fields", [
    ("dtm", "abaw5-expr", 4, dict(pool_dataset="identities")),
    pytest.param("ada_cm", "raf-db", 22, dict(budget="ada_cm-100"), marks=pytest.mark.nightly),
    ("ada_cm", "raf-db", 4, dict(budget="ada_cm-4000", cap=True, unlabelled="pool", pool_dataset="identities")),
])
def test_paper_presets_on_fake_trees(tiny, tmp_path, name, dataset, faces, fields):
    if "pool_dataset" in fields:
        fields = {**fields, "pool_root": str(fake("identities", tmp_path/"people", faces_per_class=8))}
    root = fake(dataset, tmp_path/"faces", faces_per_class=faces)
    if name == "dtm": fields = {**fields, "batch_size": 8}
    config = tiny(method=name, preset="paper", dataset=dataset, data_root=str(root), epochs=1, steps_per_epoch=2,
                  warmup_epochs=0, **fields)
    record = run(config)
    assert record.finished and config.image_size == (112 if name == "dtm" else 224) and config.backbone == "resnet18"
    if name == "ada_cm":
        assert (config.lr, config.optimizer, config.batch_size) == (5e-4, "adam", 16)
        assert (config.mu, config.lambda_x) == (1, 0.5)
        assert record.metrics["capped"] if "4000" in fields["budget"] else record.metrics["n"]["labelled"] == 100

# what a user can get wrong

@pytest.mark.parametrize("fields, says", [
    (dict(mu=0), "'mu' = 0: input should be greater than 0"),
    (dict(threshold=0.0), "'threshold' = 0.0"), (dict(threshold=1.01), "'threshold' = 1.01"),
    (dict(floor=0.0), "'floor'"),
    (dict(beta=1.5), "'beta'"), (dict(gamma=1.0), "'gamma'"), (dict(policy="flex"), "'policy' = 'flex'"),
    (dict(unlabelled="pool"), "needs pool_root"), (dict(pool_root="x"), "does not use it"),
    (dict(below="contrast"), "pseudo='two_weak'"), (dict(below="fairness"), "policy='freematch'"),
    (dict(pseudo="ema", policy="none", ema=0.0), "ema must be above 0"),
    (dict(labels_per_class=1, batch_size=40), "fewer than the 80 of a step"),
    (dict(method="supervised", mu=3), "'mu' is for other methods"),
    (dict(unlabelled="pool", pool_root="nowhere"), "nowhere"),
], ids=lambda v: str(v)[:40])
def test_bad_choices(tiny, fields, says):
    with pytest.raises(BenchError, match=says): run(tiny(**{"method": "dtm", **fields}))
    assert load_runs(tiny().results_dir) == []

def test_no_unlabelled_face_left(tiny, tree, tmp_path):
    config = tiny(method="dtm", dataset="folder", data_root=str(tree), labels_per_class=11)
    with pytest.raises(BenchError, match="this split leaves none"): run(config)
    (tmp_path/"empty").mkdir()
    with pytest.raises(BenchError, match="empty"):
        pool = dict(unlabelled="pool", pool_root=str(tmp_path/"empty"))
        run(tiny(method="dtm", dataset="folder", data_root=str(tree), **pool))

def test_pool_of_nothing_but_held_out_faces(tiny, tmp_path):
    faces = load_data(tiny())
    split = split_data(tiny(), faces)
    held_out = np.concatenate([split.val, split.test])
    source = DrawnSource(64, 32)
    keys = set(faces.index["key"].iloc[held_out])
    rows = source.rows()
    source.rows = lambda: rows[rows["key"].isin(keys)].reset_index(drop=True)
    build_faceset(source, tmp_path/"held out")
    with pytest.raises(BenchError, match="pool is empty"):
        run(tiny(method="dtm", unlabelled="pool", pool_root=str(tmp_path/"held out")))

def test_manifest_with_fewer_labelled_classes(tiny, tmp_path):
    faces = load_data(tiny())
    split = split_data(tiny(labels_per_class=1), faces)
    save_manifest(faces.index, split, tmp_path/"split.csv")
    lines = (tmp_path/"split.csv").read_text().splitlines()
    kept = [line for line in lines if not (line.endswith(",labelled") and ",fear," in line)]
    (tmp_path/"split.csv").write_text("\n".join(kept) + "\n")
    with pytest.raises(BenchError, match="'fear' has no training face"):
        run(tiny(method="dtm", split=str(tmp_path/"split.csv")))

def test_finished_records_hold_what_the_figures_need(tiny):
    record = find_record(tiny(method="dtm"))
    assert not record.finished
    run(tiny(method="dtm"))
    m, last = record.metrics, record.history.iloc[-1]
    assert m["labelled_counts"] == [1] * 8 and sum(m["pool_truth"]) <= m["pool"]["faces"][0]
    assert len(last["thresholds"]) == len(last["pseudo_labels"]) == len(last["pseudo_right"]) == 8

def test_every_policy_is_a_choice():
    assert set(POLICIES) | {"none"} == set(method_entry("dtm").options.model_fields["policy"].annotation.__args__)
