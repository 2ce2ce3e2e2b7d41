"""The audit finds every planted fault and nothing else; copies are found exactly, near-copies as by brute force."""
import hashlib
import io
import json
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from fer_bench.core import BenchError, sha256
from fer_bench.data.audit import duplicates
from fer_bench.data.audit.audit import audit, cached_audit, flagged_sheet, to_markdown, to_terminal
from fer_bench.data.audit.checks import check_split, compare_labels
from fer_bench.data.audit.duplicates import (
    close_pairs,
    cross_split_copies,
    exact_copies,
    likeness,
    near_across,
    near_copies,
)
from fer_bench.data.audit.measures import measures
from fer_bench.data.drawn.faces import draw_faces
from fer_bench.data.faceset import FaceSet, cached_faceset
from fer_bench.data.labels import FERPLUS8, VOTED
from fer_bench.data.sources.ferplus import FerplusSource, read_fer2013new
from fer_bench.data.splits import make_split


def smooth(n: int, seed: int = 0, size: int = 48, channels: int = 1) -> np.ndarray:
    "(n, size, size, channels) uint8: `n` unlike pictures with frequencies that fall as those of photographs do."
    rng, k = np.random.default_rng(seed), np.arange(40)
    waves = np.cos(np.pi * k[:, None] * (np.arange(size) + 0.5) / size)
    c = rng.normal(size=(n, 40, 40)) / (1 + k[:, None] ** 2 + k ** 2) ** 0.8
    c[:, 0, 0] = 0
    x = waves.T @ c @ waves
    x = 128 + 45 * x / x.std((1, 2), keepdims=True) + rng.normal(0, 6, x.shape)
    return np.clip(x, 0, 255).astype(np.uint8)[..., None].repeat(channels, -1)

