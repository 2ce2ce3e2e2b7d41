"Every published layout, faked out of drawn faces, built end to end; label files with all their faults."
import io
import os
import struct
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fer_bench.core import BenchError
from fer_bench.data.drawn.faces import draw_faces
from fer_bench.data.faceset import build_faceset
from fer_bench.data.labels import ABAW8, AFFECTNET8, BASIC7, CK7, FER2013_7, FERPLUS8, JAFFE7, RAFDB7
from fer_bench.data.sources.abaw import Abaw2Source, AbawMtlSource, AbawSource
from fer_bench.data.sources.affectnet import AffectnetSource, read_npy
from fer_bench.data.sources.face_recognition import HEAD, MAGIC, IdentitySource, RecordSource
from fer_bench.data.sources.fer2013 import Fer2013Source
from fer_bench.data.sources.ferplus import (
    FerplusCsvSource, FerplusPicturesSource, FerplusSource, FerplusTreeSource, ferplus)
from fer_bench.data.sources.fixtures import LAYOUTS, fake
from fer_bench.data.sources.sets import RAFDB11, ExpwSource, RafdbCompoundSource, RafdbSource, SfewSource
from fer_bench.data.sources.studio import OULU6, CkSource, JaffeSource, KdefSource, OuluCasiaSource, RafdSource

TT, TV, TVT = ("train", "test"), ("train", "val"), ("train", "val", "test")
SETS = {  # layout: source, classes, splits, side, labelled faces a class and split for each face asked for
    "raf-db": (RafdbSource, RAFDB7, TT, 100, 1), "raf-db-folders": (RafdbSource, RAFDB7, TT, 100, 1),
    "raf-db-kaggle": (RafdbSource, RAFDB7, TT, 100, 1), "raf-db-names": (RafdbSource, RAFDB7, TT, 100, 1),
    "raf-db-compound": (RafdbCompoundSource, RAFDB11, TT, 100, 1),
    "fer2013": (Fer2013Source, FER2013_7, TVT, 48, 1), "fer2013-icml": (Fer2013Source, FER2013_7, TVT, 48, 1),
    "fer2013-train": (Fer2013Source, FER2013_7, ("train",), 48, 1),
    "fer2013-folders": (Fer2013Source, FER2013_7, TT, 48, 1), "fer2013-numbered": (Fer2013Source, FER2013_7, TVT, 48, 1),
    "ferplus": (FerplusSource, FERPLUS8, TVT, 48, 1), "ferplus-csv": (FerplusCsvSource, FERPLUS8, TVT, 48, 1),
    "ferplus-pictures": (FerplusPicturesSource, FERPLUS8, TVT, 48, 1),
    "ferplus-folders": (FerplusTreeSource, FERPLUS8, TVT, 48, 1),
    "affectnet": (AffectnetSource, AFFECTNET8, TV, 112, 1), "affectnet-csv": (AffectnetSource, AFFECTNET8, TV, 64, 1),
    "affectnet-names": (AffectnetSource, AFFECTNET8, TV, 96, 1),
    "affectnet-numbers": (AffectnetSource, AFFECTNET8, TV, 96, 1),
    "affectnet-labels": (AffectnetSource, AFFECTNET8, (None,), 96, 1),
    "affectnet-yolo": (AffectnetSource, AFFECTNET8, TVT, 96, 1),
    "sfew": (SfewSource, BASIC7, TV, 143, 1), "sfew-inner": (SfewSource, BASIC7, TV, 143, 1),
    "sfew-parts": (SfewSource, BASIC7, TV, 143, 1), "sfew-doubled": (SfewSource, BASIC7, TV, 143, 1),
    "expw": (ExpwSource, FER2013_7, (None,), 64, 1),
    "ck48": (CkSource, CK7, (None,), 48, 1), "ck-raw": (CkSource, CK7, (None,), 112, 3),
    "ck-csv": (CkSource, CK7, TVT, 48, 1),
    "jaffe": (JaffeSource, JAFFE7, (None,), 128, 1), "kdef": (KdefSource, JAFFE7, (None,), 96, 1),
    "rafd": (RafdSource, FERPLUS8, (None,), 96, 1), "oulu-casia": (OuluCasiaSource, OULU6, (None,), 96, 3),
    "abaw5-expr": (AbawSource, ABAW8, TV, 112, 2), "abaw2-expr": (Abaw2Source, ABAW8[:7], TV, 112, 2),
    "abaw-mtl": (AbawMtlSource, ABAW8, TV, 112, 1),
}
FILMS = {"00-1920x1080", "01-1920x1080", "10-1920x1080", "11-1920x1080"}
SUBJECTS = {"ck48": {"S010", "S011"}, "ck-raw": {"S010", "S011"}, "jaffe": {"KA", "KL"}, "kdef": {"F01", "F02"},
            "rafd": {"01", "02"}, "oulu-casia": {"P001", "P002"}, "abaw5-expr": FILMS, "abaw2-expr": FILMS,
            "abaw-mtl": FILMS}  # of two faces a class; elsewhere nobody is known
