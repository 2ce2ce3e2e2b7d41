"""Tests, effect sizes, planning and ranks: against hand-computed cases, and coverage by simulation."""
import math
from itertools import pairwise as neighbours

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fer_bench.core import BenchError
from fer_bench.evaluate.dunnett import additive_model, dunnett
from fer_bench.evaluate.ranks import average_ranks, critical_difference, friedman, nemenyi
from fer_bench.evaluate.statistics import draws_needed, hedges_g, holm, mcnemar, t_interval, t_test, wilson

STUDIES = 4000


# --- coverage ---

def covered(intervals, truth):
    low, high = np.array(intervals).T
    return np.mean((low <= truth) & (truth <= high))

@pytest.mark.parametrize("draws", [3, 5, 10])
def test_t_intervals_hold_the_truth_as_often_as_they_say(draws):
    "Differences of 2 points ± 3 over draws; 4,000 studies tell 95 from 93 or 97 % by almost six standard errors."
    studies = np.random.default_rng(draws).normal(2, 3, (STUDIES, draws))
    assert 0.93 <= covered([t_interval(x)[1:] for x in studies], 2) <= 0.97

@pytest.mark.parametrize("n", [300, 751, 3137])  # a small test split, the drawn faces of `quick`, FERPlus
def test_wilson_intervals_hold_the_truth_as_often_as_they_say(n):
    "Its coverage swings with n and p, so each n is asked at accuracies from 20 to 92 %, each of them and together."
    rng, found = np.random.default_rng(n), []
    for p in (0.2, 0.45, 0.62, 0.78, 0.92):
        seen, times = np.unique(rng.binomial(n, p, STUDIES), return_counts=True)
        found.append(covered(np.repeat([wilson(hits, n) for hits in seen], times, axis=0), p))
    assert min(found) >= 0.93 and max(found) <= 0.97 and 0.94 <= np.mean(found) <= 0.96


# --- McNemar and Holm ---

def answers(both, first, second, neither):
    faces = np.repeat([0, 1, 2, 3], [both, first, second, neither])
    return np.isin(faces, (0, 1)), np.isin(faces, (0, 2))

def test_mcnemar_by_hand():
    "Only the discordant faces count: 1 against 5, a coin tossed 6 times; P(at most 1) = 7/64, twice that."
    assert mcnemar(*answers(90, 5, 1, 4)) == (5, 1, pytest.approx(14 / 64))
    assert mcnemar(*answers(0, 1, 5, 0)) == (1, 5, pytest.approx(14 / 64))
    assert mcnemar(*answers(10, 0, 0, 3)) == (0, 0, 1) and mcnemar(*answers(0, 4, 4, 0))[2] == 1

@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.integers(0, 40)] * 4).filter(sum))
def test_mcnemar_against_the_binomial(counts):
    right, others = answers(*counts)
    n = counts[1] + counts[2]
    assert mcnemar(right, others)[2] == pytest.approx(stats.binomtest(counts[1], n).pvalue if n else 1)

@pytest.mark.parametrize("right, others", [([True], [True, False]), ([], []), ([1, 0], [0, 1]), ([[True]], [[True]])])
def test_mcnemar_refuses(right, others):
    with pytest.raises(BenchError, match="arrays .N,. of bool"): mcnemar(np.array(right), np.array(others))

def test_holm_by_hand():
    "Sorted 0.01, 0.02, 0.03, 0.04 by 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04, and never below the one before."
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1, 1]) and holm([0.03]) == pytest.approx([0.03])

@pytest.mark.parametrize("values", [[], [0.1, float("nan")], [1.1], [[0.1]]])
def test_holm_refuses(values):
    with pytest.raises(BenchError, match="not p values"): holm(values)


# --- effect size and planning ---

@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=12).filter(lambda x: np.std(x) > 1e-6))
def test_t_test_against_scipy_and_its_interval(values):
    p, (_, low, high) = t_test(values), t_interval(values)
    assert p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=1e-6, abs=1e-12)
    if abs(p - 0.05) > 1e-9: assert (p < 0.05) == (low > 0 or high < 0)

def test_effect_size_by_hand():
    "Mean 7, sd 2; the correction of n = 3 is Γ(1) / Γ(1/2) = 1/√π."
    assert hedges_g([5.0, 7.0, 9.0]) == pytest.approx(3.5 / math.sqrt(math.pi))
    assert hedges_g([-5.0, -7.0, -9.0]) == pytest.approx(-3.5 / math.sqrt(math.pi))
    n = 41
    expected = 10 / np.std(np.arange(n), ddof=1) * (1 - 3 / (4 * (n - 1) - 1))
    assert hedges_g(np.arange(n) - 10.0) == pytest.approx(expected, rel=1e-3)