def made(images, folder="nowhere", meta=(), **columns) -> FaceSet:
    "A FaceSet of `images`; labels alternate between two classes, three training faces to each test face by default."
    n = len(images)
    ten = ["train"] * 2 + ["test"] * 2 + ["train"] * 4 + ["val"] * 2
    index = pd.DataFrame({"key": [f"{i:05d}.png" for i in range(n)],
                          "label": ["fear", "anger"] * (n // 2) + ["fear"] * (n % 2),
                          "note": None, "votes": None, "split": ten * (n // 10) + ["train"] * (n % 10),
                          "subject": None, "file_sha256": None,
                          "sha256": [sha256(np.ascontiguousarray(x)) for x in images], "landmarks": None})
    facts = {"name": "made", "classes": ["anger", "fear"], "rejected": [], "content_hash": "c", "colour": "grey",
             "facts": {}}
    return FaceSet(folder, images, index.assign(**columns), facts | dict(meta))

def changed(values, **at) -> list:
    values = list(values)
    for i, v in at.items(): values[int(i[1:])] = v
    return values

def levels(found, *levels_) -> set:
    return {f.check for f in found.findings if f.level in (levels_ or ("note", "warning", "failure"))}

@pytest.fixture(scope="module")
def plain() -> np.ndarray: return smooth(200)

# --- a clean set, and one fault at a time

def test_nothing_is_found_in_a_clean_set(plain):
    found = audit(made(plain, subject=[f"s{i}" for i in range(200)]), mirrored=True)
    assert not levels(found) and not found.failed and not found.problems

def test_clean_faces_in_colour():
    faces = draw_faces(range(0, 800, 10), size=48)["images"]
    assert not levels(audit(made(faces)), "warning", "failure")

def one(fault, check, level, images, count=None, **more):
    found = audit(fault, **more)
    assert found[check].level == level, found[check]
    if count is not None: assert found[check].count == count
    assert found.failed == (level == "failure")
    assert levels(found, "failure") == ({check} if level == "failure" else set())
    return found[check]

def test_exact_copy_across_splits(plain):
    images = plain.copy()
    images[4] = images[2]
    f = one(made(images), "copies across splits", "failure", images, 1)
    assert f.rows.tolist() == [[2, 4]] and "1 of a validation or test face in training" in f.sentence

def test_exact_copy_of_a_test_face_in_val(plain):
    images = plain.copy()
    images[8] = images[2]
    assert "1 of a test face in validation" in one(made(images), "copies across splits", "failure", images, 1).sentence

def test_exact_copy_within_a_split(plain):
    images = plain.copy()
    images[14] = images[4]
    assert one(made(images), "copies within a split", "note", images, 1).rows.tolist() == [[4, 14]]

def test_copies_with_different_labels_even_beside_one_without(plain):
    images = plain.copy()
    images[14] = images[5] = images[4]
    f = one(made(images, label=changed(["fear", "anger"] * 100, _4=None)), "labels of copies", "warning", images, 1)
    assert f.rows.tolist() == [[5, 14]] and "another has none: 1." in f.sentence

def test_subject_in_two_splits(plain):
    fault = made(plain, subject=changed([f"s{i}" for i in range(200)], _2="s0"))
    assert one(fault, "subjects", "failure", plain, 1).rows.tolist() == [0, 2]

def test_the_split_of_a_run_is_checked_instead_of_the_official_one(plain):
    images, people = plain.copy(), [f"s{i}" for i in range(200)]
    images[4] = images[2]  # a training and a test face
    images[8] = images[3]  # a validation and a test face
    faces = made(images, subject=changed(people, _0="s9"))  # in training and validation
    def levels_of(split): return {f.check: f.level for f in check_split(faces.index, split) if f.level == "failure"}
    published, clean = (make_split(faces.index, ["anger", "fear"], dedupe=d) for d in ("none", "cross_split"))
    assert levels_of(published) == {"subjects": "failure", "copies across splits": "failure"}
    assert levels_of(clean) == {"subjects": "failure"}, "people are left to who makes the split"
    carved = faces.index.assign(split=None)
    assert levels_of(make_split(carved, ["anger", "fear"])) == {}

def test_flat_pictures(plain):
    images = plain.copy()
    images[7], images[17, :, :, 0] = 90, np.random.default_rng(0).integers(88, 93, (48, 48))
    found = audit(made(images))
    assert found["flat"].rows.tolist() == [7, 17] and levels(found) == {"flat"}

def test_blown_up_picture(plain):
    images = plain.copy()
    small = Image.fromarray(images[7, ..., 0]).resize((10, 10))
    images[7, ..., 0] = np.asarray(small.resize((48, 48), Image.Resampling.BICUBIC))
    assert one(made(images), "tiny", "note", images).rows.tolist() == [7]

def test_faces_too_small_as_a_whole(): assert audit(made(smooth(20, size=16)))["tiny"].level == "warning"

def test_noise_is_unlike_faces():
    faces = np.array(draw_faces(range(0, 1600, 8), size=48)["images"])
    faces[11] = np.random.default_rng(1).integers(0, 256, faces[0].shape, np.uint8)
    assert audit(made(faces), near=False)["unlike the others"].rows[0] == 11

def test_grey_and_swapped_colours():
    faces = np.array(draw_faces(range(0, 400, 10), size=48)["images"])
    one(made(faces[..., ::-1]), "colour order", "failure", faces, 40)
    some = faces.copy()
    some[:12] = some[:12, ..., ::-1]
    some[20] = some[20, ..., :1]
    found = audit(made(some))
    assert found["colour order"].level == "warning" and set(found["colour order"].rows) == set(range(12))
    assert found["grey in colour"].rows.tolist() == [20]
    assert "chroma" not in measures(faces[..., :1])

def test_counts_against_the_published_ones(plain):
    right = {"train": {"fear": 60, "anger": 60}, "val": {"all": 40}, "test": {"fear": 20, "anger": 20}}
    assert audit(made(plain, meta={"facts": {"published": right}}), near=False)["counts"].level == "ok"
    f = one(made(plain), "counts", "failure", plain, 2,
            published=right | {"val": {"all": 41}, "test": {"fear": 20, "happiness": 1}})
    assert "val all 40 instead of 41" in f.sentence and "test happiness 0 instead of 1" in f.sentence

def test_classes(plain):
    label = np.array(["fear", "anger"] * 100, object)
    label[[2, 3]] = None
    assert audit(made(plain, label=label), near=False)["classes"].level == "ok"
    few = label.copy()
    few[np.flatnonzero(few == "anger")[10:]] = "fear"
    assert "1 more" not in one(made(plain, label=["fear"] * 200), "classes", "warning", plain).sentence
    assert audit(made(plain, label=few), near=False)["classes"].level == "note"
    assert "no labels" in audit(made(plain, label=None), near=False)["classes"].sentence

def test_files_put_aside(plain):
    fault = made(plain, meta={"rejected": [{"key": "a.png", "reason": "the file is empty"}]})
    assert "'a.png' (the file is empty)" in one(fault, "rejected", "note", plain, 1).sentence

# --- near-copies

def jpeg(a, quality=30):
    Image.fromarray(a[..., 0]).save(out := io.BytesIO(), "JPEG", quality=quality)
    return np.asarray(Image.open(out))[..., None]

def resized(a, side, edge=0):
    part = Image.fromarray(a[edge:len(a) - edge, edge:len(a) - edge, 0]).resize((side, side), Image.Resampling.LANCZOS)
    return np.asarray(part.resize((len(a), len(a)), Image.Resampling.BICUBIC))[..., None]

CHANGES = {"bright": lambda a: np.clip(a * 1.15 + 12.0, 0, 255).astype(np.uint8),
           "dark": lambda a: (a * 0.7).astype(np.uint8),
           "noise": lambda a: np.clip(a + np.random.default_rng(0).normal(0, 6, a.shape), 0, 255).astype(np.uint8),
           "jpeg": jpeg, "moved": lambda a: np.roll(a, 1, axis=1), "resized": lambda a: resized(a, 32),
           "cropped": lambda a: resized(a, 48, edge=1)}

@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("count", [40, 600])  # all pairs; by hashes
def test_near_copies_are_found(change, count):
    images = smooth(count + 20, seed=3)
    for i in range(20): images[count + i] = CHANGES[change](images[i])
    index = made(images).index
    found = near_copies(images, index)
    planted = {(i, count + i) for i in range(20)}
    assert set(zip(found.a, found.b, strict=True)) <= planted and len(found) >= (18 if change == "moved" else 20)

@pytest.mark.parametrize("count", [40, 600])
def test_mirror_images_are_found_when_asked_for(count):
    images = smooth(count + 20, seed=4)
    images[count:] = images[:20, :, ::-1]
    index = made(images).index
    found = near_copies(images, index, mirrored=True)
    assert [*zip(found.a, found.b, strict=True)] == [(i, count + i) for i in range(20)] and found.mirrored.all()
    assert not len(near_copies(images, index))

def test_near_copies_in_the_audit(plain):
    images = plain.copy()
    images[4], images[14], images[24] = CHANGES["bright"](images[2]), CHANGES["jpeg"](images[5]), 200
    found = audit(made(images))
    assert found["near-copies across splits"].rows.tolist() == [[2, 4]]
    assert found["near-copies across splits"].level == "warning"
    assert found["near-copies within a split"].rows.tolist() == [[5, 14]] and not found.failed
    pictures, titles = flagged_sheet(made(images), found, "near-copies across splits")
    assert np.array_equal(pictures, images[[2, 4]]) and titles == ["00002.png\nfear", "00004.png\nfear"]
    with pytest.raises(BenchError, match="flagged no face"): flagged_sheet(made(images), found, "subjects")

def test_flat_pictures_are_nobodys_copies():
    images = smooth(40)
    images[:5] = np.arange(50, 55)[:, None, None, None]
    assert not len(near_copies(images, made(images).index, mirrored=True))

def test_a_set_of_film_frames_ends_in_a_sentence(monkeypatch):
    images = smooth(100)
    images[1:] = images[0]
    images[range(100), 20, 0, 0] = range(100)
    monkeypatch.setattr(duplicates, "MOST", 50)
    with pytest.raises(BenchError, match="frames of one film"): close_pairs(np.zeros(100, np.uint64))
    monkeypatch.setattr(duplicates, "picture_hashes", lambda images: np.zeros((len(images), 2), np.uint64))
    assert audit(made(images))["near-copies"].level == "warning"

def test_spectra_are_the_corner_of_scipys_dct():
    from scipy.fft import dctn
    images = smooth(3, size=40, channels=3)
    assert np.allclose(duplicates.spectra(images), dctn(images.mean(-1), axes=(1, 2), norm="ortho")[:, :20, :20],
                       atol=1e-2)
    assert np.abs(duplicates.spectra(smooth(3, size=12))[:, 12:]).max() == 0

def test_likeness_is_one_of_itself_and_low_of_others(plain):
    same, others = np.stack([np.arange(50)] * 2, 1), np.stack([np.arange(50), np.arange(50, 100)], 1)
    assert likeness(plain, same).min() > 0.999 and likeness(plain, others).max() < 0.9
    both = np.concatenate([plain[:50], plain[:50, :, ::-1]])
    assert likeness(both, others, mirrored=True).min() > 0.999
    assert likeness(np.full((2, 48, 48, 1), 7, np.uint8), np.array([[0, 1]])).tolist() == [0]

def test_hashes_do_not_depend_on_size_or_chunks(plain, monkeypatch):
    whole = duplicates.picture_hashes(plain)
    monkeypatch.setattr(duplicates, "CHUNK", 17)
    assert np.array_equal(duplicates.picture_hashes(plain), whole)
    mirrored = duplicates.picture_hashes(np.concatenate([plain, plain[:, :, ::-1]]))
    assert (mirrored[:200, 0] == mirrored[200:, 1]).mean() > 0.95  # rounding may turn a bit

# --- the search, against brute force

def brute(a, b, radius, alone):
    bits = [np.unpackbits(x.view(np.uint8).reshape(-1, 8), axis=1).astype(int) for x in (a, b)]
    close = (bits[0][:, None] != bits[1][None]).sum(2) <= radius
    return np.argwhere(np.triu(close, 1) if alone else close)

@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2 ** 32), st.integers(0, 13), st.booleans(), st.sampled_from([3, 1000]))
def test_close_pairs_are_those_of_brute_force(seed, radius, alone, block):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 2 ** 64, 500, np.uint64)
    for i in range(250, 500):  # within and just beyond the radius of another
        flips = rng.choice(64, rng.integers(0, radius + 4), replace=False)
        a[i] = a[i - 250] ^ np.bitwise_or.reduce(np.uint64(1) << flips.astype(np.uint64), initial=0, dtype=np.uint64)
    b = a if alone else rng.permutation(a)
    before, duplicates.BLOCK = duplicates.BLOCK, block
    try: found = close_pairs(a, None if alone else b, radius)
    finally: duplicates.BLOCK = before
    assert np.array_equal(found, brute(a, b, radius, alone))

