"""Inference: the same picture in every form, as in training, wrong inputs, exports that agree, the model card."""
import io
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import fer_bench
from fer_bench.config import RunConfig
from fer_bench.core import BenchError, sha256
from fer_bench.data.drawn.faces import draw_faces
from fer_bench.data.faceset import build_faceset
from fer_bench.data.sources.folders import FolderSource
from fer_bench.record import Record
from fer_bench.report.card import MODEL, ONNX, model_card
from fer_bench.runs.experiment import run
from fer_bench.runs.inference import CARD, FACTS, TOLERANCE, export, load_model, predict

SIDE = 40  # of the pictures; the network looks at 32


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A run on a tree of drawn faces as PNG, its tree, and its results folder."
    place = tmp_path_factory.mktemp("trained")
    drawn = draw_faces(range(48), size=SIDE)
    for i, (image, name) in enumerate(zip(drawn["images"], drawn["expression"], strict=True)):
        folder = place/"tree"/("test" if i % 3 == 0 else "train")/name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder/f"{i}.png")
    config = RunConfig(preset="tiny", dataset="folder", data_root=str(place/"tree"), threads=1, device="cpu", ema=0.0,
                       results_dir=str(place/"results"), cache_dir=str(place/"cache"))
    return run(config), place/"tree", place/"results"

@pytest.fixture(scope="module")
def model(trained): return load_model(trained[0])

@pytest.fixture(scope="module")
def face(): return draw_faces([7], size=SIDE)["images"][0]

def shares(model, images): return predict(model, images)[list(model.classes)].to_numpy()

# the way of the training

def test_test_faces_as_files_get_what_the_record_holds(trained, model):
    record, tree, _ = trained
    table = predict(model, tree/"test", batch_size=5)  # all below it, in several batches
    expected = record.predictions.set_index("key")
    logits = np.stack([expected.loc[f"test/{name.split('/test/')[1]}", "logits"] for name in table.index])
    assert len(table) == len(expected) == 16 and table.index.is_monotonic_increasing
    np.testing.assert_allclose(table[list(model.classes)], torch.from_numpy(logits).softmax(1), atol=1e-6)
    assert not table["note"].any()

def test_a_run_by_id_record_or_folder(trained, model, face):
    record, _, results = trained
    for found in (load_model(record.id, results), load_model(record.folder), load_model(str(record.folder)),
                  fer_bench.load_model(record)):
        np.testing.assert_array_equal(shares(found, face), shares(model, face))
    assert not model.training and model.classes == tuple(record.metrics["classes"]) and model.run_id == record.id
    assert model(torch.rand(2, 3, model.image_size, model.image_size)).shape == (2, 8)

def test_a_record_of_before_is_asked_for_its_data(trained, model, face, tmp_path):
    record, _, results = trained
    shutil.copytree(record.folder, folder := tmp_path/record.id)
    metrics = json.loads((folder/"metrics.json").read_text())
    assert metrics.pop("faces")["colour"] == "rgb"
    (folder/"metrics.json").write_text(json.dumps(metrics)); (folder/"status.json").unlink()
    np.testing.assert_array_equal(shares(load_model(Record(folder)), face), shares(model, face))
    config = json.loads((folder/"config.json").read_text())
    (folder/"config.json").write_text(json.dumps(config | {"data_root": "no/such/tree"}))
    with pytest.raises(BenchError, match="its data cannot be read"): load_model(Record(folder))

# every form of a picture

def forms(face, folder):
    Image.fromarray(face).save(folder/"face.png")
    tensor = torch.from_numpy(face).permute(2, 0, 1)
    return {"path": folder/"face.png", "text": str(folder/"face.png"), "folder": folder, "PIL": Image.fromarray(face),
            "uint8": face, "floats": face / 255, "batch": face[None], "tensor": tensor, "float tensor": tensor / 255,
            "batch of doubles": (tensor / 255)[None].double(), "list": [face], "generator": (f for f in [face]),
            "tuple": (face[None],)}

