"FaceSets: the same bits whatever the order and the threads, nothing half-made, nothing lost, damage found."
import csv
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fer_bench.core import BenchError
from fer_bench.data import faceset
from fer_bench.data.faceset import build_faceset, cached_faceset, check_unchanged, fit, open_faceset, verify_faceset
from fer_bench.data.sources.base import COLUMNS, Source
from fer_bench.data.sources.ferplus import FerplusSource
from fer_bench.data.sources.folders import CsvSource, FolderSource
from fer_bench.data.sources.pictures import decode
from fer_bench.data.stamps import NOTE

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (100, 12, 12, 3), dtype=np.uint8)


@pytest.fixture
def photos(tmp_path):
    "100 pictures of 12x12 in two classes and two splits."
    for i, pixels in enumerate(NOISE):
        path = tmp_path/"photos"/("train", "test")[i % 5 == 0]/("sad", "happy")[i % 2]/f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path/"photos"


class Arrays:
    "A source of arrays that knows nothing of `Source`, as the drawn faces do."
    name, classes, colour, licence, rejected = "drawn", ("a", "b"), "rgb", "ours", ()
    facts = {"alignment": "exact", "drawing": 1}

    def __init__(self, images, labels=None, order=None, stop=None, **more):
        self.images, self.stop, self.more = images, stop, more
        self.labels = labels or ["ab"[i % 2] for i in range(len(images))]
        self.order = range(len(images)) if order is None else order

    def rows(self):
        empty = dict.fromkeys(("note", "votes", "split", "subject"))
        table = pd.DataFrame([{"key": f"{i:05d}", "label": self.labels[i], **empty,
                               **{name: values[i] for name, values in self.more.items()}} for i in self.order])
        return table if len(table) else pd.DataFrame(columns=list(COLUMNS))

    def load_many(self, keys):
        if self.stop and self.stop[0] in keys: raise self.stop[1]
        return [self.images[int(key)] for key in keys]


def content(source, folder, **options): return build_faceset(source, folder, **options).meta["content_hash"]


# building

def test_round_trip(photos, tmp_path):
    source = FolderSource(photos)
    faces = build_faceset(source, tmp_path/"faces")
    again = open_faceset(tmp_path/"faces")
    assert faces.index.key.tolist() == sorted(faces.index.key) and len(faces) == len(again) == 100
    for key, image in zip(again.index.key, again.images, strict=True):
        assert np.array_equal(image, decode((photos/key).read_bytes(), "rgb"))
        assert np.array_equal(image, NOISE[int(key[-7:-4])])
    assert isinstance(again.images, np.memmap) and again.images.dtype == np.uint8 and not again.drawn
    assert [again.classes[i] for i in again.labels] == again.index.label.tolist() and again.labels.dtype == np.int64
    assert again.meta["counts"] == {"test": {"labelled": {"happy": 10, "sad": 10}, "unlabelled": {}},
                                    "train": {"labelled": {"happy": 40, "sad": 40}, "unlabelled": {}}}
    assert verify_faceset(tmp_path/"faces").meta == faces.meta


def test_everything_in_the_index_survives(tmp_path):
    marks = RNG.random((4, 5, 2)).astype(np.float32)
    source = Arrays(NOISE[:4], labels=["b", None, "a", "b"], note=[None, "no majority", None, None],
                    votes=[[1, 2], None, np.array([3, 4], np.uint8), None], split=["train", None, "val", "test"],
                    subject=["x", None, 7, None], landmarks=[marks[0], marks[1].ravel().tolist(), None, marks[3]])
    faces = build_faceset(source, tmp_path/"faces")
    table = pq.read_table(tmp_path/"faces"/"index.parquet").to_pydict()
    assert faces.drawn and faces.labels.tolist() == [1, -1, 0, 1] and faces.meta["alignment"] == "exact"
    assert table["note"] == [None, "no majority", None, None] and table["subject"] == ["x", None, "7", None]
    assert table["votes"] == [[1, 2], None, [3, 4], None] and table["split"] == ["train", None, "val", "test"]
    assert table["landmarks"] == [marks[0].ravel().tolist(), marks[1].ravel().tolist(), None, marks[3].ravel().tolist()]
    assert table["file_sha256"] == [None] * 4
    assert faces.meta["counts"]["none"] == {"labelled": {"a": 0, "b": 0}, "unlabelled": {"no majority": 1}}
    assert verify_faceset(tmp_path/"faces").meta["content_hash"] == faces.meta["content_hash"]


