"Archives: the same data as unpacked, nothing ever written, and whatever is broken or evil is named."
import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import threading
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fer_bench.core import BenchError
from fer_bench.data.faceset import build_faceset
from fer_bench.data.sources import archives
from fer_bench.data.sources.archives import open_files
from fer_bench.data.sources.folders import CsvSource, FolderSource

NOISE = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
FILES = {f"set/{('train', 'test')[i % 2]}/{('sad', 'happy')[i // 2 % 2]}/{9 - i % 10}{i}.png": face
         for i, face in enumerate(NOISE)}
MODES = {"tar": "w:", "tar.gz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}


def png(pixels) -> bytes:
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def tar_of(members, mode="w:", **options) -> bytes:
    "A tar of (name or TarInfo, bytes)."
    with tarfile.open(fileobj=(file := io.BytesIO()), mode=mode, **options) as tar:
        for info, data in members:
            if isinstance(info, str): info = tarfile.TarInfo(info)
            if data is not None: info.size = len(data)
            tar.addfile(info, io.BytesIO(data or b""))
    return file.getvalue()


def zip_of(members, compression=zipfile.ZIP_DEFLATED) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w", compression) as out:
        for name, data in members: out.writestr(name, data)
    return file.getvalue()


def all_files(): return [(name, png(face)) for name, face in FILES.items()]


@pytest.fixture
def put(tmp_path):
    def put(data: bytes, name="x"):
        (tmp_path/name).write_bytes(data)
        return tmp_path/name
    return put


KINDS = {**{kind: lambda members, mode=mode: tar_of(members, mode) for kind, mode in MODES.items()}, "zip": zip_of,
         "stored.zip": lambda members: zip_of(members, zipfile.ZIP_STORED)}


# the same data

@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    root = tmp_path_factory.mktemp("plain")
    for name, data in all_files():
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        (root/name).write_bytes(data)
    return build_faceset(FolderSource(root/"set", "grey"), root/"faces")


@pytest.mark.parametrize("kind", KINDS)
def test_same_content_hash_as_unpacked(kind, put, tmp_path, plain):
    path = put(KINDS[kind](all_files()), f"any.{kind}")
    for root in (path, path/"set"):
        faces = build_faceset(FolderSource(root, "grey"), tmp_path/"faces", workers=4)
        assert faces.meta["content_hash"] == plain.meta["content_hash"] and faces.meta["rejected"] == []
        assert faces.index.file_sha256.equals(plain.index.file_sha256)
    assert sorted(os.listdir(tmp_path)) == sorted([f"any.{kind}", "faces"])


@pytest.mark.parametrize("kind", KINDS)
def test_reading(kind, put, monkeypatch):
    members = [("a/1", b"one"), ("a/b/2", bytes(range(256)) * 40), ("3", b"")]
    files = open_files(put(KINDS[kind](members)))
    assert files.keys == ["3", "a/1", "a/b/2"] and files.find("2", "1") == "a/1" and files.find("4") is None
    for name, data in [*members, *reversed(members)]:
        assert files.read(name) == data and files.size(name) == len(data)
        with files.open(name) as file: assert file.read() == data
        if "zip" not in kind:
            assert files.read_at(name, 1, 300) == data[1:301] and files.read_at(name, len(data) + 5, 9) == b""
    with pytest.raises(KeyError): files.read("none")
    if "zip" in kind:
        with pytest.raises(BenchError, match="pack it as a .tar"): files.read_at("a/1", 0, 1)
    monkeypatch.setattr("fer_bench.data.sources.files.MAX_BYTES", 1000)
    with pytest.raises(BenchError, match="larger than"): files.read("a/b/2")


@pytest.mark.parametrize("mode, pread", [("w:gz", True), ("w", True), ("w", False)])
def test_many_threads_read_one_archive(put, mode, pread, monkeypatch):
    "Decompressed or plain; also where the system has no `os.pread` (Windows)."
    if not pread: monkeypatch.delattr(os, "pread")
    data = {f"{i}": os.urandom(3000) for i in range(400)}
    files, wrong = open_files(put(tar_of(data.items(), mode))), []
    def read(k):
        for i in np.random.default_rng(k).permutation(400): wrong.extend([i] * (files.read(str(i)) != data[str(i)]))
    threads = [threading.Thread(target=read, args=(k,)) for k in range(6)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert wrong == []


def test_the_spool_overflows_to_a_nameless_file(put, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "SPOOL", 10_000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path/"spool"))
    (tmp_path/"spool").mkdir()
    data = {f"{i}": os.urandom(3000) for i in range(20)}
    files = open_files(put(tar_of(data.items(), "w:xz")))
    assert all(files.read(name) == body for name, body in data.items()) and os.listdir(tmp_path/"spool") == []


def test_the_sole_folder(put):
    def keys(*names): return open_files(put(tar_of([(name, b"x") for name in names]))).keys
    assert keys("top/a/1", "top/b/1") == ["a/1", "b/1"]
    assert keys("./top/a/1", "__MACOSX/top/a/1", ".DS_Store") == ["a/1"]
    assert keys("Train/a/1", "Train/b/1") == ["Train/a/1", "Train/b/1"]
    assert keys("a/1", "b/1") == ["a/1", "b/1"] and keys("1", "2") == ["1", "2"]
    assert keys("a/1", "x.csv") == ["a/1", "x.csv"]
    assert open_files(put(tar_of([("top/a/1", b""), ("other/1", b"")]))/"top").keys == ["a/1"]
    with pytest.raises(BenchError, match="no folder 'none'"): open_files(put(tar_of([("a/1", b"")]))/"none")


def test_csv_inside_an_archive(put, tmp_path):
    listing = b"path,label\nsad/1.png,sad\nhappy/1.png,happy\ngone.png,sad\n"
    members = [("all/sad/1.png", png(NOISE[0])), ("all/happy/1.png", png(NOISE[1])), ("all/faces.csv", listing)]
    for kind in ("zip", "tar.xz"):
        faces = build_faceset(CsvSource(put(KINDS[kind](members))/"all"/"faces.csv"), tmp_path/"faces")
        assert faces.index.label.tolist() == ["happy", "sad"]
        assert [r["key"] for r in faces.meta["rejected"]] == ["gone.png"]
        with pytest.raises(BenchError, match="no such file"): CsvSource(tmp_path/"x"/"all"/"none.csv")


def test_fingerprint_follows_the_archive(put):
    path = put(tar_of(all_files()))
    first = FolderSource(path).fingerprint()
    assert FolderSource(path).fingerprint() == first
    os.utime(path, ns=(1, 1))
    assert FolderSource(path).fingerprint() != first


# evil members

def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


EVIL = {
    "../../out.png": "leaves", "a/../../out.png": "leaves", "..\\out.png": "leaves", "/tmp/out.png": "absolute",
    "C:\\out.png": "absolute", "C:/out.png": "absolute", "//host/out.png": "absolute", "a/..": "no name",
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", KINDS)
def test_evil_names(kind, put, tmp_path):
    path = put(KINDS[kind]([*all_files(), *((name, b"evil") for name in EVIL), next(iter(all_files()))]))
    source = FolderSource(path)
    reasons = [why for _, why in source.rejected]
    assert len(source.rows()) == 12 and len(reasons) == len(EVIL) + 1
    for word in EVIL.values(): assert sum(word in why for why in reasons) == sum(word == w for w in EVIL.values())
    assert "named again; its first entry counts" in reasons and os.listdir(tmp_path) == [path.name]


def test_evil_kinds_in_a_tar(put):
    devices = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    evil = [special("set/sad/l.png", tarfile.SYMTYPE, "/etc/passwd"),
            special("set/sad/h.png", tarfile.LNKTYPE, "set/train/sad/90.png"),
            *(special(f"set/sad/{i}.png", kind) for i, kind in enumerate(devices))]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        files = open_files(put(tar_of([*all_files(), *((info, None) for info in evil)], format=form)))
        assert len(files.keys) == 12 and [why.split()[1] for _, why in files.rejected] == ["link;"] * 2 + ["device"] * 3


def test_names_of_other_encodings(put):
    info = tarfile.TarInfo("sad/caf\udce9.png")
    folder = tarfile.TarInfo("caf\udce9/1.png")
    path = put(tar_of([(info, png(NOISE[0])), ("happy/ü.png", png(NOISE[1])), ("sad/a.png", png(NOISE[2])),
                       (folder, b"")],
                      format=tarfile.GNU_FORMAT))
    source = FolderSource(path)
    assert source.rows().key.tolist() == ["happy/ü.png", "sad/a.png"] and source.classes == ("happy", "sad")
    assert source.rejected == [(name, "its name is not UTF-8: rename it")
                               for name in ("sad/caf\\udce9.png", "caf\\udce9/1.png")]


def test_nul_bytes_in_names(put):
    data = zip_of([("sad/abc.png", b"1"), ("happy/a.png", b"2")]).replace(b"abc.png", b"a\0c.png")
    assert open_files(put(data)).rejected == [("sad/a\\0c.png", "its name holds a NUL byte")]
    tar = tar_of([("x", b""), ("sad/" + "y" * 150, b"1")], format=tarfile.PAX_FORMAT)
    tar = tar.replace(b"path=sad/yyy", b"path=sad/\0yy")
    files = open_files(put(tar))
    assert files.keys == ["x"] and files.rejected[0][1] == "its name holds a NUL byte"


def test_encrypted_and_linked_in_a_zip(put, tmp_path):
    link = zipfile.ZipInfo("sad/l.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    data = bytearray(zip_of([("sad/a.png", png(NOISE[0])), (link, b"/etc/passwd"), ("happy/b.png", png(NOISE[1]))]))
    at = data.index(b"PK\1\2")
    data[at + 8] |= 1  # the flag "encrypted" of the first file in the table of contents
    source = FolderSource(put(bytes(data)))
    assert source.rows().key.tolist() == ["happy/b.png"]
    assert source.rejected == [("sad/a.png", "it is encrypted"), ("sad/l.png", "a link; only plain files count")]


def patched(data: bytes, size: int) -> bytes:
    "The zip `data` of one file with another declared size in both places."
    data = bytearray(data)
    for magic, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        data[(i := data.index(magic) + at):i + 4] = struct.pack("<I", size)
    return bytes(data)


def test_bombs_by_declared_size(put, tmp_path):
    honest = zip_of([("sad/a.png", bytes(300_000_000))])
    assert len(honest) < 400_000
    with pytest.raises(BenchError, match="larger than 256 MB"): open_files(put(honest)).read("a.png")
    for size in (10, 2**32 - 2):  # it says less than it is, or more
        files = open_files(put(patched(zip_of([("sad/a.png", bytes(5_000_000))]), size)))
        with pytest.raises(Exception, match="larger than|CRC|cut short"): files.read("a.png")
    info = tarfile.TarInfo("sad/a.png")
    info.size = 10**11
    with pytest.raises(BenchError, match="Copy or download"): open_files(put(info.tobuf() + bytes(2000)))


def test_a_tar_that_grows_without_end(put, monkeypatch):
    monkeypatch.setattr(archives, "SPOOL", 100_000)
    info = tarfile.TarInfo("a.png")
    info.size = 50_000_000
    path = put(lzma.compress(info.tobuf() + bytes(info.size) + bytes(1024)))
    assert path.stat().st_size < 10_000
    with pytest.raises(BenchError, match="grows to more than"): open_files(path)


def test_headers_that_lie(put):
    negative = bytearray(tarfile.TarInfo("a.png").tobuf())
    negative[124:136] = b"\xff" * 11 + b"\x00"  # size -256, which would send a reader back for ever
    huge = bytearray(special("long", tarfile.GNUTYPE_LONGNAME).tobuf())
    huge[124:136] = b"\x80" + (2**40).to_bytes(11, "big")
    pax = bytearray(special("pax", tarfile.XHDTYPE).tobuf())
    pax[124:136] = b"\xff" * 12
    for header in (negative, huge, pax):
        header[148:156] = b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:]))
        path = put(tar_of([("b", b"x")])[:1024] + bytes(header) + bytes(4096))
        with pytest.raises(BenchError, match="Copy or download"): open_files(path)