def test_the_same_face_in_every_form(model, face, tmp_path):
    expected = shares(model, face)
    for form, given in forms(face, tmp_path).items():
        np.testing.assert_allclose(shares(model, given), expected, atol=1e-7, err_msg=form)
    assert abs(expected.sum() - 1) < 1e-6

def test_many_at_once_are_each_alone(model, tmp_path):
    faces = draw_faces(range(5), size=SIDE)["images"]
    Image.fromarray(faces[4]).save(tmp_path/"last.png")
    mixed = [faces[:2], Image.fromarray(faces[2]), torch.from_numpy(faces[3]).permute(2, 0, 1), tmp_path/"last.png"]
    table = predict(model, mixed, batch_size=2)
    each = np.concatenate([shares(model, f) for f in faces])
    np.testing.assert_allclose(table[list(model.classes)], each, atol=1e-6)
    assert table.index.tolist() == [0, 1, 2, 3, str(tmp_path/"last.png")]
    assert list(table.columns) == [*model.classes, "note"]

def test_exif_and_grey_and_alpha(model, face, tmp_path):
    expected, turned = shares(model, face), Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    Image.fromarray(np.rot90(face).copy()).save(tmp_path/"turned.png", exif=turned)
    with Image.open(tmp_path/"turned.png") as image:
        np.testing.assert_allclose(shares(model, image), expected, atol=1e-7)
    np.testing.assert_allclose(shares(model, tmp_path/"turned.png"), expected, atol=1e-7)
    np.testing.assert_allclose(shares(model, Image.fromarray(face).convert("RGBA")), expected, atol=1e-7)
    grey = np.array(Image.fromarray(face).convert("L"))
    as_rgb = shares(model, np.repeat(grey[..., None], 3, 2))
    for given in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None], Image.fromarray(grey)):
        np.testing.assert_allclose(shares(model, given), as_rgb, atol=1e-7)
    assert np.abs(as_rgb - expected).max() > 1e-6

def test_a_network_of_grey_faces_sees_grey(model, face):
    grey, was = np.asarray(Image.fromarray(face).convert("L")), model.faces
    try:
        model.faces = was | {"colour": "grey"}
        np.testing.assert_array_equal(shares(model, face), shares(model, grey))
    finally: model.faces = was

def test_another_size_and_shape_goes_as_a_faceset_is_built(model, face):
    wide = np.pad(face, ((0, 0), (10, 10), (0, 0)), mode="edge")  # the largest centred square is the face
    large = np.asarray(Image.fromarray(face).resize((3 * SIDE, 3 * SIDE), Image.Resampling.NEAREST))
    np.testing.assert_allclose(shares(model, wide), shares(model, face), atol=1e-7)
    np.testing.assert_allclose(shares(model, large), shares(model, face), atol=0.01)

def test_it_computes_where_and_in_what_the_model_is(model, face):
    low = load_model.__globals__["create_classifier"]("test_resnet", 8, 32)[0]
    low.load_state_dict(model.state_dict())
    for name in ("classes", "faces", "image_size", "test_views"): setattr(low, name, getattr(model, name))
    low = low.bfloat16().train()
    np.testing.assert_allclose(shares(low, face), shares(model, face), atol=0.02)
    assert low.training, "the mode comes back"

# wrong inputs

WRONG = [
    ([], "no picture"), (np.zeros((0, 8, 8, 3), np.uint8), "no picture"),
    ("no/such.png", "No such file"), (3, "cannot be a int"),
    (np.zeros((4, 8, 8)), "no picture. Arrays"), (np.zeros((8, 8, 4), np.uint8), "no picture. Arrays"),
    (np.zeros(8, np.uint8), "no picture"), (np.zeros((0, 8), np.uint8), "no picture"),
    (torch.zeros(2, 2, 3, 8, 8), "no picture"),
    (np.full((8, 8), 200.0), r"floats from 200 to 200.*divide by 255"), (np.full((8, 8), np.nan), "floats from nan"),
    (-np.ones((8, 8)), r"from -1"), (np.zeros((8, 8), np.int64), "type int64"), (np.zeros((8, 8), bool), "type bool"),
    (torch.zeros(3, 8, 8, dtype=torch.int32), "type int32"), (Image.new("F", (8, 8)), "mode F"),
    ([np.zeros((8, 8, 4), np.uint8), np.ones((8, 8)) * 9], "None of 2 pictures.*0: Shape.*; 1: floats"),
    ({"a": 1}, "No such file"), ("", "path of a picture is empty")]

