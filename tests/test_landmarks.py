"Landmarks: a bright dot is found where `follow` says, files give what was written, and malicious ones are refused."
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from fer_bench.core import BenchError
from fer_bench.data.drawn.faces import DrawnSource, draw_faces
from fer_bench.data.faceset import build_faceset
from fer_bench.data.landmarks import (
    FLIP5,
    FLIP68,
    REGIONS,
    flip_order,
    follow,
    landmarks_of,
    read_landmarks,
    read_regions,
    region_points,
    regions_of,
    with_landmarks,
)
from fer_bench.data.sources.base import FileSource
from fer_bench.data.sources.folders import FolderSource
from fer_bench.data.views import affine, make_view, seeded, warp

ROOT = Path(__file__).parent.parent

def dot(height: int, width: int, at, sigma: float = 2.0) -> np.ndarray:
    "A bright spot at (x, y) on black, (height, width) in [0, 1]."
    y, x = np.indices((height, width)) + 0.5
    return np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * sigma ** 2))

def middle(image: np.ndarray) -> np.ndarray:
    "(x, y) of the centre of what is bright in (H, W)."
    y, x = np.indices(image.shape) + 0.5
    return np.array([(image * x).sum(), (image * y).sum()]) / image.sum()

# following

@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.36, 0.64), st.floats(0.36, 0.64), st.integers(24, 96), st.integers(24, 96),
       st.integers(24, 96), st.floats(0.3, 1.0), st.floats(0, 30))
def test_a_dot_is_found_where_follow_says(seed, x, y, height, width, size, scale, degrees):
    "Through crops, turns, stretches and flips, between pictures of any form and size."
    theta = affine(seeded(seed), 1, scale=(scale, 1.0), ratio=(0.8, 1.25), degrees=degrees, flip=0.5)
    at = np.array([x * width, y * height])
    zoom = size * np.linalg.norm(np.linalg.inv(theta[0, :, :2].numpy()), 2) / min(height, width)
    found = follow(at.reshape(1, 1, 2), theta, (height, width), size, order=[0])[0, 0]
    assume((found > 10 * max(zoom, 1)).all() and (found < size - 10 * max(zoom, 1)).all() and zoom > 0.4)
    picture = torch.from_numpy(dot(height, width, at))[None, None]
    np.testing.assert_allclose(middle(warp(picture, theta, size)[0, 0].numpy()), found, atol=0.05)

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(8, 300), st.integers(8, 300))
def test_follow_is_the_exact_inverse(seed, count, size_in, size_out):
    theta = affine(seeded(seed), count, scale=(0.1, 1.0), ratio=(0.5, 2), degrees=180, flip=0.5).double()
    points = np.random.default_rng(seed).uniform(-10, size_in + 10, (count, 68, 2))
    there = follow(points, theta, size_in, size_out)
    last = torch.tensor([[[0.0, 0, 1]]], dtype=torch.float64).expand(count, 1, 3)
    back = torch.linalg.inv(torch.cat([theta, last], 1))[:, :2]
    np.testing.assert_allclose(follow(there, back, size_out, size_in), points, atol=1e-6 * max(size_in, size_out))

def test_a_flip_swaps_left_and_right():
    mirror = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]])
    face = draw_faces([3], size=64)
    points = face["landmarks"]
    flipped = follow(points, mirror, 64, 64)[0]
    np.testing.assert_allclose(flipped, (points[0] * (-1, 1) + (64, 0))[list(FLIP68)], atol=1e-5)
    left_eye = lambda p: region_points(p, "eyes")[:6].mean(0)[0]
    assert left_eye(points[0]) < 32 and left_eye(flipped) < 32, "the left eye stays the one on the left"
    five = np.array([[[10, 20], [40, 20], [25, 30], [15, 50], [35, 50.0]]])
    assert follow(five, mirror, 64, 64)[0, 0].tolist() == [24, 20]
    with pytest.raises(BenchError, match="no order of points for a flip '7'"):
        follow(np.zeros((1, 7, 2)), mirror, 64, 64)
    assert follow(np.full((1, 7, 2), np.nan), mirror, 64, 64, np.arange(7)).shape == (1, 7, 2)

def test_the_views_own_theta_moves_drawn_landmarks():
    "A dot on the tip of the nose, which a flip keeps, moves as the landmark does, for each face by its own parameters."
    faces = draw_faces(range(6), size=96)
    params = make_view("weak").sample(seeded(1, 2), 6)
    followed = follow(faces["landmarks"], params["theta"], 96, 96)
    marked = np.stack([dot(96, 96, points[30]) for points in faces["landmarks"]])
    found = warp(torch.from_numpy(marked)[:, None], params["theta"], 96)[:, 0].numpy()
    np.testing.assert_allclose([middle(f) for f in found], followed[:, 30], atol=0.05)