POOLS = {"identities": IdentitySource, "identities-flat": IdentitySource, "celeba": IdentitySource,
         "records": RecordSource}


@cache
def drawn(side, count):
    return draw_faces(range(8 * count), size=side)["images"][..., ::4, ::4, :].mean(-1).reshape(8 * count, -1)


def expression(image, count):
    "The expression of the drawn face that is nearest to `image` (H, W, C)."
    distance = np.abs(drawn(len(image), count) - image[::4, ::4].mean(-1).ravel()).mean(1)
    assert distance.min() < 9
    return FERPLUS8[distance.argmin() % 8]


def test_every_layout_is_tested(): assert {*SETS, *POOLS} == set(LAYOUTS)


@pytest.mark.parametrize("name", SETS)
def test_labels_and_pixels_belong_together(name, tmp_path):
    make, classes, splits, side, times = SETS[name]
    source = make(fake(name, tmp_path, 2))
    if name.startswith("ferplus"): assert type(ferplus(tmp_path/name)) is make
    faces = build_faceset(source, tmp_path/"faces")
    assert faces.classes == classes and faces.images.shape[1:] == (side, side, 1 if source.colour == "grey" else 3)
    wanted = Counter({(split or "none", c): 2 * times for split in splits for c in classes})
    if name in ("ferplus-csv", "ferplus-pictures"):
        wanted = Counter({k: n for k, n in wanted.items() if k[1] != "contempt"})  # FER2013 has none
    found = {(s, c): n for s, part in faces.meta["counts"].items() for c, n in part["labelled"].items() if n}
    assert Counter(found) == wanted
    for image, label in zip(faces.images, faces.index.label, strict=True):
        drawn_as = label if label in FERPLUS8 else "neutral"
        if isinstance(label, str): assert expression(image, 8 if times == 2 else 2 * len(splits)) == drawn_as, label
    assert set(faces.index.subject.dropna()) == SUBJECTS.get(name, set())
    assert faces.meta["facts"]["ask"] and faces.meta["licence"] and set(faces.meta["facts"]["published"]) <= set(TVT)


@pytest.mark.parametrize("name", ["raf-db", "affectnet", "ck-raw", "abaw5-expr", "fer2013"])
@pytest.mark.parametrize("pack", [".zip", ".tar.xz"])
def test_archives_make_the_same_faceset(name, pack, tmp_path):
    source = SETS[name][0]
    plain = build_faceset(source(fake(name, tmp_path, 1)), tmp_path/"plain")
    packed = build_faceset(source(fake(name, tmp_path/"packed", 1, pack)), tmp_path/"faces")
    assert packed.meta["content_hash"] == plain.meta["content_hash"]
    assert packed.meta["rejected"] == plain.meta["rejected"]


def test_published_counts():
    sums = {name: {split: sum(counts.values()) for split, counts in source.published.items()}
            for name, source in (("raf", RafdbSource), ("fer", Fer2013Source), ("sfew", SfewSource))}
    assert sums == {"raf": {"train": 12271, "test": 3068}, "fer": {"train": 28709, "val": 3589, "test": 3589},
                    "sfew": {"train": 891, "val": 431}}
    assert RafdbSource.published["test"]["fear"] == 74


