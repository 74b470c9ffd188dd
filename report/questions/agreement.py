"""Whether kinds of network agree on methods.

There is their order by Friedman's test, and one difference over all of them.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from statsmodels.stats.meta_analysis import combine_effects

from cser_bench.report.regime import Vector


@dataclass(frozen=True)
class Agreement:
    """How far kinds of network put methods into one order.

    `concordance` is Kendall's W: 1 where all orders are the same, near 0 where they have nothing in
    common. `p_value` is Friedman's: the chance of so large a W where every order of every kind is
    equally likely.
    """

    order: tuple[str, ...]
    """Methods by their mean rank, from the one that loses least."""
    num_kinds: int
    num_alike: int
    """Kinds whose own order is this one."""
    concordance: float
    p_value: float


def agreement(losses: pd.DataFrame) -> Agreement | None:
    """Return how far kinds of network agree; None for fewer than two kinds or methods.

    The p-value is exact: all orders of all kinds are counted, as a chi-squared distribution is far
    off with three methods and five kinds (Friedman, JASA 1937; Kendall and Babington Smith, Annals
    of Mathematical Statistics 1939).

    Args:
        losses: what each method (a column) loses on each kind of network (a line), none missing.
    """
    num_kinds, num_methods = losses.shape
    if num_kinds < 2 or num_methods < 2:
        return None
    ranks = rankdata(losses.to_numpy(dtype=float), axis=1)
    sums = np.asarray(ranks).sum(axis=0)
    places = np.argsort(sums, kind="stable")
    order = losses.columns[places]
    # A kind has this order if each method loses more than the one before it.
    increases = losses[order].diff(axis="columns").iloc[:, 1:]
    alike = (increases > 0).all(axis="columns")
    spread = _spread(sums)
    most = num_kinds**2 * (num_methods**3 - num_methods) / 12
    return Agreement(
        order=tuple(map(str, order)),
        num_kinds=num_kinds,
        num_alike=int(alike.sum()),
        concordance=spread / most,
        p_value=_chance(num_kinds, num_methods, spread),
    )


def _spread(sums: Vector) -> float:
    """Return the squared distance of the methods' sums of ranks from their mean."""
    distances = sums - sums.mean()
    return float((distances**2).sum())


def _chance(num_kinds: int, num_methods: int, spread: float) -> float:
    """Return the share of all combinations of orders that spread the sums as far or further.

    Sums of ranks are counted kind by kind, so that the work grows with the number of different
    sums, not of combinations.
    """
    orders = list(itertools.permutations(range(1, num_methods + 1)))
    counts = Counter({(0,) * num_methods: 1})
    for _ in range(num_kinds):
        following: Counter[tuple[int, ...]] = Counter()
        for sums, count in counts.items():
            for order in orders:
                added = tuple(map(sum, zip(sums, order, strict=True)))
                following[added] += count
        counts = following
    tolerance = 1e-9  # of floating-point sums of whole and half numbers
    as_far = 0
    for sums, count in counts.items():
        if _spread(np.array(sums)) >= spread - tolerance:
            as_far += count
    num_combinations = math.factorial(num_methods) ** num_kinds
    return float(as_far / num_combinations)


@dataclass(frozen=True)
class Combined:
    """One difference over kinds of network, between which it may truly differ.

    It is the mean with its interval.
    """

    estimate: float
    low: float
    high: float
    deviation: float
    """Between kinds, in the unit of the differences, beyond what seeds explain."""
    num_kinds: int


def combined(
    estimates: ArrayLike, standard_errors: ArrayLike, confidence: float = 0.95
) -> Combined:
    """Return the mean difference over kinds of network, by random effects.

    Kinds are taken for a draw from all that might have been tried, and the interval is that of the
    mean over all of these, so it is wider than that of seeds alone: DerSimonian and Laird's
    variance between kinds, with Hartung and Knapp's interval, which keeps its coverage for as few
    kinds as two (IntHout, Ioannidis and Borm, BMC Medical Research Methodology 2014).

    Args:
        estimates, standard_errors: of shape (kinds,), two or more.
    """
    effects = np.asarray(estimates, dtype=float)
    variances = np.asarray(standard_errors, dtype=float) ** 2
    found = combine_effects(effects, variances, method_re="dl", use_t=True)
    intervals = found.conf_int(alpha=1 - confidence)
    # The fourth is that of random effects by Hartung and Knapp.
    low, high = intervals[3]
    variance = max(0.0, float(found.tau2))
    return Combined(
        estimate=float(found.mean_effect_re),
        low=float(low),
        high=float(high),
        deviation=math.sqrt(variance),
        num_kinds=len(effects),
    )
