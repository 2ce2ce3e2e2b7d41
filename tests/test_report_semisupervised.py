"""Figures of a semi-supervised run from records made by hand: its numbers, gaps, and only figures that apply."""
import numpy as np
import pytest
from figure_checks import assert_readable, assert_says_what_it_is_of, legend, made_record

from fer_bench.core import BenchError
from fer_bench.report.semisupervised import (
    FIGURES,
    pool_share,
    pseudo_label_accuracy,
    pseudo_label_figures,
    pseudo_label_histogram,
    threshold_curves,
)

NAMES = ["neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"]
TRUTH = ("pseudo_known", "pseudo_right")


def record(k=8, epochs=3, without=(), history=None, metrics=None, config=None):
    "A run of `k` classes; in the first epoch no face had the last class as its pseudo-label."
    rng = np.random.default_rng(0)
    used = rng.integers(50, 90, (epochs, k))
    used[0, -1] = 0
    columns = {"epoch": np.arange(1, epochs + 1), "loss": np.linspace(1, 0.5, epochs),
               "thresholds": rng.uniform(0.1, 1, (epochs, k)), "pool_seen": np.full(epochs, 900),
               "pool_used": used.sum(1), "pseudo_labels": used, "pseudo_known": used // 2, "pseudo_right": used // 3}
    measured = dict(dataset="ferplus", epoch=epochs, classes=NAMES[:k], labelled_counts=list(range(10, 10 + k)),
                    pool=dict(members=["lfw"], faces=[900], dropped=[3], hash="0" * 64),
                    pool_truth=list(range(100, 100 + k)))
    return made_record(columns | (history or {}), without,
                       dict(method="dtm", dataset="ferplus", labels_per_class=50, seed=0) | (config or {}),
                       measured | (metrics or {}))


def lists(r, column): return np.array(r.history[column].tolist(), dtype=float)


# --- every figure ---

@pytest.mark.parametrize("k, epochs, without", [(2, 1, ()), (8, 40, ()), (8, 2, (*TRUTH, "pool_truth"))])
def test_each_figure_can_be_read(k, epochs, without):
    for fig in pseudo_label_figures(record(k, epochs, without)).values(): assert_readable(fig)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_names_its_run_and_warns_of_drawn_faces_and_oracle_selection(name):
    assert_says_what_it_is_of(FIGURES[name], record, "dtm on ferplus, 50 labels a class, seed 0",
                              dict(method="mean_teacher", labels_per_class=4000))


ALL = list(FIGURES)

@pytest.mark.parametrize("changes, expected", [
    ({}, ALL),
    (dict(without=("pool",)), []),
    (dict(metrics=dict(pool=None)), []),
    (dict(without=("thresholds",)), ALL[1:]),
    (dict(history=dict(thresholds=[None] * 3)), ALL[1:]),
    (dict(without=TRUTH), ALL[:3]),
    (dict(without=("pool_truth",)), ALL),
    (dict(without=("labelled_counts",)), [*ALL[:2], ALL[3]]),
    (dict(history={c: np.zeros((3, 8), int) for c in TRUTH}), ALL[:3]),
], ids=["all", "no pool", "pool null", "no threshold", "thresholds null", "no truth", "no true shares", "no prior",
        "nothing known"])
def test_figures_that_apply(changes, expected):
    r = record(**changes)
    assert list(pseudo_label_figures(r)) == expected
    for name in set(ALL) - set(expected):
        with pytest.raises(BenchError, match=f"dtm on ferplus.* there is no figure {name} of this run, for it"):
            FIGURES[name](r)


@pytest.mark.parametrize("figure, changes, message", [
    (threshold_curves, dict(without=("pool",)), "learned from no unlabelled faces"),
    (threshold_curves, dict(without=("thresholds",)), "no thresholds"),
    (pool_share, dict(without=("pool_seen", "pool_used")), "no pool_seen and no pool_used"),
    (pseudo_label_histogram, dict(without=("labelled_counts",)), "no labelled_counts"),
    (pseudo_label_accuracy, dict(without=("pseudo_right",)), "no pseudo_right"),
    (pseudo_label_accuracy, dict(history={c: np.zeros((3, 8), int) for c in TRUTH}),
     "no face whose true label is known"),
    (threshold_curves, dict(history=dict(thresholds=[[0.9] * 7] * 3)),
     "thresholds of epoch 1 is .* not a list of 8 numbers"),
    (threshold_curves, dict(history=dict(thresholds=[0.9] * 3)), "not a list of 8 numbers"),
    (pool_share, dict(history=dict(pool_used=[901] * 3)), "pool_used is more than there can be"),
    (pseudo_label_accuracy, dict(history=dict(pseudo_right=np.full((3, 8), 99))),
     "pseudo_right is more than there can be"),
])
def test_a_record_that_lacks_something_is_named(figure, changes, message):
    with pytest.raises(BenchError, match=message): figure(record(**changes))


# --- each figure's numbers ---

@pytest.mark.parametrize("k, epochs", [(2, 1), (2, 4), (8, 1), (8, 40)])
def test_threshold_curves_are_the_thresholds_in_the_order_they_end(k, epochs):
    r = record(k, epochs)
    ax = threshold_curves(r).axes[0]
    curves = lists(r, "thresholds")
    order = np.argsort(-curves[-1])
    assert ax.get_ylim() == (0, 1) and legend(ax) == [f"{NAMES[c]} {curves[-1, c]:.2f}" for c in order]
    for line, c in zip(ax.lines, order, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), r.history["epoch"])
        np.testing.assert_array_equal(line.get_ydata(), curves[:, c])
    assert len({line.get_marker() for line in ax.lines}) == k


