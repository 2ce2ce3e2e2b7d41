"Trees, csv and parquet files as people have them: read as they are meant, or refused with a remedy. None in silence."
import io
import json
import os
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fer_bench.cli import main
from fer_bench.core import BenchError
from fer_bench.data.faceset import build_faceset, cached_faceset
from fer_bench.data.sources.archives import open_files
from fer_bench.data.sources.ferplus import FerplusSource
from fer_bench.data.sources.files import Folder, rubbish, split_name
from fer_bench.data.sources.folders import CsvSource, FolderSource, csv_lines
from fer_bench.data.sources.parquet import ParquetSource
from fer_bench.data.sources.trees import class_tree


def png(i: int = 0) -> bytes:
    Image.fromarray(np.full((4, 4), i % 256, np.uint8)).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


@pytest.fixture
def put(tmp_path):
    "put(*names): a folder with small pictures of these names, and other files where the name says so."
    def put(*names, at="set"):
        for i, name in enumerate(names):
            (path := tmp_path/at/name).parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(i) if name.endswith((".png", ".jpg")) else b"text")
        return tmp_path/at
    return put


TWO = ("happy", "sad")


def grid(*folders, names=TWO, files=("1.png", "2.png")):
    return [f"{folder}/{name}/{file}".lstrip("/") for folder in folders for name in names for file in files]


def rows_of(root): return FolderSource(root, field_names=True).rows()


# The truth of each layout: function of the parts of a path → (label, split, subject), or the words of the refusal.

def by(split=None, label=-2, subject=None):
    "Read the truth from the parts of the path at these places; `split`: place and table of names, or None."
    def truth(parts):
        return ({"happy": "happiness", "sad": "sadness"}.get(name := parts[label].lower().split("_")[-1], name),
                split and split[1][parts[split[0]]], subject is not None and parts[subject] or None)
    return truth


PARTS = {"train_set": "train", "val_set": "val", "Train_Aligned_Faces": "train", "Val_Aligned_Faces_new": "val",
         "Training": "train", "PublicTest": "val", "PrivateTest": "test", "training": "train", "testing": "test",
         "FER2013Train": "train", "FER2013Valid": "val", "FER2013Test": "test", "train": "train", "test": "test",
         "Train": "train", "Val": "val", "dev": "val", "eval": "test", "train images": "train", "test-images": "test",
         "TRAIN SET": "train", "TEST SET": "test", "validation": "val"}

