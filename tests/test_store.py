"""Records that travel: what is packed comes back bit for bit, and an archive of a stranger can do no harm."""
import contextlib
import io
import json
import os
import resource
import shutil
import stat
import threading
import zipfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import CLASSES, made_record
from pyarrow import parquet

from fer_bench import record, store
from fer_bench.core import BenchError, read_json, sha256, write_json, write_text
from fer_bench.data.splits import make_split, save_manifest
from fer_bench.record import Record, load_runs, runs_folder, write_status
from fer_bench.store import merge, pack, pack_bytes, verify

FACES = pd.DataFrame({"key": [f"é{i:03d}" for i in range(80)], "label": ["fear", "happiness"] * 39 + [None, "fear"],
                      "split": None,
                      "subject": [f"s{i // 4}" for i in range(80)], "sha256": [f"p{i}" for i in range(80)],
                      "file_sha256": None})

ENVIRONMENT = {"python": "3.11", "machine": "x", "system": "y", "versions": {}, "commit": "0123", "dirty": False}


def made(results, seed=0, metrics=None, weights=True, method="supervised") -> Record:
    "A finished record of 12 faces, with its split, weights, a figure, a checkpoint and a lock."
    split = make_split(FACES, CLASSES, 10, seed)
    record = made_record(results, {"test": metrics or {}}, split.hash, seed=seed, method=method)
    write_json(record.folder/"environment.json", ENVIRONMENT)
    write_status(record.folder, "finished")
    save_manifest(FACES, split, Path(results)/"splits"/f"{split.hash[:12]}.csv")
    (record.folder/"figures").mkdir(exist_ok=True)
    for name in ("figures/face.png", "checkpoint-1.pt", "lock", *store.WEIGHTS * weights):
        (record.folder/name).write_bytes(b"x" * 1000)
    return record

def files(folder) -> dict:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}

def outcomes(found) -> list: return [f.outcome for f in found]

def reseal(record, name, content: str):
    "Change a file of `record` as someone would who knows how the seal is made."
    write_text(record.folder/name, content)
    write_status(record.folder, "finished")

def flattered(record, **test) -> str:
    "The metrics.json of `record` with other results."
    facts = record.metrics.model_dump()
    return json.dumps(facts | {"test": facts["test"] | test})

@pytest.fixture
def two(tmp_path): return [made(tmp_path/"a", seed) for seed in (0, 1)]


# --- there and back ---

@pytest.mark.parametrize("how, weights",
                         [("archive", False), ("archive", True), ("bytes", False), ("bytes", True), ("folder", True)])
def test_what_is_packed_comes_back_bit_for_bit(two, tmp_path, how, weights):
    sources = {"archive": lambda: [pack(two, tmp_path/"x.zip", weights)], "folder": lambda: [tmp_path/"a"],
               "bytes": lambda: [pack_bytes(r, weights) for r in two]}[how]()
    found = [f for s in sources for f in merge(s, tmp_path/"b")]
    assert outcomes(found) == ["added"] * 4
    assert sorted(f.name for f in found if "/" not in f.name) == sorted(r.id for r in two)
    left = ("png", "pt", "lock") if weights else ("png", "pt", "lock", "safetensors")
    kept = {n: b for n, b in files(tmp_path/"a").items() if not n.endswith(left)}
    assert {n: b for n, b in files(tmp_path/"b").items() if not n.endswith("lock")} == kept
    assert [r.id for r in load_runs(tmp_path/"b")] == sorted(r.id for r in two)

def test_the_same_records_give_the_same_bytes(two, tmp_path):
    first = pack(two, tmp_path/"x.zip").read_bytes()
    for path in (tmp_path/"a").rglob("*"): os.utime(path, (1e9, 1e9))
    shutil.copytree(tmp_path/"a", tmp_path/"moved")
    again = load_runs(tmp_path/"moved")[::-1]
    assert pack(again, tmp_path/"y.zip").read_bytes() == first == pack([*two, *two], tmp_path/"z.zip").read_bytes()

def test_merging_again_changes_nothing(two, tmp_path):
    archive = pack(two, tmp_path/"x.zip")
    merge(archive, tmp_path/"b")
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in (tmp_path/"b").rglob("*") if p.is_file()}
    assert outcomes(merge(archive, tmp_path/"b")) == ["already there"] * 2
    assert before == {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in (tmp_path/"b").rglob("*") if p.is_file()}

