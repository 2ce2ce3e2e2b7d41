"""Attribution maps of recorded networks: scores of a run, cropped faces, the gallery and its notebook."""
import shutil
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import papermill
import pytest

from fer_bench.cli import main
from fer_bench.config import RunConfig
from fer_bench.core import BenchError
from fer_bench.data.drawn.expressions import moved_regions
from fer_bench.data.drawn.faces import DrawnSource
from fer_bench.data.faceset import FaceSet, build_faceset
from fer_bench.data.landmarks import landmarks_of, regions_of, with_landmarks
from fer_bench.data.sources.crops import cropped
from fer_bench.data.sources.folders import FolderSource
from fer_bench.evaluate.explain import class_maps
from fer_bench.evaluate.landmarks import map_scores, paired_difference
from fer_bench.record import KEPT_BYTES, Record, kept_arrays, load_runs
from fer_bench.runs.attribution import (
    BASELINES,
    compare_looks,
    faces_of,
    faces_to_show,
    look,
    look_table,
    map_layer,
    maps_of,
    need_one_layer_of,
)
from fer_bench.runs.experiment import run
from fer_bench.runs.networks import load_classifier
from fer_bench.runs.task import load_data, split_data
from fer_bench.show.gallery import (
    FIGURES,
    figure_attention,
    figure_features,
    figure_landmarks,
    figure_masks,
    figure_mean_maps,
    figure_mean_masks,
)

NOTEBOOK = Path(__file__).parent.parent/"nbs/paper_figures.ipynb"

@pytest.fixture(scope="module")
def results(tmp_path_factory):
    "Tiny runs of the four methods on drawn faces, and the folder of their records."
    folder = str(tmp_path_factory.mktemp("results"))
    common = dict(preset="tiny", device="cpu", results_dir=folder, drawn_faces=400)
    runs = [run(dict(method=m, **common)) for m in ("supervised", "byol", "simfle")]
    return folder, [*runs, run(dict(method="dtm", labels_per_class=2, **common))]

# ---- scores

def test_scores_of_a_run(results):
    "The faces of the test split, each baseline, and what the maps say when they are made by hand."
    record = results[1][0]
    scores = look(record)
    config = RunConfig(**record.config)
    faceset = load_data(config)
    rows = split_data(config, faceset).test
    assert set(scores["maps"]) == {"trained", *BASELINES} and scores["face"].nunique() == len(rows)
    uniform = scores[(scores["maps"] == "uniform") & scores["lift"].notna()]
    np.testing.assert_allclose(uniform["lift"], 1, atol=1e-9)
    network, images = load_classifier(record), faces_of(faceset, rows, 32)
    points = landmarks_of(faceset, rows) / faceset.images.shape[1]
    wanted = map_scores(class_maps(network, images, scaled=False), points, regions_of(faceset))
    ours = scores[scores["maps"] == "trained"].reset_index(drop=True)
    np.testing.assert_allclose(ours[["share", "lift", "hit", "distance"]], wanted[["share", "lift", "hit", "distance"]],
                               atol=1e-6)

def test_scores_are_read_again_without_weights(results, tmp_path):
    "A second call reads the table; without table and weights it says so; other faces make another table."
    record = results[1][1]
    first = look(record, kind="activation", most=20)
    weights = record.folder/"weights.safetensors"
    hidden = weights.rename(tmp_path/"away")
    try:
        assert look(record, kind="activation", most=20).equals(first)
        with pytest.raises(BenchError, match="travel without weights"): look(record, kind="activation", most=21)
    finally: hidden.rename(weights)

def test_the_layer_is_recorded_and_runs_of_others_are_left_out(results, capsys):
    "A supervised network of 32 px shows its second stage, a pretrained one its last, which has 4 × 4 cells too."
    supervised, byol, simfle, _ = results[1]
    assert [map_layer(r) for r in (supervised, byol)] == ["layer2 (4 x 4)", "layer4 (4 x 4)"]
    scores = look(supervised, most=20)
    assert set(scores["layer"]) == {map_layer(supervised)}
    path, = supervised.folder.glob("landmarks-gradcam-*-20.parquet")
    scores.drop(columns="layer").to_parquet(path)  # as it was written before layers were named
    assert look(supervised, most=20).equals(scores)
    says = texts(figure_landmarks([supervised, byol, simfle], most=20))
    assert "maps of layer4 (4 x 4)" in says and "byol" in says and "supervised" not in says
    assert f"{supervised.id} (layer2 (4 x 4) of test_resnet at 32 px)" in capsys.readouterr().out