def test_effect_size_has_no_bias():
    "Over many studies of five draws its mean is the true 1.5; without the correction it would be 1.9."
    studies = np.random.default_rng(0).normal(1.5, 1, (STUDIES, 5))
    assert np.mean([hedges_g(x) for x in studies]) == pytest.approx(1.5, abs=0.05)

def test_no_spread_and_too_few():
    assert np.isnan([hedges_g([1.0]), hedges_g([1.0, 2.0]), hedges_g([0.0] * 3), t_test([1.0])]).all()
    assert hedges_g([2.0] * 3) == np.inf and t_test([2.0] * 3) == 0 and t_test([0.0] * 3) == 1

@pytest.mark.parametrize("sd, points", [(3, 1), (1, 1), (0.6, 1), (4, 2.5)])
def test_draws_needed_is_the_least_that_shows_it(sd, points):
    "The noncentral t distribution says so; and a simulation of that many draws shows it in four of five studies."
    def power(n):
        t, shift = stats.t.ppf(0.975, n - 1), points / sd * np.sqrt(n)
        return stats.nct.sf(t, n - 1, shift) + stats.nct.cdf(-t, n - 1, shift)
    n = draws_needed(sd, points)
    assert power(n) >= 0.8 > power(n - 1)
    x = np.random.default_rng(0).normal(points, sd, (STUDIES, n))
    shown = stats.ttest_1samp(x, 0, axis=1).pvalue < 0.05
    assert shown.mean() == pytest.approx(power(n), abs=0.025)

def test_draws_needed_at_the_ends():
    "Two draws are the least that have an interval; more spread never needs fewer."
    assert draws_needed(0) == draws_needed(1e-9) == 2
    needed = [draws_needed(sd) for sd in (0.01, 0.05, 0.1, 0.3, 1, 3, 10, 30)]
    assert all(a <= b for a, b in neighbours(needed)) and needed[-1] == pytest.approx((1.96 + 0.8416) ** 2 * 900, abs=3)

@pytest.mark.parametrize("bad", [dict(sd=-1), dict(sd=float("nan")), dict(sd=1, points=0), dict(sd=1, power=1),
                                 dict(sd=1, power=0.01)])
def test_draws_needed_refuses(bad):
    with pytest.raises(BenchError, match="The number of draws"): draws_needed(**bad)


# --- ranks ---

def made(rows):
    return pd.DataFrame(rows, columns=list("abcd")[:len(rows[0])], index=[f"task {i}" for i in range(len(rows))])

def test_ranks_by_hand():
    "Three methods on four tasks; a tie shares places 1 and 2."
    scores = made([[0.9, 0.8, 0.7], [0.9, 0.7, 0.8], [0.9, 0.9, 0.7], [0.9, 0.8, 0.7]])
    ranks = average_ranks(scores)
    assert ranks.to_dict() == {"a": 4.5 / 4, "b": 8.5 / 4, "c": 11 / 4} and list(ranks.index) == list("abc")

def test_friedman_by_hand():
    "Ranks 1 2 3, 1 2 3, 1 3 2, 2 1 3: sums 5, 8, 11; χ² = 12/(4·3·4) · 210 − 3·4·4 = 4.5; F = 3·4.5 / (4·2 − 4.5)."
    scores = made([[3, 2, 1], [3, 2, 1], [3, 1, 2], [2, 3, 1]])
    f, p = friedman(scores)
    assert f == pytest.approx(13.5 / 3.5) and p == pytest.approx(stats.f.sf(13.5 / 3.5, 2, 6))
    assert friedman(made([[3, 2, 1]] * 4)) == (np.inf, 0) and friedman(made([[1, 1, 1]] * 4))[1] == 1

def test_the_critical_difference_of_the_paper():
    "Demšar 2006, table 5(a), q at 0.05: 1.960, 2.343, 2.569, 2.728 for 2 to 5 methods; 1.25 for 4 on 14 data sets."
    for k, q in zip((2, 3, 4, 5), (1.960, 2.343, 2.569, 2.728), strict=True):
        assert critical_difference(k, 10) == pytest.approx(q * np.sqrt(k * (k + 1) / 60), rel=5e-4)
    assert round(critical_difference(4, 14), 2) == 1.25

