"""Statistics of few seeds: t intervals, paired bounds and tests, the word of a comparison, Holm's correction, ranks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.special import stdtr, stdtrit

Word = Literal["non-inferior", "inferior", "inconclusive", "diverged", "cannot tell"]
"""`cannot tell` stands for non-inferior where the experiment could not have shown a loss."""

INTERVAL = 0.95
"""Coverage of the two-sided intervals of a mean."""


@dataclass(frozen=True)
class Summary:
    """Mean of n values; what needs two values is None for one. All in the unit of the values."""

    n: int
    mean: float
    standard_deviation: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """Mean of the differences (method minus baseline) paired by seed, in the unit of the values.

    `lower` and `upper` are two one-sided bounds, each at the experiment's confidence. `p_value` is of the one-sided
    t test of "the method is worse than the baseline by the margin or more"; None without a margin.
    """

    seeds: tuple[int, ...]
    difference: float
    lower: float | None
    upper: float | None
    p_value: float | None


@dataclass(frozen=True)
class Paired:
    """Mean of the differences (left minus right) paired by seed, with a two-sided t interval of 95 % and its p."""

    seeds: tuple[int, ...]
    difference: float
    low: float | None
    high: float | None
    p_value: float | None


def mean_of(values: Sequence[float]) -> float:
    """Mean with one rounding at the end, so that the order of the values does not matter.

    Raises:
        ZeroDivisionError: no values.
    """
    return math.fsum(values) / len(values)


def deviation_of(values: Sequence[float]) -> float:
    """Standard deviation of a sample (n - 1).

    Raises:
        ZeroDivisionError: fewer than two values.
    """
    mean = mean_of(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t."""
    return float(stdtrit(degrees, probability))


def summarise(values: Sequence[float]) -> Summary | None:
    """Mean, standard deviation and t interval; None for no values."""
    if not values:
        return None
    mean = mean_of(values)
    if len(values) == 1:
        return Summary(1, mean, None, None, None)
    deviation = deviation_of(values)
    half = t_quantile((1 + INTERVAL) / 2, len(values) - 1) * deviation / math.sqrt(len(values))
    return Summary(len(values), mean, deviation, mean - half, mean + half)


def compare(
    method: dict[int, float], baseline: dict[int, float], margin: float | None, confidence: float
) -> Comparison | None:
    """Compare by seed, over the seeds that both have; None where there is none.

    Args:
        method, baseline: value per seed.
        margin: how much worse still counts as no loss, in the unit of the values.
        confidence: of each one-sided bound, as 0.95.
    """
    seeds = tuple(sorted(method.keys() & baseline.keys()))
    if not seeds:
        return None
    differences = [method[seed] - baseline[seed] for seed in seeds]
    mean = mean_of(differences)
    if len(seeds) < 2:
        return Comparison(seeds, mean, None, None, None)
    error = deviation_of(differences) / math.sqrt(len(seeds))
    half = t_quantile(confidence, len(seeds) - 1) * error
    p_value = None if margin is None else _p_value(mean + margin, error, len(seeds) - 1)
    return Comparison(seeds, mean, mean - half, mean + half, p_value)


def _p_value(distance: float, error: float, degrees: int) -> float:
    """One-sided p of a mean `distance` above the margin; equal differences leave no doubt either way."""
    if error == 0:
        return 0.0 if distance > 0 else 1.0
    return float(stdtr(degrees, -distance / error))


def pair(left: dict[int, float], right: dict[int, float]) -> Paired | None:
    """Compare by seed, over the seeds that both have, with no side expected to be the better; None for no such seed."""
    seeds = tuple(sorted(left.keys() & right.keys()))
    differences = [left[seed] - right[seed] for seed in seeds]
    summary = summarise(differences)
    if summary is None:
        return None
    if summary.standard_deviation is None:
        return Paired(seeds, summary.mean, None, None, None)
    error = summary.standard_deviation / math.sqrt(len(seeds))
    if error == 0:
        p_value = 1.0 if summary.mean == 0 else 0.0
    else:
        p_value = 2 * float(stdtr(len(seeds) - 1, -abs(summary.mean) / error))
    return Paired(seeds, summary.mean, summary.low, summary.high, p_value)


def judge(comparison: Comparison | None, margin: float | None, diverged: int) -> Word:
    """The word of a row. A row with a diverged run is never called anything else, whatever the rest scored.

    Args:
        diverged: number of the method's runs that diverged.
    """
    if diverged:
        return "diverged"
    if margin is None or comparison is None or comparison.lower is None or comparison.upper is None:
        return "inconclusive"
    if comparison.lower > -margin:
        return "non-inferior"
    if comparison.upper < -margin:
        return "inferior"
    return "inconclusive"


def holm(p_values: Sequence[float], level: float) -> list[bool]:
    """Which hypotheses Holm's step-down procedure rejects at the family-wise `level`, in the order given."""
    rejected = [False] * len(p_values)
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for done, index in enumerate(order):
        if p_values[index] > level / (len(p_values) - done):
            break
        rejected[index] = True
    return rejected


def ranks_of(values: Sequence[float]) -> list[float]:
    """Ranks from 1, equal values sharing the mean of their ranks."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    ranks = [0.0] * len(values)
    start = 0
    for _, group in itertools.groupby(order, key=lambda index: values[index]):
        members = list(group)
        for index in members:
            ranks[index] = start + (len(members) + 1) / 2
        start += len(members)
    return ranks


def rank_correlation(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None for fewer than three pairs or where one side is constant."""
    if len(left) < 3 or len(set(left)) == 1 or len(set(right)) == 1:
        return None
    a, b = ranks_of(left), ranks_of(right)
    mean_a, mean_b = mean_of(a), mean_of(b)
    shared = math.fsum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    spread = math.fsum((x - mean_a) ** 2 for x in a) * math.fsum((y - mean_b) ** 2 for y in b)
    return shared / math.sqrt(spread)


def median_best_of(scores: Sequence[float | None], count: int) -> float | None:
    """Median, over all choices of `count` of the scores, of the best one chosen (the lower median).

    A score of None is a diverged run: it ranks below every number, so the answer is None where most choices of that
    size hold nothing else.

    Raises:
        ValueError: `count` is not between 1 and the number of scores.
    """
    if not 1 <= count <= len(scores):
        raise ValueError(f"cannot choose {count} of {len(scores)} scores")
    ranked = sorted(scores, key=lambda score: -math.inf if score is None else score)
    # The score at position i is the best of C(i, count - 1) choices, so the median needs no list of the choices.
    half = (math.comb(len(ranked), count) + 1) // 2
    reached = 0
    for position, score in enumerate(ranked):
        reached += math.comb(position, count - 1)
        if reached >= half:
            return score
    raise AssertionError("the choices add up to all of them")
