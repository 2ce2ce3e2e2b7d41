"Pools: pixels of many FaceSets by one number, no label ever looked at, no face of the exam."
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import untimed
from PIL import Image

from fer_bench.config import RunConfig
from fer_bench.core import BenchError
from fer_bench.data.drawn.faces import DrawnSource
from fer_bench.data.faceset import build_faceset, fit
from fer_bench.data.feed import BlockOrder, Feed, batch_rows
from fer_bench.data.pools import CroppedSource, Pool, few_each, held_out_hashes, one_person
from fer_bench.data.sources.face_recognition import IdentitySource
from fer_bench.data.sources.folders import FolderSource
from fer_bench.data.splits import make_split
from fer_bench.runs.experiment import find_record, run
from fer_bench.runs.task import load_data, make_pool, split_data
from fer_bench.train.batches import LatestLabels, PseudoOrder

RNG = np.random.default_rng(0)

def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)

@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    "A labelled set of 60 grey faces with a test split, and a flat folder of 30, two of which are among its test faces."
    root = tmp_path_factory.mktemp("sets")
    pixels = RNG.integers(0, 256, (60, 16, 16), np.uint8)
    for i, face in enumerate(pixels):
        save(root/"tree"/("train", "train", "test")[i % 3]/("sad", "happy")[i // 3 % 2]/f"{i:02d}.png", face)
    for i in range(30): save(root/"flat"/f"Ann_B{i // 3}_{i % 3 + 1:04d}.jpg", RNG.integers(0, 256, (16, 16), np.uint8))
    labelled = build_faceset(FolderSource(root/"tree", "grey"), root/"labelled")
    return root, labelled, build_faceset(IdentitySource(root/"flat", "grey"), root/"flat_set", require_labels=False)

def test_pixels_by_one_number(sets):
    _, labelled, flat = sets
    taken = np.array([5, 3, 11])
    pool = Pool([flat, (labelled, taken), flat])
    whole = np.concatenate([flat.images, labelled.images[taken], flat.images])
    assert len(pool) == 63 and pool.images.shape == (63, 16, 16, 1) and pool.images.nbytes == 63 * 256
    assert pool.dropped == [0, 0, 0]
    for rows in (np.arange(63), [62, 0, 31, 31, -1], 30, slice(28, 40), []):
        assert np.array_equal(pool.images[rows], whole[rows])
    batch = Feed(pool.images)(batch_rows(BlockOrder(range(63), 0, block=4, buffer=3), 2, 16))
    assert batch.shape == (16, 1, 16, 16)
    with pytest.raises(IndexError): pool.images[63]

def test_subjects(sets):
    _, labelled, flat = sets
    pool = Pool([flat, labelled, flat])
    assert pool.subjects[0] == "0/Ann_B0" and pool.subjects[45] is None and pool.subjects[90] == "2/Ann_B0"
    assert len(set(pool.subjects) - {None}) == 20

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 4), st.sampled_from([None, 2]),
       st.lists(st.integers(0, 59), min_size=1, max_size=30, unique=True))
def test_no_face_of_the_exam(sets, seed, k, rows):
    _, labelled, flat = sets
    split = make_split(labelled.index, labelled.classes, k, seed)
    exam = held_out_hashes(labelled.index, split)
    pool = Pool([(labelled, np.array(rows)), flat], exam)
    kept = pool.members[0][1]
    assert set(kept) == set(rows) - set(split.val) - set(split.test) and pool.dropped == [len(rows) - len(kept), 0]
    assert not exam & set(labelled.index.sha256.iloc[kept]) and list(kept) == [r for r in rows if r in set(kept)]

def test_copies_are_known_by_pixels_and_by_file(sets, tmp_path):
    "The same test face as another file of the same pixels, and as the same file built in another size and colour."
    root, labelled, _ = sets
    split = make_split(labelled.index, labelled.classes)
    keys = labelled.index.key.iloc[split.test[:2]]
    save(tmp_path/"tree"/"x"/"0.bmp", np.asarray(Image.open(root/"tree"/keys.iloc[0])))
    for i in (1, 2): save(tmp_path/"tree"/"y"/f"{i}.png", RNG.integers(0, 256, (16, 16), np.uint8))
    same = build_faceset(FolderSource(tmp_path/"tree", "grey"), tmp_path/"same")
    (tmp_path/"tree"/"y"/"3.png").write_bytes((root/"tree"/keys.iloc[1]).read_bytes())
    larger = build_faceset(FolderSource(tmp_path/"tree"), tmp_path/"larger", size=24)
    exam = held_out_hashes(labelled.index, split)
    assert Pool([same], exam).dropped == [1] and Pool([larger], exam).dropped == [1]
    assert "3.png" not in " ".join(larger.index.key.iloc[Pool([larger], exam).members[0][1]])
    with pytest.raises(BenchError, match="empty: 20 faces were dropped"): Pool([(labelled, split.test)], exam)

