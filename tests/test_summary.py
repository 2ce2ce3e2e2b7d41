"""Tasks, settings, means over label draws and paired differences, against hand-computed cases."""
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fer_bench.catalogue import known_entry
from fer_bench.config import own_values
from fer_bench.core import BenchError, write_json
from fer_bench.evaluate.dunnett import dunnett
from fer_bench.evaluate.statistics import t_interval
from fer_bench.report.comparison import paragraph
from fer_bench.report.figures import run_title
from fer_bench.report.names import (
    called,
    label_budget,
    label_phrase,
    method_of_id,
    method_title,
    older,
    run_names,
    setting_names,
)
from fer_bench.report.rows import leaderboard_table
from fer_bench.report.scores import HEADINGS
from fer_bench.report.summary import gains, measured, summarise
from fer_bench.report.tables import compare, fold_note, notes
from fer_bench.report.tasks import budgets, chosen, tasks
from fer_bench.schema import Metrics, Scores, Status, example_environment, example_metrics


def test_t_interval_by_hand():
    mean, low, high = t_interval([5.0, 7.0, 9.0])  # sd 2, standard error 2/√3, t of two degrees of freedom 4.3027
    assert (mean, low, high) == pytest.approx((7, 7 - 4.302653 * 2 / np.sqrt(3), 7 + 4.302653 * 2 / np.sqrt(3)),
                                              abs=1e-5)
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

OTHER = "e" * 64  # another hash

def record(method="supervised", draw=0, WAR=0.4, seed=0, images=100, history=None, **changes):
    "A finished run, `changes` to its config or metrics."
    test = {"WAR": WAR, "UAR": WAR / 2, "macro_F1": WAR}
    test |= {f"{m}_ci": [max(0, WAR - 0.1), min(1, WAR + 0.2)] for m in ("WAR", "UAR", "macro_F1")}
    config = dict(method=method, dataset="ferplus", backbone="resnet10t", init="scratch", labels_per_class=50,
                  seed=seed, label_seed=draw, epochs=1, steps_per_epoch=1, batch_size=8, image_size=48, lr=0.1,
                  budget="", split="official", precision="auto", processes=1, track="none", device="auto",
                  data_root="", label_rule="majority", probe=None, select="last", policy=None,
                  **{k: own_values(method)[k] for k in ("balance", "min_map", "optimizer")})
    metrics = dict(method=method, kind=known_entry(method).kind, dataset="ferplus", images_seen=images,
                   labelled_seen=images, test=test)
    metrics |= {k: v for k, v in changes.items() if k not in config or k == "select"}
    return SimpleNamespace(id="a", config=config | {k: v for k, v in changes.items() if k in config},
                           history=history, status=Status(state="missing"),
                           environment=example_environment(), metrics=example_metrics(**metrics))

def test_summary_by_hand():
    "Differences are taken draw by draw, seeds are averaged within a draw, the larger budget is a row of its own."
    runs = [record(draw=0, WAR=0.40), record(draw=1, WAR=0.44), record("dtm", 0, 0.45, seed=0),
            record("dtm", 0, 0.47, seed=1),
            record("dtm", 1, 0.52), record(draw=0, WAR=0.41, images=300), record("fixmatch", 5, 0.9)]
    table = summarise(runs).set_index(["method", "images seen"])
    dtm = table.loc[("dtm", 100)]
    assert (dtm["draws"], dtm["runs"], dtm["WAR"]) == (2, 3, "49.0 ± 4.2")
    # 6 and 8 points, t of one degree 12.706
    assert dtm["WAR gain"] == "+7.0 [-5.7, 19.7]" and dtm["UAR gain"] == "+3.5 [-2.9, 9.9]"
    assert table.loc[("supervised", 100), "WAR gain"] == "" and table.loc[("supervised", 300), "WAR gain"] == "+1.0"
    assert table.loc[("fixmatch", 100), "WAR gain"] == "no common draw"

