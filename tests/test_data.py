"""Splits, feed and views: properties that hold for every data set, and the numerics of the augmentation."""
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fer_bench.core import BenchError
from fer_bench.data.feed import BalancedOrder, Feed, Order, batch_rows
from fer_bench.data.labels import FERPLUS8, LABEL_RULES, VOTED, vote_shares
from fer_bench.data.splits import ROLES, carve, fold_of, groups_of, make_split, manifest
from fer_bench.data.views import VIEWS, affine, apply_view, make_view, seeded, warp
from fer_bench.train.batches import soft_targets

CLASSES = ["anger", "fear", "happiness"]

@st.composite
def indexes(draw):
    """An index of 60 to 150 faces, 5 or more of each class a split, some without label.

    Some have equal pixels, mostly of one person; subjects are known for all faces, for some, or for none."""
    n, seed = draw(st.integers(60, 150)), draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    splits = draw(st.sampled_from([["train", "val", "test"], ["train", "test"], ["train", "val"], [None]]))
    known, copies = draw(st.sampled_from([0, 0.8, 1])), draw(st.sampled_from([0, 0.05, 0.3]))
    first = [i - rng.integers(min(i, 4) + 1) if rng.random() < copies else i for i in range(n)]  # whose picture it is
    return pd.DataFrame({
        "key": [f"{i:04d}" for i in range(n)], "split": [splits[i // 15 % len(splits)] for i in range(n)],
        "label": [CLASSES[i % 3] if i < 45 or rng.random() < 0.8 else None for i in range(n)],
        "subject": [f"s{i // 5}" if rng.random() < known else None for i in range(n)],
        "sha256": [f"p{i}" for i in first], "file_sha256": [f"f{i}" for i in range(n)]}).astype(object)

def shared(index, some, others) -> dict:
    "How many subjects and pictures the rows `some` and `others` have in common."
    rows = [index.iloc[sorted(part)] for part in (some, others)]
    return {c: len(set(rows[0][c].dropna()) & set(rows[1][c].dropna())) for c in ("subject", "sha256")}

NOTHING = {"subject": 0, "sha256": 0}
REFUSED = ("has no", "none can be carved", "groups of faces")  # a carved side may miss a class in so small a set

@settings(max_examples=60, deadline=None)
@given(indexes(), st.sampled_from([None, 1, 3]), st.integers(0, 5))
def test_split_properties(index, k, seed):
    try: split = make_split(index, CLASSES, k, seed, cap=True)
    except BenchError as e:
        assert any(words in str(e) for words in REFUSED)
        return
    roles = {r: set(getattr(split, r)) for r in ROLES}
    assert sum(map(len, roles.values())) == len(set().union(*roles.values())), "roles overlap"
    labels, pixels = index["label"].to_numpy(), index["sha256"].to_numpy()
    assert all(pd.notna(labels[sorted(roles[r])]).all() for r in ("labelled", "val", "test"))
    assert not set(pixels[list(roles["unlabelled"])]) & set(pixels[list(roles["test"] | roles["val"])])
    for role in ("val", "test"):
        if split.origin[role] == "official": assert set(index["split"].iloc[sorted(roles[role])]) == {role}
    training = roles["labelled"] | roles["unlabelled"]
    if split.origin["test"] == "carved": assert shared(index, roles["test"], training | roles["val"]) == NOTHING
    if split.origin["val"] == "carved":
        assert shared(index, roles["val"], training) == NOTHING
        assert shared(index, roles["val"], roles["test"])["sha256"] == 0
    if k: assert all((labels[split.labelled] == c).sum() == min(k, split.capped.get(c, k)) for c in CLASSES)
    same = make_split(index, CLASSES, k, seed, cap=True)
    assert same.hash == split.hash and all(np.array_equal(getattr(same, r), getattr(split, r)) for r in ROLES)

def plain_index(n=300):
    return pd.DataFrame({"key": [f"{i:04d}" for i in range(n)], "split": ["train", "train", "test"] * (n // 3),
                         "label": [CLASSES[i // 3 % 3] for i in range(n)], "subject": None,
                         "sha256": [f"p{i}" for i in range(n)], "file_sha256": None})

def test_budgets_are_nested_and_draws_differ():
    draws = {(k, s): set(make_split(plain_index(), CLASSES, k, s).labelled) for k in (1, 4, 10, 25) for s in (0, 1)}
    for s in (0, 1): assert draws[1, s] < draws[4, s] < draws[10, s] < draws[25, s]
    assert draws[10, 0] != draws[10, 1]
    assert np.array_equal(make_split(plain_index(), CLASSES, 4, 0).test,
                          make_split(plain_index(), CLASSES, None, 7).test)

def test_split_hash_follows_labels_and_files():
    index, before = plain_index(), make_split(plain_index(), CLASSES).hash
    index.loc[5, "label"] = "fear" if index.loc[5, "label"] != "fear" else "anger"
    assert make_split(index, CLASSES).hash != before
    index = plain_index()
    index["file_sha256"] = [f"f{i}" for i in range(300)]
    assert make_split(index, CLASSES).hash != before

@pytest.mark.parametrize("change, says", [
    (lambda i: i.assign(label="fear"), "no labelled face"),
    (lambda i: i[(i.split == "train") | (i.label != "fear")], "no test face"),
    (lambda i: i[(i.split == "test") | (i.label != "fear")], "no training face")])
def test_split_refuses(change, says):
    with pytest.raises(BenchError, match=says): make_split(change(plain_index()).reset_index(drop=True), CLASSES)

def test_one_class_only():
    with pytest.raises(BenchError, match="at least two"): make_split(plain_index().assign(label="fear"), ["fear"])

@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 10), min_size=10, max_size=10))
def test_label_rules_against_their_sentences(votes):
    left = {c: v for c, v in zip(VOTED, votes, strict=True) if v > 1}
    winner = next((c for c, v in left.items() if v > sum(left.values()) / 2), None)
    assert LABEL_RULES["majority"](votes)[0] == (winner if winner in FERPLUS8 else None)
    for rule in LABEL_RULES.values(): assert (rule(votes)[0] is None) == bool(rule(votes)[1])

@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 10), min_size=10, max_size=10), st.sampled_from([7, 8]))
def test_vote_shares_against_their_sentences(votes, k):
    "Single votes count as zero, unless there are no others; unknown and NF are no classes."
    ours = votes[:k]
    kept = [v for v in ours if v > 1] and [v if v > 1 else 0 for v in ours] or ours
    expected = [v / sum(kept) for v in kept] if sum(kept) else [0] * k
    np.testing.assert_allclose(vote_shares([votes], k), [expected], atol=1e-6)
    label = LABEL_RULES["majority"](votes)[0]
    if label in FERPLUS8[:k]: assert vote_shares([votes], k)[0].argmax() == FERPLUS8.index(label)

