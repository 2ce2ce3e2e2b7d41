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
