"""The explorer without a browser: its controls select what a plain filter does, and every error is shown in words."""
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fer_bench.show.explorer as explorer
from fer_bench.config import recorded_config
from fer_bench.core import BenchError
from fer_bench.data.audit.audit import audit
from fer_bench.data.drawn.faces import DrawnSource
from fer_bench.data.faceset import build_faceset
from fer_bench.record import Record
from fer_bench.report.pages import EMPTY
from fer_bench.runs.experiment import run
from fer_bench.runs.task import load_data
from fer_bench.show.explorer import ANY, FLAGGED, NONE, Cells, browse, face_off, mistakes, predicted_faces


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Two tiny runs of the same 200 drawn faces; what they are tested on has all eight classes."
    folder = str(tmp_path_factory.mktemp("explorer"))
    given = dict(preset="tiny", drawn_faces=200, device="cpu", threads=1, results_dir=folder, cache_dir=folder)
    return [run(given | {"seed": s}) for s in (0, 1)]

@pytest.fixture(scope="module")
def faces(runs): return load_data(recorded_config(runs[0].config))

class Twice(DrawnSource):
    "Drawn faces, of which those of one person in training are test faces too, and some have no split."
    def rows(self):
        rows = super().rows()
        rows.loc[rows["subject"] == "s00002", "subject"] = "s00001"
        rows.loc[rows["subject"] == "s00005", "split"] = None
        return rows
    def load_many(self, keys):
        return super().load_many(["drawn-000003" if k == "drawn-000019" else k for k in keys])

@pytest.fixture(scope="module")
def faulty(tmp_path_factory): return build_faceset(Twice(120, 32), tmp_path_factory.mktemp("faulty")/"set")

def all_shown(pages) -> pd.DataFrame:
    "The faces of all pages, turned one after the other."
    parts = [pages.shown]
    while not pages.next.disabled:
        pages.next.click()
        parts.append(pages.shown)
    assert [len(p) for p in parts[:-1]] == [pages.per_page] * (len(parts) - 1)
    return pd.concat(parts)

def keys(pages) -> list[str]: return all_shown(pages)["key"].tolist()

@pytest.mark.parametrize("label", [ANY, NONE, "fear"])
@pytest.mark.parametrize("split", [ANY, NONE, "train", "test"])
def test_browse_by_class_and_split(faulty, label, split):
    pages, index = browse(faulty), faulty.index
    pages.controls["label"].value, pages.controls["split"].value = label, split
    fits = np.full(len(index), True)
    for column, value in (("label", label), ("split", split)):
        if value == NONE: fits &= index[column].isna()
        elif value: fits &= index[column] == value
    assert keys(pages) == index["key"][fits].tolist() and pages.note == ""

def test_browse_by_audit_flag(faulty):
    found = audit(faulty)
    pages = browse(faulty, found)
    assert {"copies across splits", "subjects"} <= {value for _, value in pages.controls["flag"].options}
    every = set()
    for finding in found.findings:
        if not len(finding.rows): continue
        pages.controls["flag"].value = finding.check
        rows = list(dict.fromkeys(finding.rows.ravel().tolist()))
        assert keys(pages) == faulty.index["key"].iloc[rows].tolist(), "pairs stand side by side"
        every |= set(rows)
    pages.controls["flag"].value = FLAGGED
    assert keys(pages) == faulty.index["key"].iloc[sorted(every)].tolist()
    pages.controls["label"].value = "sadness"
    assert set(keys(pages)) == {faulty.index["key"][i] for i in every if faulty.index["label"][i] == "sadness"}
    assert "⚑ copies across splits" in pages.sheet.value

def test_audit_by_its_button(faulty):
    pages = browse(faulty)
    button = next(w for w in pages.children[0].children if hasattr(w, "click") and w.description == "audit")
    assert [v for _, v in pages.controls["flag"].options] == [ANY]
    button.click()
    assert pages.controls["flag"].options == browse(faulty, audit(faulty)).controls["flag"].options and pages.note == ""
    assert button.layout.display == "none"

def test_audit_of_other_faces_is_refused(faulty):
    with pytest.raises(BenchError, match="audit"): browse(faulty, replace(audit(faulty), content_hash="another"))

def plain(run) -> pd.DataFrame:
    "The predictions of `run`, by a plain loop."
    classes, rows = run.metrics.classes, []
    for face in run.predictions.itertuples():
        e = np.exp(np.asarray(face.logits, float) - max(face.logits))
        p = e / e.sum()
        rows.append((face.key, face.label, classes[int(p.argmax())], p.max(), p[classes.index(face.label)]))
    return pd.DataFrame(rows, columns=["key", "truth", "predicted", "confidence", "of_truth"])