def voted(votes, labels, classes=FERPLUS8):
    index = pd.DataFrame({"votes": votes, "label": labels})
    return SimpleNamespace(index=index, meta={"name": "voted", "classes": list(classes)})

def test_soft_targets():
    votes = [[5, 0, 1, 1, 1, 0, 0, 0, 1, 1], [0, 6, 0, 0, 0, 0, 2, 0, 1, 1], None]
    shares = soft_targets(voted(votes, ["neutral", "happiness", None]))
    assert shares[0, 0] == 1 and shares[1, [1, 6]].tolist() == [0.75, 0.25] and shares[2].sum() == 0

@pytest.mark.parametrize("votes, classes, says", [
    ([[5] + [0] * 9, None], FERPLUS8, "1 labelled faces of 'voted' have no votes"),
    ([[5] + [0] * 9, [0] * 8 + [5, 5]], FERPLUS8, "1 labelled faces of 'voted' have no votes"),
    ([None, None], FERPLUS8, "'voted' has none"),
    ([[5] + [0] * 9] * 2, sorted(FERPLUS8), "not in the order of the votes")])
def test_soft_targets_that_would_teach_something_else(votes, classes, says):
    with pytest.raises(BenchError, match=says): soft_targets(voted(votes, ["neutral", "fear"], classes))

# order

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 17), st.integers(0, 3))
def test_order_shows_each_face_once_a_shuffle(n, batch, seed):
    order, steps = Order(np.arange(n) + 100, seed), -(-3 * n // batch)
    seen = np.concatenate([batch_rows(order, s, batch) for s in range(steps)])
    for lap in range(3): assert sorted(seen[lap * n:(lap + 1) * n]) == list(range(100, 100 + n))
    assert np.array_equal(batch_rows(Order(np.arange(n) + 100, seed), steps - 1, batch), seen[(steps - 1) * batch:])

@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=40), st.integers(1, 9))
def test_balanced_order_is_balanced(labels, batch):
    labels = np.array(labels)
    order = BalancedOrder(np.arange(len(labels)), labels, 0)
    seen = labels[np.concatenate([batch_rows(order, s, batch) for s in range(20)])]
    counts = [np.sum(seen == c) for c in np.unique(labels)]
    assert max(counts) - min(counts) <= 1