def test_nemenyi_and_the_critical_difference_say_the_same():
    rng = np.random.default_rng(0)
    for n in (4, 8, 20):
        scores = made((rng.standard_normal((n, 4)) + [0.0, 0.4, 0.8, 1.6]).tolist())
        ranks, p, cd = average_ranks(scores), nemenyi(scores), critical_difference(4, n)
        for a in scores:
            for b in set(scores) - {a}: assert (p.loc[a, b] < 0.05) == (abs(ranks[a] - ranks[b]) > cd)

@pytest.mark.parametrize("scores, says", [
    (made([[1, 2]]), "at least 2 tasks"), (made([[1], [2]]), "2 methods; these are 2 tasks and 1"),
    (made([[1, 2], [1, None]]), "'b' has no score on task 'task 1'")])
def test_ranks_refuse(scores, says):
    for function in (average_ranks, nemenyi):
        with pytest.raises(BenchError, match=says): function(scores)

def test_too_few_methods_or_tasks():
    with pytest.raises(BenchError, match="3 methods"): friedman(made([[1, 2], [2, 1]]))
    for bad in [(1, 5), (3, 1), (3, 5, 95)]:
        with pytest.raises(BenchError, match="no critical difference"): critical_difference(*bad)


# --- many methods against one baseline ---

BLOOD = {"control": [7.40, 8.50, 7.20, 8.24, 9.84, 8.32], "A": [9.76, 8.80, 7.68, 9.36],
         "B": [12.80, 9.68, 12.16, 9.20, 10.55]}  # Dunnett 1955, blood counts of animals under two drugs
PENICILLIN = np.array([[89, 88, 97, 94], [84, 77, 92, 79], [81, 87, 87, 85], [87, 92, 89, 84], [79, 81, 80, 88]])

def table(values):
    "(values, methods, draws) of a table (draws, methods); nan: a number is missing."
    draws, methods = np.indices(np.shape(values)).reshape(2, -1)
    there = np.isfinite(np.ravel(values))
    return np.ravel(values)[there], methods[there], draws[there]

def test_dunnett_of_one_draw_is_scipys_one_way_test():
    "The example of Dunnett's paper; unequal groups, so unequal correlations."
    names = np.repeat(list(BLOOD), [len(group) for group in BLOOD.values()])
    found = dunnett(np.concatenate([*BLOOD.values()]), names, np.zeros(len(names)), "control")
    theirs = stats.dunnett(*[BLOOD[n] for n in "AB"], control=BLOOD["control"], random_state=0)
    assert list(found.index) == ["A", "B"] and found["p"].tolist() == pytest.approx(theirs.pvalue, abs=2e-3)
    interval = theirs.confidence_interval()
    assert found["low"].tolist() == pytest.approx(interval.low, abs=0.02)
    assert found["high"].tolist() == pytest.approx(interval.high, abs=0.02)

def test_dunnett_of_a_published_block_design():
    """Box, Hunter and Hunter's penicillin: error 18.8 with 12 degrees of freedom, means 84, 85, 89, 86.

    Dunnett 1964, table II, two-sided 5 %: 2.68 for three comparisons and 12 degrees of freedom."""
    values, methods, draws = table(PENICILLIN)
    gains, _, variance, df = additive_model(values, methods, draws, [1, 2, 3])
    assert gains.tolist() == pytest.approx([1, 5, 2]) and (variance, df) == (pytest.approx(226 / 12), 12)
    found = dunnett(values, methods, draws, 0)
    half = 2.68 * np.sqrt(2 / 5 * 226 / 12)
    assert (found["high"] - found["gain"]).tolist() == pytest.approx([half] * 3, rel=2e-3)

@pytest.mark.parametrize("k, n, critical", [(2, 6, 2.57), (2, 11, 2.38), (4, 4, 2.81), (5, 5, 2.73)])
def test_dunnett_has_the_critical_values_of_the_tables(k, n, critical):
    "Dunnett 1964, table II, two-sided 5 %: k comparisons over n draws have k (n − 1) degrees of freedom."
    cells = table(np.random.default_rng(k).standard_normal((n, k + 1)))
    _, scale, variance, df = additive_model(*cells, range(1, k + 1))
    found = dunnett(*cells, 0)
    assert df == k * (n - 1)
    half = (found["high"] - found["gain"]) / np.sqrt(variance * np.diag(scale))
    assert half.tolist() == pytest.approx([critical] * k, abs=0.01)

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_dunnett_of_two_methods_is_students_paired_test(seed, draws):
    values = np.random.default_rng(seed).standard_normal((draws, 2))
    row, gained = dunnett(*table(values), 0).iloc[0], values[:, 1] - values[:, 0]
    assert row[["gain", "low", "high"]].tolist() == pytest.approx(t_interval(gained))
    assert row["p"] == pytest.approx(t_test(gained))

