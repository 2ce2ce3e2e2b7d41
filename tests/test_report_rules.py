"""The table and figure of rules taken apart, from records made by hand."""
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from figure_checks import assert_readable, said

from fer_bench.config import RunConfig
from fer_bench.core import BenchError
from fer_bench.evaluate.metrics import classification_metrics
from fer_bench.evaluate.statistics import t_interval
from fer_bench.report.rules import figure_rules, rule_choices, rule_table
from fer_bench.report.scores import pool_in_use
from fer_bench.schema import example_environment, example_metrics

CLASSES = ["neutral", "happiness", "contempt"]

def made(method, draw, right, use=None, history=None, **options):
    "A run with `right` (3,) of 50 test faces of each class right; with `use` it had a pool."
    truth = np.repeat(np.arange(3), 50)
    wrong = np.concatenate([np.arange(50) >= n for n in right])
    logits = np.eye(3)[np.where(wrong, (truth + 1) % 3, truth)]
    test = classification_metrics(logits, truth, CLASSES)
    test |= {f"{m}_ci": [test[m] - 0.05, test[m] + 0.05] for m in ("WAR", "UAR", "macro_F1")}
    pool = {"pool": dict(members=["x"], faces=[900], dropped=[0], hash="0" * 64)} if use is not None else {}
    metrics = example_metrics(method=method, kind="semi-supervised" if pool else "supervised", classes=CLASSES,
                              dataset="ferplus", drawn=False, images_seen=300 if pool else 100, labelled_seen=100,
                              test=test, **pool)
    config = RunConfig(method=method, labels_per_class=50, label_seed=draw, balance="sampler",
                       **{"mu": 2} if pool else {}, **options)
    rows = history or ([{"epoch": 1, "loss": 1.0, "use": use}] if pool else [{"epoch": 1, "loss": 1.0}])
    return SimpleNamespace(id=f"{method}-{draw}-{options}", config=config.model_dump(), metrics=metrics,
                           history=pd.DataFrame(rows), environment=example_environment())

def study():
    return [made(method, draw, [n + draw for n in right], use, **options) for draw in range(3)
            for method, right, use, options in (
                ("supervised", (20, 25, 15), None, {}), ("dtm", (30, 35, 10), 0.3, {}),
                ("dtm", (28, 30, 20), 0.4, {"by": "class"}), ("dtm", (30, 36, 5), 0.5, {"floor": 0.5}),
                ("fixmatch", (31, 37, 2), 0.2, {}))]

def test_the_table_has_the_choices_that_differ_and_the_rates_of_the_runs():
    table = rule_table(study()).set_index("method")
    assert list(table.columns)[:3] == ["policy", "by", "floor"] and "align" not in table and "unlabelled" not in table
    assert table.loc["dtm (by class)", ["policy", "by", "floor"]].tolist() == ["labelled", "class", "0.8"]
    assert table.loc["fixmatch", ["policy", "by", "floor"]].tolist() == ["fixed", "", ""], "it reads neither"
    assert (table.loc["supervised (balance sampler)", ["policy", "by", "floor", "use"]] == "").all()
    uar = [(30 + 35 + 10 + 3 * d) / 150 for d in range(3)]
    assert table.loc["dtm", "UAR"] == f"{100 * np.mean(uar):.1f} ± {100 * np.std(uar, ddof=1):.1f}"
    assert table.loc["dtm (floor 0.5)", "use"] == "50 %" and (table["draws"] == 3).all()
    mean, low, high = t_interval(pd.Series([15 / 150] * 3))
    assert table.loc["dtm", "UAR gain"] == f"{100 * mean:+.1f} [{100 * low:.1f}, {100 * high:.1f}]"

def test_the_figure_has_a_row_a_setting_and_a_dot_a_run():
    runs = study()
    fig = figure_rules(runs)
    assert_readable(fig)
    labels = [t.get_text() for t in fig.axes[0].get_yticklabels()]
    assert labels == rule_table(runs)["method"].tolist()
    assert [re.sub(r" \(%\)", "", ax.get_xlabel()) for ax in fig.axes] == ["UAR", "macro-F1", "WAR", "pool in use"]
    uar = [line for line in fig.axes[0].lines if len(line.get_xdata()) == 3][labels.index("dtm (by class)")]
    np.testing.assert_allclose(uar.get_xdata(), [100 * (78 + 3 * d) / 150 for d in range(3)])
    use = fig.axes[3].lines[-1]
    np.testing.assert_allclose(use.get_xdata(), [30, 40, 50, 20, np.nan])
    assert "ferplus" in said(fig) and "Drawn" not in said(fig)

def test_with_and_without_a_pool_are_rows():
    runs = [made("dtm", d, (30, 30, 10), 0.3, **options) for d in range(2)
            for options in ({}, dict(unlabelled="pool", pool_root="people"))]
    assert set(rule_table(runs)["unlabelled"]) == {"rest", "pool"}

def test_a_record_from_before_has_its_use_by_counts():
    run = made("dtm", 0, (30, 30, 10), 0.0, [{"epoch": 1, "loss": 1.0, "pool_seen": 80, "pool_used": 20}])
    del run.config["by"], run.config["align"]
    assert rule_table([run, made("fixmatch", 0, (3, 3, 3), 0.5)])["use"].tolist() == ["25 %", "50 %"]
    assert rule_choices(run)["by"] == ""

@pytest.mark.parametrize("use", [-0.1, 1.5])
def test_a_mean_weight_that_is_none(use):
    with pytest.raises(BenchError, match=r"mean weight .* not in \[0, 1\]"): pool_in_use(made("dtm", 0, (3, 3, 3), use))

def test_nothing_to_take_apart():
    with pytest.raises(BenchError, match="None of these runs learned from unlabelled faces"):
        rule_table([made("supervised", d, (20, 20, 20)) for d in range(2)])
    with pytest.raises(BenchError): figure_rules([])
