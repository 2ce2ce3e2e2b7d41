"""Metrics and statistics against slow plain loops, scikit-learn and closed formulas."""
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from fer_bench.core import BenchError
from fer_bench.evaluate.metrics import classification_metrics, confusion_counts, rates
from fer_bench.evaluate.statistics import bootstrap_intervals, paired_bootstrap, wilson


@st.composite
def cases(draw):
    "Logits and labels of 1 to 40 faces and 2 to 8 classes, some of which may have no face."
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, k = draw(st.integers(1, 40)), draw(st.integers(2, 8))
    seen = draw(st.integers(1, k))  # the last classes have no face
    scale = draw(st.sampled_from([0.1, 1.0, 10.0, 1000.0]))
    return scale * rng.normal(size=(n, k)), rng.integers(0, seen, n)


def plain(logits, labels):
    "Everything again, a face and a class at a time."
    n, k = logits.shape
    confusion = [[0] * k for _ in range(k)]
    nll, bins = 0.0, [[] for _ in range(15)]
    for row, truth in zip(logits.tolist(), labels.tolist(), strict=True):
        guess = row.index(max(row))
        confusion[truth][guess] += 1
        total = math.fsum(math.exp(x - max(row)) for x in row)
        nll -= row[truth] - max(row) - math.log(total)
        inside = [b for b in range(15) if b / 15 < 1 / total <= (b + 1) / 15]
        bins[inside[0] if inside else 14].append((1 / total, guess == truth))
    recall, f1 = [], []
    for c in range(k):
        occur, named = sum(confusion[c]), sum(confusion[r][c] for r in range(k))
        recall.append(confusion[c][c] / occur if occur else None)
        if occur + named: f1.append(2 * confusion[c][c] / (occur + named))
    known = [r for r in recall if r is not None]
    ece = sum(abs(sum(conf - right for conf, right in b)) for b in bins) / n
    return {"WAR": sum(confusion[c][c] for c in range(k)) / n, "UAR": sum(known) / len(known),
            "macro_F1": sum(f1) / len(f1), "recall": recall, "confusion": confusion, "NLL": nll / n, "ECE": ece, "n": n}


@settings(max_examples=150, deadline=None)
@given(cases())
def test_metrics_equal_a_plain_loop(case):
    logits, labels = case
    found, expected = classification_metrics(logits, labels, range(logits.shape[1])), plain(logits, labels)
    assert list(found.pop("recall").values()) == pytest.approx(expected.pop("recall"))
    assert found.pop("confusion") == expected.pop("confusion")
    assert found == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore::UserWarning")  # scikit-learn warns of the cases we want: predicted, never true
@settings(max_examples=80, deadline=None)
@given(cases())
def test_metrics_equal_scikit_learn(case):
    logits, labels = case
    found, guess, k = classification_metrics(logits, labels, range(logits.shape[1])), logits.argmax(1), logits.shape[1]
    assert found["WAR"] == pytest.approx(sk.accuracy_score(labels, guess))
    assert found["UAR"] == pytest.approx(sk.balanced_accuracy_score(labels, guess))
    assert found["macro_F1"] == pytest.approx(sk.f1_score(labels, guess, average="macro", zero_division=0))
    assert found["confusion"] == sk.confusion_matrix(labels, guess, labels=range(k)).tolist()


def test_metrics_are_json_and_name_classes():
    found = classification_metrics(np.eye(3, dtype=np.float32)[[0, 1]], np.array([0, 1], np.int32), ("a", "b", "c"))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["recall"] == {"a": 1.0, "b": 1.0, "c": None}


def test_huge_logits_do_not_overflow():
    found = classification_metrics([[1e6, 0.0], [1e6, 0.0]], [0, 1], "ab")
    assert found["NLL"] == 5e5 and found["ECE"] == 0.5


def test_half_precision_logits_are_measured_in_double():
    logits = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float16)
    labels = np.arange(50) % 4
    exact = classification_metrics(logits.astype(float), labels, "abcd")
    assert classification_metrics(logits, labels, "abcd") == exact


def test_rates_of_many_matrices_at_once():
    many = np.random.default_rng(0).integers(0, 5, size=(2, 3, 4, 4))
    together = rates(many)
    for name, value in together.items():
        assert value.shape == (2, 3)
        assert value == pytest.approx(np.array([[rates(m)[name] for m in row] for row in many]))


@pytest.mark.parametrize("logits, labels, classes, message", [
    (np.zeros((0, 2)), np.zeros(0, int), "ab", "no test face"),
    ([[0.0, np.nan], [0.0, 1.0]], [0, 1], "ab", "1 of 2 faces have logits that are NaN"),
    ([[0.0, np.inf]], [0], "ab", "diverged"),
    ([[0.0, 1.0]], [2], "ab", r"integers in \[0, 2\)"),
    ([[0.0, 1.0]], [-1], "ab", "from -1"),
    ([[0.0, 1.0]], [0.5], "ab", "float64"),
    ([[0.0, 1.0]], [0, 1], "ab", "do not match"),
    ([0.0, 1.0], [0, 1], "ab", "do not match"),
    ([[0.0, 1.0]], [0], "abc", "3 class names"),
])
def test_bad_input_is_named(logits, labels, classes, message):
    with pytest.raises(BenchError, match=message): classification_metrics(logits, labels, classes)


# --- statistics ---

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
       st.sampled_from([0.9, 0.95, 0.99]))