def test_classes_with_the_same_thresholds_are_one_line():
    curves = np.full((3, 8), 0.95)
    assert legend(threshold_curves(record(history=dict(thresholds=curves))).axes[0]) == ["all classes 0.95"]
    curves[:, 1:] = 0.8
    curves[2, 1] = 0.9
    found = [" ".join(text.split())
             for text in legend(threshold_curves(record(history=dict(thresholds=curves))).axes[0])]
    assert found == ["neutral 0.95", "happiness 0.90", "surprise, sadness, anger, disgust, fear, contempt 0.80"]


def test_pool_share_is_used_of_seen_and_right_of_known():
    r = record(history=dict(pseudo_known=[[0, 0], [4, 4], [10, 0]], pseudo_right=[[0, 0], [3, 3], [5, 0]],
                            pool_used=[0, 90, 900]), k=2)
    used, right = pool_share(r).axes[0].lines
    np.testing.assert_allclose(used.get_ydata(), [0, 10, 100])
    np.testing.assert_allclose(right.get_ydata(), [np.nan, 75, 50])  # nothing in use: a gap, not 0


def test_pool_share_without_truth_is_one_line_and_without_faces_a_gap():
    r = record(without=TRUTH, history=dict(pool_seen=[0, 100, 100], pool_used=[0, 1, 2]))
    (line,) = pool_share(r).axes[0].lines
    np.testing.assert_allclose(line.get_ydata(), [np.nan, 1, 2])


@pytest.mark.parametrize("k", [2, 8])
@pytest.mark.parametrize("truth", ["known", "absent", "all zero"])
def test_histogram_bars_are_shares_of_the_last_epoch_the_prior_and_the_pool(k, truth):
    r = record(k, without=("pool_truth",) * (truth == "absent"),
               metrics={"pool_truth": [0] * k} if truth == "all zero" else {})
    ax = pseudo_label_histogram(r).axes[0]
    expected = [lists(r, "pseudo_labels")[-1], np.arange(10, 10 + k), np.arange(100, 100 + k)][:2 + (truth == "known")]
    for bars, counts in zip(ax.containers, expected, strict=True):
        np.testing.assert_allclose([b.get_width() for b in bars], 100 * counts / counts.sum())
    assert [int(text.split("(")[1].rstrip(")").replace(",", "")) for text in legend(ax)] == [c.sum() for c in expected]
    assert [t.get_text() for t in ax.get_yticklabels()] == NAMES[:k]


def test_histogram_of_an_epoch_that_used_nothing_says_so():
    ax = pseudo_label_histogram(record(history=dict(pseudo_labels=np.zeros((3, 8), int)))).axes[0]
    assert legend(ax)[0].endswith("(0)") and np.isnan([b.get_width() for b in ax.containers[0]]).all()


@pytest.mark.parametrize("k, epochs", [(2, 2), (8, 1), (8, 40)])
def test_accuracy_is_right_of_known_with_gaps(k, epochs):
    r = record(k, epochs)
    known, right = (lists(r, c).T for c in TRUTH)
    ax = pseudo_label_accuracy(r).axes[0]
    shown = ax.images[0].get_array()
    assert shown.shape == (k, epochs) and np.array_equal(np.ma.getmaskarray(shown), known == 0) and known[-1, 0] == 0
    np.testing.assert_allclose(shown.compressed(), 100 * right[known > 0] / known[known > 0])
    assert list(ax.images[0].get_extent()) == [0.5, epochs + 0.5, k - 0.5, -0.5], "cells stand at their epochs"
    assert [t.get_text() for t in ax.get_yticklabels()] == NAMES[:k]
    last = [t.get_text() for t in ax.child_axes[0].get_yticklabels()]
    ends = zip(right[:, -1], known[:, -1], strict=True)
    assert last == ["none" if n == 0 else f"{100 * r / n:.0f} % of {n:.0f}" for r, n in ends]
    assert "hatched" in ax.get_xlabel()


def test_accuracy_without_gaps_speaks_of_none():
    known = np.full((3, 8), 10)
    ax = pseudo_label_accuracy(record(history=dict(pseudo_known=known, pseudo_right=known))).axes[0]
    assert ax.get_xlabel() == "epoch" and (ax.images[0].get_array() == 100).all()