def test_labels_are_never_looked_at(sets):
    "A pool of FaceSets without any column of labels is the same pool."
    _, labelled, flat = sets
    exam = held_out_hashes(labelled.index, make_split(labelled.index, labelled.classes))
    pool = Pool([labelled, flat], exam)
    class Blind:
        folder, images, meta, __len__ = labelled.folder, labelled.images, labelled.meta, lambda self: 60
        index = labelled.index.drop(columns=["label", "note", "votes"])
    blind = Pool([Blind(), flat], exam)
    assert blind.facts == pool.facts and np.array_equal(blind.images[:], pool.images[:])
    assert len(blind.subjects) == len(pool)

def test_grey_and_colour_together(sets, tmp_path):
    root, _, flat = sets
    colour = build_faceset(IdentitySource(root/"flat", "rgb"), tmp_path/"rgb", require_labels=False)
    pool = Pool([flat, colour])
    assert pool.images.shape == (60, 16, 16, 3) and np.array_equal(pool.images[:30], pool.images[30:])

def test_sizes_must_agree(sets, tmp_path):
    _, labelled, _ = sets
    with pytest.raises(BenchError, match=r"one size.*'drawn'.*Build the FaceSets again with the same size="):
        Pool([labelled, build_faceset(DrawnSource(64, 32), tmp_path/"drawn")])

def test_hash_tells_pools_apart(sets):
    _, labelled, flat = sets
    members = [[labelled, flat], [flat, labelled], [flat], [(flat, np.arange(29))], [(flat, np.arange(30)[::-1])]]
    pools = [Pool(m) for m in members]
    assert len({pool.hash for pool in pools}) == 5
    assert Pool([labelled, flat]).hash == pools[0].hash == pools[0].facts["hash"]

def test_real_faces(tmp_path):
    "Face recognition crops from an archive: 12 758 faces of 5 606 people, one of them held out of another set."
    archive = Path(os.environ.get("FER_BENCH_DATA", Path(__file__).parents[2]/"shared/data"))/"lfw_crops_112.tar.xz"
    if not archive.exists(): pytest.skip(f"no {archive}; FER_BENCH_DATA names the folder of the real faces")
    flat = build_faceset(IdentitySource(archive, "grey"), tmp_path/"faces", require_labels=False)
    whole, pool = Pool([flat]), Pool([flat], {flat.index.sha256[7]})
    assert len(whole) == 12_758 and whole.images.shape[1:] == (112, 112, 1) and len(set(whole.subjects)) == 5_606
    assert pool.dropped == [(flat.index.sha256 == flat.index.sha256[7]).sum()]
    assert len(pool) + pool.dropped[0] == len(whole)

# few faces of a person, a cut, a balance

@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=40).filter(lambda p: len(set(p)) > 1), st.integers(1, 5),
       st.integers(0, 3))
def test_few_of_each_person(people, n, seed):
    "Everybody has min(n, own faces), the rows are in order, and those of a smaller n are among them."
    index = pd.DataFrame({"key": [str(i) for i in range(len(people))], "subject": people})
    rows = few_each(index, n, seed)
    assert pd.Series(people).iloc[rows].value_counts().to_dict() == {p: min(n, people.count(p)) for p in set(people)}
    assert (np.diff(rows) > 0).all() and np.array_equal(rows, few_each(index, n, seed))
    assert set(few_each(index, max(1, n - 1), seed)) <= set(rows)

def test_every_face_of_a_person_has_its_chance():
    index = pd.DataFrame({"key": [*"abcdef"], "subject": [*"ppppqq"]})
    drawn = np.concatenate([few_each(index, 1, seed) for seed in range(400)])
    assert np.abs(np.bincount(drawn)[:4] - 100).max() < 40 and np.abs(np.bincount(drawn)[4:] - 200).max() < 50

