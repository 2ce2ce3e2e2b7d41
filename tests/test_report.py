"""Tables and figures from records made by hand: nothing mixed in silence, no empty panel, bad input named."""
import io
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fer_bench.catalogue import known_entry
from fer_bench.core import BenchError
from fer_bench.report.figures import (
    DRAWN,
    as_pictures,
    confusion_matrix,
    contact_sheet,
    heat_maps,
    overlay,
    right_and_wrong,
    save_figure,
    training_curve,
)
from fer_bench.report.scores import HEADINGS, only_warm_up
from fer_bench.report.tables import comparable, compare, notes, to_markdown, to_terminal
from fer_bench.schema import Status, example_environment, example_metrics

CLASSES = ["fear", "happiness", "contempt"]
POOL = {"members": ["rest", "people"], "faces": [9000, 80], "dropped": [0, 0], "hash": "b" * 64}


def record(run="a", epochs=3, config=None, environment=None, history=None, **metrics):
    "A record as `fer_bench.record.Record` looks from outside, of real faces and without anything to note."
    test = {"WAR": 0.874, "WAR_ci": [0.861, 0.886], "UAR": 0.8, "UAR_ci": [0.77, 0.83], "macro_F1": 0.79,
            "macro_F1_ci": [0.7649, 0.8151], "n": 40, "confusion": [[10, 2, 0], [3, 25, 0], [0, 0, 0]]}
    steps = np.arange(1, epochs + 1)
    frame = pd.DataFrame({"epoch": steps, "step": 5 * steps, "loss": 1 / steps, "lr": 0.1, "train_seconds": steps})
    config = dict(method="supervised", dataset="ferplus", backbone="resnet18", init="scratch", labels_per_class=50,
                  seed=0, label_seed=0, precision="auto", image_size=48, epochs=epochs, steps_per_epoch=5,
                  batch_size=8) | (config or {})
    facts = dict(method=config["method"], kind=known_entry(config["method"]).kind, dataset="ferplus", classes=CLASSES,
                 epoch=epochs,
                 images_seen=120, labelled_seen=config["epochs"] * 5 * config["batch_size"], parameters=11_181_642,
                 train_seconds=12.34) | metrics
    if len(facts["classes"]) != len(test["confusion"]): del test["confusion"], test["n"]
    test |= metrics.get("test", {})
    if "confusion" in test: test["n"] = int(np.sum(test["confusion"]))
    return SimpleNamespace(id=run, history=frame.assign(**history or {}), config=config, status=Status(state="missing"),
                           metrics=example_metrics(**facts | {"test": test}),
                           environment=example_environment(**{"commit": "0123456789ab"} | (environment or {})))


# --- tables ---

def test_a_row_says_what_was_trained_and_how_sure_the_number_is():
    assert compare([record()]).iloc[0].to_dict() == {
        "method": "supervised", "backbone": "resnet18", "init": "scratch", "labels": "50", "unlabelled": "none",
        "seed": 0,
        "labelled seen": 120, "images seen": 120, "params (M)": 11.18, "seconds": 12.3,
        "WAR": "87.4 [86.1, 88.6]", "UAR": "80.0 [77.0, 83.0]", "WAR adjusted": "–",
        "macro-F1": "79.0 [76.5, 81.5]", "select": "last", "data": "ferplus", "commit": "0123456"}


@pytest.mark.parametrize("column, expected, changes", [
    ("labels", "all", dict(config={"labels_per_class": None})),
    ("labels", "50 (capped)", dict(capped={"fear": 12})),
    ("data", "drawn", dict(drawn=True)),
    ("select", "oracle", dict(select="oracle")),
    ("commit", "0123456+", dict(environment={"dirty": True})),
    ("unlabelled", "9,000 rest + 80 people", dict(pool=POOL)),
    ("unlabelled", "9,000 rest + 80 people, 25 % in use",
     dict(pool=POOL, history={"pool_seen": [400] * 3, "pool_used": [300, 200, 100]})),
    ("unlabelled", "none", dict(history={"pool_seen": [400] * 3, "pool_used": [300, 200, 100]})),
    ("method", "dtm (policy fixed)", dict(config={"method": "dtm", "policy": "fixed", "balance": "sampler"})),
    ("method", "supervised (balance sampler)", dict(config={"balance": "sampler"})),
    ("commit", "unknown", dict(environment={"commit": None, "dirty": None})),
])
def test_a_row_marks_what_is_special(column, expected, changes):
    assert compare([record(**changes)])[column].item() == expected