def test_rows_of_other_numerics_are_marked_and_never_averaged():
    "Old and new runs of one setting are two rows; the newest are not marked; one kind alone is not marked at all."
    new = [record(draw=d, WAR=0.5, numerics=[2, 3]) for d in range(2)] + [record("dtm", 0, 0.6, numerics=[2, 3])]
    old = [record(draw=d, WAR=0.4, numerics=[1, 2]) for d in range(2)] + [record("fixmatch", 0, 0.5, numerics=[1, 2])]
    table = summarise(new + old).set_index("method")
    assert table["WAR"].to_dict() == {"supervised": "50.0 ± 0.0", "supervised (numerics 1)": "40.0 ± 0.0",
                                      "dtm": "60.0", "fixmatch (numerics 1)": "50.0"}
    assert table["WAR gain"]["dtm"] == "+10.0" == table["WAR gain"]["fixmatch (numerics 1)"], "each over its own"
    assert compare(new + old)["method"].tolist() == ["supervised", "supervised", "dtm", "supervised (numerics 1)",
                                                     "supervised (numerics 1)", "fixmatch (numerics 1)"]
    assert setting_names([new[2], old[2]]) == ["dtm", "fixmatch (numerics 1)"]
    said, = (n for n in notes(new + old) if "numerics" in n)
    assert said.startswith("Rows marked numerics 1 were made with older numerics")
    assert said in paragraph(new + old)
    for alone in (new, old):
        assert "numerics" not in str(summarise(alone)) + str(compare(alone)) + str(notes(alone))

def test_the_numerics_of_a_probe_matter_to_probes_alone():
    probed = [record("linear_probe", d, probe="linear", numerics=[2, p]) for d, p in ((0, 2), (1, 3))]
    plain = [record(numerics=[2, 2]), record(draw=1, numerics=[2, 3])]
    assert older(probed) == ["probe 2", ""] and older(plain) == ["", ""] and older([]) == []
    assert older([plain[0], probed[1]]) == ["", ""], "a run without a probe is not older than a probe"

def test_a_default_of_its_time_goes_without_saying():
    "BYOL had other defaults at NUMERICS 1: such a record says nothing of them, and a new one with them does."
    then = {"momentum": 0.99, "momentum_schedule": "constant", "optimizer": "sgd"}
    byol = lambda **changes: record("byol", momentum=None, momentum_schedule=None, **changes)
    old, new = byol(numerics=[1, 2]), byol(numerics=[2, 3])
    for r in (old, new): r.config.update(then)
    assert method_title(old) == "byol"
    assert all(f"{n} {v}" in method_title(new) for n, v in then.items())

@pytest.mark.parametrize("other, says", [(record(data_hash=OTHER), "different data never share"),
                                         (record(labels_per_class=10), "budgets of labels"),
                                         (record(classes=["a"]), "never share a table")])
def test_what_does_not_belong_together(other, says):
    with pytest.raises(BenchError, match=says): summarise([record(), other])

def test_no_baseline():
    with pytest.raises(BenchError, match="No run of 'dtm'"): summarise([record()], "dtm")
    with pytest.raises(BenchError, match="no finished run"): summarise([])


# --- many rows, one baseline ---

def test_dunnett_takes_the_rows_of_one_baseline_together():
    "Two families: trained rows over supervised, of which one lacks a draw, and a probe over the random one."
    rng = np.random.default_rng(0)
    wars = {m: 0.4 + 0.1 * rng.random(3) for m in ("supervised", "dtm", "fixmatch", "ada_cm", "random", "byol")}
    starts = {"random": dict(method="linear_probe"), "byol": dict(method="linear_probe", **BYOL)}
    runs = [record(**({"method": m} | starts.get(m, {})), draw=d, WAR=w) for m in wars for d, w in enumerate(wars[m])
            if (m, d) != ("fixmatch", 2)]
    table = measured(runs).set_index("method")
    found = table[[f"WAR_dunnett{end}" for end in ("", "_low", "_high", "_p")]]
    trained = [(w, m, d) for m in list(wars)[:4] for d, w in enumerate(wars[m]) if (m, d) != ("fixmatch", 2)]
    expected = dunnett(*zip(*trained, strict=True), "supervised")
    assert found.loc[["dtm", "fixmatch", "ada_cm"]].to_numpy() == pytest.approx(expected.to_numpy(), abs=2e-3)
    probe = t_interval(wars["byol"] - wars["random"])
    assert found.loc["linear probe of byol"].tolist()[:3] == pytest.approx(probe), "alone: Student's paired interval"
    assert found.loc[["supervised", "linear probe of random weights"]].isna().all(axis=None)
    assert table.loc["fixmatch", "WAR_dunnett"] != pytest.approx(table.loc["fixmatch", "WAR_gain"])