# damage

@pytest.mark.parametrize("kind", KINDS)
def test_cut_short(kind, put):
    whole = KINDS[kind](all_files())
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(BenchError, match="Copy or download it again"):
            open_files(put(whole[:int(len(whole.rstrip(b"\0")) * share)]))


@pytest.mark.parametrize("mode", MODES.values())
def test_cut_between_two_files(mode, put):
    "What is left is whole in itself; only the missing end tells."
    half = tar_of(all_files()[:6]).rstrip(b"\0")
    half += bytes(-len(half) % 512)
    with tarfile.open(fileobj=io.BytesIO(half + bytes(1024))) as tar: assert len(tar.getnames()) == 6
    packed = {"w:": bytes, "w:gz": gzip.compress, "w:bz2": bz2.compress, "w:xz": lzma.compress}[mode](half)
    with pytest.raises(BenchError, match="neither a file nor the mark of its end"): open_files(put(packed))


def test_a_damaged_header_does_not_end_the_archive_quietly(put):
    whole = bytearray(tar_of(all_files()))
    whole[1024 * 4 + 10] ^= 0xff
    with pytest.raises(BenchError, match="neither a file nor the mark|damaged"): open_files(put(bytes(whole)))


@pytest.mark.parametrize("data", [b"", b"no archive", b"PK\3\4", b"\x1f\x8b", b"\xfd7zXZ\0", b"BZh",
                                  b"PK\5\6" + bytes(18), bytes(10240),
                                  lzma.compress(b"no tar"), b"\x89PNG\r\n\x1a\n" + bytes(600)])
