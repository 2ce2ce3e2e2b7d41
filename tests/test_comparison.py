"""What a comparison says and draws: tests by hand, sentences that agree with the numbers, figures, and the notebook."""
import warnings
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
from figure_checks import faults, said
from scipy import stats

from fer_bench.catalogue import known_entry
from fer_bench.config import NUMERICS, PROBE, RunConfig, own_values, recorded_config, run_id
from fer_bench.core import BenchError, write_json
from fer_bench.evaluate.dunnett import dunnett
from fer_bench.evaluate.metrics import classification_metrics
from fer_bench.evaluate.statistics import draws_needed, hedges_g
from fer_bench.record import runs_folder, write_history, write_predictions, write_status
from fer_bench.report.comparison import (
    figure_gains,
    file_name,
    gain_tests,
    one_each,
    pairwise,
    paragraph,
    readable,
    row_names,
)
from fer_bench.report.ranking import figure_ranks, task_scores
from fer_bench.report.summary import measured
from fer_bench.report.tasks import tasks
from fer_bench.schema import example_environment, example_metrics

NOTEBOOK = Path(__file__).parent.parent/"nbs/compare_methods.ipynb"
NAMES = ["neutral", "happiness", "surprise", "sadness"]


def made(method="supervised", war=0.5, draw=0, seed=0, labels=50, images=9600, metrics=None, **config):
    "A run that is right on the first 100·`war` of 100 test faces; UAR and macro_F1 are fixed distances below."
    right, truth = np.arange(100) < round(100 * war), np.arange(100) % 4
    logits = np.eye(4)[np.where(right, truth, (truth + 1) % 4)]
    test = classification_metrics(logits, truth, NAMES) | dict(UAR=max(0, war - 0.1), macro_F1=max(0, war - 0.2), n=100)
    test |= {f"{m}_ci": [max(0, test[m] - 0.05), min(1, test[m] + 0.05)] for m in ("WAR", "UAR", "macro_F1")}
    resolved = dict(RunConfig(method=method, dataset="faces", data_root="x", image_size=48, labels_per_class=labels))
    resolved |= own_values(method) | {"backbone": "resnet10t"}  # whatever the preset fills in
    config = resolved | dict(dataset="faces", labels_per_class=labels, label_seed=draw, seed=seed) | config
    facts = dict(method=method, kind=known_entry(method).kind, dataset=config["dataset"], classes=NAMES,
                 split_hash=f"{draw:064x}",
                 images_seen=images, labelled_seen=9600, train_seconds=2.0, test=test)
    return SimpleNamespace(
        id=f"{method}-{draw}-{seed}-{images}", config=config, metrics=example_metrics(**facts | (metrics or {})),
        predictions=pd.DataFrame({"key": [f"{i:03d}.png" for i in range(100)], "label": np.array(NAMES)[truth],
                                  "logits": list(logits)}),
        environment=example_environment(commit="0123456789"), history=pd.DataFrame({"epoch": [1], "loss": [1.0]}))

def changed(record, **facts):
    "`record` with other facts in its metrics; `test` may be given in part."
    test = record.metrics.test.model_copy(update=facts.pop("test", {}))
    record.metrics = record.metrics.model_copy(update=facts | {"test": test})

def three(draws=3, **more):
    "dtm gains 8, 10, 12 points, fixmatch -10, 0, 10 and eac loses 6, 7, 8."
    gain = {"supervised": (0, 0, 0), "dtm": (8, 10, 12), "fixmatch": (-10, 0, 10), "eac": (-6, -7, -8)}
    return [made(m, 0.5 + 0.02 * d + values[d] / 100, d, **more) for m, values in gain.items() for d in range(draws)]


# --- tests ---

