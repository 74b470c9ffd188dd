"""Agreement of kinds of network: against counting all orders by hand, and against the formulas of
the papers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import friedmanchisquare, t

from cser_bench.report.questions.agreement import agreement, combined

METHODS = ["top-k", "local", "blocks"]


def test_five_kinds_with_one_order_are_certain_to_be_no_chance() -> None:
    losses = pd.DataFrame(
        [[0.1, 0.3, 0.5], [0.2, 0.4, 0.6], [-0.1, 0.0, 0.2], [1.0, 2.0, 9.0], [0.0, 0.1, 0.2]],
        columns=METHODS,
    )
    found = agreement(losses)
    assert found is not None
    assert found.order == ("top-k", "local", "blocks")
    assert (found.num_kinds, found.num_alike) == (5, 5)
    assert found.concordance == pytest.approx(1.0)
    assert found.p_value == pytest.approx(6 / 6**5), "any of the six orders, if all five share it"


def test_chance_is_counted_over_all_combinations_of_orders() -> None:
    losses = pd.DataFrame(
        [[1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [2.0, 1.0, 3.0], [1.0, 2.0, 3.0]], columns=METHODS
    )
    found = agreement(losses)
    assert found is not None
    ranks = [(1, 2, 3), (1, 3, 2), (2, 1, 3), (1, 2, 3)]

    def statistic(rows: tuple[tuple[int, ...], ...]) -> float:
        return float(friedmanchisquare(*np.array(rows).T).statistic)

    orders = list(itertools.permutations((1, 2, 3)))
    own = statistic(tuple(ranks))
    as_far = [statistic(rows) >= own - 1e-9 for rows in itertools.product(orders, repeat=4)]
    assert found.p_value == pytest.approx(np.mean(as_far))
    assert found.concordance == pytest.approx(own / (4 * 2)), (
        "Kendall's W is Friedman's chi-squared over n (k - 1)"
    )
    assert found.num_alike == 2


def test_one_kind_or_one_method_agrees_with_nobody() -> None:
    assert agreement(pd.DataFrame([[1.0, 2.0]], columns=METHODS[:2])) is None
    assert agreement(pd.DataFrame([[1.0], [2.0]], columns=METHODS[:1])) is None


def test_combined_difference_is_hartung_and_knapps() -> None:
    """Their formulas, with DerSimonian and Laird's variance between kinds, written out."""
    effects, errors = (
        np.array([0.2, 0.43, 0.32, 1.27, 0.16]),
        np.array([0.1, 0.15, 0.16, 0.12, 0.11]),
    )
    weights = 1 / errors**2
    fixed = (weights * effects).sum() / weights.sum()
    excess = (weights * (effects - fixed) ** 2).sum() - (len(effects) - 1)
    between = max(0.0, excess / (weights.sum() - (weights**2).sum() / weights.sum()))
    weights = 1 / (errors**2 + between)
    mean = (weights * effects).sum() / weights.sum()
    variance = (weights * (effects - mean) ** 2).sum() / ((len(effects) - 1) * weights.sum())
    half = t.ppf(0.975, len(effects) - 1) * math.sqrt(variance)
    found = combined(effects, errors)
    assert found.estimate == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half))
    assert found.deviation == pytest.approx(math.sqrt(between))
    assert found.num_kinds == 5
