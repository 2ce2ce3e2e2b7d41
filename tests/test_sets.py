"Every published layout, faked out of drawn faces, built end to end; label files with all their faults."
import io
import os
import re
import struct
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fer_bench.catalogue import DATASETS, make_source
from fer_bench.core import BenchError
from fer_bench.data.drawn.faces import draw_faces
from fer_bench.data.faceset import build_faceset
from fer_bench.data.labels import ABAW8, AFFECTNET8, BASIC7, CK7, FER2013_7, FERPLUS8, JAFFE7, RAFDB7
from fer_bench.data.sources.abaw import Abaw2Source, AbawMtlSource, AbawSource
from fer_bench.data.sources.affectnet import AffectnetSource, read_npy
from fer_bench.data.sources.face_recognition import HEAD, MAGIC, IdentitySource, RecordSource
from fer_bench.data.sources.fer2013 import Fer2013Source
from fer_bench.data.sources.ferplus import (
    FerplusCsvSource,
    FerplusPicturesSource,
    FerplusSource,
    FerplusTreeSource,
    ferplus,
)
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
    "fer2013-folders": (Fer2013Source, FER2013_7, TT, 48, 1),
    "fer2013-numbered": (Fer2013Source, FER2013_7, TVT, 48, 1),
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


FIRST_LAYOUT = {"affectnet-7": "affectnet", "affectnet-8": "affectnet", "ck+": "ck48"}  # others are called as their set
NO_FILES = {"drawn", "drawn-films", "folder", "csv", "parquet", "faceset"}


@pytest.mark.parametrize("name", sorted(set(DATASETS) - NO_FILES))
def test_the_catalogue_reads_every_set(name, tmp_path, tiny):
    root = fake(FIRST_LAYOUT.get(name, name), tmp_path, 1)
    source = make_source(tiny(dataset=name, data_root=str(root)))
    rows = source.rows()
    assert source.name == name and len(rows) and set(rows.label.dropna()) == set(source.classes)


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
    assert (rows.film == rows.subject).all()
    assert [int(key[-9:-4]) for key in rows.key] == rows.frame.tolist()


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
    first.write_text("\n".join([turned, *lines[1:4], "", "?", *lines[6:8], "x,1"]))
    source = AbawSource(root)
    rows = source.rows()
    mine = rows[rows.subject == "00-1920x1080"].set_index("key")
    assert mine.label.tolist()[:3] == ["other", "surprise", "sadness"]
    table = first.relative_to(root).as_posix()
    assert mine.label.tolist()[4:6] == [ABAW8[::-1][int(n)] for n in lines[6:8]]  # below an empty line
    assert mine.note.dropna().tolist() == [f"{table} frame 5 holds no label 0 to 7",
                                           f"{table} frame 8 holds no label 0 to 7",
                                           "no line for this frame", "no line for this frame"]
    reasons = dict(source.rejected)
    assert reasons["VA/Train_Set/00-1920x1080.txt"] .endswith("so it belongs to another task")
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


def written(folder, files):
    "`folder` with `files`: path -> text, or the paths of empty ones, which rows never open."
    for name in files:
        (path := folder/name).parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[name] if isinstance(files, dict) else "")
    return folder


def by_class(names, below="train", ending="png"):
    return [f"{below}/{name}/{i}.{ending}" for name in names for i in (0, 1)]


def raf_list(labels, below=""):
    return {f"{below}Image/aligned/train_{i:05d}_aligned.jpg": "" for i in labels} | {
        f"{below}EmoLabel/list_patition_label.txt": "".join(f"train_{i:05d}.jpg {i}\n" for i in labels)}