def test_bad_files_are_put_aside(photos, tmp_path):
    good = (photos/"train"/"sad"/"002.png").read_bytes()
    bad = {"empty.png": b"", "text.jpg": b"no picture", "cut.png": good[:200], "film.avi": b"RIFF0000AVI "}
    for name, data in bad.items(): (photos/"train"/"sad"/name).write_bytes(data)
    (photos/"train"/"sad"/"gone.png").symlink_to("nowhere")
    faces = build_faceset(FolderSource(photos), tmp_path/"faces")
    assert len(faces) == 100
    reasons = {r["key"].removeprefix("train/sad/"): r["reason"] for r in faces.meta["rejected"]}
    assert set(reasons) == {*bad, "gone.png"} and all(reasons.values())
    assert reasons["gone.png"] == "a link to nothing" and "empty" in reasons["empty.png"]


@pytest.mark.parametrize("shape", [(40, 40), (40, 64), (65, 40), (8, 20)])
def test_fit_keeps_the_centre(shape):
    "A disc stays in the middle, and landmarks stay on it, whatever the picture's form."
    y, x = np.indices(shape) + 0.5
    at = np.array([shape[1] / 2, shape[0] / 2])
    disc = (255 * (np.hypot(x - at[0], y - at[1]) < min(shape) / 4)).astype(np.uint8)[..., None]
    small, marks = fit(disc, 24, at[None])
    y, x = np.indices((24, 24)) + 0.5
    middle = [(small[..., 0] * v).sum() / small.sum() for v in (x, y)]
    assert small.shape == (24, 24, 1) and np.allclose(middle, 12, atol=0.6) and np.allclose(marks, 12, atol=0.6)


def test_pictures_of_the_right_size_are_not_touched():
    square, _ = fit(NOISE[0], 12)
    assert np.array_equal(square, NOISE[0])


def test_sizes_that_differ(photos, tmp_path):
    Image.fromarray(NOISE[0][:, :9]).save(photos/"test"/"happy"/"odd.png")
    with pytest.raises(BenchError, match=r"differ in size.*odd.png.*such as size=112"):
        build_faceset(FolderSource(photos), tmp_path/"faces")
    assert os.listdir(tmp_path) == ["photos"]
    assert build_faceset(FolderSource(photos), tmp_path/"faces", size=10).images.shape == (101, 10, 10, 3)


@pytest.mark.parametrize("source, message", [
    (Arrays(NOISE[:0]), "has no face that can be read"), (Arrays(NOISE[:3], labels=["a"] * 3), "labels of 1 class"),
    (Arrays([ValueError("burnt")] * 3), "3 were rejected, the first: '00000', burnt"),
    (Arrays([NOISE[0], ValueError("burnt")]), "labels of 1 class.*burnt"),
    (Arrays(NOISE[:2], labels=["a", "c"]), r"none of its classes: \['c'\]"),
    (Arrays(NOISE[:2], order=[0, 1, 1]), "gives a key twice")])
def test_sources_that_cannot_be_built(source, message, tmp_path):
    with pytest.raises(BenchError, match=message): build_faceset(source, tmp_path/"faces")
    assert os.listdir(tmp_path) == []


def test_a_pool_needs_no_labels(tmp_path):
    pool = Arrays(NOISE[:3], labels=[None] * 3)
    faces = build_faceset(pool, tmp_path/"pool", require_labels=False)
    assert faces.labels.tolist() == [-1] * 3
    assert faces.meta["counts"]["none"]["unlabelled"] == {"no reason given": 3}
    assert len(cached_faceset(pool, tmp_path/"cache", require_labels=False)) == 3
    with pytest.raises(BenchError, match="require_labels"): cached_faceset(pool, tmp_path/"cache")


def test_wrong_arrays_are_refused(tmp_path):
    with pytest.raises(TypeError): build_faceset(Arrays(NOISE[:2] / 255), tmp_path/"faces")