def test_a_share_of_the_pool_that_is_none_is_refused():
    for used, says in (([500] * 3, "says that 500 of 400"), (["x"] * 3, "a pool_used that is no number")):
        with pytest.raises(BenchError, match=f"'a' {says}|'a' has {says}"):
            compare([record(pool=POOL, history={"pool_seen": [400] * 3, "pool_used": used})])
    with pytest.raises(BenchError, match="a thresholds that is no number, or numbers of another count"):
        notes([record(pool=POOL, history={"thresholds": [[0.1, 0.2, 0.3], [0.1], [0.1]]})])


def test_uar_stands_first_where_labels_were_drawn_class_by_class():
    rates = lambda *configs: [c for c in compare([record(config=c) for c in configs]) if c in HEADINGS.values()]
    every, budget = {"labels_per_class": None}, {"labels_per_class": None, "budget": "ada_cm-400"}
    assert rates({}) == rates(budget) == rates({}, budget) == ["UAR", "WAR", "WAR adjusted", "macro-F1"]
    assert rates(every) == rates({}, every) == ["WAR", "UAR", "macro-F1"]


WARM = [(dict(warm_up=[1.0, 1.0, 1.0]), True), (dict(warm_up=[1.0, 0.5, 1.0]), False),
        (dict(thresholds=[[0.1, 0.2, 0.3]] * 3), True), (dict(thresholds=[[0.1, 0.5, 0.3], *[[0.1] * 3] * 2]), False),
        (dict(thresholds=[[0.1, 0.2, 0.3]] * 3, warm_up=[1, 0, 0]), False), (dict(thresholds=[None] * 3), False),
        ({}, False)]

@pytest.mark.parametrize("history, warm", WARM)
def test_a_note_says_when_a_threshold_never_left_its_warm_up(history, warm):
    "By the history's share of classes in warm-up; without it, where no threshold exceeded 1/K and so all was accepted."
    runs = [record(r, config={"method": "flexmatch"}, pool=POOL, history=h) for r, h in (("a", history), ("b", {}))]
    assert only_warm_up(runs[0]) == warm and not only_warm_up(runs[1])
    said = [n for n in notes(runs) if "warm-up" in n]
    assert len(said) == warm and all("(flexmatch: 1 of 2 runs)" in n for n in said)
    assert not only_warm_up(record(history=history)), "without unlabelled faces"


def test_rows_keep_their_order():
    assert compare(record(config={"seed": s}) for s in (3, 1, 2))["seed"].tolist() == [3, 1, 2]


def test_other_classes_never_share_a_table():
    with pytest.raises(BenchError, match="never share a table: 3 classes .* in a; 2 classes .* in b"):
        compare([record("a"), record("b", classes=CLASSES[:2])])
    with pytest.raises(BenchError, match="never share a table"): compare([record(), record(classes=CLASSES[::-1])])
    with pytest.raises(BenchError, match="no finished run"): compare([])


@pytest.mark.parametrize("changes", [
    dict(classes=CLASSES[:2]), dict(data_hash="e" * 64), dict(split_hash="7" * 64),
    dict(config={"image_size": 112}), dict(config={"labels_per_class": None}),
    dict(images_seen=240, config={"epochs": 6}),
    dict(images_seen=240, config={"batch_size": 16})], ids=str)
def test_comparable_leaves_out_another_task_or_budget(changes):
    ours, same = record(), record("b", select="oracle", config={"method": "dtm", "seed": 5, "backbone": "resnet50"})
    assert comparable([same, record(**changes), ours], ours) == [same, ours]


@pytest.mark.parametrize("changes", [dict(images_seen=360), dict(config={"batch_size": 24})],
                         ids=["labelled faces", "images"])
