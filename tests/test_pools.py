"Pools: pixels of many FaceSets by one number, no label ever looked at, no face of the exam."
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fer_bench.core import BenchError
from fer_bench.data.drawn.faces import DrawnSource
from fer_bench.data.faceset import build_faceset
from fer_bench.data.feed import BlockOrder, Feed, batch_rows
from fer_bench.data.pools import Pool, held_out_hashes
from fer_bench.data.sources.face_recognition import IdentitySource
from fer_bench.data.sources.folders import FolderSource
from fer_bench.data.splits import make_split

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