def test_dunnett_needs_a_common_draw_with_the_baseline():
    runs = [record(draw=d, WAR=0.4) for d in (0, 1)] + [record("dtm", d, 0.5 + d / 100) for d in (0, 1, 2)]
    table = measured([*runs, record("fixmatch", 2, 0.6)]).set_index("method")
    assert np.isnan(table.loc["fixmatch", "WAR_dunnett"]) and table.loc["dtm", "WAR_dunnett"] == pytest.approx(0.105)
    text = summarise([*runs, record("fixmatch", 2, 0.6)]).set_index("method")
    assert text.loc["fixmatch", ["UAR gain", "UAR gain, Dunnett"]].tolist() == ["no common draw", ""]

def test_seeds_of_a_draw_are_one_number_for_dunnett():
    "A second seed is no draw more: the same interval as from the means."
    twice = [record(m, d, w + s, seed=i) for m, w in (("supervised", 0.4), ("dtm", 0.5), ("eac", 0.45))
             for d in range(3) for i, s in enumerate((0.01 * d * (m == "dtm"), 0.02 * d * (m != "dtm")))]
    means = [record(one.config["method"], one.config["label_seed"], (one.metrics.test.WAR + two.metrics.test.WAR) / 2)
             for one, two in zip(twice[::2], twice[1::2], strict=True)]
    columns = [c for c in measured(means) if "WAR_dunnett" in c]
    assert measured(twice)[columns].to_numpy() == pytest.approx(measured(means)[columns].to_numpy(), nan_ok=True)


# --- class-balanced budgets ---

class Adjusted(Metrics):
    adjusted: Scores | None = None

def adjusted(r, WAR=None):
    "`r` with a WAR of adjusted logits, its interval 0.1 below and above."
    scores = WAR and r.metrics.test.model_copy(update=dict(WAR=WAR, WAR_ci=[WAR - 0.1, WAR + 0.1]))
    r.metrics = Adjusted.model_construct(**dict(r.metrics) | {"adjusted": scores})
    return r

def test_war_stands_twice_with_intervals_for_both():
    "Adjusted gains 1, 3 and 5 points where the plain ones are 0: mean 3, sd 2, t of two degrees 4.3027."
    runs = [adjusted(record(draw=d, WAR=0.4), 0.45) for d in range(3)]
    runs += [adjusted(record("dtm", d, 0.4), 0.46 + 0.02 * d) for d in range(3)]
    dtm = measured(runs).set_index("method").loc["dtm"]
    assert dtm["WAR_gain"] == pytest.approx(0) and dtm["WAR_adjusted"] == pytest.approx(0.48)
    half = 4.302653 * 0.02 / np.sqrt(3)
    assert dtm[["WAR_adjusted_gain", "WAR_adjusted_gain_low"]].tolist() == pytest.approx([0.03, 0.03 - half], abs=1e-6)
    assert dtm["WAR_adjusted_dunnett_high"] == pytest.approx(0.03 + half, abs=1e-6), "of one row: Student's"
    text = summarise(runs).set_index("method")
    of = lambda m: [f"{m} gain", f"{m} gain, Dunnett"]
    assert list(text)[-9:] == ["UAR", "WAR", "WAR adjusted", *of("UAR"), *of("WAR"), *of("WAR adjusted")]
    assert text.loc["dtm", ["WAR", "WAR adjusted", "WAR adjusted gain"]].tolist() == [
        "40.0 ± 0.0", "48.0 ± 2.0", "+3.0 [-2.0, 8.0]"]
    assert compare(runs[:1])["WAR adjusted"].item() == "45.0 [35.0, 55.0]"
    alone = measured(runs[:1]).iloc[0]
    assert alone[["WAR_adjusted_low", "WAR_adjusted_high"]].tolist() == pytest.approx([0.35, 0.55])