def test_gains_by_hand():
    "10 ± 2 over three draws: t = 10 / (2/√3); Holm: the smallest of three p by three."
    table = gain_tests(three())
    assert table["measure"].unique().tolist() == ["UAR", "WAR", "macro_F1"] and len(table) == 9
    war = table[table["measure"] == "WAR"].set_index("method")
    dtm = war.loc["dtm"]
    p = 2 * stats.t.sf(10 / (2 / np.sqrt(3)), 2)
    assert dtm[["gain", "p"]].tolist() == pytest.approx([0.1, p])
    assert dtm["low"] == pytest.approx(0.1 - 4.302653 * 0.02 / np.sqrt(3))
    assert dtm["g"] == pytest.approx(hedges_g([8.0, 10, 12])) and dtm["draws_needed"] == draws_needed(2)
    assert dtm["draws"] == 3
    eac = 2 * stats.t.sf(7 / (1 / np.sqrt(3)), 2)
    scores = [(r.metrics.test.WAR, r.config["method"], r.config["label_seed"]) for r in three()]
    of_all = dunnett(*zip(*scores, strict=True), "supervised").loc[war.index]
    assert war[["dunnett", "dunnett_low", "dunnett_high", "p_dunnett"]].to_numpy() == pytest.approx(of_all.to_numpy())
    assert war["p_holm"].to_dict() == pytest.approx({"dtm": 2 * p, "eac": 3 * eac, "fixmatch": 1.0})

def test_one_draw_tells_nothing_and_no_baseline_less():
    once = gain_tests(three(1))
    assert once[["low", "high", "p", "p_holm", "g", "draws_needed"]].isna().all(axis=None)
    assert (once["draws"] == 1).all()
    assert list(gain_tests([made("dtm")])) == list(once) and not len(gain_tests([made("dtm")]))

def test_pairs_by_hand():
    "62 of 100 right against 50 and 40, the same faces: 12 and 22 discordant, all one way; Holm by 3, 2, 1."
    found = pairwise([made("dtm", 0.62), made("supervised", 0.5), made("eac", 0.4)])
    assert found[["difference", "only_model", "only_other"]].to_numpy().tolist() == [
        pytest.approx(x) for x in ([0.12, 12, 0], [0.22, 22, 0], [0.10, 10, 0])]
    p = 2 * 0.5 ** np.array([12, 22, 10])
    assert found["p"].tolist() == pytest.approx(p)
    assert found["p_holm"].tolist() == pytest.approx([2 * p[0], 3 * p[1], p[2]])

def test_pairs_are_of_the_same_faces_whatever_their_order():
    a, b = made("dtm", 0.6), made("supervised", 0.5)
    b.predictions = b.predictions.sample(frac=1, random_state=0)
    assert pairwise([a, b])["only_model"].tolist() == [10]
    for runs, says in [([a], "here is one"), ([], "here is none")]:
        with pytest.raises(BenchError, match=says): pairwise(runs)
    b.predictions = b.predictions.assign(key="other" + b.predictions["key"])
    with pytest.raises(BenchError, match="other faces"): pairwise([a, b])

def test_one_run_of_each_is_of_one_draw_and_seed():
    runs = [made(draw=0), made(draw=1), made(draw=1, seed=1), made("dtm", draw=1), made("eac", draw=2),
            made(draw=1, images=300)]
    assert {n: r.id for n, r in one_each(runs).items()} == {
        "dtm": "dtm-1-0-9600", "supervised, 300 images": "supervised-1-0-300",
        "supervised, 9,600 images": "supervised-1-0-9600"}

def test_rows_have_names_of_their_own():
    runs = [made(), made(images=300), made(images=300, backbone="resnet18"), made("dtm")]
    assert row_names(measured(runs)) == ["dtm", "supervised, resnet10t, 300 images", "supervised, resnet18",
                                         "supervised, resnet10t, 9,600 images"]

def test_readable():
    table = readable(gain_tests([*three(), made("freematch", 0.5)]))
    row = table[(table["method"] == "dtm") & (table["measure"] == "WAR")].iloc[0]
    assert row[["gain", "low", "high", "p", "g", "draws"]].tolist() == ["+10.0", "+5.0", "+15.0", "0.013", "2.8", "3"]
    assert (table.loc[table["method"] == "freematch", ["low", "p", "draws_needed"]] == "").all(axis=None)
    assert readable(pairwise([made("dtm", 0.9), made()]))[["difference", "p"]].iloc[0].tolist() == ["+40.0", "< 0.0001"]
    assert not table.isin(["-0.0", "nan"]).any(axis=None)


# --- words ---