def test_predicted_faces(runs, faces):
    said = predicted_faces(runs[0], faces)
    pd.testing.assert_frame_equal(said.drop(columns="row"), plain(runs[0]), check_dtype=False)
    assert faces.index["key"].iloc[said["row"]].tolist() == said["key"].tolist()
    assert faces.index["label"].iloc[said["row"]].tolist() == said["truth"].tolist()

def test_mistakes_by_cell_confidence_order_and_method(runs, faces):
    pages = mistakes(*runs, faceset=faces, per_page=5)
    pages.controls["map"].value = NONE
    for method, one in enumerate(runs):
        pages.controls["method"].value = method
        said = plain(one)
        wrong = said["truth"] != said["predicted"]
        cells = {c: n for c, b in pages.controls["cell"].cells.items() if (n := b.description).isdigit()}
        counts = np.array(one.metrics.test.confusion)
        classes = one.metrics.classes
        assert {(classes[i], classes[j]): str(counts[i, j]) for i, j in np.argwhere(counts)} == cells
        for cell in [(ANY, ANY), ("fear", ANY), (ANY, said["predicted"][0]), *cells]:
            pages.controls["cell"].value = cell
            fits = wrong if ANY in cell else True
            for column, name in zip(("truth", "predicted"), cell, strict=True):
                if name: fits = fits & (said[column] == name)
            wanted = said[fits].sort_values("confidence", ascending=False, kind="stable")
            assert keys(pages) == wanted["key"].tolist()
        pages.controls["cell"].value, pages.controls["order"].value = (ANY, ANY), "least confident first"
        pages.controls["confidence"].value = (0.1, 0.2)
        fits = wrong & (said["confidence"] >= 0.1) & (said["confidence"] <= 0.2)
        assert keys(pages) == said[fits].sort_values("confidence", kind="stable")["key"].tolist()
        pages.controls["order"].value, pages.controls["confidence"].value = "most confident first", (0, 1)

def test_a_click_on_the_matrix(runs, faces):
    pages = mistakes(runs[0], faceset=faces)
    cells = pages.controls["cell"].cells.items()
    cell, button = next((c, b) for c, b in cells if b.description.isdigit() and c[0] != c[1])
    before = pages.sheet.value
    button.click()
    assert pages.controls["cell"].value == cell and pages.sheet.value != before
    assert set(zip(pages.shown["truth"], pages.shown["predicted"], strict=True)) == {cell}
    pages.controls["cell"].cells[ANY, ANY].click()
    assert pages.sheet.value == before

def test_face_off(runs, faces):
    one, two = map(plain, runs)
    pages = face_off(*runs, faceset=faces, per_page=4)
    pages.controls["map"].value = NONE
    a, b = (t["predicted"] == t["truth"] for t in (one, two))
    wanted = {"run": (a & ~b, one), "other": (b & ~a, two),
              "neither": (~a & ~b & (one["predicted"] != two["predicted"]), one)}
    for who, (fits, table) in wanted.items():
        pages.controls["who"].value = who
        for label in (ANY, "fear", "neutral"):
            pages.controls["label"].value = label
            kept = table[fits & ((table["truth"] == label) | (label == ANY))]
            assert keys(pages) == kept.sort_values("confidence", ascending=False, kind="stable")["key"].tolist()

def test_maps_of_the_page_alone_and_each_once(runs, faces, monkeypatch):
    made = []
    make = explorer.maps_of
    def counted(network, images, *a, **k):
        made.append(len(images))
        return make(network, images, *a, **k)
    monkeypatch.setattr(explorer, "maps_of", counted)
    pages = mistakes(runs[0], faceset=faces, per_page=4)
    pages.next.click()
    pages.previous.click()
    assert made == [4, 4] and len(pages.cards) == 4
    pages.controls["map"].value = "layercam"
    pages.controls["map"].value = "gradcam"
    assert made == [4, 4, 4]
    assert pages.sheet.value.count("<img") == 8

def test_without_weights(runs, faces, tmp_path):
    "As a committed record is: no weights. The faces are shown all the same, and the missing map is said in words."
    folder = shutil.copytree(runs[0].folder, tmp_path/runs[0].id, ignore=shutil.ignore_patterns("*.safetensors"))
    for pages, images in ((mistakes(Record(folder), faceset=faces), 1),
                          (face_off(Record(folder), runs[1], faceset=faces), 2)):
        assert pages.note.startswith("No heat maps: ") and "weights" in pages.words.value
        assert pages.sheet.value.count("<img") == images * len(pages.shown) > 0
        pages.controls["map"].value = NONE
        assert pages.note == ""