def test_comparable_takes_as_many_labelled_faces_or_as_many_images(changes):
    other = record("b", **changes)
    assert [r.id for r in comparable([record(), other], record())] == ["a", "b"]


def test_nothing_to_note_is_no_note():
    assert notes([record(), record("b")]) == [] == notes([])


@pytest.mark.parametrize("facts, beside", [
    ({"select": "val"}, True), ({"probe": {"kind": "linear"}}, True), ({"probe": {"kind": "sgd"}}, False),
    ({"probe": {"kind": "linear", "chosen_by": "cross-validation"}}, False),
    ({"select": "val", "config": {"labels_per_class": None}}, False),
    ({"select": "val", "config": {"labels_per_class": None, "budget": "ada_cm-400"}}, True)])
def test_validation_labels_beyond_the_budget_are_said(facts, beside):
    counts = {"labelled": 150, "unlabelled": 0, "val": 3191, "test": 40}
    said = [note for note in notes([record(), record("b", n=counts, **facts)]) if "3,191 validation faces" in note]
    assert len(said) == beside and all(note.startswith("In 1 of 2 rows") for note in said)


@pytest.mark.parametrize("records, words", [
    ([record(), record(drawn=True)], "no substitute for real ones"),
    ([record(), record("b", select="oracle")], r"picked on the test split \(b\)"),
    ([record(), record(select="val")], r"chosen \(last, val\)"),
    ([record(), record(split_hash="7" * 64), record(split_hash="7" * 64)], "2 different data sets, splits"),
    ([record(), record(images_seen=2400)], "images seen in training: from 120 to 2,400, of them labelled 120"),
    ([record(capped={"fear": 12}), record(capped={"contempt": 3})], r"\(fear 12, contempt 3\)"),
    ([record(), record(environment={"commit": "fedcba98"})], r"2 states of the code \(0123456, fedcba9\)"),
    ([record(environment={"dirty": True})], r"A commit with \+"),
    ([record(audit=["3 faces are in train and test."]), record(audit=[])], "found: 3 faces are in train and test."),
])
def test_a_note_appears_alone(records, words):
    found = notes(records)
    assert len(found) == 1
    assert re.search(words, found[0])


def test_markdown_has_a_line_a_row_and_the_notes_below():
    text = to_markdown(pd.DataFrame({"method": ["a|b", "c"], "WAR": ["1 [0, 2]", 3]}), ["Mind this."])
    assert text.split("\n") == ["| method | WAR |", "| --- | --- |", "| a\\|b | 1 [0, 2] |", "| c | 3 |", "",
                                "- Mind this.", ""]


def terminal(table, notes=(), width=120):
    from rich.console import Console
    out = io.StringIO()
    to_terminal(table, notes, Console(file=out, width=width, force_jupyter=False))
    return out.getvalue()


def test_the_terminal_shows_intervals_whole_and_shared_columns_once():
    text = terminal(compare([record(), record(config={"method": "dtm"}, select="oracle")]), ["[careful] with oracle"])
    assert text.count("87.4 [86.1, 88.6]") == 2 and text.count("oracle") == 2 and text.count("resnet18") == 1
    assert "[careful] with oracle" in text


def test_the_terminal_shows_one_run_with_all_its_columns(capsys):
    to_terminal(compare([record()]))
    out = capsys.readouterr().out
    assert all(word in out for word in ("supervised", "resnet18", "87.4 [86.1, 88.6]", "0123456", "params (M)"))


# --- figures ---

def drawn_without_a_complaint(fig):
    "The figure as pixels; a warning of matplotlib (no room, a missing glyph) is an error."
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = np.asarray(Image.open(io.BytesIO(fig._repr_png_())).convert("L"))
    for ax in fig.axes: assert ax.has_data(), "an empty panel"
    return pixels


def texts(fig): return [t.get_text() for t in fig.findobj(lambda a: hasattr(a, "get_text"))]