def test_words_say_what_is_shown_and_what_is_not():
    text = paragraph(three())
    first, verdict, limits = text.split("\n\n")
    assert first == ("On faces, 4 classes, 50 labels a class, 48 px: 4 settings, each on 3 draws of labels, 12 runs, "
                     "100 test faces.")
    for says in ("Shown to be better: **dtm**: UAR +10.0 [5.0, 15.0], g +2.8 and WAR",
                 "Shown to be worse: **eac**: UAR -7.0",
                 "Not shown, either way: **fixmatch**: UAR +0.0 [", "over supervised in points",
                 "all of that stays shown",
                 f"would take {draws_needed(1)} to {draws_needed(10)} draws"): assert says in verdict, says
    assert "all runs share" in limits and "All runs have seed 0" in limits and "the last epoch" in limits
    for never in ("oracle", "Drawn faces", "audit", "nan", "No row has more", "states of the code"):
        assert never not in text, never

def test_words_about_all_rows_together():
    "Three draws of two rows with the same small spread; one row with a large one hides what the others show."
    even = {"supervised": (0, 0, 0), "dtm": (8, 9, 10), "fixmatch": (0, 1, -1)}
    runs = [made(m, 0.5 + even[m][d] / 100, d) for m in even for d in range(3)]
    assert "Dunnett's test over all of them shows a difference in UAR dtm; in WAR dtm." in paragraph(runs)
    assert "Dunnett's test over all of them shows a difference in none." in paragraph(three())
    for few in (runs[:6], three(1)): assert "Dunnett" not in paragraph(few)

def test_words_about_folds():
    wars = {"supervised": (0.5, 0.5, 0.6), "dtm": (0.6, 0.62)}
    runs = [made(m, war, labels=None, split=f"fold:{i}/3") for m in wars for i, war in enumerate(wars[m], 1)]
    text = paragraph(runs)
    assert text.startswith("On faces, 4 classes, all labels, 48 px, 3 folds: 2 settings, each on 2 to 3 folds, 5 runs, "
                           "300 test faces.")
    assert "95 % intervals over folds" in text and "dtm: 2 of 3 folds" in text
    assert "over folds" in said(figure_gains(runs))

def test_words_about_a_correction_that_takes_it_back():
    "A gain of 7 ± 2.5 has p = 0.04 alone, and with three settings 0.12; the interval still decides what is shown."
    values = {"supervised": (0, 0, 0), "dtm": (4.5, 7, 9.5), "fixmatch": (1, 0, -1), "eac": (0, 1, -1)}
    runs = [made(m, 0.5, d, metrics=None) for m in values for d in range(3)]
    for r in runs:
        more = values[r.config["method"]][r.config["label_seed"]] / 100
        changed(r, test={m: r.metrics.test[m] + more for m in ("WAR", "UAR")})
    tests = gain_tests(runs).query("measure == 'WAR'").set_index("method")
    assert tests.loc["dtm", "p"] == pytest.approx(0.04, abs=0.002)
    assert tests.loc["dtm", "p_holm"] == pytest.approx(0.12, abs=0.006)
    assert "Shown to be better: **dtm**" in paragraph(runs) and "none of that stays shown" in paragraph(runs)

LIMITS = [
    (dict(draws=1), "Of one draw alone, so nothing is shown: **dtm**: UAR +8.0 and WAR +8.0"),
    (dict(draws=1), "No row has more than one draw"),
    (dict(labels=None), "No row has more than one seed"),
    (dict(metrics=dict(drawn=True)), "Drawn faces are no substitute for real ones"),
    (dict(metrics=dict(select="oracle")), "picked on the test split"),
    (dict(metrics=dict(select="val")), "the best epoch on validation faces"),
    (dict(metrics=dict(audit=["Copies: 3."])), "The audit of the data found: Copies: 3."),
    (dict(metrics=dict(capped={"sadness": 7})), "Capped"),
]

@pytest.mark.parametrize("changes, says", LIMITS)
def test_words_say_what_must_not_be_forgotten(changes, says):
    text = paragraph(three(**changes))
    assert says in text and "nan" not in text
    if "draws" in changes or "labels" in changes: assert "Shown to be" not in text and "would take" not in text