CSVS = {f"{split}_labels.csv": f"image,label\n{split}_1_aligned.jpg,1\n" for split in TT}
FILM = {"cropped_aligned/f/00001.jpg": ""}
HEADERS = {n: ",".join(name.title() for name in ABAW8[:n]) for n in (7, 8)}
YOLO = {"train/images/a.png": "", "train/labels/a.txt": "0 .5 .5 1 1\n"}
REFUSED = {  # what is wrong: source, files, what the message says
    "RAF-DB from 0, list": (RafdbSource, raf_list(range(7)), "label '0', but .* 1 surprise, 2 fear"),
    "RAF-DB from 0, folders": (RafdbSource, by_class("0123456"), "no class of this set"),
    "RAF-DB from 0, Kaggle": (RafdbSource, {"train/0/train_1_aligned.jpg": "", **CSVS,
                              "test_labels.csv": "image,label\ntrain_1_aligned.jpg,0\n"}, "label '0'"),
    "RAF-DB compound as basic": (RafdbSource, raf_list(range(1, 12)), "dataset=raf-db-compound"),
    "RAF-DB compound folders as basic": (RafdbSource, by_class(map(str, range(1, 12))), "no class of this set"),
    "RAF-DB compound below its folder": (RafdbSource, raf_list(range(1, 12), "compound/"), "raf-db is the basic set"),
    "RAF-DB basic as compound": (RafdbCompoundSource, raf_list(range(1, 8)), "Take dataset=raf-db"),
    "RAF-DB twice": (RafdbSource, raf_list((1, 2), "a/") | raf_list((1, 2), "b/"), "holds the lists"),
    "RAF-DB list and folders": (RafdbSource, {"train/2/train_1_aligned.jpg": "", **CSVS}, "shows surprise, .* of fear"),
    "RAF-DB one csv": (RafdbSource, {"train/1/a.jpg": "", "train_labels.csv": "image,label\n"}, "belong together"),
    "RAF-DB other csv": (RafdbSource, {**CSVS, "train_labels.csv": "id,y\n"}, "not image,label"),
    "RAF-DB photographs": (RafdbSource, {"EmoLabel/list_patition_label.txt": "train_1.jpg 1\n",
                                         "Image/original/train_1.jpg": ""}, "whole photographs"),
    "RAF-DB same name": (RafdbSource, {"a/train_1_aligned.jpg": "", "b/train_1_aligned.jpg": "", **CSVS}, "same name"),
    "FER2013 from 1, folders": (Fer2013Source, by_class("1234567"), "no class of this set"),
    "FER2013 with contempt": (Fer2013Source, by_class(("angry", "contempt")), "no class of this set"),
    "FER2013 label 7": (Fer2013Source, {"fer2013.csv": "emotion,pixels,Usage\n7,1,Training\n"}, "label '7', but"),
    "FER2013 label -1": (Fer2013Source, {"train.csv": "emotion,pixels\n-1,1\n"}, "label '-1', but"),
    "FERPlus by number": (FerplusTreeSource, by_class("01234567"), "class of this set"),
    "FERPlus, misspelt": (FerplusTreeSource, by_class((*FERPLUS8[:7], "hapiness2")), "no class of this set"),
    "FERPlus without fer2013.csv": (ferplus, {"fer2013new.csv": "Usage\n"}, "fer2013.csv is lacking"),
    "FERPlus labels alone": (ferplus, {f"data/FER2013{part}/label.csv": "" for part in ("Train", "Valid", "Test")},
                             "fer2013.csv is lacking"),
    "AffectNet from 1, folders": (AffectnetSource, by_class("12345678"), "no class of this set"),
    "AffectNet expression 11": (AffectnetSource, {"training.csv": "subDirectory_filePath,expression\n1/a.jpg,11\n",
                                                  "1/a.jpg": ""}, "label '11'"),
    "AffectNet labels.csv": (AffectnetSource, {"labels.csv": "pth,label\nanger/a.jpg,bored\n", "anger/a.jpg": ""},
                             "label 'bored'"),
    "AffectNet other labels.csv": (AffectnetSource, {"labels.csv": "path,y\n", "anger/a.jpg": ""}, "lacks .'label'"),
    "YOLO without names": (AffectnetSource, YOLO, "no data.yaml"),
    "YOLO, other names": (AffectnetSource, YOLO | {"data.yaml": "names: [bored, happy]\n"}, "label 'bored'"),
    "YOLO, no names": (AffectnetSource, YOLO | {"data.yaml": "nc: 8\n"}, "gives no names"),
    "YOLO, class 2": (AffectnetSource, YOLO | {"data.yaml": "names: {0: sad, 1: happy}\n",
                                               "train/labels/a.txt": "2 .5 .5 1 1\n"}, "label '2'"),
    "SFEW with contempt": (SfewSource, by_class(("Angry", "Contempt"), "Train"), "no class of this set"),
    "SFEW half aligned": (SfewSource, [*by_class(("Angry", "Sad"), "Train_Aligned_Faces"),
                                       *by_class(("Angry",), "Val")], "for val whole frames only"),
    "ExpW label 7": (ExpwSource, {"label.lst": "a.png 0 0 0 9 9 1 7\n", "a.png": ""}, "label '7'"),
    "CK+48 with neutral": (CkSource, {"neutral/S010_001_00000017.png": ""}, "label 'neutral'"),
    "CK+ emotion 8": (CkSource, {"i/S010_001_00000017.png": "", "S010_001_00000017_emotion.txt": "8.0"}, "label '8.0'"),
    "CK+ twice": (CkSource, [f"{n}/fear/S010_001_00000017.png" for n in "ab"], "same name"),
    "CK+ csv, label 8": (CkSource, {"ckextended.csv": "emotion,pixels,Usage\n8,1,Training\n"}, "label '8'"),
    "JAFFE expression": (JaffeSource, ["KA.CO1.39.tiff"], "expression 'CO'"),
    "KDEF expression": (KdefSource, ["AF01XXS.JPG"], "expression 'XX'"),
    "RaFD expression": (RafdSource, ["Rafd090_01_Caucasian_male_bored_left.jpg"], "expression 'bored'"),
    "Oulu-CASIA expression": (OuluCasiaSource, ["VL/Strong/P001/Neutral/000.jpeg"], "label 'Neutral'"),
    "Oulu-CASIA twice": (OuluCasiaSource, [f"{n}/VL/Strong/P001/Fear/000.jpeg" for n in "ab"], "are one film"),
    "Oulu-CASIA lights": (OuluCasiaSource, [f"NI/{n}/P001/Fear/000.jpeg" for n in ("Weak", "Dark")], "lights NI/DARK"),
    "ABAW2 as ABAW5": (AbawSource, FILM | {"Train_Set/f.txt": f"{HEADERS[7]}\n1\n"}, "abaw2-expr has seven"),
    "ABAW5 as ABAW2": (Abaw2Source, FILM | {"Train_Set/f.txt": f"{HEADERS[8]}\n1\n"}, "abaw5-expr eight"),
    "ABAW5 label 8": (AbawSource, FILM | {"Train_Set/f.txt": f"{HEADERS[8]}\n8\n"}, "label '8'"),
    "ABAW MTL label 8": (AbawMtlSource, FILM | {"train_set.txt": "image,expression\nf/00001.jpg,8\n"}, "label '8'"),
    "ABAW MTL without lists": (AbawMtlSource, FILM, "no list of training"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_code_is_refused(name, tmp_path):
    make, files, message = REFUSED[name]
    with pytest.raises(BenchError, match=message) as e: make(written(tmp_path, files)).rows()
    assert re.search(r"\b(Take|take|Give|Put|Get|Name|Add|Unpack|rename|Arrange|Is it)\b", str(e.value))  # what to do


MADE_UP = {  # layouts that nobody described: source, files, (class, split, subject) of each labelled face
    "RAF-DB, one folder more": (RafdbSource, by_class(("happy", "Surprised"), "archive (3)/RAF/Training", "jpeg"),
                                [("happiness", "train", None)] * 2 + [("surprise", "train", None)] * 2),
    "RAF-DB, list and pictures": (RafdbSource, {"list_partition_label.txt": "test_1.jpg  4\r\n", "test_1.jpg": ""},
                                  [("happiness", "test", None)]),
    "RAF-DB, split folders": (RafdbSource, [*by_class("17", "train_set"), *by_class("1", "valid_set", "jfif")],
                              [(c, "train", None) for c in ("surprise", "neutral") for _ in "ab"] +
                              [("surprise", "val", None)] * 2),
    "FER2013, numbers and names": (Fer2013Source, by_class(("0-Angry", "3 happy"), "fer/test_images"),
                                   [(c, "test", None) for c in ("anger", "happiness") for _ in "ab"]),
    "FER2013, three csv": (Fer2013Source, {f"{s}.csv": "pixels, Emotion\n1,6\n" for s in ("train", "valid", "test")},
                           [("neutral", split, None) for split in ("test", "train", "val")]),
    "FERPlus, clone": (ferplus, {f"data/FER2013{part}/{name}": text for part in ("Train", "Valid", "Test")
                                 for name, text in (("a.png", ""), ("label.csv", "a.png,b,0,9" + ",0" * 8))},
                       [("happiness", split, None) for split in ("test", "train", "val")]),
    "AffectNet, other number names": (AffectnetSource, by_class(("000_neutral", "001_happy"), "AffectNet/val"),
                                      [(c, "val", None) for c in ("neutral", "happiness") for _ in "ab"]),
    "JAFFE in class folders": (JaffeSource, ["jaffedbase/Angry/ka.an1.39.jpg", "README"], [("anger", None, "KA")]),
    "KDEF, flat": (KdefSource, ["bm35sus.jpg", "BM35SUHL.JPG", "Thumbs.db"], [("surprise", None, "M35")]),
    "RaFD by angle": (RafdSource, ["front/Rafd090_42_Moroccan_male_contemptuous_left.jpg"], [("contempt", None, "42")]),
    "Oulu-CASIA, cropped, one light": (
        OuluCasiaSource, [f"NI_Acropped/Weak/P080/Happiness/{i}.jpeg" for i in (2, 10, 9, 1)],
        [("happiness", None, "P080")] * 3),
    "CK+, lower case and one folder more": (CkSource, ["archive/CK+48/Happy/S111_006_00000011.png"],
                                            [("happiness", None, "S111")]),
    "ABAW, faces cut out twice": (AbawSource, {"cropped/f/00001.jpg": "", "cropped_aligned/f/00001.jpg": "",
                                               "Train_Set/f.txt": f"{HEADERS[8]}\n5\n"}, [("sadness", "train", "f")]),
    "ABAW MTL, later names": (AbawMtlSource, {"batch1/f_left/00007.jpg": "", "validation_set_annotations.txt":
                              "image,valence,arousal,expression,aus\nf_left/00007.jpg,-5,-5,7,1,0\n"},
                              [("other", "val", "f_left")]),
    "CelebA as png": (IdentitySource, {"png/000001.png": "", "identity_CelebA.txt": "000001.jpg 2880\n"}, []),
}


@pytest.mark.parametrize("name", MADE_UP)
def test_layouts_that_nobody_described(name, tmp_path):
    make, files, truth = MADE_UP[name]
    rows = make(written(tmp_path, files)).rows()
    found = [tuple(row) for row in rows.dropna(subset="label")[["label", "split", "subject"]].values]
    assert sorted(found, key=str) == sorted(truth, key=str)


def test_numbered_pictures_have_no_identity_but_in_the_list(tmp_path):
    source = IdentitySource(fake("celeba", tmp_path, 2))
    assert source.rows().subject.value_counts().to_dict() == {str(2880 + i): 2 for i in range(8)}
    (tmp_path/"celeba"/"identity_CelebA.txt").unlink()
    assert IdentitySource(tmp_path/"celeba").rows().subject.isna().all()


def test_the_csv_of_affectnet_counts(tmp_path):
    source = AffectnetSource(fake("affectnet-labels", tmp_path, 1), 7)
    rows = source.rows().set_index("key")
    assert rows.label["happy/imageanger0.png"] == "anger" and rows.note.dropna().tolist() == [
        "contempt is not among the seven classes"]
    assert source.rejected == [("labels.csv", "7 faces lie in the folder of another class; the csv counts")]


def test_faces_cut_out_by_fractions(tmp_path):
    root = fake("affectnet-yolo", tmp_path, 1)/"YOLO_format"
    (root/"train/labels/anger0.txt").write_text("0 0.5 0.25 0.5 0.5\n")
    (root/"train/labels/fear0.txt").write_text("3 0.5 2 0.5 0.5\n")
    (root/"train/labels/disgust0.txt").write_text("2 0.5 0.5 1 1\n0 0.5 0.5 1 1\n")
    source = AffectnetSource(root)
    rows = source.rows().set_index("key")
    assert source.load("train/images/anger0.png")[0].shape == (48, 48, 3)
    assert rows.label["train/images/anger0.png"] == "anger"
    assert source.rejected == [("train/images/fear0.png", "train/labels/fear0.txt is damaged")]
    assert "not one face" in rows.note["train/images/disgust0.png"]


def test_profiles_get_labels_where_asked(tmp_path):
    root = fake("kdef", tmp_path, 1)
    assert KdefSource(root).rows().note.value_counts().to_dict() == {"not from the front: FL": 7}
    every = KdefSource(root, frontal=False)
    assert every.rows().label.notna().all() and every.fingerprint() != KdefSource(root).fingerprint()


def test_what_else_lies_in_a_set(tmp_path):
    assert OuluCasiaSource(fake("oulu-casia", tmp_path, 1)).rows().note.value_counts().to_dict() == {
        "another light than VL/STRONG: NI/DARK": 30, "not among the last frames of its film": 12}
    assert SfewSource(fake("sfew-inner", tmp_path, 1)).rejected == []
    source = SfewSource(tmp_path/"sfew-inner")
    source.rows()
    assert {why for _, why in source.rejected} == {"a whole frame; the aligned faces count"}
    rows = SfewSource(fake("sfew-parts", tmp_path, 1)).rows()
    assert rows[rows.split == "test"].note.tolist() == ["lies in no class folder"]
    unlabelled = Fer2013Source(fake("fer2013-train", tmp_path, 1)).rows().set_index("split").note["test"]
    assert set(unlabelled) == {"test.csv has no column emotion"} and len(unlabelled) == 14


def test_votes_and_folders_of_one_release(tmp_path):
    root = fake("ferplus-pictures", tmp_path, 1)
    (root/"images/FER2013Train/fer0000000.png").rename(root/"images/FER2013Test/fer0000000.png")
    with pytest.raises(BenchError, match="lies in FER2013Test, but .* FER2013Train"): ferplus(root).rows()
    folders = fake("ferplus-folders", tmp_path, 1)
    assert ferplus(folders).facts["label_rule"] == "as the class folders have it"
    with pytest.raises(BenchError, match="needs votes"): ferplus(folders, "argmax")
    with pytest.raises(BenchError, match="more than once"): FerplusSource(written(tmp_path/"two", [
        f"{n}/FER2013Train/label.csv" for n in "ab"]))


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
               "raf-db-kaggle": (RafdbSource, "train_labels.csv"), "fer2013-train": (Fer2013Source, "train.csv"),
               "affectnet-labels": (AffectnetSource, "labels.csv"), "ck-csv": (CkSource, "ckextended.csv"),
               "affectnet-yolo": (AffectnetSource, "*/train/labels/anger0.txt"),
               "abaw-mtl": (AbawMtlSource, "train_set.txt"), "celeba": (IdentitySource, "identity_CelebA.txt"),
               "ferplus-pictures": (FerplusPicturesSource, "fer2013new.csv"),
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