def test_another_result_of_the_same_run_is_refused_and_the_old_one_stays(two, tmp_path):
    archive = pack(two, tmp_path/"x.zip")
    mine = made(tmp_path/"b")
    reseal(mine, "environment.json", json.dumps(ENVIRONMENT | {"commit": "other"}))
    old = files(mine.folder)
    found = {f.name: f for f in merge(archive, tmp_path/"b")}
    assert found[mine.id].outcome == "refused"
    assert "stays; they differ in config.json, environment.json" in found[mine.id].why
    assert files(mine.folder) == old and found[two[1].id].outcome == "added"
    with pytest.raises(BenchError, match="Two different results of run"): pack([*two, mine], tmp_path/"y.zip")

def test_an_unfinished_run_gets_the_result_unless_it_is_being_done(two, tmp_path):
    data, folder = pack_bytes(two[0]), runs_folder(tmp_path/"b")/two[0].id
    write_json(folder/"status.json", {"state": "failed"})
    with FileLock(folder/"lock"):
        (found,) = merge(data, tmp_path/"b")
        assert found.outcome == "refused" and "being done here now" in found.why
        assert read_json(folder/"status.json") == {"state": "failed"}
    assert "added" in outcomes(merge(data, tmp_path/"b")) and Record(folder).finished

def test_many_merges_at_once_add_each_record_once(tmp_path):
    data, found = [pack_bytes(made(tmp_path/"a", seed)) for seed in range(3)] * 4, []
    threads = [threading.Thread(target=lambda d=d: found.extend(merge(d, tmp_path/"b"))) for d in data]
    for t in threads: t.start()
    for t in threads: t.join()
    assert outcomes(f for f in found if "/" not in f.name).count("added") == 3 == len(load_runs(tmp_path/"b"))
    assert set(outcomes(verify(tmp_path/"b"))) == {"sound"}

def test_a_merge_that_breaks_off_leaves_no_record(two, tmp_path, monkeypatch):
    "The disk is full after so many files: no half record counts, and the next merge completes it."
    data, copy = pack_bytes(two[0], weights=True), store._copy
    for n in range(8):
        left = iter([None] * n)
        def failing(member, path, left=left):
            if next(left, "full") == "full": raise BenchError("No space")
            copy(member, path)
        monkeypatch.setattr(store, "_copy", failing)
        with pytest.raises(BenchError, match="No space"): merge(data, tmp_path/"b")
        assert load_runs(tmp_path/"b") == [] and not any((tmp_path/"b").rglob("*.json"))
    monkeypatch.setattr(store, "_copy", copy)
    assert outcomes(merge(data, tmp_path/"b")) == ["added", "added"]

def test_what_cannot_be_packed_is_named(two, tmp_path):
    with pytest.raises(BenchError, match="no finished run to pack"): pack([], tmp_path/"x.zip")
    write_status(two[0].folder, "failed")
    with pytest.raises(BenchError, match=f"{two[0].id}.*failed"): pack(two, tmp_path/"x.zip")
    (two[1].folder/"history.jsonl").unlink()
    with pytest.raises(BenchError, match="lacks history.jsonl"): pack_bytes(two[1])
    assert not (tmp_path/"x.zip").exists()


# --- damage ---

DAMAGE = {
    "edited": (lambda r: (r.folder/"metrics.json").write_text("{}"), "metrics.json was changed after"),
    "missing": (lambda r: (r.folder/"environment.json").unlink(), "lacks environment.json"),
    "no JSON": (lambda r: (r.folder/"status.json").write_text("{"), "cannot be read as JSON"),
    "too deep": (lambda r: (r.folder/"status.json").write_text("[" * 100_000), "nested too deeply"),
    "a list": (lambda r: (r.folder/"status.json").write_text("[]"), "it is a list, and no JSON object"),
    "half sealed": (lambda r: write_json(r.folder/"status.json", {"state": "finished", "files": {}}), "does not seal"),
    "of another type": (lambda r: reseal(r, "metrics.json", flattered(r, n="12")), "test.n = '12'"),
    "no rate": (lambda r: reseal(r, "metrics.json", flattered(r, ECE=1.5)), "test.ECE = 1.5"),
    "another config": (lambda r: reseal(r, "config.json", json.dumps(r.config | {"lr": 0.5})),
                       "make it 'supervised-drawn"),
    "a newer config": (lambda r: reseal(r, "config.json", json.dumps(r.config | {"novelty": 1})), "novelty"),
    "flattered": (lambda r: reseal(r, "metrics.json", flattered(r, UAR=0.99)), "predictions"),
    "confused": (lambda r: reseal(r, "metrics.json", flattered(r, confusion=[[6, 0], [0, 6]])),
                 "predictions"),
    "no parquet": (lambda r: reseal(r, "predictions.parquet", "PAR1"), "cannot be read"),
}

