"""Figures for a paper from runs made by hand: they draw the numbers of the records, and can be read."""
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from figure_checks import assert_readable, faults, said

from fer_bench.catalogue import method_entry
from fer_bench.config import NUMERICS, PROBE, RunConfig
from fer_bench.core import BenchError
from fer_bench.evaluate.metrics import classification_metrics
from fer_bench.evaluate.statistics import t_interval, wilson
from fer_bench.report.curves import (
    figure_confusion,
    figure_landmark_scores,
    figure_pretraining,
    figure_reliability,
    figure_thresholds,
)
from fer_bench.report.figures import save_figure
from fer_bench.report.names import run_names, setting_names
from fer_bench.report.papers import figure_ablations, figure_budget
from fer_bench.schema import example_metrics

NAMES = ["neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"]
OF_RUNS = (figure_budget, figure_ablations, figure_confusion, figure_reliability, figure_thresholds, figure_pretraining)
SIMFLE = "run:simfle-ferplus-all-s{}-{}"


def made(method="supervised", war=0.5, labels=50, draw=0, seed=0, history=None, metrics=None, faces=400, **config):
    "A run with a WAR of `war` and another UAR, so that a mix-up is seen. `metrics`: changes to `example_metrics`."
    rng = np.random.default_rng([draw, seed, round(1000 * war)])
    truth = np.arange(faces) % 8
    logits = rng.standard_normal((faces, 8)) + 6 * war * np.eye(8)[truth]
    test = classification_metrics(logits, truth, NAMES) | dict(WAR=war, UAR=war * 0.8)
    resolved = dict(RunConfig(method=method, preset="quick", dataset="ferplus", data_root="x", labels_per_class=labels))
    return SimpleNamespace(
        id=f"{method}-ferplus-{labels or 'all'}-s{seed}-{rng.integers(1 << 30):08x}",
        config=resolved | dict(label_seed=draw, seed=seed, labels_per_class=labels) | config,
        history=pd.DataFrame(history or {"epoch": [1], "loss": [1.0]}),
        predictions=pd.DataFrame({"label": np.array(NAMES)[truth], "logits": list(logits)}),
        metrics=example_metrics(**dict(
            method=method, kind=method_entry(method).kind, dataset="ferplus", classes=NAMES, test=test,
            data_hash="01234567" * 8, numerics=[NUMERICS, PROBE],
            labelled_counts=[labels or 300] * 8) | (metrics or {})))