@pytest.mark.parametrize("images, says", WRONG, ids=range(len(WRONG)))
def test_wrong_pictures(model, images, says):
    with pytest.raises(BenchError, match=says): predict(model, images)

def dirty_tree(place, face):
    "Two class folders with good pictures of unusual names, bad ones, and what systems leave behind."
    good, image = io.BytesIO(), Image.fromarray(face)
    image.save(good, "JPEG")
    for name in ("a", "b"):
        (folder := place/name).mkdir(parents=True)
        for ending in ("jpg", "jfif", "jpe", "JPEG", "noending"): (folder/f"face.{ending}").write_bytes(good.getvalue())
        (folder/"picture").write_bytes(good.getvalue())
        (folder/"cut.jpg").write_bytes(good.getvalue()[:300])
        (folder/"empty.png").write_bytes(b"")
        (folder/"notes.txt").write_text("this was never a picture")
        (folder/"Thumbs.db").write_bytes(b"x")
        for hidden in (".face.jpg", "._face.jpg"): (folder/hidden).write_bytes(good.getvalue())
        (folder/"@eaDir").mkdir()
        (folder/"@eaDir"/"face.jpg").write_bytes(good.getvalue())
        if hasattr(os, "mkfifo"): os.mkfifo(folder/"pipe.jpg")
    return place

def test_one_dirty_folder_has_the_rows_that_the_build_has(model, face, tmp_path, capsys):
    tree = dirty_tree(tmp_path/"tree", face)
    built = build_faceset(FolderSource(str(tree)), tmp_path/"set", SIDE)
    table = predict(model, tree, batch_size=3)
    table.index = [name.removeprefix(f"{tree}/") for name in table.index]
    bad = table[list(model.classes)].isna()
    assert (bad.any(axis=1) == bad.all(axis=1)).all() and len(built) == 12
    assert table.index[~bad.any(axis=1)].tolist() == built.index["key"].tolist()
    assert dict(table["note"][bad.any(axis=1)]) == {r["key"]: r["reason"] for r in built.meta["rejected"]}
    np.testing.assert_allclose(table.loc["a/face.jfif", list(model.classes)].to_numpy(float),
                               shares(model, tree/"a"/"face.jpg")[0], atol=1e-7)
    assert f"{bad.any(axis=1).sum()} of {len(table)} pictures put aside" in capsys.readouterr().err

def test_an_archive_has_the_rows_of_its_folder(model, face, tmp_path):
    tree = dirty_tree(tmp_path/"tree", face)
    packed = shutil.make_archive(str(tmp_path/"faces"), "zip", tree)
    below = [name.removeprefix(f"{packed}/") for name in predict(model, packed).dropna().index]
    assert below == [name.removeprefix(f"{tree}/") for name in predict(model, tree).dropna().index]

def test_one_bad_picture_loses_no_other(model, face, tmp_path, capsys):
    Image.fromarray(face).save(tmp_path/"a.png")
    given = [tmp_path/"a.png", np.ones((8, 8)) * 9, tmp_path/"no.png", face]
    table = predict(model, given, batch_size=2)
    assert table["note"].str.split(":").str[0].str.split(",").str[0].tolist() == [
        "", "floats from 9 to 9", "No such file or directory", ""]
    np.testing.assert_allclose(table.loc[[str(tmp_path/"a.png"), 3], list(model.classes)],
                               np.repeat(shares(model, face), 2, 0), atol=1e-7)
    assert "2 of 4 pictures put aside" in capsys.readouterr().err

@pytest.mark.parametrize("width, height, doubt", [
    (640, 480, "not nearly square"), (480, 640, "not nearly square"), (3000, 3000, "as large as a photograph"),
    (12, 12, "too few"), (178, 218, ""), (250, 250, ""), (48, 48, ""), (SIDE, SIDE, "")])