@settings(max_examples=12, deadline=None)
@given(st.integers(30, 120), st.integers(30, 120), st.integers(24, 64), st.floats(0.4, 0.6), st.floats(0.4, 0.6))
def test_a_faceset_carries_landmarks(tmp_path_factory, height, width, size, x, y):
    "Crop and resize of the build move them: the dot is where the column says."
    folder, at = tmp_path_factory.mktemp("dots"), np.array([x * width, y * height])
    for name in ("a", "b"):
        (folder/"tree"/name).mkdir(parents=True)
        picture = (255 * dot(height, width, at, min(height, width) / 16)).round().astype(np.uint8)
        Image.fromarray(picture).save(folder/"tree"/name/"0.png")
    source = with_landmarks(FolderSource(folder/"tree", "grey"), {"a/0": at[None]}, {"spot": (0,)})
    faces = build_faceset(source, folder/"faces", size)
    points = landmarks_of(faces)
    np.testing.assert_allclose(middle(faces.images[0, ..., 0].astype(float)), points[0, 0], atol=0.2)
    assert np.isnan(points[1]).all() and points.shape == (2, 1, 2) and regions_of(faces) == {"spot": (0,)}
    assert faces.meta["facts"]["landmarks"] == {"points": 1, "faces": 1, "of": 1}

# regions and partners

def test_regions_share_the_points_out():
    assert sorted(i for numbers in REGIONS.values() for i in numbers) == list(range(68))
    assert region_points(np.zeros((4, 68, 2)), "mouth").shape == (4, 20, 2)
    flip = np.array(FLIP68)
    for numbers in REGIONS.values(): assert set(flip[list(numbers)]) == set(numbers), "a flip keeps to the region"
    with pytest.raises(BenchError, match="Did you mean 'mouth'"): region_points(np.zeros((68, 2)), "mout")
    with pytest.raises(BenchError, match="wants point 67, and there are 5"): region_points(np.zeros((5, 2)), "mouth")

def test_partners_by_name():
    names = ["left_eye", "right_eye", "nose", "mouth-l", "mouth-r", "Left brow outer", "Right brow outer", "chin"]
    assert flip_order(names).tolist() == [1, 0, 2, 4, 3, 6, 5, 7] and flip_order(5).tolist() == list(FLIP5)
    with pytest.raises(BenchError, match="no point 'right_eye'"): flip_order(["left_eye", "nose"])
    with pytest.raises(BenchError, match="not each other's mirror"): flip_order(["left a", "right a", "left a"])

@pytest.mark.parametrize("value", [[], {}, 3, *({"eyes": v} for v in ([], [0.5], [-1], [True], [1, 1], "12", [None]))])
def test_bad_regions(tmp_path, value):
    (tmp_path/"regions.json").write_text(json.dumps(value))
    with pytest.raises(BenchError, match="regions.json"): read_regions(tmp_path/"regions.json")

# reading

POINTS = np.random.default_rng(0).uniform(0, 100, (3, 4, 2)).round(3)
KEYS = ["a/x.jpg", "a/y.jpg", "z.jpg"]

def npz(path): np.savez(path/"l.npz", names=KEYS, points=POINTS)

def csv(path):
    columns = [f"{axis}{i}" for axis in "xy" for i in range(4)]  # all x, then all y
    lines = [",".join([k, *map(str, p.T.ravel())]) for k, p in zip(KEYS, POINTS, strict=True)]
    (path/"l.csv").write_text("\n".join([",".join(["key", *columns]), *lines, ""]))

def each(path, ending, text):
    for key, points in zip(KEYS, POINTS, strict=True):
        file = (path/"points"/key).with_suffix(ending)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text(points))

def pts(path):
    each(path, ".pts", lambda p: "version: 1\nn_points:  4\n{\n" + "".join(f"{x} {y}\n" for x, y in p) + "}\n")
def tem(path): each(path, ".tem", lambda p: "4\n" + "".join(f"{x}\t{y}\n" for x, y in p) + "1\n0\n3\n0 1 2\n")