def test_the_additive_model_against_plain_least_squares():
    "A table with holes: estimates, their covariance and the error as of numpy's lstsq with an intercept and dummies."
    rng = np.random.default_rng(0)
    values = rng.standard_normal((5, 4)) + np.arange(4) + 10 * rng.standard_normal((5, 1))
    values[[0, 1, 4], [1, 3, 2]] = np.nan
    y, methods, draws = table(values)
    x = np.column_stack([np.ones(len(y)), *(methods == m for m in (1, 2, 3)), *(draws == d for d in (1, 2, 3, 4))])
    coefficients, rss, rank, _ = np.linalg.lstsq(x, y, rcond=None)
    gains, scale, variance, df = additive_model(y, methods, draws, [1, 2, 3])
    assert gains == pytest.approx(coefficients[1:4]) and (df, rank) == (len(y) - rank, 8)
    assert variance == pytest.approx(rss[0] / df) and scale == pytest.approx(np.linalg.inv(x.T @ x)[1:4, 1:4])
    again = dunnett(y[::-1], methods[::-1], draws[::-1], 0)
    forth = dunnett(y, methods, draws, 0)
    assert again.loc[forth.index].to_numpy() == pytest.approx(forth.to_numpy(), abs=2e-3), "whatever the order"

def test_dunnett_keeps_its_promise():
    "Tables of equal methods: in about one of twenty some interval excludes zero, though each draw moves all by much."
    rng = np.random.default_rng(0)
    tables = rng.standard_normal((200, 3, 5)) + 5 * rng.standard_normal((200, 3, 1))
    found = [dunnett(*table(values), 0) for values in tables]
    alarms = np.mean([((f["low"] > 0) | (f["high"] < 0)).any() for f in found])
    assert 0.01 < alarms < 0.1
    assert alarms == pytest.approx(np.mean([f["p"].min() < 0.05 for f in found]), abs=0.01)

def test_dunnett_without_spread_or_degrees_of_freedom():
    once = dunnett([0.5, 0.6, 0.4], ["a", "b", "c"], [0, 0, 0], "a")
    assert once["gain"].tolist() == pytest.approx([0.1, -0.1]) and once[["low", "high", "p"]].isna().all(axis=None)
    same = dunnett(*table(np.array([[0.1, 0.1, 0.3]] * 3) + [[0], [0.2], [0.4]]), 0)
    assert same["p"].tolist() == [1, 0] and same["low"].tolist() == same["high"].tolist() == pytest.approx([0, 0.2])

@pytest.mark.parametrize("values, methods, draws, says", [
    ([1.0, 2.0], ["a", "b"], [0], "make no table"), ([1.0, np.nan], ["a", "b"], [0, 0], "finite numbers"),
    ([1.0, 2.0], ["b", "c"], [0, 0], "compare with 'a'.*There are: b, c"),
    ([1.0, 2.0], ["a", "a"], [0, 1], "compare with"),
    ([1.0, 2.0, 3.0, 4.0], ["a", "b", "b", "c"], [0, 0, 1, 2], "No draw connects c to"),
    ([1.0, 2.0, 3.0, 4.0], ["a", "a", "b", "c"], [0, 1, 2, 2], "No draw connects b, c to")])
def test_dunnett_refuses(values, methods, draws, says):
    with pytest.raises(BenchError, match=says): dunnett(values, methods, draws, "a")
    with pytest.raises(BenchError, match="confidence"): dunnett([1.0, 2.0], ["a", "b"], [0, 0], "a", 95)

def test_dunnett_compares_what_only_other_methods_connect():
    "b shares no draw with the baseline, but c shares one with each: b − a = (b − c) + (c − a)."
    found = dunnett([1.0, 3.0, 10.0, 15.0], ["a", "c", "c", "b"], [0, 0, 1, 1], "a")
    assert found["gain"].to_dict() == pytest.approx({"c": 2, "b": 7})