def test_a_row_with_a_run_that_lacks_it_has_no_adjusted_war():
    "A mean over other draws than the row says would be another number; the other rows keep theirs."
    runs = [adjusted(record(draw=d, WAR=0.4), 0.45) for d in range(2)]
    runs += [adjusted(record("dtm", 0, 0.5), 0.55), adjusted(record("dtm", 1, 0.5)), record("fixmatch", 0, 0.5)]
    table, text = measured(runs).set_index("method"), summarise(runs).set_index("method")
    assert table["WAR_adjusted"].isna().to_dict() == {"dtm": True, "fixmatch": True, "supervised": False}
    assert text["WAR adjusted"].tolist() == ["–", "–", "45.0 ± 0.0"]
    assert text.loc["dtm", ["WAR gain", "WAR adjusted gain"]].tolist() == ["+10.0 [10.0, 10.0]", ""]
    assert "WAR adjusted gain" not in summarise([record(), record("dtm")]), "no gain of what no record has"

def test_where_all_labels_are_used_accuracy_stands_first_and_once():
    runs = [record(m, seed=s, labels_per_class=None) for m in ("supervised", "eac") for s in (0, 1)]
    assert [c for c in measured(runs) if c in HEADINGS] == ["WAR", "UAR", "macro_F1"]
    assert list(summarise(runs))[-6:-4] == ["WAR", "UAR"] and not any("adjusted" in c for c in summarise(runs))

def test_rows_say_the_share_of_the_pool_in_use():
    "Of the last epoch, the mean over runs."
    pool = dict(members=["rest"], faces=[9000], dropped=[0], hash="b" * 64)
    used = lambda n: pd.DataFrame({"epoch": [1, 2], "pool_seen": [400, 400], "pool_used": [400, n]})
    runs = [record("dtm", d, history=used(n), pool=pool) for d, n in enumerate((100, 200))]
    text = summarise([*runs, record()]).set_index("method")["pool in use"]
    assert text.to_dict() == {"dtm": "38 % of 9,000", "supervised": ""}


# --- what may share a table ---

APART = [("data", dict(data_hash=OTHER)), ("data", dict(drawn=True)), ("budgets of labels", dict(labels_per_class=10)),
         ("budgets of labels", dict(labels_per_class=None)),
         ("budgets of labels", dict(labels_per_class=None, budget="ada_cm-400")),
         ("classes", dict(classes=["a", "c"])), ("classes", dict(classes=["a", "b", "c"])),
         ("image sizes", dict(image_size=112)),
         ("selection", dict(select="oracle")), ("splits", dict(split="fold:1/10")),
         ("label rules", dict(label_rule="argmax"))]

@pytest.mark.parametrize("what, changes", APART)
def test_each_thing_that_keeps_runs_apart(what, changes):
    "`tasks` makes two tables of them, under two names, and nothing else takes them as one."
    pair = [record(), record(**changes)]
    assert [len(group) for group in tasks(pair).values()] == [1, 1]
    for function in (measured, gains, summarise):
        with pytest.raises(BenchError, match=f"different {what} never share"): function(pair)

def test_what_does_not_keep_runs_apart():
    same = [record(draw=1), record(seed=2), record("dtm"), record(backbone="vit"), record(images=9),
            record(select="val"), record(lr=1.0)]
    (group,) = tasks([record(), *same]).values()
    assert len(group) == len(measured(group)["runs"]) + 2, "only draws and seeds are repeats"