def test_what_stays_without_a_label(tmp_path):
    def notes(source): return Counter(source.rows().note.dropna())
    assert notes(AffectnetSource(fake("affectnet", tmp_path, 1))) == {"expression 8: none": 2}
    seven = AffectnetSource(tmp_path/"affectnet", 7)
    assert seven.classes == AFFECTNET8[:7] and seven.name == "affectnet-7"
    assert seven.facts["published"]["val"] == {"all": 3500}
    assert notes(seven) == {"expression 8: none": 2, "contempt is not among the seven classes": 2}
    assert notes(CkSource(fake("ck-raw", tmp_path, 1))) == {"not among the last frames of its sequence": 14}
    abaw = AbawSource(fake("abaw5-expr", tmp_path, 1))
    assert notes(abaw) == {"no expression (-1)": 4}
    assert [why for _, why in abaw.rejected] == ["1 labelled frames have no picture, the first is 00010"] * 4
    with pytest.raises(BenchError, match="7 or 8 classes, not with 6"): AffectnetSource(tmp_path/"affectnet", 6)


def test_landmarks_follow_the_box(tmp_path):
    cut = AffectnetSource(fake("affectnet-csv", tmp_path, 1)).rows()
    assert cut.landmarks[0] == [32.5, 32.5] * 68  # 56.5, 48.5 in the photograph, whose box begins at 24, 16
    faces = build_faceset(AffectnetSource(fake("affectnet", tmp_path, 1)), tmp_path/"faces", size=56)
    face = AFFECTNET8.index(faces.index.label[0])
    meant = draw_faces([FERPLUS8.index(AFFECTNET8[face])], size=112)["landmarks"][0] / 2
    assert np.allclose(faces.index.landmarks[0].reshape(68, 2), meant, atol=1e-3)


def test_subjects(tmp_path):
    assert set(JaffeSource(fake("jaffe", tmp_path, 3)).rows().subject) == {"KA", "KL", "UY"}
    assert set(CkSource(fake("ck48", tmp_path, 2)).rows().subject) == {"S010", "S011"}
    rows = AbawSource(fake("abaw5-expr", tmp_path, 1)).rows()
    assert rows.groupby("subject").split.nunique().max() == 1 and rows.subject.nunique() == 4


@pytest.mark.parametrize("name", POOLS)
def test_pools(name, tmp_path):
    source = POOLS[name](fake(name, tmp_path, 2))
    pool = build_faceset(source, tmp_path/"pool", require_labels=False)
    assert len(pool) == 16 and pool.meta["rejected"] == [] and pool.index.label.isna().all() and pool.classes == ()
    assert pool.index.subject.value_counts().tolist() == [2] * 8
    for image, i in zip(pool.images, range(16), strict=True): assert expression(image, 2) == FERPLUS8[i % 8]
    packed = POOLS[name](fake(name, tmp_path/"packed", 2, ".tar.gz"))
    again = build_faceset(packed, tmp_path/"again", require_labels=False)
    assert again.meta["content_hash"] == pool.meta["content_hash"]


def test_two_layouts_of_ferplus_are_one_set(tmp_path):
    assert isinstance(ferplus(fake("ferplus", tmp_path, 1)), FerplusSource)
    joined = ferplus(fake("ferplus-csv", tmp_path, 1), "argmax")
    assert joined.rows().key[0] == "FER2013Train/fer0000000.png" and joined.facts["label_rule"] == "argmax"
    assert joined.rows().votes[0] == [0, 0, 0, 0, 8, 0, 1, 0, 1, 0]


def test_rows_that_do_not_belong_together(tmp_path):
    table = fake("ferplus-csv", tmp_path, 1)/"fer2013new.csv"
    lines = table.read_text().splitlines()
    for wrong in (lines[:-1], [lines[0], *lines[:0:-1]]):
        table.write_text("\n".join(wrong))
        with pytest.raises(BenchError, match="do not belong together"): FerplusCsvSource(table.parent).rows()
    table.unlink()
    with pytest.raises(BenchError, match="without the votes"): FerplusCsvSource(table.parent)