def test_a_size_must_be_one(tmp_path):
    with pytest.raises(BenchError, match="size 0"): build_faceset(Arrays(NOISE[:2]), tmp_path/"faces", size=0)


def test_nothing_else_is_overwritten(photos, tmp_path):
    (tmp_path/"file").write_text("mine")
    for mine in (photos, tmp_path/"file"):
        with pytest.raises(BenchError, match="Choose another folder"): build_faceset(FolderSource(photos), mine)
    build_faceset(Arrays(NOISE[:2]), tmp_path/"faces")
    assert len(build_faceset(Arrays(NOISE[:4]), tmp_path/"faces")) == 4


def test_memory_does_not_grow_with_the_pixels(tmp_path):
    class Made(Arrays):
        def load_many(self, keys): return [np.full((128, 128, 3), int(key) % 256, np.uint8) for key in keys]
    tracemalloc.start()
    faces = build_faceset(Made(range(3000)), tmp_path/"faces", workers=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert faces.images.nbytes > 140e6 and peak < 30e6


# the content hash

def test_hash_does_not_know_threads_or_order(photos, tmp_path):
    source = FolderSource(photos)
    first = content(source, tmp_path/"a", workers=1)
    source._rows = [source._rows[i] for i in RNG.permutation(len(source._rows))]
    assert first == content(source, tmp_path/"b", workers=2) == content(source, tmp_path/"b", workers=7)
    assert pd.read_parquet(tmp_path/"a"/"index.parquet").equals(pd.read_parquet(tmp_path/"b"/"index.parquet"))
    assert (tmp_path/"a"/"images.npy").read_bytes() == (tmp_path/"b"/"images.npy").read_bytes()


def test_hash_does_not_know_files(photos, tmp_path):
    first = content(FolderSource(photos), tmp_path/"a")
    for path in photos.rglob("*.png"): Image.open(path).save(path, compress_level=0)
    assert content(FolderSource(photos), tmp_path/"b") == first
    pq.write_table(pq.read_table(tmp_path/"b"/"index.parquet"), tmp_path/"b"/"index.parquet", row_group_size=7)
    assert verify_faceset(tmp_path/"b").meta["content_hash"] == first


def test_hash_knows_pixels_labels_and_classes(tmp_path):
    class Turned(Arrays): classes = ("b", "a")
    other = NOISE[:4].copy()
    other[3, 5, 5, 1] ^= 1
    sources = [Arrays(NOISE[:4]), Arrays(other), Arrays(NOISE[:4], labels=["a", "b", "a", "a"]), Turned(NOISE[:4]),
               Arrays(NOISE[:4], order=[0, 1, 2]), Arrays(NOISE[:4], split=["train"] * 4),
               Arrays(NOISE[:4], votes=[[1]] * 4), Arrays(NOISE[:4], landmarks=[[1.0, 2.0]] * 4)]
    assert len({content(source, tmp_path/"faces") for source in sources}) == len(sources)


# interruptions

@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_an_interrupted_build_leaves_nothing(error, tmp_path):
    with pytest.raises(type(error)): build_faceset(Arrays(NOISE, stop=("00070", error)), tmp_path/"faces")
    assert os.listdir(tmp_path) == []
    old = content(Arrays(NOISE), tmp_path/"faces")
    with pytest.raises(type(error)): build_faceset(Arrays(NOISE, stop=("00070", error)), tmp_path/"faces")
    assert verify_faceset(tmp_path/"faces").meta["content_hash"] == old and os.listdir(tmp_path) == ["faces"]


KILLED = """
import sys, time
from fer_bench.data.sources.folders import FolderSource
from fer_bench.data.faceset import cached_faceset
class Slow(FolderSource):
    def read(self, key):
        time.sleep(0.05)
        return super().read(key)
Slow.__name__ = "FolderSource"
cached_faceset(Slow(sys.argv[1]), sys.argv[2], workers=1)
"""


def test_a_killed_build_leaves_nothing(photos, tmp_path):
    cache = tmp_path/"cache"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(photos), str(cache)],
                               env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})
    while process.poll() is None and not list(cache.glob(".*.part/images.npy")): time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert list(cache.glob(".*.part")) and not [p for p in cache.iterdir() if not p.name.startswith(".")]
    faces = cached_faceset(FolderSource(photos), cache)
    assert verify_faceset(faces.folder).meta == faces.meta and not list(cache.glob(".*.part"))