READ = {
    "AffectNet's sets": (grid("train_set", "val_set"), by((0, PARTS))),
    "SFEW's names": (grid("Train_Aligned_Faces", "Val_Aligned_Faces_new"), by((0, PARTS))),
    "SFEW doubled": (grid("Train/Train_Aligned_Faces/Train_Aligned_Faces", "Val/Val_Aligned_Faces_new"),
                     by((0, PARTS))),
    "FER2013's usages": (grid("Training", "PublicTest", "PrivateTest"), by((0, PARTS))),
    "training and testing": (grid("training", "testing"), by((0, PARTS))),
    "FERPlus in class folders": (grid("FER2013Train", "FER2013Valid", "FER2013Test"), by((0, PARTS))),
    "dev and eval": (grid("train", "dev", "eval"), by((0, PARTS))),
    "blanks and dashes": (grid("train images", "test-images"), by((0, PARTS))),
    "capitals": (grid("TRAIN SET", "TEST SET", names=("HAPPY", "SAD")), by((0, PARTS))),
    "one level too high": (grid("DATASET/train", "DATASET/test"), by((1, PARTS))),
    "two levels too high": (grid("archive (3)/DATASET/train", "archive (3)/DATASET/test"), by((2, PARTS))),
    "csv files beside": ([*grid("DATASET/train", "DATASET/test"), "train_labels.csv", "test_labels.csv", "README.md"],
                         by((1, PARTS))),
    "a wrapper in each split": (grid("train/train_images", "test/test_images"), by((0, PARTS))),
    "splits below the classes": ([f"{c}/{s}/1.png" for c in TWO for s in ("train", "test")], by((1, PARTS), label=0)),
    "splits with numbers before": (grid("01_train", "02_test"), by((0, {"01_train": "train", "02_test": "test"}))),
    "classes of splits": (grid("train_class", "val_class", names=("class001", "class002")),
                          by((0, {"train_class": "train", "val_class": "val"}))),
    "a packed split that is unpacked": ([*grid("train", "test"), "test.zip"], by((0, PARTS))),
    "splits in file names": (grid("", files=("train_001.png", "test_002.png")),
                             lambda parts: by()(parts)[:1] + (parts[-1].split("_")[0], None)),
    "labels beside images": ([*grid("images"), "labels/happy/1.txt"], by()),
    "names with more words": (grid("", names=("Happy Faces", "sad-faces")),
                              lambda parts: ({"H": "happiness", "s": "sadness"}[parts[0][0]], None, None)),
    "no split": (grid(""), by()),
    "no split, one level too high": (grid("images"), by()),
    "numbered names": (grid("train", "test", names=("0_happy", "1_sad")), by((0, PARTS))),
    "spelt otherwise in each split": (["train/Happy/1.png", "train/sad/1.png", "test/happy/1.png", "test/SAD/1.png"],
                                      by((0, PARTS))),
    "subjects above": (grid("S01", "S02", "S03"), by(subject=0)),
    "subjects below": ([f"{c}/{s}/1.png" for c in TWO for s in ("s1", "s2")], by(label=0, subject=1)),
    "subjects in splits": (grid("train/subject_1", "train/subject_2", "test/subject_3"), by((0, PARTS), subject=1)),
    "scenes": (grid("scene1", "scene2"), by()),
    "films": (grid("Alien", "Big Fish", "Casino", "Dogville", "Election"), by()),
    "deeper folders": ([*grid(""), "happy/more/3.png"], by(label=0)),
    "loose pictures": ([*grid("train", "test"), "preview.png", "train/sample.png"], by((0, PARTS))),
    "rubbish": ([*grid("train", "test"), "@eaDir/train/happy/1.png", "train/happy/._1.png", "#recycle/a/1.png",
                 "train/$RECYCLE.BIN/1.png", "lost+found/x/1.png", "__MACOSX/train/happy/1.png", "train/.DS_Store",
                 "test/Thumbs.db", ".ipynb_checkpoints/1.png"], by((0, PARTS))),
    "own classes": (grid("train", "test", names=("bored", "engaged")), by((0, PARTS))),
    "own classes, one level too high": (grid("data", names=("bored", "engaged")), by()),
    "numbers": (grid("train", "test", names=("1", "2", "7")), by((0, PARTS))),
    "class1, class2": (grid("", names=("class1", "class2")), lambda parts: (parts[0], None, None)),
}

REFUSED = {
    "splits in another language": (grid("entrenamiento", "prueba"), "Arrange them as train"),
    "a copy of the set": (grid("images/train", "images/images/train"), "have splits of their own"),
    "folds with their own splits": (grid("fold1/train", "fold1/test", "fold2/train", "fold2/test"),
                                    "have splits of their own"),
    "two versions": (grid("raw", "aligned"), "copies of the set"),
    "the split in the name of the class": ([f"{c}_{s}/1.png" for c in TWO for s in ("train", "test")],
                                           "happy_test, happy_train.* could name splits"),
    "the same in camel case": (["TrainHappy/1.png", "TestHappy/2.png", "TrainSad/3.png"], "could name splits"),
    "the same below": (["happy/happy_train/1.png", "happy/happy_test/2.png", "sad/sad_train/1.png"],
                       "could name splits"),
    "a split that is still packed": ([*grid("train"), "test.zip"], "the archive 'test.zip'.*Unpack it too"),
    "flat pictures": (["happy_1.png", "sad_2.png"], "2 pictures lie in no class folder.*csv"),
    "days": (["2021-05-01/1.png", "2021-05-02/2.png"], "differ in a number alone"),
    "sessions of KDEF": (["AF01/AF01ANS.png", "AM02/AM02HAS.png"], "differ in a number alone"),
    "numbers in one split, names in the other": ([*grid("train"), *grid("test", names=("0", "1"))], "'test/0'"),
    "intensities": (grid("low", "medium", "high"), "high, low, medium hold class folders"),
    "a split of unknown name": (grid("train", "test", "extra"), "'extra/happy'.*Name the folders above them"),
    "trainval": (grid("trainval", "test"), "'trainval/happy'"),
    "an unlabelled test set": ([*grid("train"), "test/1.png", "test/2.png"],
                               "2 pictures lie in no class folder.*pool_root"),
    "a test set of own classes": ([*grid("train", names=("a", "b")), "test/1.png"],
                                  "lie in no class folder, in 'test'"),
    "mostly loose": ([*grid(""), *(f"{i}.png" for i in range(9))], "9 pictures lie in no class folder.*csv"),
    "two expressions in a path": (["happy/neutral/1.png", "sad/neutral/1.png"], "both 'happy' and 'neutral'"),
    "one set in another": ([*grid(""), *grid("old")], "'old' stands beside class folders"),
    "two splits in a path": (grid("test/train", "test/val"), "names two splits"),
    "own classes in unknown parts": (grid("partA", "partB", names=("x", "y")), "could be partA, partB, or x, y"),
    "subjects without expressions": ([f"S{i:02}/{j}.png" for i in range(4) for j in range(3)],
                                     "differ in a number alone"),
    "identities": ([f"{chr(97 + i % 26)}{chr(97 + i // 26)}/1.png" for i in range(80)], "too many for expressions"),
    "two folders for one class": (grid("train", "test", names=("Angry", "anger", "sad")), "mean the same class"),
    "male and female": (grid("male", "female"), "female, male hold class folders"),
}


