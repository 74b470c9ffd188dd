"""Speed-ups by the model: where one method is faster than another, and what a given factor would ask for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from harness.records.timings import Method
from report.speed.study import Bench

LOWEST, HIGHEST = 1e6, 400e9
"""Bits per second: the range over which everything is modelled."""

CLEARLY, EVEN = 1.05, 1.01
"""A method is said to beat a baseline where it is more than so many times as fast, and to be even up to the second."""

_STEPS_PER_DECADE = 20


@dataclass(frozen=True)
class RateRange:
    """Rates at which something holds, in bits per second."""

    low: float
    high: float


def log_grid(low: float, high: float) -> list[float]:
    """Points evenly spaced on a logarithmic axis, both ends among them."""
    count = max(2, math.ceil(_STEPS_PER_DECADE * math.log10(high / low)))
    return [low * (high / low) ** (index / count) for index in range(count)] + [high]


def spans_where(holds: Callable[[float], bool], low: float, high: float) -> list[RateRange]:
    """Where a condition holds between two positive ends; its edges by bisection to 1e-6 of their values."""
    grid = log_grid(low, high)
    states = [holds(x) for x in grid]
    spans: list[RateRange] = []
    start = low if states[0] else None
    for before, after, was, now in zip(grid, grid[1:], states, states[1:], strict=False):
        if was == now:
            continue
        edge = _bisect(lambda x, was=was: holds(x) == was, before, after)  # type: ignore[misc]
        if now:
            start = edge
        elif start is not None:
            spans.append(RateRange(start, edge))
            start = None
    return spans if start is None else [*spans, RateRange(start, high)]


def _bisect(is_before: Callable[[float], bool], low: float, high: float) -> float:
    while high / low > 1 + 1e-6:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if is_before(middle) else (low, middle)
    return math.sqrt(low * high)


def speedup(bench: Bench, method: Method, baseline: Method, bits_per_second: float) -> float:
    """Modelled seconds of the baseline over those of the method.

    Raises:
        ValueError: nothing was swept, so nothing can be modelled.
    """
    return bench.seconds_at(baseline, bits_per_second) / bench.seconds_at(method, bits_per_second)


def faster_spans(bench: Bench, method: Method, baseline: Method, by: float = 1.0) -> list[RateRange]:
    """Rates at which the method is more than `by` times as fast as the baseline."""
    return spans_where(lambda bits: speedup(bench, method, baseline, bits) > by, LOWEST, HIGHEST)


@dataclass(frozen=True)
class Implied:
    """What a factor asks for: the highest rate with the compute as it is, and the longest compute at a given rate.

    None: at no rate, or with no compute time, within the ranges that are tried. `at_rate`: the factor at that rate.
    """

    at_rate: float
    bits_per_second: float | None
    compute_seconds: float | None


def implied(bench: Bench, method: Method, baseline: Method, target: float, at: float) -> Implied:
    """What would have to be true for the method to be `target` times as fast as the baseline.

    Args:
        at: the rate at which the compute time is sought, from a thousandth of what it is to a thousand times it.
    """
    network = bench.network(at)
    rates = spans_where(lambda bits: speedup(bench, method, baseline, bits) >= target, LOWEST, HIGHEST)

    def reached(slower: float) -> bool:
        assert network
        return bench.seconds(baseline, network, slower) >= target * bench.seconds(method, network, slower)

    slower = spans_where(reached, 1e-3, 1e3)
    compute = bench.workload.forward_seconds + bench.workload.backward_seconds
    return Implied(
        at_rate=speedup(bench, method, baseline, at),
        bits_per_second=max((span.high for span in rates), default=None),
        compute_seconds=max((span.high * compute for span in slower), default=None),
    )
