"""Inference: the same picture in every form, as in training, wrong inputs, exports that agree, the model card."""
import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import fer_bench
from fer_bench.config import RunConfig
from fer_bench.core import BenchError
from fer_bench.data.drawn.faces import draw_faces
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

def shares(model, images): return predict(model, images).to_numpy()

# the way of the training

def test_test_faces_as_files_get_what_the_record_holds(trained, model):
    record, tree, _ = trained
    table = predict(model, tree/"test", batch_size=5)  # all below it, in several batches
    expected = record.predictions.set_index("key")
    logits = np.stack([expected.loc[f"test/{name.split('/test/')[1]}", "logits"] for name in table.index])
    assert len(table) == len(expected) == 16 and table.index.is_monotonic_increasing
    np.testing.assert_allclose(table, torch.from_numpy(logits).softmax(1), atol=1e-6)

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
    np.testing.assert_allclose(table, np.concatenate([shares(model, f) for f in faces]), atol=1e-6)
    assert table.index.tolist() == [0, 1, 2, 3, str(tmp_path/"last.png")] and list(table.columns) == list(model.classes)

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
    low.classes, low.faces, low.image_size = model.classes, model.faces, model.image_size
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
    ([np.zeros((8, 8, 3), np.uint8), np.ones((8, 8)) * 9], "1 of 2 pictures.*: 1: floats"), ({"a": 1}, "No such file")]

@pytest.mark.parametrize("images, says", WRONG, ids=range(len(WRONG)))
def test_wrong_pictures(model, images, says):
    with pytest.raises(BenchError, match=says): predict(model, images)

def test_all_bad_files_are_named(model, face, tmp_path):
    Image.fromarray(face).save(tmp_path/"a.png")
    (tmp_path/"b.png").write_text("this was never a picture")
    (tmp_path/"c.jpg").write_bytes(b"")
    (tmp_path/"notes.txt").write_text("x")
    with pytest.raises(BenchError, match=r"2 of 3 pictures.*b\.png: not a picture.*c\.jpg: the file is empty"):
        predict(model, tmp_path, batch_size=1)

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
    with pytest.raises(BenchError, match="no exported model"): export(trained[0], tmp_path/"mine")
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

@pytest.fixture(scope="module")
def onnx_folder(trained, tmp_path_factory):
    for package in ("onnx", "onnxscript"): pytest.importorskip(package)
    return export(trained[0], tmp_path_factory.mktemp("onnx")/"model", onnx=True)

@pytest.mark.parametrize("runtime", ["onnxruntime", "onnx.reference"])
def test_onnx_answers_as_the_network_does(onnx_folder, model, monkeypatch, runtime):
    pytest.importorskip(runtime)
    monkeypatch.setitem(load_model.__globals__, "find_spec", lambda name: runtime == "onnxruntime")
    faces = torch.rand(3, 3, 32, 32)
    logits = load_model.__globals__["_onnx_network"](onnx_folder/ONNX)(faces)
    np.testing.assert_allclose(logits, model(faces).detach(), atol=TOLERANCE)

def test_onnx_says_what_it_is(onnx_folder, model):
    import onnx
    facts = {p.key: p.value for p in onnx.load(onnx_folder/ONNX).metadata_props}
    assert facts["classes"] == ",".join(model.classes) and (facts["colour"], facts["image_size"]) == ("rgb", "32")
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