def test_fer2013_lines_with_faults(tmp_path):
    table = fake("fer2013", tmp_path, 1)/"fer2013.csv"
    head, *lines = table.read_text().splitlines()
    emotion, pixels, usage = lines[1].split(",")
    wrong = [f",{pixels},{usage}", f"0,{pixels} 1,{usage}", f"0,{pixels.replace(' ', ' 999 ', 1)},{usage}",
             f"0,-{pixels},{usage}",
             f"0,\0{pixels},{usage}", f"nan,{pixels},{usage}"]
    table.write_text("\n".join([head, *lines, *wrong]))
    faces = build_faceset(Fer2013Source(table), tmp_path/"faces")
    assert len(faces) == 21 + 2 and [n for n in faces.index.note if isinstance(n, str)] == [
        "fer2013.csv line 23 holds no label 0 to 6", "fer2013.csv line 28 holds no label 0 to 6"]
    assert [r["key"] for r in faces.meta["rejected"]] == [f"fer2013.csv/{i:05d}" for i in (22, 23, 24, 25)]
    table.write_text("\n".join([head, lines[0].replace("Training", "training?")]))
    with pytest.raises(BenchError, match="Line 2: usage 'training[?]'"): Fer2013Source(table).rows()
    table.write_text("emotion,Usage\n")
    with pytest.raises(BenchError, match="no column 'pixels'"):
        list(Fer2013Source(table).csv_rows("fer2013.csv", "pixels"))


def test_rafdb_list_with_faults(tmp_path):
    root = fake("raf-db", tmp_path, 1)
    table = root/"EmoLabel"/"list_patition_label.txt"
    lines = table.read_text().splitlines()
    table.rename(table.with_name("list_partition_label.txt"))
    table.with_name("list_partition_label.txt").write_text("\n".join(
        ["train_00001.jpg", "train_00001.jpg 1", "train_00099.jpg 1", *lines[1:-1], "../../../etc/passwd 1"]))
    source = RafdbSource(root)
    notes = source.rows().set_index("key").note.dropna().to_dict()
    table = "EmoLabel/list_partition_label.txt"
    assert notes == {"Image/aligned/train_00001_aligned.jpg": f"{table} line 1 holds no label 1 to 7",
                     "Image/aligned/test_00007_aligned.jpg": "EmoLabel/list_partition_label.txt does not name it"}
    assert [key for key, _ in source.rejected] == ["train_00001.jpg", "train_00099.jpg", "../../../etc/passwd"]


def test_expw_boxes_with_faults(tmp_path):
    table = fake("expw", tmp_path, 1)/"label"/"label.lst"
    with open(table, "a") as file:
        file.write("anger_0.png 1 0 0 10 10 1 2\nanger_0.png 1 5 5 10 10 1 2\nanger_0.png 2 900 900 990 990 1 2\n"
                   "anger_0.png 3 x 0 1 1 1 2\nanger_0.png 4 -5 -5 8 8 1 x\nanger_0.png 5 0 0 1e99 1 1 2\n"
                   "none.png 0 0 0 9 9 1 1\nshort\n"
                   "anger_0.png 6 50 50 40 40 1 1\n")
    source = ExpwSource(table.parents[1])
    rows = source.rows().set_index("key")
    assert rows.label["image/origin/anger_0.png#1"] == "fear" and len(source.rejected) == 5
    shapes = [found[0].shape if isinstance(found, tuple) else str(found) for found in
              source.load_many([f"image/origin/anger_0.png#{i}" for i in (0, 1, 4, 2, 6)])]
    assert shapes[:3] == [(64, 64, 3), (10, 10, 3), (8, 8, 3)] and all("outside" in why for why in shapes[3:])


def test_abaw_files_of_other_tasks(tmp_path):
    root = fake("abaw5-expr", tmp_path, 1)
    (root/"VA"/"Train_Set").mkdir(parents=True)
    (root/"VA"/"Train_Set"/"00-1920x1080.txt").write_text("valence,arousal\n0.1,0.2\n")
    (root/"cropped_aligned"/"99-film").mkdir()
    (root/"cropped_aligned"/"99-film"/"00001.jpg").write_bytes(b"")
    first = next(root.glob("EXPR*/Train_Set/00-*.txt"))
    lines = first.read_text().splitlines()
    turned = ",".join(reversed(lines[0].split(",")))  # the header decides, not habit
    first.write_text("\n".join([turned, *lines[1:4], "", "?", "x,1", *lines[6:8]]))
    source = AbawSource(root)
    rows = source.rows()
    mine = rows[rows.subject == "00-1920x1080"].set_index("key")
    assert mine.label.tolist()[:3] == ["other", "surprise", "sadness"]
    table = first.relative_to(root).as_posix()
    assert mine.note.dropna().tolist() == [f"{table} frame 4 holds no label 0 to 7",
                                           f"{table} frame 5 holds no label 0 to 7",
                                           "no line for this frame", "no line for this frame"]
    reasons = dict(source.rejected)
    assert reasons["VA/Train_Set/00-1920x1080.txt"] == "its first line names no expressions, so it belongs to another task"
    assert reasons["99-film"] == "no label file names it: 1 frames"