# opening and verifying

@pytest.fixture
def built(photos, tmp_path): return build_faceset(FolderSource(photos), tmp_path/"faces").folder


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("face", [0, 41, 99])
def test_verify_finds_one_flipped_bit(built, face):
    key = open_faceset(built).index.key[face]
    flip(built/"images.npy", 128 + face * 12 * 12 * 3 + 77)
    with pytest.raises(BenchError, match=f"pixels of 1 of its faces differ.*{key}"): verify_faceset(built)


@pytest.mark.parametrize("column, value", [("label", "happy"), ("split", None), ("key", "other.png"), ("votes", [1])])
def test_verify_finds_an_edited_index(built, column, value):
    index = pd.read_parquet(built/"index.parquet").astype(object)
    index.at[50, column] = value if index.at[50, column] != value else "sad"
    index.to_parquet(built/"index.parquet")
    with pytest.raises(BenchError, match="index.parquet"): verify_faceset(built)


def test_verify_finds_turned_classes(built):
    meta = json.loads((built/"meta.json").read_text())
    (built/"meta.json").write_text(json.dumps({**meta, "classes": meta["classes"][::-1]}))
    with pytest.raises(BenchError, match="classes"): verify_faceset(built)


@pytest.mark.parametrize("name, data, message", [
    ("meta.json", None, "lacks meta.json"), ("images.npy", None, "lacks images.npy"),
    ("meta.json", b"[]", "another version"), ("meta.json", b"{", "cannot be read as JSON"),
    ("meta.json", b'{"schema_version": 0}', "another version"), ("meta.json", b'{"schema_version": 1}', "damaged"),
    ("images.npy", b"", "damaged"), ("images.npy", b"rubbish", "damaged"), ("index.parquet", b"rubbish", "damaged")])
def test_what_is_no_faceset(built, name, data, message):
    (built/name).unlink() if data is None else (built/name).write_bytes(data)
    with pytest.raises(BenchError, match=message): open_faceset(built)


def test_a_cut_file_and_a_lost_row(built):
    whole = (built/"images.npy").read_bytes()
    (built/"images.npy").write_bytes(whole[:-1])
    with pytest.raises(BenchError, match="damaged"): open_faceset(built)
    (built/"images.npy").write_bytes(whole)
    pd.read_parquet(built/"index.parquet").iloc[1:].to_parquet(built/"index.parquet")
    with pytest.raises(BenchError, match="100 images, 99 rows"): open_faceset(built)


@pytest.fixture
def unwritable(built):
    "A FaceSet beside whose files no note can be written, by any user: a folder has the note's name."
    (built/NOTE).unlink()
    (built/NOTE).mkdir()
    return open_faceset(built)


@pytest.fixture
def hashed(monkeypatch):
    "How many times a FaceSet was verified."
    calls = []
    monkeypatch.setattr(faceset, "verify_faceset", lambda folder: calls.append(folder) or verify_faceset(folder))
    return calls


OTHER_PROCESS = """
import sys
from fer_bench.data import faceset
def refuse(folder): raise SystemExit("verified again")
faceset.verify_faceset = refuse
faceset.check_unchanged(faceset.open_faceset(sys.argv[1]))
"""


def test_a_faceset_that_cannot_be_written_to_is_verified_once(unwritable, hashed, tmp_path, monkeypatch):
    "By this process and the next, and again as soon as a file changes."
    monkeypatch.setenv("FER_BENCH_CACHE", str(tmp_path/"cache"))
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", OTHER_PROCESS, str(unwritable.folder)]
    check_unchanged(unwritable)
    check_unchanged(unwritable)
    assert len(hashed) == 1 and subprocess.run(command, env=env).returncode == 0
    os.utime(unwritable.folder/"images.npy", ns=(1, 1))
    assert subprocess.run(command, env=env, capture_output=True, text=True).stderr.strip() == "verified again"
    check_unchanged(unwritable)
    assert len(hashed) == 2
    flip(unwritable.folder/"images.npy", 500)
    with pytest.raises(BenchError, match="pixels of 1 of its faces differ"): check_unchanged(unwritable)
    with pytest.raises(BenchError, match="pixels of 1 of its faces differ"): check_unchanged(unwritable)