@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_and_never_merged(two, tmp_path, name):
    change, words = DAMAGE[name]
    change(two[0])
    found = {f.name: f for f in verify(tmp_path/"a")}
    assert found[two[0].id].outcome == "damaged" and words in found[two[0].id].why
    assert set(outcomes(f for n, f in found.items() if n != two[0].id)) == {"sound"}
    merged = {f.name: f for f in merge(tmp_path/"a", tmp_path/"b")}
    assert (merged[two[0].id].outcome, merged[two[1].id].outcome) == ("refused", "added")
    assert words in merged[two[0].id].why
    assert [r.id for r in load_runs(tmp_path/"b")] == [two[1].id]

@pytest.mark.parametrize("method", ["MyLab.m.Mixup", "_lab.m.Mixup", "lab.m.Mixup", "étude.m.Mixup"])
def test_a_record_of_any_method_travels(tmp_path, method):
    "Whatever a method is called, its record is packed, verified and merged."
    record = made(tmp_path/"a", method=method)
    assert record.id.startswith(method) and outcomes(verify(tmp_path/"a")) == ["sound", "sound"]
    assert outcomes(merge(pack([record], tmp_path/"x.zip"), tmp_path/"b")) == ["added", "added"]
    assert outcomes(merge(tmp_path/"a", tmp_path/"c")) == ["added", "added"]

def test_a_folder_that_no_run_is_called_is_named(two, tmp_path):
    two[0].folder.rename(other := two[0].folder.with_name(f"-{two[0].id}"))
    found = {f.name: f for f in verify(tmp_path/"a")}
    assert found[other.name].outcome == "damaged" and "name that no run can have" in found[other.name].why
    assert {f.name: f for f in merge(tmp_path/"a", tmp_path/"b")}[other.name].outcome == "refused"

def test_a_run_that_goes_on_is_no_damage(two, tmp_path):
    write_status(two[0].folder, "running")
    assert sorted(outcomes(verify(tmp_path/"a"))) == ["sound", "sound", "sound", "unfinished"]

def test_a_split_of_other_faces_is_refused(two, tmp_path):
    path = tmp_path/"a"/"splits"/f"{two[0].metrics['split_hash'][:12]}.csv"
    path.write_text(path.read_text().replace("p7,", "p8,", 1))
    assert {f.name: f.outcome for f in verify(tmp_path/"a")}[f"splits/{path.name}"] == "damaged"
    found = {f.name: f.outcome for f in merge(tmp_path/"a", tmp_path/"b")}
    assert found[f"splits/{path.name}"] == "refused" and not (tmp_path/"b"/"splits"/path.name).exists()
    assert found[two[0].id] == "added"

def test_the_committed_records_are_sound():
    found = verify(Path(__file__).parent.parent/"results")
    assert found and [f for f in found if f.outcome != "sound"] == []


# --- what a stranger may send ---

def archive_of(members) -> bytes:
    "A zip of (name or ZipInfo, content) in order."
    with zipfile.ZipFile(out := io.BytesIO(), "w") as z:
        for name, content in members: z.writestr(name, content)
    return out.getvalue()

def info(name, mode=stat.S_IFREG | 0o644, kind=zipfile.ZIP_STORED):
    entry = zipfile.ZipInfo(name)
    entry.external_attr, entry.compress_type = mode << 16, kind
    return entry

GOOD = "runs/supervised-drawn-all-s0-0123456789/config.json"
EVIL = {
    "outside": ("../../etc/passwd", "no file of a record"), "absolute": ("/etc/passwd", "no file of a record"),
    "drive": ("C:/x/config.json", "no file"), "backslash": ("runs\\..\\..\\x\\config.json", "no file"),
    "dots": ("runs/../config.json", "no file"), "hidden": ("runs/.git/config.json", "no file"),
    "pickle": ("runs/a/model.pkl", "no file"),
    "deeper": ("runs/a/b/config.json", "no file"), "figure": ("runs/a/figures/x.png", "no file"),
    "lock": ("runs/a/lock", "no file"),
    "split": ("splits/../../x.csv", "no file"), "newline": ("runs/a/config.json\n", "no file"),
    "long": (f"runs/{'a' * 5000}/config.json", "no file"), "space": ("runs/a b/config.json", "no file"),
    "link": (info(GOOD, stat.S_IFLNK | 0o777), "a link"), "device": (info(GOOD, stat.S_IFCHR), "no plain file"),
    "lzma": (info(GOOD, kind=zipfile.ZIP_LZMA), "unusual way"),
}

