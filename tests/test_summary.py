"""Means over label draws and paired differences, against hand-computed cases."""
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fer_bench.core import BenchError
from fer_bench.evaluate.statistics import t_interval
from fer_bench.report.summary import summarise


def test_t_interval_by_hand():
    mean, low, high = t_interval([5.0, 7.0, 9.0])  # sd 2, standard error 2/√3, t of two degrees of freedom 4.3027
    assert (mean, low, high) == pytest.approx((7, 7 - 4.302653 * 2 / np.sqrt(3), 7 + 4.302653 * 2 / np.sqrt(3)), abs=1e-5)
    assert t_interval([3.0])[0] == 3 and np.isnan(t_interval([3.0])[1:]).all()

@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.floats(0.5, 0.99))
def test_t_interval_against_scipy(values, confidence):
    if np.std(values) < 1e-9: return
    low, high = stats.ttest_1samp(values, 0).confidence_interval(confidence)
    assert t_interval(values, confidence)[1:] == pytest.approx((low, high), abs=1e-6)

@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [[1.0]]])
def test_no_interval(values):
    with pytest.raises(BenchError, match="no mean with an interval"): t_interval(values)

def record(method="supervised", draw=0, WAR=0.4, seed=0, images=100, **changes):
    "A finished run, `changes` to its config or metrics."
    test = {"WAR": WAR, "UAR": WAR / 2, "macro_F1": WAR} | {f"{m}_ci": [0, 1] for m in ("WAR", "UAR", "macro_F1")}
    config = dict(method=method, dataset="ferplus", backbone="resnet10t", init="scratch", labels_per_class=50, seed=seed, label_seed=draw,
                  epochs=1, steps_per_epoch=1, batch_size=8)
    metrics = dict(classes=["a", "b"], capped={}, data_hash="d", drawn=False, select="last", images_seen=images, parameters=1,
                   train_seconds=1.0, test=test)
    return SimpleNamespace(id="a", config=config | {k: v for k, v in changes.items() if k in config},
                           metrics=metrics | {k: v for k, v in changes.items() if k in metrics}, environment={})

def test_summary_by_hand():
    "Differences are taken draw by draw, seeds are averaged within a draw, the larger budget is a row of its own."
    runs = [record(draw=0, WAR=0.40), record(draw=1, WAR=0.44), record("dtm", 0, 0.45, seed=0), record("dtm", 0, 0.47, seed=1),
            record("dtm", 1, 0.52), record(draw=0, WAR=0.41, images=300), record("fixmatch", 5, 0.9)]
    table = summarise(runs).set_index(["method", "images seen"])
    dtm = table.loc[("dtm", 100)]
    assert (dtm["draws"], dtm["runs"], dtm["WAR"]) == (2, 3, "49.0 ± 4.2")
    assert dtm["WAR gain"] == "+7.0 [-5.7, 19.7]" and dtm["UAR gain"] == "+3.5 [-2.9, 9.9]"  # 6 and 8 points, t of one degree 12.706
    assert table.loc[("supervised", 100), "WAR gain"] == "" and table.loc[("supervised", 300), "WAR gain"] == "+1.0"
    assert table.loc[("fixmatch", 100), "WAR gain"] == "no common draw"

@pytest.mark.parametrize("other, says", [(record(data_hash="e"), "2 different data sets"),
                                         (record(labels_per_class=10), "budgets of labels"),
                                         (record(classes=["a"]), "never share a table")])
def test_what_does_not_belong_together(other, says):
    with pytest.raises(BenchError, match=says): summarise([record(), other])

def test_no_baseline():
    with pytest.raises(BenchError, match="No run of 'dtm'"): summarise([record()], "dtm")
    with pytest.raises(BenchError, match="no finished run"): summarise([])