def test_titles():
    runs = [record(labels_per_class=None), record(labels_per_class=None, drawn=True, image_size=32), record(),
            record(select="oracle"), record(labels_per_class=None, budget="ada_cm-400", split="fold:2/5")]
    assert set(tasks(runs)) == {"ferplus, 2 classes, all labels, 48 px", "drawn faces, 2 classes, all labels, 32 px",
                                "ferplus, 2 classes, 50 labels a class, 48 px",
                                "ferplus, 2 classes, 50 labels a class, 48 px, oracle: picked on the test split",
                                "ferplus, 2 classes, labels of ada_cm-400, 48 px, 5 folds"}
    assert list(tasks([record(data_hash="1" * 64), record(data_hash="2" * 64)]))[1].endswith("48 px, data 22222222")
    assert tasks([]) == {}

def test_budgets_are_of_one_data_set_and_honest():
    runs = [record(), record(labels_per_class=10), record(labels_per_class=None), record(data_hash=OTHER),
            record(select="oracle"),
            record("dtm"), record(backbone="vit")]
    ((title, group),) = budgets(runs).items()
    assert title == "ferplus, 2 classes, by labels, 48 px" and group == runs[:3] and budgets(runs[2:]) == {}

def test_chosen_by_name():
    runs = [record(), record("dtm", labels_per_class=None),
            record("linear_probe", init="run:byol-ferplus-all-s0-0123456789")]
    assert chosen(runs) == runs and chosen(runs, "ferplus", "all", "dtm", "resnet10t") == [runs[1]]
    assert chosen(runs, methods="supervised, linear probe of byol") == [runs[0], runs[2]] == chosen(runs, labels="50")
    for wrong, says in [(dict(methods="dtmm"), "'dtmm'.*'dtm'"), (dict(dataset="ferpuls"), "'ferpuls'.*'ferplus'"),
                        (dict(labels="5"), "labels '5'"), (dict(backbone="resnet"), "'resnet'"),
                        (dict(labels="50", methods="dtm"), "'dtm'")]:
        with pytest.raises(BenchError, match=says): chosen(runs, **wrong)


# --- rows, and what they are compared with ---

def rows(records, baseline="supervised"): return measured(records, baseline).set_index(["method", "images_seen"])

def test_measured_by_hand():
    "Draw 0 has seeds 0.44 and 0.46, draw 1 has 0.53; the supervised runs 0.40 and 0.44: gains of 5 and 9 points."
    runs = [record(draw=0, WAR=0.40), record(draw=1, WAR=0.44, audit=["Copies.", "Lies."]),
            record("dtm", 0, 0.44, images=300),
            record("dtm", 0, 0.46, 1, images=300), record("dtm", 1, 0.53, images=300, train_seconds=4.0)]
    table = rows(runs)
    dtm, base = table.loc[("dtm", 300)], table.loc[("supervised", 100)]
    assert (dtm["kind"], dtm["labels"], dtm["draws"], dtm["seeds"], dtm["runs"], dtm["interval"], dtm["seconds"]) == \
        ("semi-supervised", "50", 2, 2, 3, "draws", 2.0)
    half = 12.7062 * 0.08 / np.sqrt(2) / np.sqrt(2)
    assert dtm[["WAR", "WAR_low", "WAR_high"]].tolist() == pytest.approx([0.49, 0.49 - half, 0.49 + half], abs=1e-5)
    assert dtm["WAR_sd"] == pytest.approx(0.08 / np.sqrt(2))
    half = 12.7062 * 0.04 / 2
    gain = dtm[["WAR_gain", "WAR_gain_low", "WAR_gain_high"]].tolist()
    assert gain == pytest.approx([0.07, 0.07 - half, 0.07 + half], abs=1e-5)
    assert dtm["against"] == "supervised" and dtm["UAR_gain"] == pytest.approx(0.035) and dtm["audit"] == 0
    assert base["against"] == "" and np.isnan(base["WAR_gain"]) and base["audit"] == 2