def semi(method="dtm", epochs=6, without=(), thresholds=None, **more):
    rng = np.random.default_rng(epochs)
    known = rng.integers(10, 60, (epochs, 8))
    history = {"epoch": np.arange(1, epochs + 1), "thresholds": thresholds or rng.uniform(0.5, 1, (epochs, 8)).tolist(),
               "pool_seen": 900, "pool_used": known.sum(1), "pseudo_known": known.tolist(),
               "pseudo_right": (known // 2).tolist()}
    return made(method, history={k: v for k, v in history.items() if k not in without},
                metrics=dict(pool=dict(members=["rest"], faces=[900], dropped=[0], hash="0" * 64)), **more)


def selfs(method="byol", epochs=12, **more):
    rng = np.random.default_rng(epochs)
    own = dict(mae=["reconstruction"], simfle=["reconstruction", "val_reconstruction", "g"]).get(method, [])
    columns = {c: rng.uniform(0.2, 1, epochs) for c in ["feature_std", "val_WAR", *own]}
    return made(method, labels=None, history={"epoch": np.arange(1, epochs + 1)} | columns, **more)


def landmarks(gain=1.0, score="lift"):
    mean = 1 + gain * np.array([0.5, 0.2, -0.4])
    return pd.DataFrame({"region": ["eyes", "mouth", "contour"], "score": score, "mean": mean, "low": mean - 0.1,
                         "high": mean + 0.2})


def bars(ax):
    "Of each errorbar of a panel: its points (n, 2) and the ends of its bars (n, 2, 2)."
    ends = lambda c: np.array([np.full((2, 2), np.nan) if not len(s) else s for s in c.lines[2][0].get_segments()])
    return [(np.array(c.lines[0].get_xydata()), ends(c)) for c in ax.containers]


def handles(fig):
    return {t.get_text(): h for t, h in zip(fig.legends[0].get_texts(), fig.legends[0].legend_handles, strict=True)}


def style(line): return line.get_color(), line.get_marker()


# --- what runs are called ---

def test_names_say_method_start_and_the_fewest_settings_that_differ():
    probe = made("linear_probe", init=SIMFLE.format(0, "aa"))
    runs = [made(), made(batch_size=96), made(batch_size=96, dedupe="cross_split"), made(init=SIMFLE.format(0, "aa")),
            made(init="timm"), probe, made("linear_probe"), made("dtm"), made("dtm", policy="fixed"),
            made("fixmatch", pseudo="same"), made(init="my/w.pth")]
    assert setting_names(runs) == [
        "supervised (batch_size 64)", "supervised (batch_size 96)", "supervised (dedupe cross_split, batch_size 96)",
        "supervised from simfle", "supervised from timm's weights", "linear probe of simfle",
        "linear probe of random weights",
        "dtm", "dtm (policy fixed)", "fixmatch (pseudo same)", "supervised from w"]


def test_seeds_labels_places_and_fields_that_old_records_lack_are_no_settings():
    old = made(labels=100, draw=1, seed=2, threads=9, data_root="elsewhere", results_dir="there", device="cuda")
    for name in ("optimizer", "min_map"): del old.config[name]
    assert setting_names([made(), old]) == ["supervised"] * 2
    assert run_names([made(), old]) == ["supervised, 50 labels, draw 0, seed 0",
                                        "supervised, 100 labels, draw 1, seed 2"]
    assert run_names([made(), made(labels=None)]) == ["supervised, 50 labels", "supervised, all labels"]


def test_seeds_of_one_pretraining_are_repeats_and_two_pretrainings_of_one_seed_are_refused():
    start = lambda seed, digest: made("linear_probe", init=SIMFLE.format(seed, digest), war=0.3 + 0.1 * seed)
    assert setting_names([start(0, "aa"), start(1, "bb")]) == ["linear probe of simfle"] * 2
    assert run_names([start(0, "aa"), start(1, "bb")])[1] == "linear probe of simfle, pretraining seed 1"
    with pytest.raises(BenchError, match="are both called 'linear probe of simfle' here"):
        figure_budget([start(0, "aa"), start(0, "bb")])


# --- what is refused, and what is said ---

@pytest.mark.parametrize("figure", OF_RUNS)
def test_runs_that_do_not_belong_together_are_refused(figure):
    with pytest.raises(BenchError, match="There is no finished run to draw"): figure([])
    with pytest.raises(BenchError,
                       match="different classes never share a figure: .*fear, contempt in .*; neutral, happiness in"):
        figure([made(), made(metrics=dict(classes=NAMES[:2], test={}, labelled_counts=[50] * 2))])
    with pytest.raises(BenchError,
                       match=r"different data never share a figure: ferplus \(01234567\) in .*\(ffffffff\) in"):
        figure([made(), made(metrics=dict(data_hash="f" * 64))])


@pytest.mark.parametrize("figure, runs", [
    (figure_budget, [made(), made("dtm")]), (figure_ablations, [made(), made(lr=0.1)]), (figure_confusion, [made()]),
    (figure_reliability, [made()]), (figure_thresholds, [semi()]), (figure_pretraining, [selfs()])])
def test_drawn_faces_and_one_run_with_oracle_selection_are_said(figure, runs):
    assert "substitute" not in said(figure(runs)) and "oracle" not in said(figure(runs))
    for r in runs:
        r.metrics = r.metrics.model_copy(update=dict(drawn=True, select="oracle" if r is runs[-1] else "last"))
    fig = figure(runs)
    assert "no substitute for real ones" in said(fig) and "picked on the test split (oracle)" in said(fig)
    assert_readable(fig)


# --- accuracy by labels ---

WARS = {("supervised", 25): (0.30, 0.34, 0.41), ("supervised", 100): (0.5,), ("dtm", 25): (0.4, 0.5),
        ("dtm", None): (0.9,)}

def budget_runs(): return [made(m, war, n, draw) for (m, n), wars in WARS.items() for draw, war in enumerate(wars)]


def test_budget_points_are_means_and_bars_are_t_intervals_over_draws():
    fig = figure_budget(budget_runs())
    assert list(handles(fig)) == ["dtm", "supervised"]
    for ax, scale in zip(fig.axes, (1, 0.8), strict=True):
        assert ax.get_xscale() == "log" and [t.get_text() for t in ax.get_xticklabels()] == ["25", "100", "all"]
        places = ax.get_xticks()
        for (points, ends), m in zip(bars(ax), ("dtm", "supervised"), strict=True):
            mine = [(i, wars) for i, n in enumerate((25, 100, None)) if (wars := WARS.get((m, n)))]
            for (x, y), end, (i, wars) in zip(points, ends, mine, strict=True):
                mean, low, high = (100 * scale * v for v in t_interval(wars))
                assert y == pytest.approx(mean) and abs(np.log(x / places[i])) < 0.1
                np.testing.assert_allclose(end[:, 1], [low, high])
    assert "t interval over draws and seeds; a point without a bar has only one." in said(fig)
    assert_readable(fig)


def test_budget_says_nothing_of_single_draws_where_there_are_none():
    text = said(figure_budget([made(draw=0), made(draw=1, war=0.6)]))
    assert "t interval over draws." in text and "without a bar" not in text


def test_budget_averages_seeds_within_a_draw_but_takes_them_for_draws_where_nothing_is_drawn():
    wars = np.array([[0.3, 0.5], [0.6, 0.8]])
    runs = [made(war=wars[d, s], draw=d, seed=s) for d in (0, 1) for s in (0, 1)]
    (points, ends), = bars(figure_budget(runs).axes[0])
    np.testing.assert_allclose([points[0, 1], *ends[0, :, 1]], 100 * np.array(t_interval(wars.mean(1))))
    runs = [made(war=w, labels=None, seed=s) for s, w in enumerate(wars.ravel())]
    (points, ends), = bars(figure_budget(runs).axes[0])
    np.testing.assert_allclose([points[0, 1], *ends[0, :, 1]], 100 * np.array(t_interval(wars.ravel())))


def test_budget_draws_the_baseline_in_black_and_takes_a_published_budget_by_its_labels():
    published = made("ada_cm", labels=None, budget="ada_cm-400", metrics=dict(labelled_counts=[50] * 8))
    fig = figure_budget([made(), published, made("dtm")], "dtm")
    lines = handles(fig)
    assert lines["dtm"].get_color() == "black"
    assert lines["supervised"].get_color() != "black"
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["50"]


def test_runs_of_one_line_differ_in_labels_and_seeds_alone():
    fig = figure_budget([made(), made(labels=100, lr=0.1), made(labels=200)])
    assert list(handles(fig)) == ["supervised (lr 0.03)", "supervised (lr 0.1)"]


def test_the_note_says_that_a_self_supervised_number_is_of_a_probe():
    assert "a probe of their frozen features" in said(figure_budget([made(), selfs("simfle")]))
    assert "probe" not in said(figure_budget([made(), made("dtm")]))


EIGHT = ("supervised", "pseudo_label", "fixmatch", "flexmatch", "freematch", "mean_teacher", "ada_cm", "dtm")

def test_eight_methods_and_six_budgets_can_be_told_apart_and_read():
    runs = [made(m, 0.3 + 0.02 * i + 0.05 * j + 0.01 * d, n, d) for i, m in enumerate(EIGHT)
            for j, n in enumerate((5, 10, 25, 100, 250, None)) for d in (0, 1, 2)[:1 if n is None else 3]]
    fig = figure_budget(runs)
    assert_readable(fig)
    assert len({h.get_color() for h in handles(fig).values()}) == 8
    x = np.array([points[:, 0] for points, _ in bars(fig.axes[0])])  # (methods, budgets)
    assert (x[:, :-1].max(0) < x[:, 1:].min(0)).all(), "the points of one budget stand before all of the next"


def test_a_method_has_one_style_whatever_the_other_runs_and_their_order():
    runs = [made("dtm"), made(), made("linear_probe", init=SIMFLE.format(0, "a")), made("fixmatch")]
    styles = lambda fig: {n.split(":")[0]: style(h) for n, h in handles(fig).items()}
    one, other, few = (styles(figure_budget(r)) for r in (runs, runs[::-1], runs[1:]))
    assert one == other and few.items() <= one.items()
    assert styles(figure_reliability(runs)) == one
    runs = [made("dtm", lr=0.01 * (k + 1)) for k in range(12)]
    many, back = (styles(figure_reliability(r)) for r in (runs, runs[::-1]))
    assert len(set(many.values())) == 12 and many == back


# --- ablations ---

@pytest.mark.parametrize("field, values, ticks", [
    ("mask_ratio", (0.9, 0.25, 0.75), ["0.25", "0.75", "0.9"]), ("groups", (64, 8, 32), ["8", "32", "64"]),
    ("masking", ("semantic", "random"), ["random", "semantic"]),
    ("labels_per_class", (None, 100, 20), ["20", "100", "all"]),
    ("joint_views", (True, False), ["False", "True"])])
def test_ablation_finds_the_setting_and_draws_wilson_intervals_in_its_order(field, values, ticks):
    name = "labels" if field == "labels_per_class" else field
    runs = [made("simfle", 0.4 + 0.05 * i, **{name: v}) for i, v in enumerate(values)]
    fig = figure_ablations(runs)
    ax, = fig.axes
    assert ax.get_ylabel() == field and [t.get_text() for t in ax.get_yticklabels()] == ticks
    wars = {str("all" if v is None else v): r.metrics.test.WAR for v, r in zip(values, runs, strict=True)}
    for (points, ends), tick in zip(bars(ax), ticks, strict=True):
        assert points[0, 0] == pytest.approx(100 * wars[tick])
        np.testing.assert_allclose(ends[0, :, 0], 100 * np.array(wilson(round(400 * wars[tick]), 400)))
    assert "Wilson's over the test faces." in said(fig) and "Student" not in said(fig)
    assert_readable(fig)


def test_ablation_over_draws_has_students_interval():
    runs = [made("dtm", w, draw=d) for d, w in enumerate((0.4, 0.5, 0.45))]
    fig = figure_ablations([*runs, made("dtm", 0.3, gamma=2.0)])
    found = dict(zip([t.get_text() for t in fig.axes[0].get_yticklabels()], bars(fig.axes[0]), strict=True))
    np.testing.assert_allclose(found["2.71828"][1][0, :, 0], 100 * np.array(t_interval((0.4, 0.5, 0.45))[1:]))
    np.testing.assert_allclose(found["2"][1][0, :, 0], 100 * np.array(wilson(120, 400)))
    assert "Student's over 3 draws; Wilson's" in said(fig)


def test_ablation_of_methods_leaves_out_what_each_method_chooses_itself():
    runs = [made(m, balance="sampler", batch_size=32, steps_per_epoch=40)
            for m in ("fixmatch", "supervised", "freematch")]
    ax, = figure_ablations(runs).axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["fixmatch", "freematch", "supervised"]
    masks = figure_ablations([made("simfle"), made("simfle_random", 0.4)])
    assert masks.axes[0].get_ylabel() == "method"


@pytest.mark.parametrize("other, of, message", [
    (dict(groups=8, mask_ratio=0.5), None, "differ in one setting alone; these differ in groups, mask_ratio"),
    (dict(seed=1, draw=2), None, "these differ in none but seeds"),
    (dict(groups=8), "mask_ratio", "differ in mask_ratio alone; these differ in groups"),
    (dict(groups=8, lr=0.7), "groups", "differ in groups alone; these differ in groups, lr"),
    (dict(groups=8, labels=20), None, "these differ in groups, labels_per_class")])
def test_ablation_of_no_or_of_two_settings_is_refused(other, of, message):
    with pytest.raises(BenchError, match=message): figure_ablations([made("simfle"), made("simfle", **other)], of)


def test_ablation_with_twins_is_refused():
    with pytest.raises(BenchError, match="are both called"): figure_ablations([made(), made(lr=0.3), made(war=0.4)])


# --- confusion ---

@pytest.mark.parametrize("n", [1, 5])
def test_confusion_is_percent_of_the_true_class(n):
    runs = [made(war=0.1 + 0.1 * i, draw=i) for i in range(n)]
    fig = figure_confusion(runs)
    panels = fig.axes[:n]
    for ax, run in zip(panels, runs, strict=True):
        counts = np.array(run.metrics.test.confusion)
        percent = 100 * counts / counts.sum(1, keepdims=True)
        np.testing.assert_allclose(ax.images[0].get_array(), percent)
        assert ax.images[0].get_clim() == (0, 100) and [t.get_text() for t in ax.get_xticklabels()] == NAMES
        assert {tuple(map(round, t.get_position())): t.get_text() for t in ax.texts} == {
            (j, i): f"{p:.0f}" for (i, j), p in np.ndenumerate(percent) if p >= 1}
    assert_readable(fig)


def test_confusion_of_a_class_without_a_test_face_is_a_gap():
    run = made()
    run.metrics.test.confusion[3][:] = [0] * 8
    shown = figure_confusion([run]).axes[0].images[0].get_array()
    assert np.ma.getmaskarray(shown)[3].all() and not np.ma.getmaskarray(shown)[[0, 1, 2, 4, 5, 6, 7]].any()


# --- calibration ---

def test_reliability_is_accuracy_by_confidence_and_its_gaps_add_up_to_the_ece_in_the_legend():
    runs = [made(war=w, draw=i, faces=800) for i, w in enumerate((0.2, 0.5))]
    fig = figure_reliability(runs)
    above, below = fig.axes
    for line, steps, run, label in zip(above.lines[1:], below.patches, runs, handles(fig), strict=True):
        confidence, accuracy = line.get_data()
        share = steps.get_data().values
        assert share.sum() == pytest.approx(100) and len(share) == 15 and len(confidence) == (share > 0).sum()
        assert (np.floor(confidence * 0.15 - 1e-9) == np.flatnonzero(share)).all(), "each point lies in its bin"
        ece = (share[share > 0] * abs(accuracy - confidence)).sum() / 100
        assert ece == pytest.approx(100 * run.metrics.test.ECE) and label.endswith(f": ECE {ece:.1f} %")
    assert_readable(fig)


def test_reliability_of_eight_runs_can_be_read():
    assert_readable(figure_reliability([made(m, 0.2 + 0.05 * i) for i, m in enumerate(EIGHT)]))


# --- thresholds ---

@pytest.mark.parametrize("n, epochs", [(1, 20), (5, 1)])
def test_thresholds_and_shares_are_those_of_the_histories(n, epochs):
    runs = [semi(draw=i, epochs=epochs) for i in range(n)]
    fig = figure_thresholds([made(), *runs])  # the supervised run has none, and no column
    found = {ax.get_title(): ax for ax in fig.axes if ax.get_title()}
    names = ["dtm"] if n == 1 else [f"dtm, draw {i}" for i in range(n)]
    assert list(found) == names and len(fig.axes) == 2 * n
    lower = [ax for ax in fig.axes if not ax.get_title()]
    for run, name, below in zip(runs, names, lower, strict=True):
        curves = np.transpose([line.get_ydata() for line in found[name].lines])
        np.testing.assert_array_equal(curves, run.history["thresholds"].tolist())
        used, right = (line.get_ydata() for line in below.lines)
        np.testing.assert_allclose(used, 100 * run.history["pool_used"] / 900)
        counts = zip(run.history["pseudo_right"], run.history["pseudo_known"], strict=True)
        np.testing.assert_allclose(right, [100 * sum(r) / sum(k) for r, k in counts])
    assert list(handles(fig)) == [*NAMES, "unlabelled in use", "right, of those"]
    assert_readable(fig)


def test_common_thresholds_are_one_line_and_what_is_missing_is_left_out():
    runs = [semi("fixmatch", thresholds=[[0.95] * 8] * 6, without=("pseudo_known", "pseudo_right")),
            semi("mean_teacher", without=("thresholds",))]
    fig = figure_thresholds(runs)
    assert len(fig.axes[0].lines) == 1 and len(fig.axes[2].lines) == 1 and len(fig.axes[3].lines) == 2
    assert "no thresholds" in said(fig)
    assert list(handles(fig)) == ["all classes", "unlabelled in use", "right, of those"]
    assert list(handles(figure_thresholds(runs[:1]))) == ["all classes", "unlabelled in use"]
    assert not faults(fig)


def test_thresholds_need_a_run_with_a_pool():
    with pytest.raises(BenchError, match="None of these runs learned from unlabelled faces"):
        figure_thresholds([made()])


# --- pretraining ---

@pytest.mark.parametrize("methods, panels", [
    (["byol"], ["std of features", "k-NN accuracy (%)"]),
    (["byol", "mae"], ["reconstruction error", "std of features", "k-NN accuracy (%)"]),
    (["byol", "mae", "simfle"], ["reconstruction error", "grouping loss g", "std of features", "k-NN accuracy (%)"])])
@pytest.mark.parametrize("epochs", [1, 12])
def test_pretraining_has_a_panel_for_what_some_run_has_and_a_line_for_each_run_that_has_it(methods, panels, epochs):
    runs = [selfs(m, epochs) for m in methods]
    fig = figure_pretraining([made(), *runs])
    assert [ax.get_ylabel() for ax in fig.axes] == panels and list(handles(fig)) == methods
    columns = [c for c in ("reconstruction", "g", "feature_std", "val_WAR") if any(c in r.history for r in runs)]
    run_of = {style(h): r for h, r in zip(handles(fig).values(), runs, strict=True)}
    for ax, column in zip(fig.axes, columns, strict=True):
        lines = [line for line in ax.lines if style(line) in run_of]
        assert len(lines) == sum(column in r.history for r in runs)
        for line in lines:
            values = run_of[style(line)].history[column]
            np.testing.assert_allclose(line.get_ydata(), 100 * values if column == "val_WAR" else values)
    assert_readable(fig)


def test_the_held_out_error_is_dashed_in_the_colour_of_its_run_and_said():
    run = selfs("simfle")
    ax = (fig := figure_pretraining([run])).axes[0]
    solid, dashed = ax.lines
    np.testing.assert_array_equal(dashed.get_ydata(), run.history["val_reconstruction"])
    assert dashed.get_linestyle() == "--" and dashed.get_color() == solid.get_color() and "held-out" in said(fig)
    assert fig.axes[1].get_yscale() == "log" and "held-out" not in said(figure_pretraining([selfs("mae")]))


def test_pretraining_needs_a_self_supervised_run():
    with pytest.raises(BenchError, match="None of these runs is self-supervised"):
        figure_pretraining([made(), made("dtm")])


# --- landmark scores ---

def test_landmark_scores_are_drawn_with_their_intervals_a_panel_a_score():
    tables = {name: pd.concat([landmarks(gain), landmarks(gain / 2, "share")])
              for name, gain in dict(supervised=1, dtm=0.3).items()}
    fig = figure_landmark_scores(tables)
    assert [ax.get_ylabel().split()[0] for ax in fig.axes] == ["lift", "share"] and list(handles(fig)) == list(tables)
    for ax, score in zip(fig.axes, ("lift", "share"), strict=True):
        dotted = [list(line.get_ydata()) for line in ax.lines if line.get_linestyle() == ":"]
        assert dotted == ([[1, 1]] if score == "lift" else [])
        for (points, ends), table in zip(bars(ax), tables.values(), strict=True):
            part = table[table["score"] == score]
            np.testing.assert_allclose(points[:, 1], part["mean"])
            np.testing.assert_allclose(ends[:, :, 1], part[["low", "high"]])
            assert (np.round(points[:, 0]) == [0, 1, 2]).all()
        assert [t.get_text() for t in ax.get_xticklabels()] == ["eyes", "mouth", "contour"]
    assert_readable(fig)
    assert_readable(figure_landmark_scores({name: landmarks(1 - 0.1 * i) for i, name in enumerate(EIGHT)}))


def test_a_region_that_one_run_lacks_and_a_score_without_interval_are_no_fault():
    short = landmarks().iloc[1:].assign(low=np.nan, high=np.nan)
    (_, _), (points, _) = bars(figure_landmark_scores({"a": landmarks(), "b": short}).axes[0])
    assert (np.round(points[:, 0]) == [1, 2]).all()


@pytest.mark.parametrize("table, message", [
    (landmarks().drop(columns=["low", "score"]), "scores of 'it' lack score, low"),
    (landmarks()[:0], "are an empty table"),
    (pd.concat([landmarks()] * 2), "more than one row for eyes and lift"),
    (landmarks().assign(low=9), "a mean outside its interval, for eyes")])
def test_a_table_of_another_form_is_named(table, message):
    with pytest.raises(BenchError, match=message): figure_landmark_scores({"it": table})


def test_scores_of_different_layers_never_share_a_figure():
    two, four = (landmarks().assign(layer=layer) for layer in ("layer2 (6 x 6)", "layer4 (6 x 6)"))
    assert figure_landmark_scores({"a": two, "b": two}).axes[0].get_title() == "maps of layer2 (6 x 6)"
    with pytest.raises(BenchError, match=r"different layers .*a: layer2 \(6 x 6\), b: layer4 \(6 x 6\)"):
        figure_landmark_scores({"a": two, "b": four})


def test_no_table_is_refused():
    with pytest.raises(BenchError, match="no table of landmark scores"): figure_landmark_scores({})


# --- on paper ---

def test_pdf_has_real_fonts_and_vectors_and_a_restyled_figure_stays_so(tmp_path):
    fig = figure_budget(budget_runs())
    fig.axes[0].set_ylabel("restyled")
    save_figure(fig, tmp_path/"it.pdf")
    save_figure(fig, tmp_path/"it.png")
    pdf = (tmp_path/"it.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and b"/FontFile2" in pdf and b"/Type3" not in pdf
    assert (tmp_path/"it.png").read_bytes().startswith(b"\x89PNG")