def test_where_no_note_can_be_written_the_process_remembers(unwritable, hashed, tmp_path, monkeypatch):
    (tmp_path/"file").write_text("")
    monkeypatch.setenv("FER_BENCH_CACHE", str(tmp_path/"file"))
    for _ in range(2): check_unchanged(unwritable)
    assert len(hashed) == 1


def test_one_of_many_verifies(unwritable, hashed, tmp_path, monkeypatch):
    monkeypatch.setenv("FER_BENCH_CACHE", str(tmp_path/"cache"))
    with ThreadPoolExecutor(4) as threads: list(threads.map(check_unchanged, [unwritable] * 4))
    assert len(hashed) == 1


def test_built_verified_and_copied_facesets_are_not_hashed_again(built, hashed, tmp_path):
    check_unchanged(open_faceset(built))
    shutil.copytree(built, tmp_path/"copy")  # keeps times
    check_unchanged(open_faceset(tmp_path/"copy"))
    assert hashed == []
    for path in (tmp_path/"copy").iterdir(): path.touch()
    for _ in range(2): check_unchanged(open_faceset(tmp_path/"copy"))
    assert hashed == [tmp_path/"copy"]
    for wrong in ("", "[]", "{"):
        (tmp_path/"copy"/NOTE).write_text(wrong)
        check_unchanged(open_faceset(tmp_path/"copy"))
    assert len(hashed) == 4


def test_open_nowhere(tmp_path):
    with pytest.raises(BenchError, match="is no FaceSet"): open_faceset(tmp_path/"nowhere")


# the cache

