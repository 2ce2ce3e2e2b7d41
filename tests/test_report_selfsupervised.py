"""Figures of a self-supervised run from records made by hand: numbers, collapse, and only figures that apply."""
import numpy as np
import pandas as pd
import pytest
from figure_checks import assert_readable, assert_says_what_it_is_of, legend, made_record

from fer_bench.core import BenchError
from fer_bench.report import selfsupervised as ours
from fer_bench.report.figures import training_curve
from fer_bench.report.selfsupervised import FIGURES, landmark_hits, pretraining_curves, pretraining_figures

REGIONS = ("brows", "contour", "eyes", "mouth", "nose")
HITS = ("hit_all", *(f"hit_{region}" for region in REGIONS), "hit_chance")
BYOL = ("reconstruction", "g", *HITS)  # columns that it lacks


def record(epochs=3, without=(), history=None, metrics=None, config=None):
    "A run of SimFLE."
    e = np.arange(1, epochs + 1)
    columns = {"epoch": e, "loss": 3 / e, "similarity": 2 / e, "reconstruction": 0.9 / e**0.5, "grouping": 0.1 / e,
               "feature_std": 0.6 + 0.2 * (1 - 1 / e), "g": 80 / e**2, "val_WAR": 0.5 - 0.2 / e, "score": e * 0.0}
    columns |= {name: 0.2 + 0.06 * i * e / epochs for i, name in enumerate(HITS)}
    columns["hit_chance"] = np.full(epochs, 0.25)
    return made_record(
        columns | (history or {}), without,
        dict(method="simfle", dataset="lfw", labels_per_class=None, seed=0) | (config or {}),
        dict(dataset="lfw", epoch=epochs, loss_parts=["similarity", "reconstruction", "grouping"]) | (metrics or {}))


# --- every figure ---

@pytest.mark.parametrize("epochs", [1, 100])
@pytest.mark.parametrize("changes", [dict(g=1e-7), dict(without=BYOL), dict(feature_std=0.02, g=1.4),
                                     dict(val_reconstruction=0.9), dict(val_reconstruction=0.9, without=("g",))],
                         ids=str)
def test_each_figure_can_be_read(changes, epochs):
    without = changes.get("without", ())
    r = record(epochs, without, {name: np.full(epochs, v) for name, v in changes.items() if name != "without"})
    for fig in pretraining_figures(r).values(): assert_readable(fig)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_names_its_run_and_warns_of_drawn_faces_and_oracle_selection(name):
    assert_says_what_it_is_of(FIGURES[name], record, "simfle on lfw, all labels, seed 0",
                              dict(method="simfle_random", labels_per_class=4000))


@pytest.mark.parametrize("name", FIGURES)
def test_one_epoch_can_be_seen(name):
    for line in FIGURES[name](record(1)).axes[0].lines:
        assert line.get_marker() not in ("", "None") or len(line.get_xdata()) == 2, "a line of one point needs a marker"


@pytest.mark.parametrize("without, expected", [
    ((), ["pretraining_curves", "landmark_hits"]),
    (BYOL, ["pretraining_curves"]),
    (("hit_all",), ["pretraining_curves"]),
    (("hit_chance",), ["pretraining_curves"]),
    (("hit_contour", "hit_eyes"), ["pretraining_curves", "landmark_hits"]),
    (("feature_std",), []),
], ids=["all", "byol", "no all", "no chance", "fewer regions", "supervised"])
def test_figures_that_apply(without, expected):
    for r in (record(without=without), record(history={name: [None] * 3 for name in without})):
        assert list(pretraining_figures(r)) == expected
        for name in set(FIGURES) - set(expected):
            with pytest.raises(BenchError, match=f"simfle on lfw.* no figure {name} of this run, .* no "):
                FIGURES[name](r)


def test_what_a_record_lacks_is_named():
    with pytest.raises(BenchError, match="history has no feature_std[.]"):
        pretraining_curves(record(without=("feature_std",)))
    with pytest.raises(BenchError, match="no hit_all and no hit_chance[.]"): landmark_hits(record(without=HITS))


# --- each figure's numbers ---

@pytest.mark.parametrize("epochs", [1, 7])
@pytest.mark.parametrize("without, expected", [((), ["reconstruction", "g", "feature_std"]), (BYOL, ["feature_std"]),
                                               (("g",), ["reconstruction", "feature_std"])],
                         ids=["simfle", "byol", "mae"])
def test_panels_are_those_the_run_has_and_hold_its_numbers(without, expected, epochs):
    r = record(epochs, without)
    axes = pretraining_curves(r).axes
    for ax, name in zip(axes, expected, strict=True):
        np.testing.assert_array_equal(ax.lines[0].get_xdata(), r.history["epoch"])
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), r.history[name])
        assert ax.get_yscale() == ("log" if name == "g" else "linear") and ax.get_ylabel()
    assert [ax.get_xlabel() for ax in axes] == [""] * (len(axes) - 1) + ["epoch"]