def test_no_pairs_of_nothing_and_of_one():
    for n in (0, 1): assert close_pairs(np.zeros(n, np.uint64)).shape == (0, 2)
    for n in (1, 2, 3): assert audit(made(smooth(n)))["classes"]

# --- exact copies

@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.sampled_from(["train", "val", "test", None])), min_size=1, max_size=25))
def test_exact_copies_and_what_to_drop_are_those_planted(faces):
    index = pd.DataFrame({"sha256": [f"h{p}" for p, _ in faces], "split": [s for _, s in faces]})
    planted = defaultdict(set)
    for i, (p, _) in enumerate(faces): planted[p].add(i)
    found = defaultdict(set)
    for first, copy in exact_copies(index).tolist(): found[first] |= {first, copy}
    assert sorted(map(sorted, found.values())) == sorted(sorted(g) for g in planted.values() if len(g) > 1)
    assert len(exact_copies(index)) == sum(len(g) - 1 for g in planted.values())
    inside = exact_copies(index, within=True)
    assert len(inside) == len(faces) - len(set(faces)) and all(faces[a] == faces[b] for a, b in inside)
    rank = {"test": 0, "val": 1, "train": 2}
    drop = {i for i, (p, s) in enumerate(faces) if s and any(q == p and t and rank[t] < rank[s] for q, t in faces)}
    assert set(cross_split_copies(index)) == drop