@pytest.mark.parametrize("write, name", [(npz, "l.npz"), (csv, "l.csv"), (pts, "points"), (tem, "points")])
@pytest.mark.parametrize("packed", [False, True])
def test_readers(tmp_path, write, name, packed):
    (tmp_path/"in").mkdir()
    write(tmp_path/"in")
    path = tmp_path/"in"/name
    if packed:
        with tarfile.open(tmp_path/"in.tar.gz", "w:gz") as tar:
            tar.add(tmp_path/"in", "in")
            tar.add(tmp_path/"in", "second")
        path = tmp_path/"in.tar.gz"/"in"/name
    found = read_landmarks(path, first_pixel=1)
    keys = KEYS if name != "points" else [os.path.splitext(key)[0] for key in KEYS]
    assert sorted(found) == sorted(keys)
    for key, points in zip(keys, POINTS, strict=True): np.testing.assert_allclose(found[key], points - 0.5, atol=1e-5)

def test_one_point_file(tmp_path):
    pts(tmp_path)
    assert list(read_landmarks(tmp_path/"points"/"z.pts")) == ["z"]

def raw_npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()

def huge_npz() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, dtype, shape in (("names", "<U4", (10**9,)), ("points", "<f4", (10**9, 189, 2))):
            head = io.BytesIO()
            np.lib.format.write_array_header_1_0(head, {"descr": dtype, "fortran_order": False, "shape": shape})
            archive.writestr(f"{name}.npy", head.getvalue())
    return file.getvalue()

TWO = np.zeros((2, 3, 2))
BAD = {
    "text.npz": b"no zip", "empty.npz": b"", "pickle.npz": raw_npz(names=["a", "b"], points=TWO.astype(object)),
    "names.npz": raw_npz(names=np.array(["a", "b"], object), points=TWO), "lacks.npz": raw_npz(names=["a", "b"]),
    "few.npz": raw_npz(names=["a"], points=TWO), "flat.npz": raw_npz(names=["a", "b"], points=TWO[..., 0]),
    "huge.npz": huge_npz(),
    "twice.npz": raw_npz(names=["a", "a"], points=TWO), "nan.npz": raw_npz(names=["a", "b"], points=TWO * np.nan),
    "complex.npz": raw_npz(names=["a", "b"], points=TWO * 1j),
    "none.npz": raw_npz(names=np.zeros(0, "U1"), points=TWO[:0]),
    "empty.csv": b"", "header.csv": b"key,x0,y1\na,1,2\n", "keyless.csv": b"x0,y0\n1,2\n",
    "text.csv": b"key,x0,y0\na,1,b\n",
    "short.csv": b"key,x0,y0\na,1\n", "twice.csv": b"key,x0,y0\na,1,2\na,1,2\n",
    "columns.csv": b"key,x0,y0,x0\na,1,2,3\n",
    "bytes.csv": b"key,x0,y0\n\xff,1,2\n", "inf.csv": b"key,x0,y0\na,inf,2\n",
    "few.pts": b"version: 1\nn_points: 3\n{\n1 2\n}\n", "many.pts": b"n_points: 1\n{\n1 2\n3 4\n}",
    "none.pts": b"n_points: 0\n{\n}",
    "brace.pts": b"n_points: 1\n{\n1 2\n", "word.pts": b"n_points: 1\n{\n1 b\n}", "bytes.pts": b"\xff\xfe{",
    "three.pts": b"n_points: 1\n{\n1 2 3\n}",
    "few.tem": b"3\n1\t2\n", "minus.tem": b"-1\n1\t2\n", "huge.tem": b"9" * 5000 + b"\n1 2\n", "empty.tem": b"",
    "word.tem": b"two\n1 2\n3 4\n"}

@pytest.mark.parametrize("name", BAD)
def test_malformed_files(tmp_path, name):
    (tmp_path/name).write_bytes(BAD[name])
    with pytest.raises(BenchError, match="landmarks|csv"): read_landmarks(tmp_path/name)

def test_no_pickle_is_opened(tmp_path):
    class Evil:
        def __reduce__(self): return Path.touch, (tmp_path/"opened",)
    np.savez(tmp_path/"l.npz", names=np.array([Evil()], object), points=np.array([Evil()], object))
    with pytest.raises(BenchError, match="no npz of plain arrays"): read_landmarks(tmp_path/"l.npz")
    assert not (tmp_path/"opened").exists()

@settings(max_examples=120, deadline=None)
@given(st.sampled_from([".npz", ".csv", ".pts", ".tem", ".json"]), st.one_of(
    st.binary(max_size=200), st.text("0123456789 .,-\nxyen{}:_p", max_size=80)))
def test_any_bytes_as_landmarks(tmp_path_factory, ending, data):
    path = tmp_path_factory.mktemp("any")/f"l{ending}"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    try: found = read_regions(path) if ending == ".json" else read_landmarks(path)
    except BenchError: return
    assert all(value.shape[1:] == (2,) and np.isfinite(value).all() for value in found.values()) or ending == ".json"