def test_npy_never_unpickles(tmp_path):
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path/"ran"),)
    root = fake("affectnet", tmp_path, 1)
    np.save(root/"train_set/annotations/0_exp.npy", np.array([Evil()], object), allow_pickle=True)
    (root/"train_set/annotations/1_exp.npy").write_bytes(b"")
    (root/"train_set/annotations/2_exp.npy").unlink()
    (root/"train_set/annotations/3_lnd.npy").write_bytes(b"rubbish")
    np.save(root/"train_set/annotations/4_exp.npy", np.array("sad"))
    np.save(root/"train_set/annotations/5_exp.npy", np.array(10))
    source = AffectnetSource(root)
    rows = source.rows().set_index("key")
    assert not (tmp_path/"ran").exists() and rows.label["train_set/images/3.jpg"] == "surprise"
    assert rows.landmarks["train_set/images/3.jpg"] is None and "train_set/images/5.jpg" not in rows.index
    notes = [rows.note[f"train_set/images/{i}.jpg"] for i in (0, 1, 2, 4)]
    assert all("missing or damaged" in note for note in notes[:3]) and "Python objects" in notes[0]
    assert notes[3] == "train_set/annotations/4_exp.npy holds no label 0 to 7"
    assert [key for key, _ in source.rejected] == ["train_set/annotations/3_lnd.npy", "train_set/images/5.jpg"]


def test_lacking_files(tmp_path):
    for make, message in ((ExpwSource, "label.lst"), (RecordSource, "train.rec"), (FerplusSource, "label.csv")):
        with pytest.raises(BenchError, match=message): make(tmp_path).rows()


def test_a_set_that_failed_fails_again(tmp_path):
    source = ExpwSource(tmp_path)
    for _ in range(2):
        with pytest.raises(BenchError, match="label.lst"): source.rows()


def test_folders_of_fer2013_hold_both_halves_of_the_test(tmp_path):
    assert Fer2013Source(fake("fer2013-folders", tmp_path, 1)).facts["published"]["test"] == {"all": 7178}
    assert Fer2013Source(fake("fer2013", tmp_path, 1)).facts["published"]["test"] == {"all": 3589}


def test_links_in_a_folder_are_noted_once(tmp_path):
    root = fake("jaffe", tmp_path, 1)
    (root/"loop").symlink_to(root)
    source = JaffeSource(root)
    source.rows()
    assert source.rows().shape[0] == 7 and source.rejected == [("loop", "a link to a folder that was already listed")]


# real faces, straight from their archives

REAL = Path(os.environ.get("FER_BENCH_DATA", Path(__file__).parents[2]/"shared/data"))


def real(name):
    if not (REAL/name).exists(): pytest.skip(f"no {REAL/name}; FER_BENCH_DATA names the folder of the real faces")
    return REAL/name


def test_lfw_knows_its_people():
    rows = IdentitySource(real("lfw_crops_112.tar.xz"), "grey").rows()
    assert len(rows) == 12758 and rows.subject.nunique() == 5606 and rows.subject.notna().all()


def test_ferplus_from_its_archive():
    source = ferplus(real("ferplus.tar.xz"))
    counts = source.rows().dropna(subset="label").split.value_counts().to_dict()
    assert counts == {"train": 25045, "val": 3191, "test": 3137}
    pixels, digest = source.load("FER2013Test/fer0032220.png")
    assert pixels.shape == (48, 48, 1) and len(digest) == 64


# anything at all

@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.binary(max_size=80).map(lambda b: b"\x93NUMPY\x01\x00\x50\x00" + b) |
       st.tuples(st.sampled_from(["|O", "<U1", "<f8", "<U0", "|V9", "<M8[s]"]),
                 st.text("(),123456789 -", max_size=12)).map(
           lambda t: b"\x93NUMPY\x01\x00\x50\x00" +
           f"{{'descr': '{t[0]}', 'fortran_order': False, 'shape': {t[1]}}}".ljust(80).encode()))