def test_a_single_draw_has_the_intervals_of_its_runs_and_no_spread():
    row = rows([record(WAR=0.4, seed=0), record(WAR=0.5, seed=1)]).iloc[0]
    assert row[["WAR", "WAR_low", "WAR_high"]].tolist() == pytest.approx([0.45, 0.35, 0.65])
    assert row["interval"] == "faces" and np.isnan(row["WAR_sd"])
    assert (row["draws"], row["seeds"], row["runs"]) == (1, 2, 2)

def test_with_all_labels_the_seed_repeats():
    runs = [record(method, WAR=war, seed=seed, labels_per_class=None) for method, wars in
            {"supervised": (0.4, 0.5), "eac": (0.5, 0.7)}.items() for seed, war in enumerate(wars)]
    eac = rows(runs).loc[("eac", 100)]
    assert (eac["interval"], eac["draws"], eac["seeds"], eac["labels"]) == ("seeds", 1, 2, "all")
    assert eac["WAR_gain"] == pytest.approx(0.15)
    assert eac["WAR_gain_low"] == pytest.approx(0.15 - 12.7062 * 0.05, abs=1e-4)

def test_settings_that_differ_are_rows_of_their_own():
    "Another learning rate, optimizer, backbone or number of images is no repeat, and the usual goes without saying."
    runs = [record("dtm"), record("dtm", optimizer="adam"), record("dtm", optimizer="adam", draw=1), record(lr=0.1),
            record(lr=0.2),
            record(backbone="vit", lr=0.1)]
    assert measured(runs)[["method", "backbone", "runs"]].to_numpy().tolist() == [
        ["dtm", "resnet10t", 1], ["dtm (optimizer adam)", "resnet10t", 2],
        ["supervised", "vit", 1], ["supervised (lr 0.1)", "resnet10t", 1], ["supervised (lr 0.2)", "resnet10t", 1]]

BYOL, TIMM = dict(init="run:byol-ferplus-all-s0-0123456789"), dict(init="timm")

@pytest.mark.parametrize("mine, others, expected", [
    (record("dtm", images=300), [record(images=300), record(images=100)], ("supervised", 100)),
    (record(images=300), [record(images=100)], ("supervised", 100)),
    (record("dtm", min_map=4), [record(min_map=4, images=300), record(images=100)], ("supervised (min_map 4)", 300)),
    (record("dtm", backbone="vit"), [record()], None),
    (record("dtm", **TIMM), [record(), record(**TIMM)], ("supervised from timm's weights", 100)),
    (record("dtm", **TIMM), [record()], ("supervised", 100)),
    (record(**BYOL), [record(), record("dtm")], ("supervised", 100)),
    (record("linear_probe", **BYOL), [record(), record("linear_probe")], ("linear probe of random weights", 100)),
    (record("linear_probe", **BYOL), [record()], None),
    (record("dtm"), [record("fixmatch")], None),
], ids=["fewest images", "itself with more images", "same resolution", "other backbone", "same start", "no such start",
        "a start is tried",
        "frozen", "frozen, no random one", "no baseline"])
def test_what_a_row_is_compared_with(mine, others, expected):
    mine.metrics = mine.metrics.model_copy(update={"test": mine.metrics.test.model_copy(update={"WAR": 0.9})})
    table = measured([mine, *others])
    row = table[table["WAR"] == 0.9].iloc[0]
    if expected is None: assert row["against"] == "" and np.isnan(row["WAR_gain"])
    else:
        assert row["against"] == expected[0] and row["WAR_gain"] == pytest.approx(0.5)
        assert expected[1] in table.loc[table["method"] == expected[0], "images_seen"].tolist()

def test_another_baseline():
    runs = [record("linear_probe", WAR=0.3), record("linear_probe", WAR=0.5, **BYOL), record(WAR=0.6),
            record("dtm", WAR=0.9)]
    assert rows(runs, "dtm")["WAR_gain"].round(9).tolist()[-1] == -0.3
    probe = "linear probe of byol"
    assert rows(runs, probe)["against"].tolist() == [probe, "", probe, probe]

