"Sources: every image mode comes out right, everything broken is named and put aside, nothing is lost."
import io
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fer_bench.core import BenchError
from fer_bench.data.sources.base import Source
from fer_bench.data.sources.ferplus import FerplusSource
from fer_bench.data.sources.folders import CsvSource, FolderSource
from fer_bench.data.sources.pictures import MAX_PIXELS, decode

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (7, 5), dtype=np.uint8)
RGB = RNG.integers(0, 256, (7, 5, 3), dtype=np.uint8)


def saved(image, form="PNG", **options) -> bytes:
    if isinstance(image, np.ndarray): image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png(width, height, depth, kind, rows: bytes) -> bytes:
    "A PNG by hand: PIL cannot write colour with 16 bits, nor a header that lies."
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def grey_alpha(): return Image.merge("LA", (Image.fromarray(GREY), Image.new("L", (5, 7), 255)))


SAME_GREY = {
    "L": saved(GREY), "bmp": saved(GREY, "BMP"), "gif": saved(GREY, "GIF"), "pgm": saved(GREY, "PPM"),
    "tiff": saved(GREY, "TIFF"), "webp": saved(GREY, "WEBP", lossless=True), "LA": saved(grey_alpha()),
    "RGB": saved(np.stack([GREY] * 3, -1)), "RGBA": saved(np.dstack([GREY] * 3 + [np.full_like(GREY, 255)])),
    "16-bit png": saved(GREY.astype(np.uint16) * 257), "16-bit tiff": saved(GREY.astype(np.uint16) * 257, "TIFF"),
    "16-bit pgm": b"P5 5 7 65535\n" + (GREY.astype(">u2") * 257).tobytes(),
    "16-bit big-endian tiff": saved(Image.frombytes("I;16B", (5, 7), (GREY.astype(">u2") * 257).tobytes()), "TIFF"),
}
SAME_RGB = {
    "RGB": saved(RGB), "bmp": saved(RGB, "BMP"), "ppm": saved(RGB, "PPM"), "webp": saved(RGB, "WEBP", lossless=True),
    "palette": saved(Image.fromarray(RGB).quantize(256)),
    "RGBA": saved(np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])),
    "CMYK": saved(Image.merge("CMYK", [*Image.fromarray(255 - RGB).split(), Image.new("L", (5, 7), 0)]), "TIFF"),
    "16-bit png": png(5, 7, 16, 2, b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in RGB)),
}


@pytest.mark.parametrize("name", SAME_GREY)
def test_grey_modes(name):
    assert np.array_equal(decode(SAME_GREY[name], "grey"), GREY[..., None])
    assert np.array_equal(decode(SAME_GREY[name], "rgb"), np.stack([GREY] * 3, -1))


@pytest.mark.parametrize("name", SAME_RGB)
def test_colour_modes(name):
    assert np.abs(decode(SAME_RGB[name], "rgb").astype(int) - RGB).max() <= (1 if name == "palette" else 0)
    luma = RGB @ [0.299, 0.587, 0.114]
    assert np.abs(decode(SAME_RGB[name], "grey")[..., 0] - luma).max() <= 1.01


def test_one_bit():
    bits = GREY > 127
    assert np.array_equal(decode(saved(bits), "grey")[..., 0], bits * np.uint8(255))


def test_jpeg_colours():
    "The two forms JPEG comes in: YCbCr, and Adobe's CMYK, which is stored inverted."
    flat = np.full((16, 16, 3), (200, 60, 90), np.uint8)
    ink = Image.merge("CMYK", [*Image.fromarray(255 - flat).split(), Image.new("L", (16, 16), 0)])
    for data in (saved(flat, "JPEG", quality=95), saved(ink, "JPEG", quality=95)):
        assert np.abs(decode(data, "rgb").astype(int) - flat).max() <= 4


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_orientation(turn, form):
    shown = np.zeros((16, 32), np.uint8)
    shown[:8, :8] = 255  # the bright corner must come out at the top left
    stored = {1: shown, 2: shown[:, ::-1], 3: shown[::-1, ::-1], 4: shown[::-1], 5: shown.T, 6: np.rot90(shown),
              7: shown[::-1, ::-1].T, 8: np.rot90(shown, -1)}[turn]
    exif = Image.Exif()
    exif[0x0112] = turn
    out = decode(saved(Image.fromarray(np.ascontiguousarray(stored)), form, exif=exif), "grey")[..., 0]
    assert out.shape == shown.shape and np.abs(out.astype(int) - shown).max() < 40