def test_words_about_images_seeds_codes_carved_splits_and_no_baseline():
    runs = three() + three(seed=1)
    for r in runs:
        if r.config["method"] == "dtm": changed(r, images_seen=28800)
    assert "No supervised run saw as many images as dtm." in paragraph(runs)
    assert "All runs have seed" not in paragraph(runs)
    assert "No supervised run saw as many" not in paragraph([*runs, made(images=28800)])
    runs[0].environment = example_environment(commit="9876543210")
    changed(runs[0], origin={"test": "carved"})
    assert "2 states of the code" in paragraph(runs) and "all runs share" not in paragraph(runs)
    assert "nothing to compare with 'supervised'" in paragraph([made("dtm")])
    probe = made("linear_probe", 0.3, images=0)
    assert "linear probes of frozen features" in paragraph([*three(), probe])

def test_words_refuse_what_does_not_belong_together():
    with pytest.raises(BenchError, match="never share"): paragraph([made(), made(labels=10)])
    with pytest.raises(BenchError, match="no finished run"): paragraph([])

def test_file_names():
    titles = tasks([made(), made(labels=None), made(metrics=dict(select="oracle")),
                    made(budget="ada_cm-400", labels=None)])
    names = [file_name(t) for t in titles]
    assert len(set(names)) == 4 and "faces-4-classes-50-labels-a-class-48-px" in names
    assert all(set(n) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_") for n in names)


# --- figures ---

def assert_readable(fig):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert faults(fig) == []

def markers(ax): return {round(c[0].get_xdata()[0], 6): c[0].get_markerfacecolor() for c in ax.containers}

def test_figure_of_gains_draws_the_numbers():
    fig = figure_gains(three())
    assert_readable(fig)
    war, uar = fig.axes
    assert [t.get_text() for t in war.get_yticklabels()] == ["dtm", "fixmatch", "eac"]
    full = {gain: colour != "white" for gain, colour in markers(war).items()}
    assert full == {10: True, 0: False, -7: True}
    bars = [c[2][0].get_segments()[0][:, 0].tolist() for c in war.containers]
    table = gain_tests(three()).query("measure == 'WAR'")
    assert bars == [pytest.approx([100 * r.low, 100 * r.high]) for r in table.itertuples()]
    assert "over draws" in said(fig) and "Over supervised." in said(fig) and "cross" not in said(fig)

def test_figure_of_gains_of_one_draw_drawn_faces_or_an_oracle_says_so():
    fig = figure_gains(three(1, metrics=dict(drawn=True, select="oracle")))
    assert_readable(fig)
    assert not fig.axes[0].containers and len(fig.axes[0].lines) == 4
    for word in ("a cross: one draw", "no substitute", "oracle"): assert word in said(fig)
    assert "one seed" in said(figure_gains(three(1, labels=None)))
    with pytest.raises(BenchError, match="no gains over 'supervised'"): figure_gains([made("dtm")])

@pytest.mark.parametrize("n", [1, 9])
def test_figure_of_gains_is_readable_with_few_and_with_long_names(n):
    rows = [made("dtm", 0.6, d, optimizer="adam", policy="freematch", balance="weights", lr=0.1 + i)
            for d in range(2) for i in range(n)]
    assert_readable(figure_gains([*rows, *(made(draw=d) for d in range(2))]))

def budgets_of(gains, labels=(10, 25, 50, 100), **more):
    return [made(m, 0.4 + 0.05 * i + g / 100, labels=n, **more) for m, g in gains.items() for i, n in enumerate(labels)]

def test_scores_of_tasks():
    runs = budgets_of({"supervised": 0, "dtm": 10, "fixmatch": 5})
    runs += [made("eac", 0.9, labels=10), made(war=0.9, labels=10, images=99999),
             made("dtm", 0.95, labels=10, metrics=dict(select="oracle"))]
    scores = task_scores(runs)
    assert scores.shape == (4, 3) and set(scores) == {"supervised", "dtm", "fixmatch"}, "eac was run on one task alone"
    ten = scores.loc["faces, 4 classes, 10 labels a class, 48 px"].to_dict()
    assert ten == pytest.approx(dict(supervised=0.4, dtm=0.5, fixmatch=0.45))
    for bad, says in [(budgets_of({"dtm": 1}), "4 tasks with 1 method in"), (runs[:1], "1 task with 1 method in"),
                      ([], "no finished run"),
                      (runs + [made(metrics=dict(drawn=True))], "drawn and real")]:
        with pytest.raises(BenchError, match=says): task_scores(bad)

def test_figure_of_ranks():
    runs = budgets_of({"supervised": 0, "dtm": 10, "fixmatch": 5, "freematch": 6, "eac": -5})
    fig = figure_ranks(runs)
    assert_readable(fig)
    for text in ("dtm (1)", "freematch (2)", "(5) eac", "4 tasks.", "Friedman: p = 0.", "3.05 apart",
                 "average rank in WAR"):
        assert text in said(fig), text
    assert "substitute" not in said(fig)
    two = figure_ranks(budgets_of({"supervised": 0, "dtm": 1}, metrics=dict(drawn=True)))
    assert_readable(two)
    assert "Friedman" not in said(two) and "no substitute" in said(two)


# --- the notebook ---

def write(record, results):
    "A record made by hand, as a run leaves it: its id and its rates follow from the rest."
    config, facts = recorded_config(record.config), record.metrics.model_dump() | {"numerics": [NUMERICS, PROBE]}
    truth = record.predictions["label"].map(NAMES.index).to_numpy()
    facts["test"] |= classification_metrics(np.stack(record.predictions["logits"]), truth, NAMES)
    folder = runs_folder(results)/run_id(config, facts["data_hash"], facts["split_hash"])
    write_json(folder/"config.json", config.model_dump())
    write_json(folder/"metrics.json", facts | {"run_id": folder.name})
    write_json(folder/"environment.json", record.environment.model_dump())
    write_history(folder, record.history.to_dict("records"))
    write_predictions(folder, record.predictions["key"], record.predictions["label"], record.predictions["logits"])
    write_status(folder, "finished")

@pytest.fixture(scope="module")
def results(tmp_path_factory):
    "Two budgets of three methods on a data set called ferplus, three draws each, and one run on drawn faces."
    folder = tmp_path_factory.mktemp("results")
    for labels in (10, 50):
        for r in three(labels=labels, dataset="ferplus"): write(r, folder)
    write(made("dtm", draw=7, dataset="drawn", metrics=dict(drawn=True)), folder)
    return folder

def execute(folder, tmp_path, **parameters):
    papermill.execute_notebook(NOTEBOOK, tmp_path/"out.ipynb", {"results_dir": str(folder), **parameters},
                               progress_bar=False,
                               kernel_name="python3")
    outputs = [o for c in nbformat.read(tmp_path/"out.ipynb", 4).cells for o in c.get("outputs", [])]
    return "".join(o.get("text", "") + o.get("data", {}).get("text/markdown", "") for o in outputs)

def test_the_notebook_compares_every_task_of_a_folder(results, tmp_path):
    text, folder = execute(results, tmp_path), results/"comparison"
    assert "25 finished runs, 3 tasks" in text and "Shown to be better: **dtm**: UAR +10.0" in text
    assert "Published on ferplus" in text
    name = "ferplus-4-classes-50-labels-a-class-48-px"
    expected = {f"{name}{part}.{kind}" for part in ("", "-gains", "-pairs") for kind in ("md", "tex", "html", "csv")}
    expected |= {f"{name}-gains.pdf", f"{name}-in-words.md", "ferplus-4-classes-by-labels-48-px.png", "ranks-real.pdf"}
    assert expected <= {f.name for f in folder.iterdir()}
    assert "Shown to be better: **dtm**" in (folder/f"{name}-in-words.md").read_text()
    numbers = pd.read_csv(folder/f"{name}.csv").set_index("method")
    assert numbers.loc["dtm", "WAR_gain"] == pytest.approx(0.1) and len(numbers) == 4

@pytest.mark.nightly
def test_the_notebook_takes_filters_and_refuses_what_it_does_not_know(results, tmp_path):
    text = execute(results, tmp_path, dataset="ferplus", labels="10", methods="dtm", published=False,
                   output_dir=str(tmp_path/"here"))
    assert "6 finished runs, 1 task\n" in text and "fixmatch" not in text and "Published on" not in text
    assert (tmp_path/"here"/"ferplus-4-classes-10-labels-a-class-48-px.tex").exists()
    with pytest.raises(papermill.PapermillExecutionError, match="There is no parameter 'datset'"):
        execute(results, tmp_path, datset="ferplus")