def test_missing_and_mismatched(tmp_path):
    for name in ("l.npz", "l.csv", "l.pts"):
        with pytest.raises(BenchError, match="(?i)no such file|no file"): read_landmarks(tmp_path/name)
    with pytest.raises(BenchError, match="holds no landmarks"): read_landmarks(tmp_path)
    (tmp_path/"a.tem").write_text("1\n1 2\n")
    (tmp_path/"b.tem").write_text("2\n1 2\n3 4\n")
    with pytest.raises(BenchError, match="differ in their number of points"): read_landmarks(tmp_path)
    with pytest.raises(BenchError, match="is called 'drawn-000000' there, and 'a' here"):
        with_landmarks(DrawnSource(8), {"a": np.zeros((5, 2))})

def test_wrapper_is_the_source_and_more(tmp_path):
    plain = DrawnSource(80, 32)
    points = {f"drawn-{i:06d}": np.full((5, 2), i, np.float32) for i in range(79)}
    moved = {key: value + 1 for key, value in points.items()}
    first, again, other = (with_landmarks(plain, p) for p in (points, dict(points), moved))
    assert first.classes == plain.classes and first.load("drawn-000003").shape == (32, 32, 3)
    assert "landmarks" not in plain.facts
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    faces = build_faceset(first, tmp_path/"faces")
    assert landmarks_of(faces, [5, 79])[0].tolist() == [[5, 5]] * 5 and np.isnan(landmarks_of(faces, [5, 79])[1]).all()
    with pytest.raises(BenchError, match="nothing says which are eyes"): regions_of(faces)

# the real faces

@pytest.fixture(scope="module")
def webmorph(tmp_path_factory):
    archive = Path(os.environ.get("FER_BENCH_DATA", ROOT.parent/"shared/data"))/"webmorph_224.tar.xz"
    if not archive.exists(): pytest.skip(f"no {archive}; FER_BENCH_DATA names the folder of the real faces")
    points, regions = read_landmarks(archive/"landmarks.npz"), read_regions(archive/"regions.json")
    source = FileSource(archive, [], ())
    rows = [(key, None, "no label", None, None, None) for key in source.files.keys if key.endswith(".jpg")]
    source = with_landmarks(FileSource(source.files, rows, ()), points, regions)
    faces = build_faceset(source, tmp_path_factory.mktemp("webmorph")/"faces", 160, require_labels=False)
    return faces, points, regions

def pixels_at(images: torch.Tensor, points) -> np.ndarray:
    "Brightness (B, n) of images (B, C, H, W), square, at points (B, n, 2) in pixels, bilinear."
    grid = torch.from_numpy(2 * np.asarray(points) / images.shape[-1] - 1).to(images)[:, :, None]  # (B, n, 1, 2)
    return torch.nn.functional.grid_sample(images.mean(1, keepdim=True), grid, align_corners=False)[:, 0, :, 0].numpy()

def test_webmorph(webmorph):
    "Real faces, resized by the build, then cropped, turned and flipped: what lies under each point stays what it was."
    faces, points, regions = webmorph
    assert len(faces) == 152 == faces.meta["facts"]["landmarks"]["faces"] and regions_of(faces) == regions
    marks = landmarks_of(faces)
    np.testing.assert_allclose(marks, np.stack([points[key] for key in faces.index.key]) * 160 / 224, atol=1e-3)
    order = flip_order(marks)
    assert order[:2].tolist() == [1, 0] and all(set(order[list(n)]) == set(n) for n in regions.values())
    images = torch.from_numpy(np.array(faces.images)).permute(0, 3, 1, 2).float() / 255
    theta = affine(seeded(0), 152, degrees=10)
    mirrored = np.linalg.det(theta[:, :, :2]) < 0
    assert 40 < mirrored.sum() < 112
    followed, partners = follow(marks, theta, 160, 160, order), np.where(mirrored[:, None], order, np.arange(189))
    before, after = pixels_at(images, marks), pixels_at(warp(images, theta, 160), followed)
    inside = (followed > 2).all(-1) & (followed < 158).all(-1)
    gap = lambda values: np.abs(after - values)[inside].mean()
    assert gap(np.take_along_axis(before, partners, 1)) < 0.02 < 0.05 < gap(before[::-1])
    pupils, nose = before[:, :2], before[:, list(regions["nose"])].mean(1, keepdims=True)
    assert (pupils < nose).mean() > 0.9, "the points were on the eyes in the first place"