def test_cache_follows_the_source(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("FER_BENCH_CACHE", str(tmp_path/"cache"))
    first = cached_faceset(FolderSource(photos))
    assert first.folder.parent == tmp_path/"cache" and cached_faceset(FolderSource(photos)).folder == first.folder
    Image.fromarray(NOISE[1]).save(photos/"train"/"sad"/"002.png")
    changed = cached_faceset(FolderSource(photos))
    assert changed.folder != first.folder and changed.meta["content_hash"] != first.meta["content_hash"]
    assert len({first.folder, changed.folder, cached_faceset(FolderSource(photos), size=8).folder,
                cached_faceset(FolderSource(photos, "grey")).folder}) == 4


def test_cache_of_a_source_without_fingerprint(tmp_path):
    class Made(Arrays):
        def __init__(self, n):
            super().__init__(NOISE[:n])
            self.n = n
    assert len(cached_faceset(Made(4), tmp_path)) == 4 and len(cached_faceset(Made(6), tmp_path)) == 6
    assert not hasattr(Made, "fingerprint") and cached_faceset(Made(4), tmp_path).folder.name.startswith("drawn-own-")


def _cached(photos, cache, answers):
    answers.put(cached_faceset(FolderSource(photos), cache).meta["content_hash"])


def test_two_processes_at_once(photos, tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    workers = [context.Process(target=_cached, args=(photos, tmp_path/"cache", answers)) for _ in range(3)]
    for worker in workers: worker.start()
    assert len({answers.get(timeout=60) for _ in workers}) == 1
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len([p for p in (tmp_path/"cache").iterdir() if p.is_dir()]) == 1


def test_cache_where_nothing_can_be_written(tmp_path):
    (tmp_path/"file").write_text("")
    with pytest.raises(BenchError, match="Cannot write"): cached_faceset(Arrays(NOISE[:2]), tmp_path/"file")


# other sources, and the real thing

def test_a_source_out_of_an_archive(tmp_path):
    "A new source only says how to read: here faces out of a tar file."
    class Tarred(Source):
        def __init__(self, path):
            self.tar = tarfile.open(path)  # noqa: SIM115
            names = self.tar.getnames()
            super().__init__([(n, n.split("/")[0], None, None, None, None) for n in names], ("a", "b"))

        def read(self, key): return self.tar.extractfile(key).read()
    with tarfile.open(tmp_path/"x.tar", "w") as tar:
        for name, pixels in zip(["b/1.png", "a/1.png"], NOISE, strict=False):
            Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
            member = tarfile.TarInfo(name)
            member.size = len(file.getvalue())
            tar.addfile(member, io.BytesIO(file.getvalue()))
    faces = build_faceset(Tarred(tmp_path/"x.tar"), tmp_path/"faces", workers=1)
    assert faces.index.key.tolist() == ["a/1.png", "b/1.png"] and np.array_equal(faces.images[1], NOISE[0])


def test_csv_with_all_its_faults(photos, tmp_path):
    lines = ["path,label,split,subject", "train/sad/002.png,sad,train,ann", "train/happy/001.png,happy,train,ben",
             "train/sad/004.png,,,", "train/sad/gone.png,sad,train,", "../faces.csv,sad,,",
             "train/sad/002.png,happy,train,", "train/sad/\0.png,sad,train,", "train/sad,sad,train,"]
    (photos/"faces.csv").write_text("\n".join(lines))
    faces = build_faceset(CsvSource(photos/"faces.csv"), tmp_path/"faces")
    assert faces.index.key.tolist() == ["train/happy/001.png", "train/sad/002.png", "train/sad/004.png"]
    assert faces.labels.tolist() == [0, 1, -1] and faces.index.subject.tolist()[:2] == ["ben", "ann"]
    assert len(faces.meta["rejected"]) == 5


def plain_rule(counts):
    "The FER+ rule once more, in the words of the data's README."
    names = ["neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF"]
    left = {name: n for name, n in zip(names, counts, strict=True) if n > 1}
    best = max(left, key=left.get, default=None)
    return best if best and left[best] > sum(left.values()) / 2 and best not in ("unknown", "NF") else None


def test_ferplus_every_face_comes_through(ferplus, tmp_path):
    faces = build_faceset(FerplusSource(ferplus), tmp_path/"faces")
    assert faces.images.shape == (35710, 48, 48, 1) and faces.meta["rejected"] == []
    wanted = {}
    for part in ("Train", "Valid", "Test"):
        with open(ferplus/f"FER2013{part}"/"label.csv") as file:
            wanted |= {f"FER2013{part}/{row[0]}": plain_rule(map(int, row[2:])) for row in csv.reader(file)}
    labels = faces.index.label.astype(object).where(faces.index.label.notna(), None)
    assert dict(zip(faces.index.key, labels, strict=True)) == wanted
    counts = {split: Counter(c["labelled"]).total() for split, c in faces.meta["counts"].items()}
    assert counts == {"train": 25045, "val": 3191, "test": 3137}
    for i in range(0, len(faces), 3571):
        assert np.array_equal(faces.images[i, ..., 0], Image.open(ferplus/faces.index.key[i]))
    verify_faceset(faces.folder)


def test_shards_are_the_same_data(photos, tmp_path):
    "Shards have the same hash and read alike, their damage is found, and another build may replace them."
    whole = build_faceset(FolderSource(photos), tmp_path/"whole")
    cut = build_faceset(FolderSource(photos), tmp_path/"cut", shard_bytes=30 * 12 * 12 * 3)
    assert sorted(p.name for p in cut.folder.glob("images*")) == [f"images-{i:05d}.npy" for i in range(4)]
    assert cut.meta == whole.meta and cut.index.equals(whole.index) and len(cut) == 100
    assert np.array_equal(cut.images[:], whole.images) and np.array_equal(cut.images[[99, 3]], whole.images[[99, 3]])
    verify_faceset(tmp_path/"cut")
    flip(tmp_path/"cut"/"images-00002.npy", 128 + 5 * 12 * 12 * 3 + 77)
    with pytest.raises(BenchError, match="1 of its faces differ"): verify_faceset(tmp_path/"cut")
    (tmp_path/"cut"/"images-00003.npy").unlink()
    with pytest.raises(BenchError, match="damaged: 90 images, 100 rows"): open_faceset(tmp_path/"cut")
    (tmp_path/"cut"/"images-00001.npy").unlink()
    with pytest.raises(BenchError, match="lacks images-00001.npy"): open_faceset(tmp_path/"cut")
    assert build_faceset(FolderSource(photos), tmp_path/"cut").meta == whole.meta
    assert sorted(os.listdir(tmp_path/"cut")) == ["images.npy", "index.parquet", "meta.json", "verified.json"]