def test_a_picture_that_is_no_cut_out_face_is_doubted(model, capsys, width, height, doubt):
    table = predict(model, Image.new("RGB", (width, height)))
    assert table[list(model.classes)].notna().all(axis=None)
    note, said = table["note"].iloc[0], capsys.readouterr().err
    assert (doubt in note and "1 of 1 pictures hardly cut out" in said) if doubt else note == said == ""

def copied(record, folder, **faces):
    "A copy of `record` with other facts of its `faces`, as if it had never been sealed."
    shutil.copytree(record.folder, place := folder/record.id)
    metrics = json.loads((place/"metrics.json").read_text())
    metrics["faces"] |= faces
    del metrics["weights"]
    (place/"metrics.json").write_text(json.dumps(metrics))
    (place/"status.json").unlink()
    return Record(place)

def with_nan(path):
    state = load_file(path)
    name = next(n for n in state if n.endswith("running_var"))
    state[name][0] = float("nan")
    save_file(state, path)
    return path

def test_weights_that_are_not_finite_are_refused(trained, model, face, tmp_path):
    record = copied(trained[0], tmp_path)
    folder = export(record, tmp_path/"export")
    with_nan(record.folder/"weights.safetensors")
    for use in (load_model, lambda r: export(r, tmp_path/"new")):
        with pytest.raises(BenchError, match="NaN or infinite, such as in .*running_var"): use(record)
    assert not (tmp_path/"new").exists()
    facts = json.loads((folder/FACTS).read_text())
    (folder/FACTS).write_text(json.dumps(facts | {"sha256": sha256(with_nan(folder/MODEL).read_bytes())}))
    with pytest.raises(BenchError, match="NaN or infinite, such as"): load_model(folder)
    broken = load_model(trained[0])
    with torch.no_grad(): broken.head.bias[0] = torch.inf
    with pytest.raises(BenchError, match="gives NaN or infinity"): predict(broken, face)