def test_near_copies_count_for_all_exact_copies():
    index = pd.DataFrame({"sha256": list("aabbcde"), "split": ["train", "train", "train", "test", "val", "val", None]})
    near = pd.DataFrame({"a": [0, 4, 5], "b": [2, 5, 6]})
    assert near_across(index, near).tolist() == [[3, 0]] or near_across(index, near).tolist() == [[3, 0], [3, 0]]
    assert cross_split_copies(index).tolist() == [2]
    assert cross_split_copies(index, near).tolist() == [0, 1, 2]
    assert cross_split_copies(index, near.iloc[:0]).tolist() == [2]

# --- second label file

def test_second_labels(tmp_path):
    index = pd.DataFrame({"key": [f"FER2013Train/{c}.png" for c in "abcd"],
                          "label": ["neutral", "happiness", None, "fear"],
                          "votes": [[9] + [0] * 9, [0, 9] + [0] * 8, [5, 5] + [0] * 8, [0] * 6 + [9, 0, 0, 0]]})
    rows = [("a.png", [9] + [0] * 9), ("b.png", [9, 1] + [0] * 8), ("c.png", [5, 4, 1] + [0] * 7), ("a.png", [0] * 10),
            ("", [0] * 9 + [9]), ("x.png", [1] * 10)]
    text = "\n".join([",".join(["Usage", "Image name", *VOTED]),
                      *(f"Training,{name},{','.join(map(str, v))}" for name, v in rows)])
    (tmp_path/"fer2013new.csv").write_text(text)
    other = read_fer2013new(tmp_path)
    f = compare_labels(index, other)
    assert f.rows.tolist() == [1, 2] and f.level == "warning"
    for said in ("2 of 3 faces", "2 have other votes", "1 of its rows have no name",
                 "1 of its names occur twice (FER2013Train/a.png)",
                 "1 of its names have no face", "1 faces are not in it"): assert said in f.sentence
    assert compare_labels(index, index[["key", "label"]]).level == "ok"
    assert compare_labels(index, index[["key", "label"]].assign(label=None)).rows.tolist() == [0, 1, 3]
    for wrong in ("", "Usage,name\n", text.replace("Training,a", "Holiday,a"), text.replace("9,1,0", "9,x,0"),
                  "\x00\xff"):
        (tmp_path/"fer2013new.csv").write_text(wrong)
        with pytest.raises(BenchError): read_fer2013new(tmp_path)
    (tmp_path/"empty").mkdir()
    with pytest.raises(BenchError, match="holds no fer2013new.csv"): read_fer2013new(tmp_path/"empty")