@pytest.mark.parametrize("name", READ)
def test_layouts_are_read_as_they_are_meant(put, name):
    names, truth = READ[name]
    rows = rows_of(put(*names))
    meant = {n: truth(n.split("/")) for n in names if n.endswith(".png") and not rubbish(n) and n not in
             ("preview.png", "train/sample.png")}
    assert {row.key: (row.label, row.split, row.subject) for row in rows.itertuples()} == meant


@pytest.mark.parametrize("name", REFUSED)
def test_layouts_that_could_be_read_wrongly_are_refused(put, name):
    names, says = REFUSED[name]
    with pytest.raises(BenchError, match=says): rows_of(put(*names))


LEVELS = st.sampled_from(["train", "Test Set", "val", "data", "S1", "S2", "old", "scene1", "happy", "Sad", "a",
                          "b", "x1"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(LEVELS, max_size=4), min_size=1, max_size=7))
def test_no_tree_loses_a_part_in_silence(paths):
    "Of any tree that is read, each class folder by name is its pictures' class, and each split folder their split."
    keys = sorted({"/".join([*parts, f"{i}.png"]) for i, parts in enumerate(paths)})
    try: rows = class_tree(keys, aside := [])
    except BenchError as e:
        assert any(word in str(e) for word in ("Arrange", "Name", "Sort", "Give"))
        return
    assert sorted([row[0] for row in rows] + [key for key, _ in aside]) == keys
    for key, label, _, _, split, _ in rows:
        parts = key.split("/")[:-1]
        assert label in parts and [split] == ([s for s in map(split_name, parts) if s] or [None])[:1]
        assert {"happy", "Sad"} & set(parts) <= {label}
    lost = {split_name(part) for key, _ in aside for part in key.split("/")[:-1]} - {row[4] for row in rows} - {None}
    assert not (rows and lost)


def test_published_sets_refuse_what_they_do_not_have(put):
    numbers = dict(zip("1234567", "abcdefg", strict=True))
    keys = grid("train", "test", names=("1", "2"))
    rows = class_tree(keys, [], numbers.get)
    assert {row[1] for row in rows} == {"a", "b"} and {row[4] for row in rows} == {"train", "test"}
    with pytest.raises(BenchError, match="'train/11' is no class of this set"):
        class_tree([*keys, "train/11/1.png"], [], numbers.get)
    with pytest.raises(BenchError, match="None of the folders of pictures is a class of this set: 'x', 'y'"):
        class_tree(["x/1.png", "y/1.png"], [], numbers.get)
    rows = class_tree([*keys, "train/8/1.png"], aside := [], {**numbers, "8": ""}.get)
    assert len(rows) == len(keys) and aside == [("train/8/1.png", "the set leaves out '8'")]
    rows = class_tree([*keys, "val/1.png"], [], numbers.get, unlabelled=True)
    assert ("val/1.png", None, "lies in no class folder", None, "val", None) in rows