def test_gains_are_draw_by_draw():
    runs = [record(draw=d, WAR=0.4 + d / 10) for d in range(3)] + [record("dtm", d, 0.5 + d / 20) for d in (2, 1, 7)]
    (against, table), (nothing, empty) = gains(runs)
    assert against == "supervised" and table["WAR"].to_dict() == pytest.approx({1: 0.05, 2: 0.0})
    assert (nothing, len(empty)) == ("", 0)


# --- repeats: draws, seeds, folds, subjects ---

@pytest.mark.parametrize("changes",
                         [dict(processes=2), dict(track="tensorboard"), dict(device="cuda"),
                          dict(data_root="elsewhere")])
def test_what_changes_no_number_is_no_setting(changes):
    runs = [record(draw=0), record(draw=1, **changes), record(draw=2)]
    assert measured(runs)[["method", "repeats", "interval"]].to_numpy().tolist() == [["supervised", 3, "draws"]]

@pytest.mark.parametrize("device, given, row", [("cpu", "fp32", "supervised"), ("cuda", "bf16", "supervised"),
                                                ("cuda", "fp32", "supervised (precision fp32)"),
                                                ("cpu", "bf16", "supervised (precision bf16)")])
def test_a_precision_that_the_device_has_anyway_is_no_setting(device, given, row):
    other = record(precision=given)
    other.metrics = other.metrics.model_copy(update={"device": device})
    table = measured([record(draw=1), other])
    assert row in table["method"].tolist() and len(table) == 1 + (row != "supervised")

def folds(method="supervised", wars=(0.4, 0.5, 0.6), of=3, **more):
    return [record(method, WAR=war, split=f"fold:{i}/{of}", labels_per_class=None, **more)
            for i, war in enumerate(wars, 1)]

def test_folds_are_one_row_with_an_interval_over_folds():
    "Wins of 2, 5 and 8 points: 5 ± 4.302653 · 3 / √3, paired by fold; the seeds of a fold are averaged."
    runs = folds() + folds("eac", (0.42, 0.55, 0.66)) + folds("eac", (0.42, 0.55, 0.70), seed=1)
    ((title, group),) = tasks(runs).items()
    assert title == "ferplus, 2 classes, all labels, 48 px, 3 folds" and group == runs
    table = rows(group)
    eac, base = table.loc[("eac", 100)], table.loc[("supervised", 100)]
    assert (eac["interval"], eac["repeats"], eac["runs"], base["WAR"]) == ("folds", 3, 6, pytest.approx(0.5))
    half = 4.302653 * 0.1 / np.sqrt(3)
    assert base[["WAR_low", "WAR_high"]].tolist() == pytest.approx([0.5 - half, 0.5 + half], abs=1e-6)
    low = 0.05 - 4.302653 * 0.03 / np.sqrt(3)
    assert eac[["WAR_gain", "WAR_gain_low"]].tolist() == pytest.approx([0.05, low], abs=1e-6)
    assert leaderboard_table(measured(group))["95 % over"].tolist() == ["3 folds"] * 2
    said = " ".join(notes(group))
    assert "Means are over folds" in said and "Not all" not in said and "different data sets" not in said

def test_incomplete_folds_are_said():
    runs = folds(of=10, wars=[0.5] * 10) + folds("eac", [0.5] * 7, of=10)
    assert "Not all are done: eac: 7 of 10 folds." in fold_note(runs) and fold_note([record()]) == ""

def test_subjects_are_one_row():
    runs = [record(WAR=war, split=f"subject:{who}", labels_per_class=None)
            for who, war in {"KA": 0.4, "KL": 0.6, "KM": 0.5}.items()]
    ((title, group),) = tasks(runs + [record("eac", split="subject:KA", labels_per_class=None)]).items()
    table = measured(group)
    assert title.endswith("48 px, subjects left out") and table["repeats"].tolist() == [1, 3]
    assert table["interval"].tolist() == ["faces", "subjects"] and "eac: 1 of 3 subjects" in fold_note(group)