def test_wrong_models_and_runs(trained, face, tmp_path):
    record, _, results = trained
    with pytest.raises(BenchError, match="load_model"): predict(torch.nn.Linear(2, 2), face)
    with pytest.raises(BenchError, match="no finished run"): load_model("supervised-x", results)
    shutil.copytree(record.folder, tmp_path/record.id, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(BenchError, match="travel without weights"): load_model(tmp_path/record.id)

# export

def test_export_and_back(trained, model, face, tmp_path):
    record, _, results = trained
    folder = export(record.id, tmp_path/"a folder, 'quoted'", results_dir=results)
    again = load_model(folder)
    assert sorted(p.name for p in folder.iterdir()) == sorted((CARD, FACTS, MODEL)) and not again.training
    pd.testing.assert_frame_equal(predict(again, face), predict(model, face))
    for name in ("classes", "image_size", "run_id", "faces"): assert getattr(again, name) == getattr(model, name)
    first = (folder/MODEL).read_bytes()
    assert (export(record, folder)/MODEL).read_bytes() == first, "an earlier export is replaced"
    data = bytearray(first); data[-1] ^= 1
    (folder/MODEL).write_bytes(data)
    with pytest.raises(BenchError, match="damaged.*not what was exported"): load_model(folder)

def test_nothing_is_lost_and_nothing_half_made_is_left(trained, tmp_path, monkeypatch):
    (tmp_path/"mine").mkdir(); (tmp_path/"mine"/"thesis.txt").write_text("all of it")
    with pytest.raises(BenchError, match="something else than an exported model"): export(trained[0], tmp_path/"mine")
    assert (tmp_path/"mine"/"thesis.txt").read_text() == "all of it"
    load = load_model.__globals__["_exported"]
    def wrong(folder):
        net = load(folder)
        net.head.bias.data += 10 * TOLERANCE
        return net
    monkeypatch.setitem(load_model.__globals__, "_exported", wrong)
    with pytest.raises(BenchError, match="model.safetensors does not predict drawn faces as the network does.*0.001"):
        export(trained[0], tmp_path/"new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine"]

@pytest.mark.parametrize("held", [["model.json"], ["model.json", "train.py"], ["model.json", "README.md"],
                                  [CARD, FACTS, MODEL, "train.py"], [CARD, FACTS, MODEL, ".git"],
                                  [CARD, FACTS, MODEL, ONNX]])
def test_only_a_folder_that_holds_an_export_alone_is_replaced(trained, tmp_path, held):
    for name in held: (tmp_path/name).write_text(name)
    with pytest.raises(BenchError, match="which this export would delete" if ONNX in held else "something else"):
        export(trained[0], tmp_path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {name: name for name in held}

@pytest.mark.parametrize("change, says", [
    ({"image_size": 100_000}, "image_size = 100000"), ({"image_size": "32"}, "image_size"),
    ({"min_map": -1}, "min_map"), ({"min_map": 10**6}, "min_map"),
    ({"classes": ["x"] * 1001}, "classes"), ({"classes": []}, "classes"),
    ({"faces": {"size": [100_000, 32]}}, "faces.size"), ({"faces": {"size": [0, 32]}}, "faces.size"),
    ({"faces": {"colour": "blue"}}, "faces.colour"), ({"sha256": None}, "not what was exported"),
    ({"backbone": 3}, "backbone")])
def test_absurd_facts_of_a_model_are_refused_before_anything_is_built(trained, tmp_path, monkeypatch, change, says):
    facts = json.loads((export(trained[0], tmp_path/"m")/FACTS).read_text())
    faces = facts["faces"] | change.get("faces", {})
    (tmp_path/"m"/FACTS).write_text(json.dumps({**facts, **change, "faces": faces}))
    def built(*_, **__): raise AssertionError("a network was built")
    monkeypatch.setitem(load_model.__globals__, "create_classifier", built)
    with pytest.raises(BenchError, match=says): load_model(tmp_path/"m")

# ONNX

def exported(record, folder, **faces):
    "An export with ONNX of a copy of `record` with other facts of its `faces`, far from even probabilities."
    for package in ("onnx", "onnxscript"): pytest.importorskip(package)
    record = copied(record, folder, **faces)
    with torch.no_grad(): (network := load_model(record)).head.weight.mul_(30)
    save_file(network.state_dict(), record.folder/"weights.safetensors")
    return export(record, folder/"model", onnx=True)

@pytest.fixture(scope="module")
def onnx_folder(trained, tmp_path_factory): return exported(trained[0], tmp_path_factory.mktemp("onnx"))

@pytest.mark.parametrize("runtime", ["onnxruntime", "onnx.reference"])
def test_onnx_answers_as_the_network_does(onnx_folder, monkeypatch, runtime):
    pytest.importorskip(runtime)
    monkeypatch.setitem(load_model.__globals__, "find_spec", lambda name: runtime == "onnxruntime")
    faces = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    logits = load_model.__globals__["_onnx_network"](onnx_folder/ONNX)(faces)
    expected = load_model(onnx_folder)(torch.from_numpy(faces).permute(0, 3, 1, 2) / 255).detach()
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE)

def by_the_card(folder, pictures, monkeypatch):
    "Classes and probabilities of the example in the card of `folder`, run as it stands there."
    code = (folder/CARD).read_text().split("```python\n")[1].split("```")[0]
    shutil.copy(pictures[0], folder/"face.png")
    monkeypatch.chdir(folder)
    exec(code, space := {})  # noqa: S102
    assert "fer_bench" not in code and "torch" not in code
    return space["classes"], space["predict"]([str(p) for p in pictures])

def some_pictures(folder, face, size=None) -> list:
    "Files in every colour and shape; all of `size` (width, height) if one is given."
    image, turned = Image.fromarray(face).resize((96, 96)), Image.Exif()
    turned[0x0112] = 6
    alpha = image.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(alpha.size))
    shown = {"colour": image, "grey": image.convert("L"), "wide": image.crop((0, 20, 96, 90)),
             "tall grey": image.crop((10, 0, 81, 96)).convert("L"), "small": image.resize((21, 21)), "alpha": alpha,
             "grey alpha": alpha.convert("LA"), "palette": image.quantize(16), "bits": image.convert("1"),
             "large": image.resize((301, 250))}
    for name, picture in shown.items(): (picture.resize(size) if size else picture).save(folder/f"{name}.png")
    if not size: image.crop((0, 0, 96, 70)).save(folder/"turned.jpg", exif=turned)
    return sorted(folder.iterdir())