def test_transparent_parts_turn_white():
    pixels = np.full((4, 4, 4), (10, 20, 30, 255), np.uint8)
    pixels[0] = (255, 0, 0, 0)  # red that nobody was meant to see
    assert decode(saved(pixels), "rgb")[0].tolist() == [[255] * 3] * 4
    assert decode(saved(pixels), "rgb")[1, 0].tolist() == [10, 20, 30]
    assert decode(saved(np.full((4, 4), 9, np.uint8), transparency=9), "grey").min() == 255
    palette = Image.fromarray(np.full((4, 4), 9, np.uint8)).convert("P")
    assert decode(saved(palette, transparency=palette.getpixel((0, 0))), "grey").min() == 255


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("exif", [b"II*\0\xff\xff\xff\xffrubbish", b"rubbish", b"II*\0"])
def test_broken_exif_does_not_cost_the_face(exif, form):
    assert decode(saved(GREY, form, exif=exif if form == "PNG" else b"Exif\0\0" + exif), "grey").shape == (7, 5, 1)


BAD = {
    "empty": (b"", "empty"), "text": (b"this was never a picture", "not a picture"),
    "html": (b"<!doctype html><title>404</title>", "not a picture"),
    "cut png": (saved(RNG.integers(0, 256, (64, 64), dtype=np.uint8))[:2000], "damaged"),
    "cut jpeg": (saved(RNG.integers(0, 256, (64, 64), dtype=np.uint8), "JPEG")[:1500], "damaged"),
    "head alone": (saved(GREY)[:20], "picture"),
    "bomb": (saved(Image.new("1", (9000, 9000))), "more than 64 million"),
    "lying header": (png(60000, 60000, 8, 0, b"\0\0"), "damaged"),
    "float": (saved(GREY.astype(np.float32), "TIFF"), "no known range"),
    "32 bit": (saved(GREY.astype(np.int32), "TIFF"), "no known range"),
    "eps": (saved(RGB, "EPS"), "not a picture"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures(name):
    data, reason = BAD[name]
    with pytest.raises(BenchError, match=reason): decode(data, "grey")


def test_bomb_is_small_and_limit_holds():
    assert len(BAD["bomb"][0]) < 20_000 and MAX_PIXELS < 9000 * 9000


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL warns of EXIF that it cannot read
@settings(max_examples=150, deadline=None)
@given(st.sampled_from([*SAME_GREY.values(), *SAME_RGB.values(), saved(RGB, "JPEG")]), st.data())
def test_any_bytes_give_pixels_or_a_reason(data, draw):
    data = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    data = bytes(data[:draw.draw(st.integers(0, len(data)))])
    try: pixels = decode(data, "rgb")
    except BenchError as e: assert str(e)
    else: assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


# folders

@pytest.fixture
def tree(tmp_path):
    "Make the files named, each with a small picture."
    def make(*names, data=SAME_GREY["L"]):
        for name in names:
            (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path/name).write_bytes(data)
        return tmp_path
    return make


def test_folder_with_splits(tree):
    root = tree("TRAIN/sad/a.png", "Validation/happy/b.png", "test/sad/deeper/c.png", "test/loose.png", "top.png",
                ".ipynb_checkpoints/e.png", "train/.hidden/f.png", "__MACOSX/train/sad/g.png")
    source = FolderSource(root)
    assert source.classes == ("happy", "sad") and source.colour == "rgb"
    assert source.rows()[["key", "label", "split"]].values.tolist() == [
        ["TRAIN/sad/a.png", "sad", "train"], ["Validation/happy/b.png", "happy", "val"],
        ["test/sad/deeper/c.png", "sad", "test"]]
    reasons = dict(source.rejected)
    assert set(reasons) == {"test/loose.png", "top.png", ".ipynb_checkpoints", "train/.hidden", "__MACOSX"}
    assert "no class folder" in reasons["test/loose.png"] and "left over" in reasons["__MACOSX"]


def test_folder_without_splits(tree):
    rows = FolderSource(tree("b/1.png", "a/1.png", "loose.png", "__MACOSX/1.png", ".cache/1.png")).rows()
    assert rows.key.tolist() == ["a/1.png", "b/1.png"] and rows.split.isna().all()


def test_folder_links(tree):
    root = tree("there/x.png", "data/sad/a.png")
    (root/"data"/"happy").symlink_to(root/"there")
    (root/"data"/"sad"/"loop").symlink_to(root/"data")
    source = FolderSource(root/"data")
    assert source.rows().key.tolist() == ["happy/x.png", "sad/a.png"]
    assert [key for key, _ in source.rejected] == ["sad/loop"]


def test_names_that_are_not_utf8(tree):
    root = tree("sad/ü.png", "happy/a.png")
    with open(os.fsencode(root) + b"/sad/\xff.png", "wb") as file: file.write(saved(GREY))
    source = FolderSource(root)
    assert source.rows().key.tolist() == ["happy/a.png", "sad/ü.png"]
    assert source.rejected == [("sad/\\udcff.png", "its name is not UTF-8: rename it")]
    assert len(source.fingerprint()) == 64


@pytest.mark.parametrize("make", [FolderSource, FerplusSource])
def test_missing_folder(make, tmp_path):
    with pytest.raises(BenchError, match="There is no folder"): make(tmp_path/"nowhere")


def test_unknown_colour(tree):
    with pytest.raises(BenchError, match="no colour 'gray'. Did you mean 'grey'"): FolderSource(tree("a/1.png"), "gray")


def test_load_many_gives_what_stood_in_the_way(tree):
    source = FolderSource(tree("a/1.png", "b/2.png"))
    (pixels, digest), missing, folder = source.load_many(["a/1.png", "a/none.png", "a"])
    assert np.array_equal(pixels, decode(saved(GREY), "rgb")) and len(digest) == 64
    assert isinstance(missing, FileNotFoundError) and isinstance(folder, IsADirectoryError)


def test_large_files_are_not_read(tree, monkeypatch):
    monkeypatch.setattr("fer_bench.data.sources.files.MAX_BYTES", 1000)
    source = FolderSource(tree("a/film.png", data=b"x" * 2000))
    assert "larger than" in str(list(source.load_many(["a/film.png"]))[0])


# csv

def listed(tree, text, name="faces.csv", **options):
    root = tree("pictures/a.png", "pictures/b.png")
    (root/name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return CsvSource(root/name, **options)


def test_csv_rows(tree):
    source = listed(tree, '\ufeffSplit, PATH ,label,subject\n"valid",".//pictures\\a.png",very sad,7\n\n'
                          ",pictures/sub/../b.png,,\n")
    assert source.classes == ("very sad",)
    assert source.rows().values.tolist() == [
        ["pictures/a.png", "very sad", None, None, "val", "7"],
        ["pictures/b.png", None, "no label in the csv file", None, None, None]]


@pytest.mark.parametrize("line, reason", [
    ("/etc/passwd,sad,train", "leaves"), ("pictures/../../a.png,sad,", "leaves"), ("..,sad,", "leaves"),
    ("C:\\faces\\a.png,sad,", "leaves"), (",sad,train", "names no picture"), ("a.png,sad", "too few fields"),
    ("a,b.png,sad,train", "too few fields or too many"),
    ("pictures/a.png,happy,", "named again")])
def test_csv_lines_put_aside(tree, line, reason):
    source = listed(tree, f"path,label,split\npictures/a.png,sad,\n{line}\npictures/b.png,happy,\n")
    assert source.rows().key.tolist() == ["pictures/a.png", "pictures/b.png"]
    assert len(source.rejected) == 1 and reason in source.rejected[0][1]


def test_csv_line_that_ends_before_its_path(tree):
    source = listed(tree, "subject,label,path\nann\nann,sad,pictures/a.png\n")
    assert len(source.rows()) == 1 and source.rejected == [(".", "line 2: it has too few fields or too many")]


@pytest.mark.parametrize("text, message", [
    ("paths,label\n", "no column 'path'. Did you mean 'paths'"), ("path;label\n", "commas"), ("", "is empty"),
    ("path,label,Label\n", "twice"), ("path,label\n\xe9".encode("latin-1"), "not UTF-8"),
    ("path,label\n".encode("utf-16"), "UTF-8"),
    ("path,label\n" + "x" * 200_000, "cannot be read as csv"), ('path,label\n"a' + "b\n" * 100_000, "quotation mark")])
def test_csv_that_cannot_be_read(tree, text, message):
    with pytest.raises(BenchError, match=message): listed(tree, text)


def test_csv_missing(tmp_path):
    with pytest.raises(BenchError, match="Is data_root spelt right"): CsvSource(tmp_path/"none.csv")
    with pytest.raises(BenchError, match="Cannot read"): CsvSource(tmp_path)


FIELDS = st.sampled_from(["pictures/a.png", "sad", "train", "", "\"", "\0", "..", "a\nb", "é"]) | st.text(max_size=8)
LINES = st.lists(st.lists(FIELDS, max_size=5).map(",".join), max_size=6).map("\n".join)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(LINES.map(lambda text: ("path,label,split,subject\n" + text).encode("utf-8", "replace")),
                 LINES.map(lambda text: ("path,label\n" + text).encode("utf-16", "replace")),
                 st.binary(max_size=60), st.binary(max_size=60).map(lambda data: b"path,label\n" + data)))
def test_any_csv_gives_rows_or_a_reason(tmp_path, data):
    (tmp_path/"any.csv").write_bytes(data)
    try: source = CsvSource(tmp_path/"any.csv")
    except BenchError as e:
        assert str(e)
        return
    assert all(isinstance(found, Exception) for found in source.load_many(source.rows().key))  # there are no pictures
    assert all(reason for _, reason in source.rejected) and len(source.fingerprint()) == 64


# FERPlus, small

VOTES = {"a.png": "0,9,1,0,0,0,0,0,0,0", "b.png": "5,5,0,0,0,0,0,0,0,0", "c.png": "0,0,0,0,0,0,0,1,0,9"}


@pytest.fixture
def ferplus(tree):
    for part in ("Train", "Valid", "Test"):
        root = tree(*(f"FER2013{part}/{name}" for name in VOTES))
        lines = [f'{name},"(0, 0, 48, 48)",{votes}\n' for name, votes in VOTES.items()]
        (root/f"FER2013{part}"/"label.csv").write_text("".join(lines))
    return root


def test_ferplus_rules(ferplus):
    rows = FerplusSource(ferplus).rows().set_index("key")
    assert rows.label.tolist() == ["happiness", None, None] * 3
    assert rows.note.tolist() == [None, "no majority", "majority for NF"] * 3
    assert rows.votes["FER2013Valid/c.png"] == [0, 0, 0, 0, 0, 0, 0, 1, 0, 9]
    assert rows.split.tolist() == ["train"] * 3 + ["val"] * 3 + ["test"] * 3
    assert FerplusSource(ferplus, "argmax").rows().label.tolist() == ["happiness", "neutral", None] * 3
    with pytest.raises(BenchError, match="Did you mean 'majority'"): FerplusSource(ferplus, "majorty")


def test_ferplus_faults_are_reported(ferplus):
    with open(ferplus/"FER2013Test"/"label.csv", "a") as file:
        file.write("a.png,box,9,0,0,0,0,0,0,0,0,0\nz.png,box,9,0,0,0,0,0,0,0,0,0\ny.png\n"
                   "d.png,box,9,-1,0,0,0,0,0,0,0,0\ne.png,box,9,0\n")
    for name in ("d.png", "e.png", "f.png"): (ferplus/"FER2013Test"/name).write_bytes(saved(GREY))
    source = FerplusSource(ferplus)
    rows = source.rows().set_index("key")
    assert len(rows) == 12 and rows.label["FER2013Test/a.png"] == "happiness"
    assert {key.removeprefix("FER2013Test/"): reason for key, reason in source.rejected} == {
        "a.png": "named again; its first row counts",
        "z.png": "label.csv line 5 names it, but there is no such picture",
        "y.png": "label.csv line 6 names it, but there is no such picture"}
    assert rows.note[[f"FER2013Test/{name}.png" for name in "def"]].tolist() == [
        "label.csv line 7 does not hold ten counts", "label.csv line 8 does not hold ten counts",
        "label.csv has no row for it"]


def test_ferplus_lacks_a_part(ferplus):
    (ferplus/"FER2013Valid"/"label.csv").unlink()
    with pytest.raises(BenchError, match="label.csv"): FerplusSource(ferplus)


# fingerprints

def test_fingerprint_follows_files_and_labels(tree, ferplus):
    root, prints = tree("own/a/1.png", "own/b/1.png")/"own", []
    prints.append(FolderSource(root).fingerprint())
    assert FolderSource(str(root)).fingerprint() == prints[0]
    os.utime(root/"a"/"1.png", ns=(1, 1))
    prints.append(FolderSource(root).fingerprint())
    tree("own/a/2.png")
    prints.append(FolderSource(root).fingerprint())
    prints += [FerplusSource(ferplus).fingerprint(), FerplusSource(ferplus, "argmax").fingerprint()]
    (root/"l.csv").write_text("path,label\na/1.png,x\nb/1.png,y\n")
    prints.append(CsvSource(root/"l.csv").fingerprint())
    (root/"l.csv").write_text("path,label\na/1.png,y\nb/1.png,x\n")
    prints.append(CsvSource(root/"l.csv").fingerprint())
    assert len(set(prints)) == len(prints)


def test_fingerprint_of_a_source_without_files():
    class Made(Source):
        def __init__(self, n): self.n, self.facts = n, {}
    assert Made(1).fingerprint() == Made(1).fingerprint() != Made(2).fingerprint()


# names of the field

def test_folders_by_the_field_s_names(tree):
    root = tree("train/Angry/1.png", "train/HAPPY/1.png", "test/sad/1.png")
    named = FolderSource(root, field_names=True)
    assert named.classes == ("anger", "happiness", "sadness")
    assert FolderSource(root).classes == ("Angry", "HAPPY", "sad")
    assert named.facts["renamed"] == {"Angry": "anger", "HAPPY": "happiness", "sad": "sadness"}
    tree("test/Anger/2.png")  # another word for the same class in another split
    assert FolderSource(root, field_names=True).classes == ("anger", "happiness", "sadness")
    tree("test/angry/2.png")  # side by side they may mean two things
    with pytest.raises(BenchError, match="'Anger' and 'angry' in 'test' mean the same class"): FolderSource(root)


def test_an_unknown_folder_does_not_stop_the_others(tree):
    source = FolderSource(tree("angry/1.png", "bored/1.png", "suprise/1.png"), field_names=True)
    assert source.classes == ("anger", "bored", "suprise") and source.facts["renamed"] == {"angry": "anger"}
    assert source.facts["remarks"] == [
        "The class 'bored' is no expression that is known.",
        "The class 'suprise' is no expression that is known, perhaps misspelt for 'surprise'? Then rename it."]


def test_huge_counts_are_no_votes(ferplus):
    with open(ferplus/"FER2013Test"/"label.csv", "a") as file: file.write(f"d.png,box,{'9' * 5000},0,0,0,0,0,0,0,0,0\n")
    (ferplus/"FER2013Test"/"d.png").write_bytes(saved(GREY))
    assert "ten counts" in FerplusSource(ferplus).rows().set_index("key").note["FER2013Test/d.png"]