@pytest.mark.parametrize("people, says", [
    ([None, "a", "b"], "1 of 3 name none, such as 'k0'. Put each person's faces into a folder"),
    ([None] * 3, "3 of 3 name none"),
    (["a", "a", "a"], "All 3 faces of the pool are of one person, 'a': a folder for each person"),
])
def test_people_that_are_not_told_apart(people, says):
    index = pd.DataFrame({"key": [f"k{i}" for i in range(3)], "subject": people})
    with pytest.raises(BenchError, match=says): few_each(index, 2)
    assert bool(one_person(index)) == (people == ["a"] * 3)

@pytest.mark.parametrize("side, shape", [(1.0, (20, 30)), (0.5, (20, 30)), (0.7, (31, 31)), (0.01, (9, 9))])
def test_the_middle_of_a_picture_is_kept(tmp_path, side, shape):
    "Against cutting by hand; as a source it has other files and the same facts."
    pixels = RNG.integers(0, 256, (*shape, 3), np.uint8)
    for who in "ab": save(tmp_path/who/"0.png", pixels)
    faces = build_faceset(CroppedSource(IdentitySource(tmp_path), side), tmp_path/"set", size=8, require_labels=False)
    length = max(1, round(side * min(shape)))
    top, left = ((s - length) // 2 for s in shape)
    assert np.array_equal(faces.images[0], fit(pixels[top:top + length, left:left + length], 8)[0])
    assert faces.meta["facts"]["crop"] == side and faces.meta["name"] == "identities"
    assert len({CroppedSource(IdentitySource(tmp_path), other).fingerprint() for other in (0.9, 0.8, side)}) == 3

@pytest.fixture
def people(tmp_path):
    "A flat folder of 48 faces: one of twenty people, 28 of another."
    names = [f"Ann_B{chr(97 + i)}_0001.jpg" for i in range(20)] + [f"Bo_Lee_{i + 1:04d}.jpg" for i in range(28)]
    for name in names: save(tmp_path/"people"/name, RNG.integers(0, 256, (40, 40, 3), np.uint8))
    return str(tmp_path/"people")

def test_a_pool_of_few_faces_a_person_cut_to_their_middle(tiny, people, tmp_path, capsys):
    "Ids follow the faces; drawn by label_seed; a FaceSet that is packed already is not cut."
    usual = dict(method="dtm", unlabelled="pool", pool_root=people, labels_per_class=1, threads=1)
    pooled = lambda **fields: tiny(**usual | fields)
    faces = load_data(pooled())
    split = split_data(pooled(), faces)
    pools = {n: make_pool(pooled(pool_per_person=n), faces, split) for n in (None, 1, 5)}
    assert {n: len(pool) for n, pool in pools.items()} == {None: 48, 1: 21, 5: 25}
    other = make_pool(pooled(pool_per_person=5, label_seed=1), faces, split)
    assert len(other) == 25 and other.hash != pools[5].hash
    cut = make_pool(pooled(pool_crop=0.5), faces, split)
    assert cut.images.shape == pools[None].images.shape and not np.array_equal(cut.images[:], pools[None].images[:])
    configs = [pooled(), pooled(pool_per_person=5), pooled(pool_crop=0.5), pooled(pool_balance="pseudo")]
    assert len({find_record(c).id for c in configs}) == 4
    assert find_record(pooled(pool_crop=1.0)).id == find_record(pooled()).id
    built = pooled(pool_root=str(cut.members[0][0].folder), pool_crop=0.5)
    assert find_record(built).id == find_record(configs[2]).id, "as Ray sends it"
    with pytest.raises(BenchError, match="pool_crop = 0.7 cuts pictures before they are packed.*is a FaceSet"):
        make_pool(pooled(pool_root=str(cut.members[0][0].folder), pool_crop=0.7), faces, split)
    for path in (tmp_path/"people").glob("Ann*"): path.unlink()
    with pytest.raises(BenchError, match="of one person, 'Bo_Lee'.*Leave pool_per_person out"):
        make_pool(pooled(pool_per_person=5), faces, split)
    capsys.readouterr()
    assert len(make_pool(pooled(), faces, split)) == 28
    assert "All 28 faces of the pool are of one person" in capsys.readouterr().out
    assert run(pooled(pool_crop=0.5)).metrics.pool.faces == [28]

@pytest.mark.parametrize("fields, says", [
    (dict(method="dtm", pool_per_person=3), "pool_per_person = 3 is given, but unlabelled = 'rest'"),
    (dict(method="dtm", pool_crop=0.5), "pool_crop = 0.5 is given, but unlabelled = 'rest'"),
    (dict(method="dtm", pool_crop=0.0), "greater than 0"),
    (dict(method="dtm", pool_crop=1.5), "less than or equal to 1"),
    (dict(method="dtm", pool_per_person=0), "greater than 0"),
    (dict(method="byol", pool_balance="pseudo"), "goes by pseudo-labels, and method 'byol' gives none"),
    (dict(pool_balance="pseudo"), "'pool_balance' is for other methods"),
], ids=str)
def test_pool_fields_that_are_refused(fields, says):
    with pytest.raises(BenchError, match=says): RunConfig(preset="tiny", **fields)

@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-2, 3), min_size=1, max_size=60), st.integers(1, 4), st.integers(1, 30))
def test_the_pool_evenly_over_pseudo_labels(labels, epoch, n):
    "Faces without one keep their share, those with one are drawn evenly over its classes, in any run of draws."
    latest = LatestLabels(len(labels))
    latest.learn(torch.tensor(labels, dtype=torch.int16))
    order = PseudoOrder(latest, 64, 0, 100)
    positions = np.arange(epoch * 64, epoch * 64 + n)
    drawn = order.take(positions)
    assert set(drawn) <= set(range(len(labels)))
    known = {c: sum(label == c for label in labels) for c in range(4)}
    found = np.bincount(np.maximum(np.array(labels)[drawn], -1) + 1, minlength=5)[1:]
    classes = sum(map(bool, known.values()))
    if not classes: assert np.array_equal(drawn, BlockOrder(range(len(labels)), 0, 100).take(positions))
    for c, count in known.items():
        share = sum(known.values()) / len(labels) / classes if count else 0
        assert abs(found[c] - n * share) <= 2

