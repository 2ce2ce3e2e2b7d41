"""The training curve: parts of the loss on its axis, every other number that a method logs in a panel of its own."""
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from figure_checks import assert_readable, legend, said

from fer_bench.report.figures import history_numbers, run_title, training_curve
from fer_bench.schema import example_metrics


def record(method="supervised", loss_parts=None, epochs=4, config=None, metrics=None, **columns):
    "A record with a loss and `columns` in its history."
    e = np.arange(1, epochs + 1)
    history = pd.DataFrame({"epoch": e, "step": 5 * e, "loss": 2 / e, "lr": 0.1, "seconds": 1.5} | columns)
    return SimpleNamespace(config=dict(method=method, labels_per_class=50, seed=0) | (config or {}), history=history,
                           metrics=example_metrics(epoch=epochs, loss_parts=loss_parts, **metrics or {}))


def panels(fig): return {ax.get_ylabel(): ax for ax in fig.axes}


def test_a_watched_number_is_never_on_the_axis_of_the_loss():
    fig = training_curve(record("mylab.Mixup", ["cross_entropy", "mixing"], cross_entropy=0.5, mixing=0.1,
                                share_mixed=0.7, val_WAR=0.4))
    found = panels(fig)
    assert list(found) == ["training loss", "share_mixed", "WAR (%)"]
    assert legend(found["training loss"]) == ["loss", "cross_entropy", "mixing"]
    np.testing.assert_array_equal(found["share_mixed"].lines[0].get_ydata(), [0.7] * 4)
    assert_readable(fig)


def test_a_loss_without_parts_and_nothing_watched_is_one_line():
    fig = training_curve(record(loss_parts=[]))
    assert list(panels(fig)) == ["training loss"] and legend(fig.axes[0]) == ["loss"]


@pytest.mark.parametrize("method, parts, watched", [("dtm", ["consistency"], []), ("mylab.Mixup", [], ["consistency"])])
def test_an_old_record_has_parts_of_a_built_in_method_and_watched_numbers_of_an_own_one(method, parts, watched):
    old = record(method, consistency=0.2, feature_std=0.9, g=20.0, hit_all=0.3, val_reconstruction=0.5, pool_used=90,
                 score=0.4)
    assert history_numbers(old) == (parts, watched)
    assert list(panels(training_curve(old))) == ["training loss", *watched]


def test_many_watched_numbers_can_be_read():
    assert_readable(training_curve(record("mylab.Mixup", [], val_WAR=0.4,
                                          **{f"number_{i}": 10.0 ** i for i in range(5)})))


def test_a_part_that_is_the_loss_is_not_drawn_twice():
    r = record(loss_parts=["cross_entropy", "penalty"], cross_entropy=2 / np.arange(1, 5), penalty=0.1)
    assert history_numbers(r) == (["penalty"], [])


@pytest.mark.parametrize("config, metrics, words", [
    ({}, {}, "supervised on ferplus, 50 labels a class, seed 0"),
    (dict(labels_per_class=None), {}, "supervised on ferplus, all labels, seed 0"),
    (dict(labels_per_class=None, budget="ada_cm-400"), {}, "supervised on ferplus, labels of ada_cm-400, seed 0"),
    (dict(dataset="faceset"), dict(drawn=True), "supervised on drawn faces, 50 labels a class, seed 0"),
    ({}, dict(select="oracle"), "supervised on ferplus, 50 labels a class, seed 0, oracle selection")])
def test_a_title_says_method_faces_labels_seed_and_oracle_selection(config, metrics, words):
    r = record(config=config, metrics=dict(dataset="ferplus") | metrics)
    assert run_title(r) == words and words in said(training_curve(r))