def test_runs_are_compared_at_one_layer_that_all_share(results):
    "At the usual layers the error names both and what they share; there, each cell is what the scores themselves say."
    supervised, byol = results[1][:2]
    named = {"supervised": supervised, "byol": byol}
    with pytest.raises(BenchError, match=r"supervised: layer2 \(4 x 4\) of test_resnet at 32 px; byol: layer4 \(4 x 4\)"
                                         r".* They share .*layer2 \(4 x 4\): give layer='layer2'"):
        compare_looks(named, most=20)
    table = compare_looks(named, most=20, layer="layer2").set_index("run")
    assert list(table.index) == ["supervised", "byol", "random weights", "centre", "chance"]
    assert list(table.columns)[-3:] == ["all, over random weights", "all, over centre", "all, over supervised"]
    assert (table.loc["chance", ["eyes", "mouth", "all"]] == "1.00 [1.00, 1.00]").all()
    assert table.loc["supervised", "all, over supervised"] == "" == table.loc["centre", "all, over centre"]
    def of(record, maps): return look(record, most=20, layer="layer2").query("maps == @maps").drop(columns="maps")
    for base, other in (("supervised", of(supervised, "trained")), ("random weights", of(byol, "random weights"))):
        found = paired_difference(of(byol, "trained"), other).query("region == 'all' and score == 'lift'").iloc[0]
        said = f"{found['mean']:+.2f} [{found['low']:.2f}, {found['high']:.2f}]"
        assert table.loc["byol", f"all, over {base}"] == said
    assert set(look(byol, kind="activation", most=20, layer="layer2")["layer"]) == {"layer2 (4 x 4)"}

def test_the_command_compares_runs_and_counts_masks(results, capsys):
    folder, (supervised, byol, simfle, _) = results
    where = ["--results-dir", folder]
    for words in (["look", supervised.id, byol.id, "--layer", "layer2"], ["look", simfle.id, "--masks"]):
        with pytest.raises(SystemExit) as ended: main([*words, *where])
        assert not ended.value.code
    said = capsys.readouterr().out
    assert "Maps of layer2 (4 x 4) of test_resnet at 32 px" in said and "over chance" in said
    with pytest.raises(SystemExit) as ended: main(["look", supervised.id, byol.id, *where])
    assert ended.value.code == 1 and "give layer='layer2'" in " ".join(capsys.readouterr().err.split())

@pytest.mark.parametrize("changes, says", [
    (dict(backbone="small_resnet"), r"small_resnet at 32 px.* Compare runs of one backbone"),
    (dict(image_size=48), "at 48 px.* Compare runs of one backbone"),
    (dict(min_map=4), "layer4 .* give layer='layer2'"),
    (dict(small_stem=2), "with small_stem 2 at 32 px.* Compare runs of one backbone, small_stem")])
def test_what_changes_the_cells_is_refused_before_anything_is_loaded(results, changes, says):
    "A layer of one name and even as many cells is not one layer where backbone, stem or picture differ."
    one = results[1][0]
    other = SimpleNamespace(config={**one.config, "backbone": "resnet10t"} | changes, metrics=one.metrics, id="other")
    base = one if "backbone" in changes or "image_size" in changes else SimpleNamespace(
        config={**one.config, "backbone": "resnet10t"}, metrics=one.metrics, id="base")
    if "image_size" in changes: other.config["backbone"] = one.config["backbone"]
    with pytest.raises(BenchError, match=says): need_one_layer_of({"base": base, "other": other})

def test_comparisons_that_cannot_be_are_refused(results, tmp_path):
    one = results[1][0]
    other = SimpleNamespace(**{"config": one.config | {"drawn_faces": 300}, "metrics": one.metrics, "id": "other"})
    with pytest.raises(BenchError, match="tested on different faces"): compare_looks({"a": one, "b": other})
    with pytest.raises(BenchError, match="no run to compare"): compare_looks({})
    with pytest.raises(BenchError, match="There is no layer 'layer9'"): look(one, most=20, layer="layer9")
    with pytest.raises(BenchError, match="score = 'heat'"): compare_looks({"a": one}, most=20, score="heat")

@pytest.mark.soak
def test_a_trained_network_looks_at_what_the_expression_moves(tmp_path):
    "A supervised run of the preset quick: the lift on regions that an expression moves beats random weights."
    record = run(dict(preset="quick", device="cpu", results_dir=str(tmp_path)))
    faceset, rows = faces_to_show(RunConfig(**record.config), most=1000, landmarks=True)
    labels, scores = faceset.index["label"].to_numpy()[rows], look(record)
    scores = scores.assign(moved=[
        region in moved_regions(label, regions_of(faceset)) and region != "contour"
        for region, label in zip(scores["region"], labels[scores["face"]], strict=True)])
    scores = scores[scores["moved"]].groupby(["maps", "face"], as_index=False)["lift"].mean().assign(region="moved")
    mean = {maps: part.drop(columns="maps") for maps, part in scores.groupby("maps")}
    found = paired_difference(mean["trained"], mean["random weights"]).iloc[0]
    assert found["low"] > 0, f"{found['mean']:+.2f} [{found['low']:.2f}, {found['high']:.2f}]"