# what is said

def test_build_prints_classes_and_splits(put, tmp_path, capsys):
    root = put(*grid("train", "test"), "train/suprise/1.png", "train/suprise/notes.txt", ".DS_Store")
    with pytest.raises(SystemExit) as end:
        main(["data", "build", "folder", str(tmp_path/"out"), "--data-root", str(root)])
    assert not end.value.code
    said = capsys.readouterr().out
    table = [line.split() for line in said.splitlines()]
    assert ["train", "test", "all"] in table and ["happiness", "2", "2", "4"] in table
    assert ["suprise", "1", "0", "1"] in table and "misspelt for 'surprise'" in said
    assert "put aside: train/suprise/notes.txt: not a picture" in said


def test_counts_with_unlabelled_faces(put, tmp_path):
    root = put("1.png", "2.png", "3.png")
    (root/"f.csv").write_text("path,label\n1.png,a\n2.png,b\n3.png,\n")
    counts = build_faceset(CsvSource(root/"f.csv"), tmp_path/"out").counts
    assert counts["no split"].to_dict() == {"a": 1, "b": 1, "no label": 1} and counts["all"].sum() == 3


def test_own_classes_are_remarked(put):
    assert FolderSource(put(*grid("", names=("x", "y")))).facts["remarks"] == [
        "None of the classes is named as an expression: x, y."]
    assert "remarks" not in FolderSource(put(*grid("", names=("angry", "fear")), at="b")).facts


# folders that cannot be read, pipes, devices

def test_a_folder_without_rights_is_an_error(put, monkeypatch):
    root, scandir = put(*grid("train", "test")), os.scandir
    def refuse(path):
        if str(path).endswith("train/sad"): raise PermissionError(13, "Permission denied", path)
        return scandir(path)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(BenchError, match="train/sad' cannot be listed: Permission denied.*Give yourself the right"):
        FolderSource(root)


def test_only_regular_files_are_opened(put, tmp_path):
    root = put(*grid("train", "test"))
    os.mkfifo(root/"train"/"sad"/"pipe.png")
    (root/"train"/"happy"/"zero.png").symlink_to("/dev/zero")
    (root/"train"/"happy"/"gone.png").symlink_to("nowhere")
    faces = build_faceset(FolderSource(root), tmp_path/"out")
    assert len(faces) == 8 and {item["key"]: item["reason"] for item in faces.meta["rejected"]} == {
        "train/sad/pipe.png": "no regular file, but a pipe or a device", "train/happy/gone.png": "a link to nothing",
        "train/happy/zero.png": "no regular file, but a pipe or a device"}
    files = Folder(str(root))
    for key in ("train/sad/pipe.png", "train/happy/zero.png"):
        for read in (files.read, files.open):
            with pytest.raises(BenchError, match="no regular file"): read(key)
    with pytest.raises(BenchError, match="no regular file"): CsvSource(root/"train"/"sad"/"pipe.png")


def test_a_file_that_grows_is_read_to_its_size(put, monkeypatch):
    root, fstat = put("a.png"), os.fstat
    whole = (root/"a.png").read_bytes()
    monkeypatch.setattr(os, "fstat", lambda n: os.stat_result([*fstat(n)[:6], len(whole) - 2, *fstat(n)[7:]]))
    assert Folder(str(root)).read("a.png") == whole[:-2]


@pytest.mark.parametrize("where", ["results", "deep/er", "cache"])
def test_our_own_files_are_no_class(put, tmp_path, where):
    root = put(*grid(""))
    first = build_faceset(FolderSource(root), tmp_path/"out").meta["content_hash"]
    for name in ("runs/abc/config.json", "runs/abc/status.json", "runs/abc/figures/map.png", "figures/all.png"):
        put(f"{where}/{name}")
    cached_faceset(FolderSource(root), str(root/"packed"))
    source = FolderSource(root)
    assert source.classes == TWO and build_faceset(source, tmp_path/"again").meta["content_hash"] == first
    ours = {key.split("/")[0] for key, why in source.rejected if "written by fer_bench" in why}
    assert ours == {where.split("/")[0], "packed"}
    assert any(f"{where!r} is left out: written by fer_bench" in remark for remark in source.facts["remarks"])