def test_errors_after_a_click_are_words(runs, faces, monkeypatch):
    pages = mistakes(runs[0], faceset=faces)
    def broken(*a, **k): raise BenchError("This network <b>has no maps</b>.")
    monkeypatch.setattr(explorer, "maps_of", broken)
    pages.controls["map"].value = "eigencam"
    assert pages.note == "This network <b>has no maps</b>." and "&lt;b&gt;" in pages.words.value
    assert "<img" not in pages.sheet.value
    monkeypatch.undo()
    pages.controls["map"].value = "gradcam"
    assert pages.note == "" and "<img" in pages.sheet.value

def test_no_face_fits(runs, faces):
    pages = mistakes(runs[0], faceset=faces)
    pages.controls["confidence"].value = (0, 0)
    assert len(pages.shown) == 0 and "No face fits" in pages.where.value
    assert pages.next.disabled and pages.previous.disabled
    pages.turn(1)
    assert pages.page == 0 and "<img" not in pages.sheet.value

def test_other_faces_are_refused(runs, faulty, tmp_path):
    with pytest.raises(BenchError, match="other faces"): mistakes(runs[0], faceset=faulty)
    given = dict(preset="tiny", drawn_faces=120, device="cpu", threads=1, results_dir=str(tmp_path))
    with pytest.raises(BenchError, match="other faces"): face_off(runs[0], run(given))
    with pytest.raises(BenchError, match="both called"): face_off(runs[0], runs[0])

def test_names_of_others_are_text(faces):
    "Keys, labels and names of people are whatever somebody's files are called."
    evil = "<img src=x onerror='alert(1)'>\"&"
    index = faces.index.assign(key=evil, subject=evil, label=evil)
    pages = browse(replace(faces, index=index, meta=faces.meta | {"classes": [evil, "b"]}), per_page=2)
    assert pages.sheet.value.count("<img") == 2 and "onerror='" not in pages.sheet.value
    assert "&lt;img src=x" in pages.sheet.value

def test_a_still_picture_of_drawn_faces_alone(runs, faces):
    drawn, real = browse(faces), browse(replace(faces, meta=faces.meta | {"facts": {}}))
    assert "image/png" in drawn._repr_mimebundle_() and "image/png" not in real._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in real._repr_mimebundle_()
    assert len(repr(drawn)) < 100

def test_grey_and_large_faces(tmp_path):
    class Grey(DrawnSource):
        colour = "grey"
        def load_many(self, keys):
            return [face.mean(2, keepdims=True).astype(np.uint8) for face in super().load_many(keys)]
    pages = browse(build_faceset(Grey(16, 200), tmp_path/"grey"))
    assert pages.note == "" and pages.sheet.value.count("<img") == 16 and len(pages.sheet.value) < 16 * 60_000

def test_cells_mark_what_is_chosen():
    cells = Cells(["a", "b"])
    cells.show(np.array([[3, 1], [0, 2]]))
    assert [cells.cells[c].description for c in (("a", "a"), ("a", "b"), ("b", "a"))] == ["3", "1", EMPTY]
    assert cells.cells["b", "a"].disabled and not cells.cells["a", "b"].disabled
    cells.show(np.array([[3, 0], [1, 2]]))
    assert (cells.cells["a", "b"].description, cells.cells["b", "a"].description) == (EMPTY, "1")
    assert all(b.description for b in cells.cells.values()), "a browser keeps the old text of an empty description"
    cells.cells["a", "b"].click()
    assert cells.value == ("a", "b") and cells.cells["a", "b"].style.font_weight == "bold"
    assert cells.cells[ANY, ANY].style.font_weight == "normal"

def test_kept_notebooks_hold_pictures_and_no_live_widgets():
    "Without its kernel a widget is an error message; `make export` after a run in JupyterLab would keep one."
    notebooks = [p for p in (Path(__file__).parent.parent/"nbs").rglob("*.ipynb")
                 if ".ipynb_checkpoints" not in p.parts]
    kept = [p.name for p in notebooks if '"application/vnd.jupyter.widget-view+json"' in p.read_text()]
    assert len(notebooks) > 50 and kept == [], "clear the outputs of their widgets"