def test_table_of_scores(results):
    table = look_table(look(results[1][0]), "share")
    assert list(table.columns) == ["region", "trained", *(f"over {b}" for b in BASELINES)]
    assert {"mouth", "all"} <= set(table["region"])
    assert all(cell[0] in "+-" for cell in table["over uniform"])
    with pytest.raises(BenchError, match="score = 'heat'"): look_table(look(results[1][0]), "heat")

def test_kinds_of_maps(results):
    record = results[1][0]
    faceset, rows = faces_to_show(RunConfig(**record.config), most=4)
    network, images = load_classifier(record), faces_of(faceset, rows, 32)
    for kind in ("gradcam", "activation"): assert maps_of(network, images, kind).shape == (4, 32, 32)
    with pytest.raises(BenchError, match="kind of map"): maps_of(network, images, "gradcamm")

def test_faces_without_landmarks_are_refused(tree, tmp_path, results):
    faces = build_faceset(FolderSource(str(tree)), tmp_path/"set", 32)
    with pytest.raises(BenchError, match="landmarks"): look(results[1][0], faces)

def test_faces_to_show_are_those_of_the_test_split(tree, tmp_path):
    "Of the run's own data never a training face, also of a carved test split; of other data test, validation or all."
    import shutil
    shutil.rmtree(tree/"test")
    config = RunConfig(preset="tiny", dataset="folder", data_root=str(tree), cache_dir=str(tmp_path/"cache"))
    faceset, rows = faces_to_show(config)
    split = split_data(config, faceset)
    assert sorted(rows) == sorted(split.test) and not set(rows) & {*split.labelled, *split.val}
    assert len(faces_to_show(config, faceset)[1]) == len(faceset.index)
    drawn = build_faceset(DrawnSource(80, 32, seed=3), tmp_path/"drawn")
    assert (drawn.index["split"].iloc[faces_to_show(config, drawn)[1]] == "test").all()
    few = faces_to_show(config, drawn, most=5)[1].tolist()
    assert few == sorted(set(few)) and len(few) == 5

# ---- faces cut out

def test_landmarks_move_with_the_crop(tmp_path):
    "A dot on each landmark is found at the landmark of the cut face, also where the square leaves the picture."
    source = DrawnSource(6, 64, seed=0)
    class Dotted(DrawnSource):
        def load_many(self, keys):
            points = {k: np.reshape(p, (-1, 2)) for k, p in self.rows().set_index("key")["landmarks"].items()}
            for key in keys:
                face = np.zeros((64, 64, 3), np.uint8)
                x, y = points[key][30].astype(int)  # the nose
                face[y, x] = 255
                yield face
    for side in (1.5, 2.4, 4.0):
        faces = build_faceset(cropped(Dotted(6, 64, seed=0), side), tmp_path/f"{side}", 96)
        for image, points in zip(faces.images, landmarks_of(faces), strict=True):
            y, x = np.unravel_index(image[..., 0].argmax(), image.shape[:2])
            assert abs(points[30] - (x, y)).max() < 96 / (side * 10)
    eyes, mouth = (landmarks_of(faces)[:, numbers].mean(1) for numbers in (range(36, 48), range(48, 68)))
    np.testing.assert_allclose(np.linalg.norm(eyes - mouth, axis=1), 96 / 4, rtol=0.06)
    assert len({cropped(source, *how).fingerprint() for how in ((2.0,), (2.1,), (2.1, True))}) == 3

def test_cropped_in_grey(tmp_path):
    faces = build_faceset(cropped(DrawnSource(8, 64, seed=0), grey=True), tmp_path/"grey", 48)
    assert faces.images.shape == (8, 48, 48, 1)
    assert faces.meta["colour"] == "grey" and "distances a side" in faces.meta["alignment"]

