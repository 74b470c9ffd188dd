"""The report's statistics against scipy and against cases worked by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from report.kit.statistics import compare, holm, judge, median_best_of, rank_correlation, summarise

_VALUES = st.lists(st.floats(0.01, 1.0), min_size=2, max_size=12)


@given(_VALUES)
def test_summary_is_scipys(values: list[float]) -> None:
    summary = summarise(values)
    assert summary is not None and summary.low is not None and summary.high is not None
    assert summary.mean == pytest.approx(np.mean(values))
    assert summary.standard_deviation == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    if error > 1e-9:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=error)
        assert (summary.low, summary.high) == pytest.approx((low, high))


def test_summary_by_hand() -> None:
    # t for 95 % and 4 degrees is 2.776445; the deviation of 1..5 is sqrt(2.5).
    summary = summarise([1.0, 2.0, 3.0, 4.0, 5.0])
    assert summary is not None and summary.low is not None
    assert summary.low == pytest.approx(3 - 2.776445 * math.sqrt(2.5) / math.sqrt(5), abs=1e-6)
    assert summarise([]) is None
    single = summarise([0.5])
    assert single is not None and (single.n, single.mean, single.low) == (1, 0.5, None)


@given(st.lists(st.tuples(st.floats(0.5, 1), st.floats(0.5, 1)), min_size=2, max_size=8), st.floats(0.6, 0.99))
def test_bounds_are_those_of_the_paired_one_sided_test(pairs: list[tuple[float, float]], confidence: float) -> None:
    method = {seed: a for seed, (a, _) in enumerate(pairs)}
    baseline = {seed: b for seed, (_, b) in enumerate(pairs)}
    comparison = compare(method, baseline, 0.005, confidence)
    assert comparison is not None and comparison.lower is not None and comparison.upper is not None
    differences = np.array([a - b for a, b in pairs])
    if differences.std() < 1e-6:
        return
    test = stats.ttest_1samp(differences, -0.005, alternative="greater")
    assert comparison.lower == pytest.approx(test.confidence_interval(confidence).low, abs=1e-9)
    assert comparison.p_value == pytest.approx(test.pvalue, abs=1e-9)
    less = stats.ttest_1samp(differences, -0.005, alternative="less")
    assert comparison.upper == pytest.approx(less.confidence_interval(confidence).high, abs=1e-9)


def test_only_seeds_of_both_are_compared() -> None:
    comparison = compare({1: 0.9, 2: 0.8, 9: 0.1}, {1: 0.8, 2: 0.7, 3: 0.5}, 0.01, 0.95)
    assert comparison is not None and comparison.seeds == (1, 2)
    assert comparison.difference == pytest.approx(0.1)
    assert compare({1: 0.9}, {2: 0.9}, 0.01, 0.95) is None


@pytest.mark.parametrize(
    ("differences", "word"),
    [
        ((-0.0099, -0.0099, -0.0099), "non-inferior"),
        ((-0.0101, -0.0101, -0.0101), "inferior"),
        ((-0.0099, -0.0101, -0.0100), "inconclusive"),
        ((0.02, 0.021, 0.019), "non-inferior"),
        ((0.02,), "inconclusive"),
    ],
)
def test_the_word_at_the_margin(differences: tuple[float, ...], word: str) -> None:
    method = {seed: difference for seed, difference in enumerate(differences)}
    comparison = compare(method, dict.fromkeys(method, 0.0), 0.01, 0.95)
    assert judge(comparison, 0.01, diverged=0) == word


def test_a_bound_exactly_at_the_margin_is_not_enough() -> None:
    comparison = compare({1: -0.5, 2: -0.5}, {1: 0.0, 2: 0.0}, 0.5, 0.95)
    assert judge(comparison, 0.5, diverged=0) == "inconclusive"


def test_a_diverged_run_is_never_non_inferior() -> None:
    comparison = compare({1: 0.9, 2: 0.9, 3: 0.9}, {1: 0.1, 2: 0.1, 3: 0.1}, 0.01, 0.95)
    assert judge(comparison, 0.01, diverged=1) == "diverged"
    assert judge(None, 0.01, diverged=0) == "inconclusive"
    assert judge(comparison, None, diverged=0) == "inconclusive"


def test_holm_by_hand() -> None:
    # Sorted: 0.01 <= 0.05/4, 0.016 <= 0.05/3, 0.03 > 0.05/2, so the rest stand.
    assert holm([0.03, 0.01, 0.04, 0.016], 0.05) == [False, True, False, True]
    assert holm([], 0.05) == []


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=20))
def test_rank_correlation_is_scipys(pairs: list[tuple[int, int]]) -> None:
    left, right = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    mine = rank_correlation(left, right)
    if len(set(left)) == 1 or len(set(right)) == 1:
        assert mine is None
    else:
        assert mine == pytest.approx(stats.spearmanr(left, right).statistic)


@given(st.lists(st.one_of(st.none(), st.integers(0, 9)), min_size=1, max_size=6), st.data())
def test_best_of_k_is_the_median_over_all_choices(scores: list[int | None], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(scores)))
    rank = [-1.0 if score is None else float(score) for score in scores]
    best = sorted(max(choice) for choice in itertools.combinations(rank, count))
    median = best[(len(best) - 1) // 2]
    assert median_best_of([None if s is None else float(s) for s in scores], count) == (None if median < 0 else median)