def test_what_is_no_archive(data, put):
    try: assert open_files(put(data)).keys == []
    except BenchError as e: assert str(e)


@pytest.mark.parametrize("data, says", [
    (b"7z\xbc\xaf\x27\x1c\0\4", "is a 7z archive.*Unpack it"), (b"Rar!\x1a\x07\1\0", "is a RAR archive.*Unpack it"),
    (b"\x28\xb5\x2f\xfd..", "is a Zstandard archive"), (b"PK\7\x08PK\3\4", "is one part of a split zip"),
    (b"\n <!DOCTYPE html><html>log in", "is a web page.*download the file itself"), (b"", "is empty"),
    (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull")])
def test_what_cannot_be_read_is_named(put, data, says):
    with pytest.raises(BenchError, match=says): open_files(put(data))


@pytest.mark.parametrize("kind", KINDS)
def test_rubbish_in_archives(kind, put):
    rubbish = ("__MACOSX/set/train/sad/._1.png", "set/@eaDir/1.png", "set/.DS_Store", "Thumbs.db")
    members = [*all_files(), *((name, b"x") for name in rubbish)]
    files = open_files(put(KINDS[kind](members)))
    assert files.keys == sorted(name.removeprefix("set/") for name in FILES)
    assert sorted(key for key, _ in files.rejected) == [".DS_Store", "@eaDir", "Thumbs.db", "__MACOSX"]


def test_a_split_alone_in_an_archive_keeps_its_name(put):
    for top in ("Train_Aligned_Faces", "test set", "PrivateTest"):
        assert open_files(put(tar_of([(f"{top}/happy/1", b"x")]))).keys == [f"{top}/happy/1"]


def test_nothing_there(tmp_path):
    (tmp_path/"file").write_text("x")
    for place in (tmp_path/"none", tmp_path/"none"/"deeper.tar"):
        with pytest.raises(BenchError, match="no folder or archive"): open_files(place)
    with pytest.raises(BenchError, match="cannot be read"): open_files(tmp_path/"file"/"deeper")


SMALL = {kind: make([("sad/1.png", png(NOISE[0])), ("happy/1.png", png(NOISE[1])), ("n" * 120 + "/1.png", b"x")])
         for kind, make in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_bytes_give_files_or_an_error(kind, tmp_path, data):
    body = bytearray(SMALL[kind])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(body) - 1))
        piece = data.draw(st.binary(min_size=1, max_size=12) | st.just(b"\xff" * 8) | st.just(b"\x80" + bytes(7)))
        body[at:at + len(piece)] = piece
    path = tmp_path/"x"
    path.write_bytes(bytes(body[:data.draw(st.sampled_from([len(body), len(body) * 2 // 3]))]))
    try: source = FolderSource(path)
    except BenchError as e: assert str(e)
    else:
        assert all(why for _, why in source.rejected) and len(source.fingerprint()) == 64
        for found in source.load_many(source.rows().key): assert isinstance(found, (tuple, Exception))
    assert os.listdir(tmp_path) == ["x"]


PARTS = st.sampled_from(["..", ".", "", "a", "b.png", "/", "\\", "C:", "\n", "é", "~"])
PATHS = st.lists(PARTS, max_size=5).map("/".join)
TYPES = st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, b"S",
                         b"V"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(PATHS, TYPES)))
def test_any_names_stay_inside(tmp_path, members):
    path = tmp_path/"x"
    path.write_bytes(tar_of([(special(name, kind, "../../y"), None) for name, kind in members]))
    try: files = open_files(path)
    except BenchError as e:
        assert str(e)
        return
    for key in files.keys:
        assert not key.startswith("/") and ".." not in key.split("/") and "\\" not in key and key[1:2] != ":"
        assert isinstance(files.read(key), bytes)