@pytest.mark.parametrize("epochs", [1, 2, 40])
@pytest.mark.parametrize("history, panels, lines", [
    ({}, 1, 1),
    ({"val_WAR": 0.5}, 2, 1),
    ({"val_WAR": np.nan}, 1, 1),
    ({"test_WAR": 0.4, "val_WAR": 0.5, "score": 0.4, "seconds": 9.0}, 2, 1),
    ({"cross_entropy": lambda h: h["loss"], "consistency": 0.2}, 1, 2),  # a part that is the loss is not drawn twice
], ids=["loss", "validation", "no validation", "oracle", "parts"])
def test_training_curve(epochs, history, panels, lines):
    fig = training_curve(record(epochs=epochs, history=history))
    assert len(fig.axes) == panels and len(fig.axes[0].lines) == lines
    assert drawn_without_a_complaint(fig).min() < 50
    assert all(t.is_integer() for t in fig.axes[0].get_xticks())


@pytest.mark.parametrize("figure", [training_curve, confusion_matrix])
def test_a_figure_says_when_it_must_not_be_believed(figure):
    assert "drawn faces" in " ".join(texts(figure(record(drawn=True))))
    assert "oracle" in " ".join(texts(figure(record(select="oracle"))))
    assert "drawn faces" not in " ".join(texts(figure(record())))


def test_confusion_matrix_shows_percent_of_the_truth_and_counts():
    fig = confusion_matrix(record())
    found = texts(fig)
    assert {"83\n(10)", "17\n(2)", "11\n(3)", "89\n(25)"} <= set(found)
    assert found.count("no test face") == 1, "contempt has none"
    assert len(fig.axes) == 2
    drawn_without_a_complaint(fig)



def test_training_curve_of_a_pretraining_says_how_it_was_judged():
    fig = training_curve(record(history={"val_WAR": 0.3, "feature_std": 0.8, "g": 20.0, "hit_all": 0.2,
                                         "similarity": 1.0}))
    assert [t.get_text() for t in fig.axes[1].get_legend().get_texts()] == ["validation, k-NN"]
    assert [t.get_text() for t in fig.axes[0].get_legend().get_texts()] == ["loss", "similarity"]


@pytest.mark.parametrize("k", [2, 11])
def test_confusion_matrix_of_few_and_many_classes(k):
    fig = confusion_matrix(record(classes=[f"class{i}" for i in range(k)],
                                  test={"confusion": (1000 * np.eye(k, dtype=int)).tolist()}))
    drawn_without_a_complaint(fig)
    assert texts(fig).count("100\n(1000)") == k


def faces(n=5, shape=(8, 8, 3)): return np.random.default_rng(0).integers(0, 256, (n, *shape), np.uint8)


@pytest.mark.parametrize("n, columns", [(1, 8), (5, 8), (9, 4), (8, 4)])
def test_contact_sheet_has_a_panel_a_face(n, columns):
    fig = contact_sheet(faces(n), [f"face {i}" for i in range(n)], columns, drawn=True)
    assert len(fig.axes) == n and [ax.get_title() for ax in fig.axes] == [f"face {i}" for i in range(n)]
    assert " ".join(fig._supxlabel.get_text().split()) == DRAWN
    drawn_without_a_complaint(fig)


def test_a_face_without_a_label_says_so():
    fig = contact_sheet(faces(3), pd.Series(["fear", None, np.nan], dtype=object))
    assert [ax.get_title() for ax in fig.axes] == ["fear", "no label", "no label"]


def test_pictures_come_in_any_usual_layout():
    rgb = faces(2)
    exact = rgb / 255
    for same in (rgb, exact, exact.astype(np.float32), np.moveaxis(rgb, -1, 1), np.moveaxis(exact, -1, 1)):
        np.testing.assert_allclose(as_pictures(same), exact, atol=1e-7)
    for grey in (rgb[..., :1], np.moveaxis(rgb[..., :1], -1, 1)):
        np.testing.assert_array_equal(as_pictures(grey), np.repeat(exact[..., :1], 3, axis=-1))