def test_wilson_equals_the_closed_formula(share, confidence):
    hits, n = share
    z = {0.9: 1.6448536269514722, 0.95: 1.959963984540054, 0.99: 2.5758293035489004}[confidence]
    p = hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson(hits, n, confidence) == pytest.approx((middle - half, middle + half), abs=1e-9)


@pytest.mark.parametrize("call", [lambda: wilson(1, 0), lambda: wilson(5, 4), lambda: wilson(-1, 4),
                                  lambda: wilson(1, 4, confidence=95), lambda: bootstrap_intervals([[0.0, 1]], [0], 0),
                                  lambda: bootstrap_intervals([[0.0, 1]], [0], confidence=1.0),
                                  lambda: bootstrap_intervals([[0.0, np.nan]], [0])])
def test_statistics_refuse_what_is_no_share(call):
    with pytest.raises(BenchError): call()


def skewed(n, seed=0):
    "A classifier that is right on about two faces of three; the last class is rare."
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, n, p=[0.5, 0.3, 0.15, 0.05])
    return 1.5 * np.eye(4)[labels] + rng.normal(size=(n, 4)), labels


def test_bootstrap_agrees_with_resampling_faces_one_by_one():
    logits, labels = skewed(300)
    rng, guess, n = np.random.default_rng(1), logits.argmax(1), len(labels)
    drawn = {"UAR": [], "macro_F1": []}
    for _ in range(4000):
        rows = rng.integers(0, n, n)
        values = rates(confusion_counts(guess[rows], labels[rows], 4))
        for name in drawn: drawn[name].append(values[name])
    for name, (low, high) in bootstrap_intervals(logits, labels, n_resamples=4000).items():
        slow_low, slow_high = np.quantile(drawn[name], [0.025, 0.975])
        # the standard error of such a quantile is about 2.7 standard deviations / sqrt(resamples); two of them differ
        tolerance = 4 * 2.7 * np.sqrt(2 / 4000) * np.std(drawn[name])
        assert abs(low - slow_low) < tolerance and abs(high - slow_high) < tolerance
        assert low < np.mean(drawn[name]) < high


@pytest.mark.parametrize("seed", range(5))
def test_bootstrap_contains_the_measured_value_and_narrows_with_more_faces(seed):
    logits, labels = skewed(4000, seed)
    few, many = bootstrap_intervals(logits[:400], labels[:400]), bootstrap_intervals(logits, labels)
    for name, (low, high) in few.items():
        assert low < classification_metrics(logits[:400], labels[:400], range(4))[name] < high
        assert many[name][1] - many[name][0] < (high - low) / 2


def test_bootstrap_is_repeatable_by_its_seed():
    logits, labels = skewed(200)
    assert bootstrap_intervals(logits, labels) == bootstrap_intervals(logits, labels)
    assert bootstrap_intervals(logits, labels) != bootstrap_intervals(logits, labels, seed=1)


def test_bootstrap_of_one_face_and_of_a_perfect_classifier_has_no_width():
    assert bootstrap_intervals([[0.0, 1.0]], [1]) == {"UAR": (1.0, 1.0), "macro_F1": (1.0, 1.0)}
    assert bootstrap_intervals(np.eye(8), np.arange(8))["macro_F1"] == (1.0, 1.0)


def test_statistics_and_report_need_no_torch():
    code = ("import sys, fer_bench.evaluate.statistics, fer_bench.report.tables, fer_bench.report.figures; "
            "sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- two models on the same faces

def test_paired_bootstrap_is_that_of_drawing_faces():
    "Differences exactly; quantiles as those of drawing faces one by one, up to the noise of two bootstraps."
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 3, 120), rng.normal(size=(120, 3))
    logits[np.arange(120), labels] += 1
    others = logits + rng.normal(size=(120, 3))  # a worse model that mostly agrees
    found = paired_bootstrap(logits, others, labels, n_resamples=4000)
    scores = lambda rows, z: plain(z[rows], labels[rows])
    faces = [rng.integers(0, 120, 120) for _ in range(1000)]
    for name, (difference, low, high) in found.items():
        assert difference == pytest.approx(scores(np.arange(120), logits)[name] - scores(np.arange(120), others)[name])
        drawn = [scores(rows, logits)[name] - scores(rows, others)[name] for rows in faces]
        assert (low, high) == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))), abs=0.015)

def test_paired_bootstrap_of_a_model_with_itself_and_turned_round():
    rng = np.random.default_rng(1)
    labels, logits, others = rng.integers(0, 4, 60), rng.normal(size=(60, 4)), rng.normal(size=(60, 4))
    assert set(paired_bootstrap(logits, logits, labels).values()) == {(0.0, 0.0, 0.0)}
    one, two = paired_bootstrap(logits, others, labels), paired_bootstrap(others, logits, labels)
    for name in one: assert one[name][0] == pytest.approx(-two[name][0]) and one[name][1] < one[name][2]

def test_paired_bootstrap_needs_two_models_on_the_same_faces():
    labels, logits = np.array([0, 1, 1]), np.eye(3)[[0, 1, 1]]
    with pytest.raises(BenchError, match="same faces"): paired_bootstrap(logits, logits[:, :2], labels)
    with pytest.raises(BenchError): paired_bootstrap(logits, logits[:2], labels)
    with pytest.raises(BenchError, match="n_resamples"): paired_bootstrap(logits, logits, labels, n_resamples=0)