def test_any_npy_is_an_array_or_an_error(data):
    try: assert isinstance(read_npy(data), np.ndarray)
    except BenchError as e: assert str(e)


NOISE = (b"", b"\0", b"a,b\n", b"\xff\xfe", b'"', b"-1\n", b"9" * 50 + b"\n", b",,,,,,,,,\n")


def broken(draw, data: bytes) -> bytes:
    "`data` with bytes changed, put in, cut off."
    for _ in range(draw(st.integers(1, 3))):
        at, kind = draw(st.integers(0, len(data))), draw(st.sampled_from(("change", "insert", "cut", "double")))
        if kind == "change": data = data[:at] + draw(st.binary(min_size=1, max_size=3)) + data[at + 1:]
        if kind == "insert": data = data[:at] + draw(st.sampled_from(NOISE)) + data[at:]
        if kind == "cut": data = data[:at]
        if kind == "double": data = data[:at] + data[max(0, at - 40):]
    return data


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    place = tmp_path_factory.mktemp("copies")
    return {name: fake(name, place, 1) for name in LABEL_FILES}


LABEL_FILES = {"raf-db": (RafdbSource, "*/list_*.txt"), "fer2013": (Fer2013Source, "fer2013.csv"),
               "ferplus-csv": (FerplusCsvSource, "fer2013new.csv"), "ferplus": (FerplusSource, "FER2013Test/label.csv"),
               "affectnet-csv": (AffectnetSource, "training.csv"), "expw": (ExpwSource, "label/label.lst"),
               "ck-raw": (CkSource, "Emotion/S010/001/*.txt"), "abaw5-expr": (AbawSource, "*/Train_Set/00-*.txt"),
               "affectnet": (AffectnetSource, "train_set/annotations/1_*.npy"), "records": (RecordSource, "train.idx")}


@pytest.mark.parametrize("name", LABEL_FILES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_label_file_gives_rows_or_a_reason(copies, name, data):
    make, pattern = LABEL_FILES[name]
    path = next(copies[name].glob(pattern))
    good = path.read_bytes()
    path.write_bytes(broken(data.draw, good))
    try:
        source = make(copies[name])
        rows = source.rows()
    except BenchError as e: assert str(e)
    else:
        assert set(rows.label.dropna()) <= set(source.classes) and rows.key.is_unique
        assert all(reason for _, reason in source.rejected)
        for found in source.load_many(rows.key[:3]): assert isinstance(found, (tuple, np.ndarray, Exception))
    finally: path.write_bytes(good)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_record_file_gives_faces_or_a_reason(copies, data):
    path = copies["records"]/"train.rec"
    good = path.read_bytes()
    at = data.draw(st.integers(0, 400)) & ~3
    word = data.draw(st.sampled_from([MAGIC, bytes(4), b"\xff" * 4, HEAD.pack(2**32 - 1, float("nan"), 0, 0), b""]))
    path.write_bytes((good[:at] + word + good[at + len(word):])[:data.draw(st.integers(0, len(good)))])
    try:
        source = RecordSource(copies["records"])
        rows = source.rows()
        found = list(source.load_many(rows.key))
        assert all(isinstance(f, (tuple, Exception)) for f in found) and all(why for _, why in source.rejected)
    finally: path.write_bytes(good)


def test_records_whose_pictures_hold_the_magic(tmp_path):
    Image.new("L", (8, 8)).save(file := io.BytesIO(), "PNG")
    data = HEAD.pack(0, 5, 1, 0) + file.getvalue()
    data += bytes(-len(data) % 4) + MAGIC + b"tail" + MAGIC  # after the picture's end, so that it stays readable
    pieces = data.split(MAGIC)
    parts = [MAGIC + struct.pack("<I", (1, 2, 3)[i] << 29 | len(p)) + p + bytes(-len(p) % 4)
             for i, p in enumerate(pieces)]
    (tmp_path/"train.rec").write_bytes(b"".join(parts))
    (tmp_path/"train.idx").write_text("7\t0\n")
    source = RecordSource(tmp_path)
    assert source.rows()[["key", "subject"]].values.tolist() == [["train.rec/000000007", "5"]]
    assert source.read("train.rec/000000007") == data[HEAD.size:]
    assert source.load("train.rec/000000007")[0].shape == (8, 8, 3)