@pytest.mark.parametrize("names, says", [
    (["train.zip", "test.zip"], "holds archives: unpack them"), (["a/train.csv"], "data set csv"),
    (["data/train.parquet"], "data set parquet"), (["notes.txt"], "Is data_root right")])
def test_no_pictures(put, tmp_path, names, says):
    with pytest.raises(BenchError, match=f"no face that can be read.*{says}"):
        build_faceset(FolderSource(put(*names)), tmp_path/"out")


@pytest.mark.parametrize("part, says", [("test", "split 'test'"), ("train/fear", "label 'fear'")])
def test_a_part_that_cannot_be_read_is_an_error(put, tmp_path, part, says):
    root = put(*grid("train", names=("happy", "sad", "fear")), *grid("test"))
    for path in (root/part).rglob("*.png"): path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(BenchError, match=f"None of the . faces of the {says} can be read.*Git LFS"):
        build_faceset(FolderSource(root), tmp_path/"out")


def test_one_level_too_high_or_low_names_the_right_folder(put):
    root = put("data/FER2013Train/label.csv", "data/FER2013Train/1.png", "README.md")
    with pytest.raises(BenchError, match=f"It lies deeper: give {root}/data as data_root"):
        list(csv_lines(open_files(root), "FER2013Train/label.csv"))
    with pytest.raises(BenchError, match=f"Give the folder above as data_root: {root}/data"):
        FerplusSource(root/"data"/"FER2013Train")


# csv

def listed(root, text):
    (root/"faces.csv").write_text(text, encoding="utf-8")
    return CsvSource(root/"faces.csv")


def test_csv_labels_in_one_spelling(put):
    root = put(*(f"{i}.png" for i in range(9)))
    words = ["Happy", "HAPPY", "happy", "happy", "nan", "None", "NA", "sad", ""]
    source = listed(root, "path,label\n" + "".join(f"{i}.png,{word}\n" for i, word in enumerate(words)))
    assert source.classes == ("happy", "sad")
    assert source.rows().label.tolist() == ["happy"] * 4 + [None] * 3 + ["sad", None]
    assert source.rows().note.tolist()[4] == "no label in the csv file (nan)"
    assert "The label 'HAPPY' is taken for 'happy'." in source.facts["remarks"]


@pytest.mark.parametrize("path", ["image", "pth", "file", "filename", "FilePath", "image_path"])
@pytest.mark.parametrize("label", ["emotion", "Expression", "class"])
def test_csv_columns_by_other_names(put, path, label):
    source = listed(put("a.png", "b.png"),
                    f"{path},{label},Usage,age\na.png,sad,Training,3\nb.png,happy,PrivateTest,4\n")
    assert source.rows()[["key", "label", "split"]].values.tolist() == [["a.png", "sad", "train"],
                                                                        ["b.png", "happy", "test"]]
    assert source.facts["remarks"] == [
        f"The column {path!r} is read as path.", f"The column {label!r} is read as label.",
        "The column 'Usage' is read as split.", "Columns that are not used: age."]


@pytest.mark.parametrize("text, says", [
    ("image,file,label\na.png,b.png,sad\n", "Both columns 'image' and 'file' could be the path"),
    ("path,label,split\na.png,sad,train\nb.png,happy,trian\n", "'trian' .1 lines., first in line 3.*Write train"),
    ("path,label,split\na.png,sad,train\nb.png,happy,\n", "1 labelled faces no split.*line 3"),
    ("path,label\n" + "".join(f"a.png,{i / 100}\n" for i in range(60)), "60 different labels.*numbers on a scale")])
def test_csv_refused(put, text, says):
    with pytest.raises(BenchError, match=says): listed(put("a.png", "b.png"), text)


def test_csv_folder_names_its_tables(put):
    with pytest.raises(BenchError, match="it is a folder.*one of train.csv in it"): CsvSource(put("train.csv", "1.png"))


def test_csv_paths(put):
    "Absolute paths inside the folder, and names in another Unicode form than on disk."
    disk, written = unicodedata.normalize("NFD", "é/ü.png"), unicodedata.normalize("NFC", "é/ü.png")
    root = put("a.png", disk)
    source = listed(root, f"path,label\n{root}/a.png,sad\n{written},happy\n")
    assert source.rows().key.tolist() == ["a.png", disk]
    assert all(isinstance(found, tuple) for found in source.load_many(source.rows().key))