def test_a_face_whose_landmarks_lie_beside_it_is_put_aside(tree, tmp_path):
    keys = list(FolderSource(str(tree)).rows()["key"])
    points = {k: [[10, 10], [10, 20]] for k in keys} | {keys[0]: [[90, 90], [90, 95]]}
    faces = build_faceset(cropped(with_landmarks(FolderSource(str(tree)), points, {"eyes": [0], "mouth": [1]})),
                          tmp_path/"set", 24)
    assert faces.meta["rejected"] == [{"key": keys[0], "reason": "its landmarks lie outside of the picture"}]
    assert len(faces.images) == len(keys) - 1 and faces.images.shape[1:3] == (24, 24)

def test_crops_need_landmarks(tree):
    with pytest.raises(BenchError, match="no landmarks of eyes and mouth"): cropped(FolderSource(str(tree)))
    keys = FolderSource(str(tree)).rows()["key"]
    with pytest.raises(BenchError, match="no landmarks of eyes and mouth"):
        cropped(with_landmarks(FolderSource(str(tree)), {k: [[1, 2]] for k in keys}, {"eyes": [0]}))
    marked = with_landmarks(FolderSource(str(tree)), {k: [[9, 9], [9, 9]] for k in keys}, {"eyes": [0], "mouth": [1]})
    with pytest.raises(BenchError, match="eyes where its mouth is"): cropped(marked)
    with pytest.raises(BenchError, match="side = 0"): cropped(DrawnSource(2, 32), side=0)

# ---- the gallery

def texts(fig): return " ".join(t.get_text() for t in fig.findobj(lambda a: hasattr(a, "get_text")) if t.get_visible())

def test_figures_from_weights(results):
    _, runs = results
    says = texts(figure_attention(runs))
    for name in ("supervised", "byol", "simfle", "dtm", "Drawn faces"): assert name in " ".join(says.split())
    masks = figure_masks([runs[2]], faces=3)
    assert [ax.get_ylabel() for ax in masks.axes if ax.get_ylabel()] == ["face", "map", "kept", "reconstructed"]
    for by in ("pca", "tsne"):
        assert [ax.get_title() for ax in figure_features(runs[:2], by=by, most=40).axes] == ["supervised", "byol"]
    titles = [" ".join(ax.get_title().split()) for ax in figure_mean_maps(runs).axes]
    assert [t.split(",")[0] for t in titles] == ["supervised", "byol", "simfle", "dtm"]
    assert "layer2 (4 x 4)" in titles[0] and "layer4 (4 x 4)" in titles[1], "maps of different layers are named"
    assert "layer4 (4 x 4)" in texts(figure_attention(runs)) and "layer" not in texts(figure_attention(runs[1:3]))
    axes = figure_mean_masks([runs[2]]).axes
    assert [ax.get_title() for ax in axes[:2]] == ["simfle", "centre"]
    shares = [ax.images[0].get_array() for ax in axes[:2]]
    assert shares[0].shape == (4, 4) and shares[0].mean() == pytest.approx(shares[1].mean()) == pytest.approx(25)
    says = texts(figure_landmarks(runs[:2]))
    assert "mouth" in says and "random weights" in says and "Drawn faces" in says

WEIGHTS = ("weights.safetensors", "pretrained.safetensors")

def without_weights(run, folder) -> Record:
    "The record of `run` as a fresh clone has it: its files and the arrays of its figures, no weights."
    return Record(shutil.copytree(run.folder, folder/run.id, ignore=shutil.ignore_patterns(*WEIGHTS)))

DRAWN_FROM_WEIGHTS = {"masks": lambda runs: figure_masks([runs[2]], faces=3), "attention": figure_attention,
                      "mean_maps": figure_mean_maps, "mean_masks": lambda runs: figure_mean_masks([runs[2]]),
                      "landmarks": figure_landmarks, "features": figure_features,
                      "layercam": lambda runs: figure_attention(runs, kind="layercam")}

@pytest.mark.parametrize("name", DRAWN_FROM_WEIGHTS)
def test_a_figure_is_drawn_again_without_weights(results, tmp_path, name):
    "The same picture, byte for byte, from the arrays beside the records."
    runs, draw = results[1], DRAWN_FROM_WEIGHTS[name]
    first = draw(runs)._repr_png_()
    assert draw([without_weights(r, tmp_path) for r in runs])._repr_png_() == first

def test_arrays_of_another_run_are_not_taken(results, tmp_path):
    "Arrays that lie in the wrong record, or are damaged, give no picture."
    one, other = results[1][0], without_weights(results[1][1], tmp_path)
    figure_mean_maps([one])
    for path in other.folder.glob("mean_map-*.npz"): path.unlink()
    for path in one.folder.glob("mean_map-*.npz"): shutil.copy(path, other.folder)
    with pytest.raises(BenchError, match=f"fer-bench redo {other.id}"): figure_mean_maps([other])
    damaged = without_weights(one, tmp_path)
    for path in damaged.folder.glob("mean_map-*.npz"): path.write_bytes(b"PK")
    with pytest.raises(BenchError, match="damaged"): figure_mean_maps([damaged])