@pytest.mark.parametrize("name", EVIL)
def test_an_evil_member_refuses_the_archive_before_anything_is_written(two, tmp_path, name):
    member, words = EVIL[name]
    good = [(n, b) for n, b in files(tmp_path/"a").items() if n.endswith(("json", "jsonl", "predictions.parquet"))]
    for members in ([*good, (member, b"x")], [(member, b"x"), *good]):
        with pytest.raises(BenchError, match=words): merge(archive_of(members), tmp_path/"b")
    assert not (tmp_path/"b").exists()

def test_a_name_twice_one_cut_by_NUL_a_bomb_and_something_encrypted(tmp_path):
    with pytest.raises(BenchError, match="no file"):
        merge(archive_of([(GOOD + "#", b"{}")]).replace(b"#", b"\0"), tmp_path)
    with pytest.warns(UserWarning), pytest.raises(BenchError, match="twice"):
        merge(archive_of([(GOOD, b"a"), (GOOD, b"b")]), tmp_path)
    bomb = archive_of([(info(GOOD.replace("s0", f"s{i}"), kind=zipfile.ZIP_DEFLATED), bytes(30_000_000))
                       for i in range(8)])
    with pytest.raises(BenchError, match="unpack"): merge(bomb, tmp_path)
    locked = bytearray(archive_of([(GOOD, b"{}")]))
    for magic, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)): locked[locked.index(magic) + at] |= 1
    with pytest.raises(BenchError, match="encrypted"): merge(bytes(locked), tmp_path)
    assert list(tmp_path.iterdir()) == []

def test_a_file_beyond_its_limit_is_not_read(two, tmp_path, monkeypatch):
    data = pack_bytes(two[0])
    monkeypatch.setattr(store, "SMALL", 100)
    assert "100 is the limit" in merge(data, tmp_path/"b")[0].why
    monkeypatch.setattr(store, "HEAVIEST", 100)
    with pytest.raises(BenchError, match="has .* bytes"): merge(data, tmp_path/"b")

def bomb(path, **repeated) -> Path:
    "A parquet of 15,000 faces in which a megabyte of text is stored once and said in each row."
    texts = {"key": pa.array([f"{i}" for i in range(15_000)]), "label": pa.array(["fear"] * 15_000)}
    for name, text in repeated.items():
        texts[name] = pa.DictionaryArray.from_arrays(pa.array([0] * 15_000, pa.int32()), pa.array([text]))
    logits = pa.array([[0.0, 1.0]] * 15_000, pa.list_(pa.float32()))
    parquet.write_table(pa.table({**texts, "logits": logits}), path, compression="zstd")
    return path

@pytest.mark.parametrize("column", ["key", "label"])
def test_a_small_file_that_decodes_to_15_GB_is_refused_before_it_is_decoded(two, tmp_path, column):
    bomb(two[0].folder/"predictions.parquet", **{column: "x" * 10**6})
    write_status(two[0].folder, "finished")
    assert (two[0].folder/"predictions.parquet").stat().st_size < 100_000
    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, resource.getrlimit(resource.RLIMIT_AS)[1]))
    try: found = {f.name: f.why for f in verify(tmp_path/"a")}
    finally: resource.setrlimit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)
    assert "texts are larger than those of any test split" in found[two[0].id] and not found[two[1].id]
    with pytest.raises(BenchError, match="texts are larger"): two[0].predictions  # noqa: B018

def test_more_numbers_than_any_test_split_has_are_not_decoded(two, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "MOST", 1000)
    assert {f.outcome for f in verify(tmp_path/"a")} == {"sound"}
    monkeypatch.setattr(record, "MOST", 12 * (1 + 1 + 2) - 1)
    monkeypatch.setattr(parquet.ParquetFile, "read", None)
    assert "larger than any test split when it is decoded" in verify(tmp_path/"a")[0].why

def test_links_in_a_folder_are_not_followed(two, tmp_path):
    (tmp_path/"secret").write_bytes((two[0].folder/"config.json").read_bytes())
    (two[0].folder/"config.json").unlink()
    (two[0].folder/"config.json").symlink_to(tmp_path/"secret")
    assert "config.json is a link" in next(f.why for f in merge(tmp_path/"a", tmp_path/"b") if f.name == two[0].id)