# --- reports

def test_reports(plain, tmp_path):
    images = plain.copy()
    images[4] = images[2]
    images[15] = images[5]
    faces = made(images, tmp_path/"set", subject=changed([f"a|b{i}" for i in range(200)], _2="a|b0"))
    found = audit(faces)
    as_dict = json.loads(json.dumps(found.to_dict()))
    assert as_dict["failed"] and as_dict["problems"] == found.problems and len(found.problems) == 2
    across = next(f for f in as_dict["findings"] if f["check"] == "copies across splits")
    assert across["faces"] == [["00002.png", "00004.png"]] and across["level"] == "failure" and across["count"] == 1
    text = to_markdown(found)
    assert "FAILED" in text and "`00002.png` = `00004.png`" in text and "a\\|b0" in text
    to_terminal(found, Console(file=(out := io.StringIO()), width=100))
    assert all(f.check in out.getvalue() for f in found.findings) and "FAILED" in out.getvalue()

def test_the_audit_is_made_once(plain, tmp_path, monkeypatch):
    faces = made(plain, tmp_path/"set")
    first = cached_audit(faces)
    monkeypatch.setattr("fer_bench.data.audit.audit.audit", None)  # a second one would fail
    assert cached_audit(faces) == first and not first["failed"]
    with pytest.raises(TypeError): cached_audit(made(plain, tmp_path/"set", meta={"content_hash": "other"}))

# --- real faces

def test_ferplus(ferplus):
    faces = cached_faceset(FerplusSource(ferplus))
    found = audit(faces, labels=read_fer2013new(ferplus))
    labelled = faces.index.dropna(subset="label")["split"].value_counts()
    assert labelled.to_dict() == {"train": 25_045, "val": 3_191, "test": 3_137}
    assert "train 25,045 of 28,558" in found["counts"].sentence
    groups = defaultdict(set)  # plainly: files with the same bytes
    for i, key in enumerate(faces.index.key): groups[hashlib.sha256((ferplus/key).read_bytes()).digest()].add(i)
    copied = [g for g in groups.values() if len(g) > 1]
    pairs = defaultdict(set)
    for first, copy in exact_copies(faces.index).tolist(): pairs[first] |= {first, copy}
    assert sorted(map(sorted, pairs.values())) == sorted(map(sorted, copied)) and len(copied) == 1513
    rank = faces.index["split"].map({"test": 0, "val": 1, "train": 2}).to_numpy()
    drop = sorted(i for g in copied for i in g if rank[i] > rank[list(g)].min())
    assert cross_split_copies(faces.index).tolist() == drop and len(drop) == 738 == found["copies across splits"].count
    assert found.failed and found["labels of copies"].count == 117
    for said in ("377 of 35,710 faces have another label", "1,601 have other votes", "173 of its rows have no name",
                 "4 of its names occur"):
        assert said in found["second label file"].sentence
    assert set(FERPLUS8) == set(faces.classes) and found["near-copies across splits"].count > 1000