def test_nothing_but_averages_is_kept_of_real_faces(results, tmp_path, monkeypatch):
    run = Record(shutil.copytree(results[1][2].folder, tmp_path/results[1][2].id,
                                 ignore=shutil.ignore_patterns("*.npz", "landmarks-*")))
    monkeypatch.setattr(FaceSet, "drawn", False)
    for draw in (figure_attention, figure_mean_maps, figure_features, figure_landmarks): draw([run])
    figure_masks([run])
    figure_mean_masks([run])
    assert {p.name.rpartition("-")[0] for p in run.folder.glob("*.npz")} == {"mean_map", "mean_mask", "landmarks"}

def test_large_arrays_are_not_kept(results, tmp_path):
    run = without_weights(results[1][0], tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, KEPT_BYTES + 1000, np.uint8)
    assert kept_arrays(run, "noise", {}, lambda: {"a": noise})["a"] is noise and not list(run.folder.glob("noise*"))

def test_right_faces_first_and_wrong_ones_named(results):
    "Under the first run no text above right faces and → above wrong ones."
    fig = figure_attention(results[1][:1], faces=4)
    first, second = fig.axes[:4], fig.axes[4:]
    arrows = ["→" in ax.get_title() for ax in second]
    assert len(first) == len(second) and arrows == sorted(arrows) and any(arrows)
    for ax, arrow in zip(first, arrows, strict=True):
        if arrow: assert ax.get_title() not in second[first.index(ax)].get_title()

def test_figures_refuse_what_they_cannot_show(results, tmp_path):
    _, runs = results
    with pytest.raises(BenchError, match="masks no patches. Give runs of a method that does: simfle, .*mae"):
        figure_masks([runs[1]])
    with pytest.raises(BenchError, match="masks no patches"): figure_mean_masks([runs[1]])
    with pytest.raises(BenchError, match="needs 50"):
        figure_mean_masks([runs[2]], build_faceset(DrawnSource(40, 32, seed=5), tmp_path/"fewer"))
    with pytest.raises(BenchError, match="needs 50"):
        figure_mean_maps(runs, build_faceset(DrawnSource(40, 32, seed=5), tmp_path/"few"))
    with pytest.raises(BenchError, match="no finished run to draw"): figure_attention([])
    with pytest.raises(BenchError, match="plane"): figure_features(runs, by="umap")

def printed(notebook) -> str:
    outputs = [o for cell in nbformat.read(notebook, 4).cells for o in cell.get("outputs", [])]
    return "".join(o.text for o in outputs if o.output_type == "stream")

def test_paper_figures_notebook(results, tmp_path):
    "From the records alone: every figure as PDF and PNG, or the command that makes what it lacks; nothing is trained."
    own, folder = str(Path(results[0])/"own"), results[0]  # the runs are shipped ones for someone whose own are there
    other = run(dict(preset="tiny", device="cpu", results_dir=own, image_size=40))
    (tmp_path/"figures").mkdir()
    (tmp_path/"figures/old.png").touch()
    before = {r.id for r in load_runs(folder)}
    papermill.execute_notebook(NOTEBOOK, tmp_path/"out.ipynb",
                               {"results_dir": own, "figures_dir": str(tmp_path/"figures")},
                               progress_bar=False, cwd=tmp_path)
    made = {p.name for p in (tmp_path/"figures").iterdir()}
    said = printed(tmp_path/"out.ipynb")
    listed = set(said.rpartition("Written to")[2].split()[1:])
    assert listed == made - {"old.png"}, "only what was written now"
    assert {r.id for r in load_runs(folder)} == before and "Not drawn, because" in said and other.id in said
    assert f"{len(before) + 1} finished runs on drawn, {len(before)} of them shipped" in said
    for name in FIGURES:
        assert {f"{name}.pdf", f"{name}.png"} <= made or name.startswith(("ablation_", "noise", "relabelled"))
    assert "fer-bench run --dataset drawn --method simfle --mask-ratio 0.5" in said

@pytest.mark.nightly
def test_notebook_without_runs_says_what_to_make(tmp_path):
    given = {"results_dir": str(tmp_path/"none"), "only": "attention"}
    papermill.execute_notebook(NOTEBOOK, tmp_path/"out.ipynb", given, progress_bar=False)
    said = printed(tmp_path/"out.ipynb")
    assert "0 finished runs" in said and "fer-bench run --dataset drawn --method supervised" in said