def test_weights_cut_short_leave_nothing(two, tmp_path):
    data = bytearray(pack_bytes(two[0], weights=True))
    data[data.index(b"x" * 1000) + 500] = 0
    found = merge(bytes(data), tmp_path/"b")
    assert outcomes(found) == ["refused"] and "CRC" in found[0].why and list(runs_folder(tmp_path/"b").iterdir()) == []

@pytest.mark.parametrize("source, words",
                         [(b"", "not used"), (b"PK\3\4", "not used"),
                          ("nowhere.zip", "no archive and no results folder"),
                                           (".", "is no results folder")], ids=repr)
def test_what_is_no_archive_is_named(tmp_path, source, words):
    for act in (verify, lambda s: merge(s, tmp_path)):
        with pytest.raises(BenchError, match=words): act(source if isinstance(source, bytes) else tmp_path/source)

def test_an_empty_archive_holds_nothing(tmp_path):
    assert merge(archive_of([]), tmp_path/"b") == [] == verify(archive_of([]))

@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    "The bytes of an archive of one record, and a record that was there before it."
    place = tmp_path_factory.mktemp("sound")
    return pack_bytes(made(place/"a")), made(place/"b", seed=1, weights=False)

def harmless(data, there, place):
    "Merge `data` beside the record `there`; whatever it is, what is there stays and only sound records come."
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(there.folder.parent.parent, place/"results")
    before = files(place)
    with contextlib.suppress(BenchError): merge(data, place/"results")
    after = files(place)
    assert {n: after.get(n) for n in before} == before
    new = [n.removeprefix("results/") for n in set(after) - set(before)]
    assert all(store.MEMBER.fullmatch(n) or n.endswith("/lock") for n in new)
    assert all(f.outcome == "sound" for f in verify(place/"results"))

@settings(max_examples=60, deadline=None)
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
       cut=st.floats(0.5, 1))
def test_bytes_changed_on_the_way_do_no_harm(sound, tmp_path_factory, changes, cut):
    data = bytearray(sound[0])
    for at, value in changes: data[int(at * len(data))] = value
    harmless(bytes(data[:int(cut * len(data))] if cut < 0.9 else data), sound[1],
             tmp_path_factory.getbasetemp()/"changed")

BAD = [name for name, _ in EVIL.values() if isinstance(name, str)]
NAMES = st.one_of(st.text(max_size=30), st.sampled_from(BAD), st.from_regex(store.MEMBER))

@settings(max_examples=60, deadline=None)
@given(members=st.lists(st.tuples(NAMES, st.binary(max_size=50)), max_size=4, unique_by=lambda m: m[0]),
       along=st.booleans())
def test_members_of_any_name_do_no_harm(sound, tmp_path_factory, members, along):
    with zipfile.ZipFile(io.BytesIO(sound[0])) as z: good = [(n, z.read(n)) for n in z.namelist()] if along else []
    members = [(n, b) for n, b in members if n not in dict(good) and n]
    try: data = archive_of([*good, *members])
    except (UnicodeEncodeError, ValueError, IndexError): return  # Python writes no such name
    harmless(data, sound[1], tmp_path_factory.getbasetemp()/"named")

KEYS = st.sampled_from(["state", "files", "classes", "test", "confusion", "method", "pool", "hash", "data_hash",
                        "split_hash"])
JSONS = st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=8) | st.integers(),
                     lambda x: st.lists(x, max_size=3) | st.dictionaries(KEYS, x, max_size=4), max_leaves=6)

@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(["config.json", "metrics.json", "status.json"]), value=JSONS)
def test_json_of_any_shape_under_a_right_seal_does_no_harm(sound, tmp_path_factory, name, value):
    with zipfile.ZipFile(io.BytesIO(sound[0])) as z: parts = {n: z.read(n) for n in z.namelist()}
    folder = next(n for n in parts if n.startswith("runs/")).rpartition("/")[0]
    parts[f"{folder}/{name}"] = json.dumps(value).encode()
    if name != "status.json":
        seal = {n: sha256(parts[f"{folder}/{n}"]) for n in store.SEALED}
        parts[f"{folder}/status.json"] = json.dumps({"state": "finished", "files": seal}).encode()
    harmless(archive_of(parts.items()), sound[1], tmp_path_factory.getbasetemp()/"shaped")