@pytest.mark.parametrize("faces", [{}, {"colour": "grey", "size": [48, 48]},
                                   pytest.param({"size": [36, 40]}, marks=pytest.mark.nightly)],
                         ids=["as trained", "grey, another size", "oblong"])
def test_onnx_by_its_card_answers_as_predict_does(trained, onnx_folder, face, tmp_path, monkeypatch, faces):
    pytest.importorskip("onnxruntime")
    (pictures := tmp_path/"pictures").mkdir()
    height, width = faces.get("size", [48, 48])
    files = some_pictures(pictures, face, (width, height) if height != width else None)
    folder = exported(trained[0], tmp_path, **faces) if faces else shutil.copytree(onnx_folder, tmp_path/"copy")
    classes, found = by_the_card(folder, files, monkeypatch)
    expected = predict(load_model(folder), files)
    assert classes == list(expected.columns[:-1]) and np.ptp(found, axis=0).max() > 0.01
    np.testing.assert_allclose(found, expected[classes], atol=TOLERANCE)

def test_onnx_refuses_faces_that_were_prepared_otherwise(onnx_folder):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(onnx_folder/ONNX)
    for wrong in (np.zeros((1, 32, 32, 3), np.float32), np.zeros((1, 3, 32, 32), np.uint8),
                  np.zeros((1, 32, 32, 1), np.uint8), np.zeros((1, 48, 48, 3), np.uint8)):
        with pytest.raises(Exception, match="INVALID_ARGUMENT"): session.run(None, {"faces": wrong})

def test_onnx_says_what_it_is(onnx_folder, model):
    import onnx
    facts = {p.key: p.value for p in onnx.load(onnx_folder/ONNX).metadata_props}
    assert tuple(json.loads(facts["classes"])) == model.classes
    assert (facts["colour"], facts["image_size"]) == ("rgb", "32")
    assert ONNX in (onnx_folder/CARD).read_text()
    assert {p.name for p in onnx_folder.iterdir()} == {CARD, FACTS, MODEL, ONNX}

def test_without_onnx(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(load_model.__globals__, "find_spec", lambda name: None)
    with pytest.raises(BenchError, match=r"needs onnx and onnxscript.*pip install 'fer_bench\[onnx\]'"):
        export(trained[0], tmp_path/"m", onnx=True)
    assert list(tmp_path.iterdir()) == []

def test_card_says_what_it_has_to(trained):
    record = trained[0]
    metrics = record.metrics
    faces = metrics.faces.model_dump() | {"licence": "for research, by agreement.", "colour": "grey"}
    card = model_card(record, faces, [MODEL])
    test = metrics["test"]
    war, low, high = (f"{100 * value:.1f}" for value in (test["WAR"], *test["WAR_ci"]))
    assert f"| accuracy (WAR) | {war} % [{low}, {high}] |" in card
    for words in ("for research, by agreement. The weights", f"{metrics['n']['labelled']} labelled faces (all of",
                  "32 images seen", "16 test faces", "grey, repeated", metrics["data_hash"][:12], "## Limits",
                  "load_model", *metrics["classes"]):
        assert words in card, words
    assert "drawn faces" not in card and ONNX not in card and "too good" not in card
    record = Record(record.folder)
    record.metrics = metrics.model_copy(update={"drawn": True, "select": "oracle", "audit": ["Two faces are copies."]})
    card = model_card(record, faces, [MODEL, ONNX])
    for words in ("These are drawn faces", "too good", "Two faces are copies.", "model.onnx"):
        assert words in card, words

def test_a_picture_out_of_a_stream(model, face):
    file = io.BytesIO(); Image.fromarray(face).save(file, "PNG"); file.seek(0)
    with Image.open(file) as image: np.testing.assert_allclose(shares(model, image), shares(model, face), atol=1e-7)