def test_csv_whose_test_pictures_are_elsewhere(put, tmp_path):
    root = put("a.png", "b.png")
    source = listed(root, "path,label,split\na.png,sad,train\nb.png,happy,train\ntest/c.png,sad,test\n"
                          "test/d.png,happy,test\n")
    with pytest.raises(BenchError, match="None of the 2 faces of the split 'test'"):
        build_faceset(source, tmp_path/"out")


# parquet

def parquet(path, labels, names=None, group=2, **columns):
    pictures = [{"bytes": png(i), "path": f"{i}.png"} for i in range(len(labels))]
    table = pa.table({"image": pictures, "label": labels, **columns})
    if names:
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(table, path, row_group_size=group)


def test_parquet_of_hugging_face(tmp_path):
    names = ["angry", "happy", "sad"]
    parquet(tmp_path/"set/data/train-00000-of-00002.parquet", [1, 0, 2, -1, 1], names)
    parquet(tmp_path/"set/data/train-00001-of-00002.parquet", [2], names)
    parquet(tmp_path/"set/data/test-00000-of-00001.parquet", [0, 1, 2], names)
    source = ParquetSource(tmp_path/"set", "grey")
    faces = build_faceset(source, tmp_path/"out", workers=3)
    assert faces.classes == tuple(names) and faces.meta["rejected"] == []
    assert faces.index.split.tolist() == ["test"] * 3 + ["train"] * 6
    assert faces.index.label.fillna("-").tolist() == ["angry", "happy", "sad", "happy", "angry", "sad", "-", "happy",
                                                      "sad"]
    assert faces.images[:, 0, 0, 0].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0]
    assert ParquetSource(tmp_path/"set", "grey").fingerprint() == source.fingerprint()


def test_parquet_of_names_and_plain_bytes(tmp_path):
    table = pa.table({"img": [png(5), b"no picture", png(7)], "Emotion": ["Sad", "sad", "happy"],
                      "person": ["x", "y", None]})
    pq.write_table(table, tmp_path/"faces.parquet")
    source = ParquetSource(tmp_path/"faces.parquet", "grey")
    assert source.classes == ("Sad", "happy") and source.rows().subject.tolist() == ["x", "y", None]
    first, second, third = source.load_many(source.rows().key)
    assert first[0][0, 0, 0] == 5 and "not a picture" in str(second) and third[0][0, 0, 0] == 7


def test_parquet_refused(tmp_path):
    parquet(tmp_path/"a/train.parquet", [0, 7], ["angry", "happy"])
    with pytest.raises(BenchError, match="Row 1 of .*has the label '7', but those of its metadata are"):
        ParquetSource(tmp_path/"a")
    parquet(tmp_path/"b/train.parquet", ["sad", "happy"])
    parquet(tmp_path/"b/other.parquet", ["sad", "happy"])
    with pytest.raises(BenchError, match="Some faces .* have a split and others do not"): ParquetSource(tmp_path/"b")
    (tmp_path/"c").mkdir()
    with pytest.raises(BenchError, match="holds no parquet file"): ParquetSource(tmp_path/"c")
    (tmp_path/"d.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(BenchError, match="cannot be read as parquet"): ParquetSource(tmp_path/"d.parquet")
    pq.write_table(pa.table({"x": [1], "label": ["sad"]}), tmp_path/"e.parquet")
    with pytest.raises(BenchError, match="has no path column but x, label"): ParquetSource(tmp_path/"e.parquet")


def test_a_parquet_file_that_grows_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("fer_bench.data.sources.parquet.MAX_GROUP", 1_000_000)
    picture = png(1) + bytes(100_000)
    pq.write_table(pa.table({"image": [picture] * 400, "label": ["sad", "happy"] * 200}), tmp_path/"bomb.parquet")
    assert os.path.getsize(tmp_path/"bomb.parquet") < 200_000
    assert "grows to more than" in str(next(ParquetSource(tmp_path/"bomb.parquet").load_many(["bomb.parquet/0000000"])))