@pytest.mark.parametrize("call, message", [
    (lambda: contact_sheet(faces(2) - 1.0), "normalised for a network"),
    (lambda: contact_sheet(np.full((1, 4, 4, 3), np.nan)), "must lie in"),
    (lambda: contact_sheet(faces(0)), "at least one"),
    (lambda: contact_sheet(faces(2)[0]), "cannot be shown"),
    (lambda: contact_sheet(faces(2, (8, 8, 4))), "cannot be shown"),
    (lambda: contact_sheet(faces(2), ["one"]), "1 titles for 2 images"),
    (lambda: overlay(faces(2), np.zeros((2, 4, 4))), "do not cover"),
    (lambda: right_and_wrong(faces(2), np.zeros((2, 8, 8)), ["a"], ["a", "b"]), "one of each"),
])
def test_bad_pictures_are_named(call, message):
    with pytest.raises(BenchError, match=message): call()


def test_overlay_is_the_face_in_grey_and_the_map_in_colour():
    maps = np.zeros((2, 8, 8))
    maps[:, 0, 0] = 1
    over = overlay(faces(2), maps)
    assert over.shape == (2, 8, 8, 3) and over.min() >= 0 and over.max() <= 1
    cold, hot = over[0, 4, 4], over[0, 0, 0]
    assert np.ptp(cold) < 0.01 and hot[0] > hot[2] + 0.1  # black of the map adds nothing; its other end is yellow


def test_heat_maps_put_each_face_beside_itself():
    fig = heat_maps(faces(5), np.zeros((5, 8, 8)), columns=4)
    assert len(fig.axes) == 5 and fig.axes[0].images[0].get_array().shape == (8, 16, 3)
    np.testing.assert_allclose(fig.axes[0].images[0].get_array()[:, :8], faces(5)[0] / 255)
    drawn_without_a_complaint(fig)


@pytest.mark.parametrize("predicted, titles, rows", [
    (["fear"] * 4 + ["contempt"], ["fear", "fear", "happiness → fear", "happiness → fear"], ["right", "wrong"]),
    (["fear", "happiness", "fear", "happiness", "fear"], ["fear", "happiness"], ["right"]),
    (["contempt"] * 5, ["fear → contempt", "happiness → contempt"], ["wrong"]),
], ids=["both", "all right", "all wrong"])
def test_right_and_wrong_has_no_empty_row(predicted, titles, rows):
    labels = np.array(["fear", "happiness", "fear", "happiness", "fear"])
    fig = right_and_wrong(faces(5), np.zeros((5, 8, 8)), labels, predicted, columns=2, drawn=True)
    assert [ax.get_title() for ax in fig.axes] == titles
    assert [ax.get_ylabel() for ax in fig.axes if ax.get_ylabel()] == rows
    drawn_without_a_complaint(fig)


def test_save_figure_writes_the_same_bytes_and_leaves_no_half(tmp_path):
    for name in ("a.png", "b.png"): save_figure(confusion_matrix(record()), tmp_path/"figures"/name)
    one, two = ((tmp_path/"figures"/name).read_bytes() for name in ("a.png", "b.png"))
    assert one == two and one.startswith(b"\x89PNG") and b"matplotlib" not in one.lower()
    assert sorted(p.name for p in (tmp_path/"figures").iterdir()) == ["a.png", "b.png"]


def test_figures_leave_no_trace_in_pyplot():
    import matplotlib as mpl
    from matplotlib import pyplot as plt
    before = dict(mpl.rcParams)
    training_curve(record())
    confusion_matrix(record())
    assert plt.get_fignums() == [] and dict(mpl.rcParams) == before

def test_save_figure_as_pdf_keeps_letters(tmp_path):
    "Letters are TrueType that can be searched and edited, the bytes are the same each time, other endings are refused."
    for name in ("a.pdf", "b.pdf"): save_figure(confusion_matrix(record()), tmp_path/name)
    data = (tmp_path/"a.pdf").read_bytes()
    assert data == (tmp_path/"b.pdf").read_bytes() and b"/TrueType" not in data.replace(b"/CIDFontType2", b"")
    assert b"/Type3" not in data
    assert b"/FontFile2" in data
    with pytest.raises(BenchError, match="picture format"): save_figure(confusion_matrix(record()), tmp_path/"a.doc")