def test_feed_gives_the_pixels(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (9, 5, 7, 3), np.uint8)
    np.save(tmp_path/"images.npy", images)
    mapped = np.load(tmp_path/"images.npy", mmap_mode="r")
    for store in (images, mapped):
        batch = Feed(store)([8, 0, 8])
        assert batch.dtype == torch.uint8 and np.array_equal(batch.permute(0, 2, 3, 1), images[[8, 0, 8]])
        assert batch.is_contiguous(memory_format=torch.channels_last)

# views

@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("channels, side, size", [(1, 48, 48), (3, 48, 32), (3, 32, 48), (3, 96, 32)])
def test_views(name, channels, side, size):
    "Shape, range, and the same draws for the same seed; a face's view does not depend on its neighbours in the batch."
    images = torch.randint(0, 256, (6, channels, side, side), dtype=torch.uint8, generator=seeded(0))
    view = make_view(name)
    out = apply_view(view, images, size, 1, 2)
    assert out.shape == (6, 3, size, size) and out.min() >= 0 and out.max() <= 1 and out.dtype == torch.float32
    assert torch.equal(out, apply_view(view, images, size, 1, 2))
    params = view.sample(seeded(1, 2), 6)
    part = view(images[2:4], size, **{k: v[2:4] for k, v in params.items()})
    torch.testing.assert_close(part, out[2:4])
    if params: assert not torch.equal(out, apply_view(view, images, size, 1, 3))

def test_own_parameters_for_every_face():
    face = torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8, generator=seeded(0)).expand(8, -1, -1, -1)
    views = apply_view(make_view("weak"), face, 48, 0)
    assert len({v.numpy().tobytes() for v in views}) == 8

def slow_warp(image, theta, size):
    "Bilinear resampling of (H, W) through theta (2, 3), a pixel at a time; inside the picture only."
    h, w = image.shape
    out = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            x, y = theta @ [(2 * j + 1) / size - 1, (2 * i + 1) / size - 1, 1]
            u, v = ((x + 1) * w - 1) / 2, ((y + 1) * h - 1) / 2
            a, b = int(np.floor(u)), int(np.floor(v))
            for p, q in ((a, b), (a + 1, b), (a, b + 1), (a + 1, b + 1)):
                share = (1 - abs(u - p)) * (1 - abs(v - q))
                if share > 0: out[i, j] += share * image[q, p]
    return out

def test_warp_against_plain_loops():
    theta = torch.tensor([[[0.6, 0.1, 0.1], [-0.1, 0.7, -0.05]]], dtype=torch.float64)
    image = torch.rand(1, 1, 12, 12, generator=seeded(3), dtype=torch.float64)
    np.testing.assert_allclose(warp(image, theta, 9)[0, 0], slow_warp(image[0, 0].numpy(), theta[0].numpy(), 9),
                               atol=1e-9)

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 0.9), st.floats(0.5, 1.0))
def test_crops_stay_inside(seed, low, ratio):
    theta = affine(seeded(seed), 64, scale=(low, 1.0), ratio=(ratio, 1 / ratio), degrees=0, flip=0.5)
    corners = torch.tensor([[-1.0, -1, 1], [1, 1, 1], [-1, 1, 1], [1, -1, 1]]).T
    assert (theta @ corners).abs().max() <= 1 + 1e-5

def test_flip_is_a_mirror_and_half_are_flipped():
    theta = affine(seeded(0), 2000, scale=(1.0, 1.0), flip=0.5)
    flipped = theta[:, 0, 0] < 0
    assert 0.45 < flipped.float().mean() < 0.55
    image = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(warp(image, theta[flipped][:1], 16), image.flip(-1), atol=1e-5, rtol=0)

def test_shrinking_is_antialiased():
    stripes = (torch.arange(96) % 2 * 255).to(torch.uint8).expand(2, 3, 96, 96)
    for name in ("plain", "weak"): assert apply_view(make_view(name), stripes, 24, 0).std(dim=-1).max() < 0.1, name

def test_unknown_view():
    with pytest.raises(BenchError, match="Did you mean 'weak'"): make_view("wek")


# folds, subjects, manifests, copies

@settings(max_examples=30, deadline=None)
@given(indexes(), st.integers(2, 5), st.integers(0, 3))
def test_folds_cover_every_labelled_face_once(index, k, seed):
    try: splits = [make_split(index, CLASSES, seed=seed, how=f"fold:{i}/{k}") for i in range(1, k + 1)]
    except BenchError as e:
        assert any(words in str(e) for words in REFUSED)
        return
    tests = np.concatenate([s.test for s in splits])
    assert sorted(tests) == list(np.flatnonzero(index["label"].notna()))
    for s in splits:
        assert shared(index, s.test, np.concatenate([s.labelled, s.unlabelled, s.val])) == NOTHING
        assert shared(index, s.val, np.concatenate([s.labelled, s.unlabelled])) == NOTHING