def test_the_latest_pseudo_label_of_each_face():
    latest = LatestLabels(4)
    for labels in ([2, -1, -2, -2], [-2, 3, -1, -2], [-1, -2, 0, -2]):
        latest.learn(torch.tensor(labels, dtype=torch.int16))
    assert latest.latest.tolist() == [-1, 3, 0, -1] and "latest" in latest.state_dict()

@pytest.mark.parametrize("stop_after", [2, pytest.param(1, marks=pytest.mark.nightly)])
def test_a_balanced_pool_resumes_to_the_same_bits(tiny, tmp_path, monkeypatch, stop_after):
    "Stopped after an epoch, it draws the faces that it would have drawn; and it draws others than without balance."
    import fer_bench.train.loop as loop
    fields = dict(method="fixmatch", epochs=4, steps_per_epoch=3, lr=0.2, ema=0.9, threshold=0.15, labels_per_class=1,
                  batch_size=4, threads=1)
    whole = run(tiny(**fields, pool_balance="pseudo", results_dir=str(tmp_path/"whole")))
    real = loop.save_checkpoint
    def stop(folder, epoch, state):
        real(folder, epoch, state)
        if epoch == stop_after: raise KeyboardInterrupt
    monkeypatch.setattr(loop, "save_checkpoint", stop)
    with pytest.raises(KeyboardInterrupt): run(tiny(**fields, pool_balance="pseudo"))
    monkeypatch.undo()
    record = run(tiny(**fields, pool_balance="pseudo"))
    assert untimed(record.history).equals(untimed(whole.history)) and whole.history["pool_used"].max() > 0
    assert (record.folder/"weights.safetensors").read_bytes() == (whole.folder/"weights.safetensors").read_bytes()
    plain = run(tiny(**fields))
    assert plain.history["loss"][0] == whole.history["loss"][0] and plain.history["loss"][3] != whole.history["loss"][3]

def test_a_prefetcher_stops_where_later_rows_are_not_known():
    from fer_bench.data.feed import Prefetcher
    asked = []
    ahead = Prefetcher(Feed(np.zeros((4, 2, 2, 1), np.uint8)), lambda step: asked.append(step) or [0], depth=2, lap=3)
    for step in range(3): ahead(step)
    ahead.thread.shutdown()
    assert asked == [0, 1, 2]