@pytest.mark.parametrize("held_out", [[0.95, 0.8, 0.85], [None, 0.8, None]], ids=["each epoch", "one epoch"])
def test_the_reconstruction_error_on_held_out_faces_is_a_second_line(held_out):
    r = record(history=dict(val_reconstruction=held_out))
    fig = pretraining_curves(r)
    training, held = fig.axes[0].lines
    np.testing.assert_array_equal(training.get_ydata(), r.history["reconstruction"])
    np.testing.assert_array_equal(held.get_xdata(), r.history["epoch"])
    np.testing.assert_allclose(held.get_ydata(), np.array(held_out, dtype=float))
    assert legend(fig.axes[0]) == ["training", "held-out faces"] and len(fig.axes) == 3
    assert held.get_color() != training.get_color() and held.get_marker() != training.get_marker()


@pytest.mark.parametrize("history", [{}, dict(val_reconstruction=[None] * 3)], ids=["absent", "null"])
def test_without_held_out_faces_the_reconstruction_error_is_one_line(history):
    ax = pretraining_curves(record(history=history)).axes[0]
    assert len(ax.lines) == 1 and ax.get_legend() is None


def test_the_error_on_held_out_faces_is_no_part_of_the_training_loss():
    ax = training_curve(record(history=dict(val_reconstruction=[0.9, 0.8, 0.7]))).axes[0]
    assert legend(ax) == ["loss", "similarity", "reconstruction", "grouping"]


@pytest.mark.parametrize("g", [[80, 20, 9], [1.5, 1.4, 1.4], [10, 10, 10], [5e4, 1, 2e-3], [None, 20, 30]])
def test_all_of_g_lies_on_its_logarithmic_axis(g):
    ax = pretraining_curves(record(history=dict(g=g))).axes[1]
    (low, high), values = ax.get_ylim(), [v for v in g if v is not None]
    assert ax.get_yscale() == "log" and low <= min(values) and max(values) <= high


def test_a_g_of_zero_is_not_lost_on_a_logarithmic_axis():
    ax = pretraining_curves(record(history=dict(g=[2.0, 1.0, 0.0]))).axes[1]
    assert ax.get_yscale() == "linear" and ax.get_ylim()[0] <= 0


@pytest.mark.parametrize("std, collapsed", [
    ([0.9, 0.5, 0.099], True), ([0.02, 0.05, 0.1], False), ([0.01, 0.02, 1.4], False), ([0.5, 0.04, None], True)])
def test_the_title_says_where_the_last_epoch_has_collapsed(std, collapsed):
    ax = pretraining_curves(record(history=dict(feature_std=std))).axes[-1]
    assert ("Nearly all faces have one vector" in ax.get_title()) == collapsed and "dotted" in ax.get_title()
    assert collapsed == (f"{[v for v in std if v is not None][-1]:.2g} at the end" in ax.get_title())
    bound = ax.lines[1]
    assert list(bound.get_ydata()) == [0.1, 0.1] and bound.get_linestyle() == ":"
    assert ax.get_ylim()[0] == 0 and ax.get_ylim()[1] > max(v for v in std if v is not None)


def test_the_bound_is_that_of_the_methods():
    from fer_bench.methods.selfsupervised import COLLAPSED_BELOW
    assert ours.COLLAPSED_BELOW == COLLAPSED_BELOW


CENTRE = {f"centre_hit_{region}": 0.1 + 0.1 * i for i, region in enumerate(("all", *REGIONS))}


def panels(fig): return {ax.get_title().rpartition(" ")[0]: ax for ax in fig.axes}


@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_a_panel_a_region_holds_the_kept_the_centre_and_chance(epochs):
    r = record(epochs, history={name: np.full(epochs, share) for name, share in CENTRE.items()})
    fig = landmark_hits(r)
    assert_readable(fig)
    assert list(panels(fig)) == ["all but contour", *REGIONS]
    for region, ax in zip(("all", *REGIONS), fig.axes, strict=True):
        kept, centre, chance = ax.lines
        np.testing.assert_allclose(kept.get_ydata(), 100 * r.history[f"hit_{region}"])
        np.testing.assert_allclose(centre.get_ydata(), [100 * CENTRE[f"centre_hit_{region}"]] * 2)
        assert list(chance.get_ydata()) == [25, 25]
        assert [line.get_linestyle() for line in (centre, chance)] == ["--", ":"]
        assert ax.get_title().endswith(f" {100 * r.history[f'hit_{region}'].iloc[-1]:.0f}")
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["kept patches", "centre", "chance"]


def test_without_a_contour_all_is_all_a_scheme_of_its_own_is_drawn_and_early_records_have_no_centre():
    fig = landmark_hits(record(without=HITS[1:-1], history=dict(hit_left_eye=[0.1, 0.2, 0.4])))
    assert list(panels(fig)) == ["all", "left_eye"] and all(len(ax.lines) == 2 for ax in fig.axes)


def test_hits_of_other_faces_stand_in_for_a_history_that_has_none():
    hits = pd.DataFrame({"epoch": [20, 40], "hit_eyes": [.3, .5], "hit_all": [.2, .4], "hit_chance": .25})
    ax = panels(landmark_hits(record(without=HITS), hits))["eyes"]
    assert list(ax.lines[0].get_xdata()) == [20, 40] and list(ax.lines[0].get_ydata()) == [30, 50]