def test_a_set_packed_before_goes_by_its_name():
    packed = record("dtm", dataset="faceset", data_root="x/packed")
    packed.metrics = packed.metrics.model_copy(update={"dataset": "ferplus"})
    ((title, group),) = tasks([record(), packed]).items()
    assert title.startswith("ferplus, ") and len(measured(group)) == 2 and set(measured(group)["data"]) == {"ferplus"}
    assert len(chosen([record(), packed], "ferplus")) == 2 and chosen([record(), packed], "faceset") == [packed]
    assert run_names([packed]) == ["dtm"]

def test_an_option_of_an_own_method_is_shown_where_it_is_not_the_default():
    def mine(alpha, draw):
        r = record("lab.Mixup", draw)
        r.config["alpha"] = alpha
        r.metrics = r.metrics.model_copy(update={"option_defaults": {"alpha": 0.2}})
        return r
    table = measured([mine(alpha, draw) for alpha in (0.2, 0.4, 0.8) for draw in (0, 1)])
    assert table["method"].tolist() == ["lab.Mixup", "lab.Mixup (alpha 0.4)", "lab.Mixup (alpha 0.8)"]
    assert set(table["runs"]) == {2}

@pytest.mark.parametrize("id, method", [
    ("byol-ferplus-all-s0-0123456789", "byol"), ("simfle_random-raf-db-50-s12-0123456789", "simfle_random"),
    ("my-method-raf-db-ada_cm-400-s0-0123456789", "my-method"), ("my-method-mine-50-s0-0123456789", "my-method"),
    ("my.lab-x.Mixup-affectnet-7-all-s0-0123456789", "my.lab-x.Mixup")])
def test_the_method_in_a_run_id(id, method):
    assert method_of_id(id) == method and called(record(init=f"run:{id}")) == f"supervised from {method}"

def test_the_method_of_a_start_is_read_from_its_record(tmp_path):
    write_json(tmp_path/"a-b-c-d-50-s0-0123456789"/"config.json", {"method": "a-b-c"})
    mine = record("linear_probe", init="run:a-b-c-d-50-s0-0123456789")
    mine.folder = tmp_path/"mine"
    assert called(mine) == "linear probe of a-b-c"

def test_many_tasks_are_sorted_in_one_pass():
    "Each record is looked at as often among 400 as among few."
    read, runs = Counter(), [record(image_size=8 + i) for i in range(400)]
    class Counted(SimpleNamespace):
        @property
        def metrics(self): return read.update([self.id]) or self.facts
    runs = [Counted(id=str(i), config=r.config, facts=r.metrics, environment=r.environment) for i, r in enumerate(runs)]
    assert len(tasks(runs)) == 400 and max(read.values()) < 40

def test_a_published_budget_is_never_called_all_labels():
    mine = record(labels_per_class=None, budget="ada_cm-400")
    assert label_phrase(mine) == "labels of ada_cm-400" and label_budget(mine) == "ada_cm-400"
    names = run_names([mine, record(labels_per_class=None)])
    assert names == ["supervised, labels of ada_cm-400", "supervised, all labels"]
    assert measured([mine])["labels"].tolist() == ["ada_cm-400"] and run_title(mine).count("ada_cm-400") == 1

def test_a_method_s_own_values_go_without_saying():
    "DTM's policy is labelled, where the option's default is fixed; a run may lack the option or name it."
    runs = [record("dtm"), record("dtm", 1, policy="labelled"), record("dtm", policy="fixed")]
    runs[1].metrics = runs[1].metrics.model_copy(update={"option_defaults": {"policy": "fixed"}})
    assert measured(runs)[["method", "runs"]].to_numpy().tolist() == [["dtm", 2], ["dtm (policy fixed)", 1]]
    assert setting_names(runs) == ["dtm", "dtm", "dtm (policy fixed)"]