@settings(max_examples=60, deadline=None)
@given(indexes(), st.sampled_from([0.1, 0.2, 0.5]), st.integers(0, 3))
def test_carved_faces_are_whole_groups_in_the_shares_asked_for(index, fraction, seed):
    rows = np.flatnonzero(index["label"].notna())
    taken = carve(index, rows, fraction, seed)
    rest, groups = np.setdiff1d(rows, taken), groups_of(index)
    assert shared(index, taken, rest) == NOTHING and not set(groups[taken]) & set(groups[rest])
    assert np.array_equal(taken, carve(index, rows, fraction, seed))
    largest = np.bincount(groups[rows]).max()
    for c in CLASSES:
        n, own = ((index["label"].iloc[r] == c).sum() for r in (rows, taken))
        if len(set(groups[rows][index["label"].iloc[rows] == c])) > 1: assert abs(own - fraction * n) <= largest + 1
    for folds in (2, 5):
        sizes = np.bincount(fold_of(index, rows, folds, seed), minlength=folds)
        assert abs(sizes - len(rows) / folds).max() <= largest + len(CLASSES)

def slow_groups(index) -> list:
    "Groups by plain merging of sets, until nothing changes."
    groups = [{i} for i in range(len(index))]
    for column in ("subject", "sha256"):
        for _, own in index.dropna(subset=column).groupby(column):
            meeting = [g for g in groups if g & set(own.index)]
            groups = [g for g in groups if g not in meeting] + [set().union(*meeting)]
    return sorted(map(sorted, groups))

@settings(max_examples=30, deadline=None)
@given(indexes())
def test_groups_are_those_of_plain_merging(index):
    numbers = pd.Series(groups_of(index))
    assert sorted(list(rows) for rows in numbers.groupby(numbers).groups.values()) == slow_groups(index)

def test_one_unknown_subject_leaves_the_others_grouped():
    "Twenty people with three faces of each class, one face of nobody: no person is on both sides."
    index = pd.DataFrame({"key": [f"{i:04d}" for i in range(180)], "split": None, "label": CLASSES * 60,
                          "subject": [f"s{i // 9}" for i in range(180)], "sha256": [f"p{i}" for i in range(180)],
                          "file_sha256": None})
    for subject in ("s0", None):
        split = make_split(index.assign(subject=[subject, *index["subject"][1:]]), CLASSES)
        training = np.concatenate([split.labelled, split.unlabelled])
        assert shared(index[1:].reset_index(), split.test - 1, np.r_[training, split.val] - 1)["subject"] == 0
        assert split.counts == {"labelled": 126, "unlabelled": 0, "val": 18, "test": 36}, "whole people: 14, 2 and 4"

@pytest.mark.parametrize("how", ["official", "fold:1/2", "subject:s0"])
def test_people_who_share_a_picture_stay_together(how):
    "s0 and s1 share a picture, so they are one group: who tests on s0 trains on neither."
    index = plain_index().assign(split=None, subject=[f"s{i // 15}" for i in range(300)])
    index.loc[20, "sha256"] = index.loc[3, "sha256"]
    split = make_split(index, CLASSES, how=how)
    held, seen = np.r_[split.test, split.val], np.r_[split.labelled, split.unlabelled]
    assert shared(index, split.test, np.r_[seen, split.val]) == shared(index, held, seen) == NOTHING
    if how == "subject:s0": assert not {20, *range(15, 30)} & {*held, *seen} and set(split.test) == set(range(15))

def test_what_cannot_be_carved_is_said():
    index = plain_index().assign(split=None, subject="s0")
    with pytest.raises(BenchError, match="none can be carved"): make_split(index, CLASSES)
    with pytest.raises(BenchError, match="only 1 groups of faces"): make_split(index, CLASSES, how="fold:1/2")
    official = plain_index().assign(subject="s0")
    assert not len(make_split(official, CLASSES).val), "one person cannot be on both sides"

def test_a_face_without_split_among_faces_with_one_is_refused():
    index = plain_index()
    index.loc[7, "split"] = None
    with pytest.raises(BenchError, match="1 of 300 labelled faces are in no split, such as '0007'"):
        make_split(index, CLASSES)
    index.loc[7, "label"] = None  # an unlabelled face needs none
    assert 7 in make_split(index, CLASSES).unlabelled

def test_leave_one_subject_out():
    index = plain_index().assign(subject=[f"s{i // 30}" for i in range(300)])
    split = make_split(index, CLASSES, how="subject:s3")
    assert set(index["subject"].iloc[split.test]) == {"s3"} and split.origin["test"] == "subject:s3"
    assert "s3" not in set(index["subject"].iloc[np.concatenate([split.labelled, split.unlabelled, split.val])])
    with pytest.raises(BenchError, match="no subject with labelled faces 's99'"):
        make_split(index, CLASSES, how="subject:s99")

def test_cross_split_copies_are_dropped_on_request():
    index = plain_index()
    # 2 and 5 are test faces
    index.loc[0, "sha256"], index.loc[1, "sha256"] = index.loc[2, "sha256"], index.loc[5, "sha256"]
    kept, dropped = (make_split(index, CLASSES, dedupe=d) for d in ("none", "cross_split"))
    assert {0, 1} <= set(kept.labelled) and not {0, 1} & set(np.r_[dropped.labelled, dropped.unlabelled, dropped.val])
    assert kept.hash != dropped.hash and np.array_equal(kept.test, dropped.test)
    assert np.array_equal(kept.val, dropped.val), "both have the same validation faces"

def test_validation_faces_that_copy_test_faces_are_dropped_on_request():
    index = plain_index().assign(split=(["train"] * 4 + ["val", "test"]) * 50)
    index.loc[4, "sha256"] = index.loc[0, "sha256"] = index.loc[5, "sha256"]
    index.loc[1, "sha256"] = index.loc[10, "sha256"]
    kept, dropped = (make_split(index, CLASSES, dedupe=d) for d in ("none", "cross_split"))
    assert {0, 1} <= set(kept.labelled) and 4 in kept.val
    assert set(kept.labelled) - set(dropped.labelled) == {0, 1} and set(kept.val) - set(dropped.val) == {4}

@pytest.mark.parametrize("given", [{"labels_per_class": 5}, {"labels_per_class": "ada_cm-400"},
                                   {"dedupe": "cross_split"}])
def test_nothing_is_ignored_beside_a_manifest(tmp_path, given):
    index = plain_index()
    manifest(index, make_split(index, CLASSES, 10)).to_csv(tmp_path/"split.csv", index=False)
    with pytest.raises(BenchError, match="says which faces are labelled"):
        make_split(index, CLASSES, how=str(tmp_path/"split.csv"), **given)

def test_a_manifest_without_test_faces(tmp_path):
    index = plain_index()
    manifest(index, make_split(index, CLASSES, 10)).query("role != 'test'").to_csv(tmp_path/"split.csv", index=False)
    with pytest.raises(BenchError, match="no face with the role test"):
        make_split(index, CLASSES, how=str(tmp_path/"split.csv"))

def test_published_budget():
    classes = ["anger", "fear"]
    index = pd.DataFrame({"key": [f"{i:04d}" for i in range(400)], "split": ["train"] * 350 + ["test"] * 50,
                          "subject": None, "label": [classes[i % 2] for i in range(400)],
                          "sha256": [f"p{i}" for i in range(400)], "file_sha256": None})
    split = make_split(index, classes, "ada_cm-400")
    labels = index["label"].iloc[split.labelled]
    assert ((labels == "fear").sum(), (labels == "anger").sum()) == (40, 60)
    with pytest.raises(BenchError, match="no budget 'ada_cm-40'. Did you mean"): make_split(index, classes, "ada_cm-40")

@pytest.mark.parametrize("spoil, says", [
    (lambda t: t.drop(columns="role"), "no column 'role'"), (lambda t: pd.concat([t, t[:1]]), "twice"),
    (lambda t: t.assign(key=t.key + "x"), "does not have"), (lambda t: t.assign(file_sha256="0"), "another copy"),
    (lambda t: t.assign(role="tset"), "no role"), (lambda t: t.assign(label="fear"), "another copy")])
def test_manifest_of_other_faces(tmp_path, spoil, says):
    index = plain_index()
    path = tmp_path/"split.csv"
    spoil(manifest(index, make_split(index, CLASSES, 10))).to_csv(path, index=False)
    with pytest.raises(BenchError, match=says): make_split(index, CLASSES, how=str(path))

@settings(max_examples=40, deadline=None)
@given(st.text(max_size=300))
def test_any_text_as_manifest(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("m")/"split.csv"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(BenchError): make_split(plain_index(), CLASSES, how=str(path))

@pytest.mark.parametrize("how", ["fold:0/5", "fold:6/5", "fold:1/1", "fold:x", "offical", "subject:", "nowhere.csv"])
def test_bad_split_names(how):
    with pytest.raises(BenchError): make_split(plain_index(), CLASSES, how=how)
