"""Timed steps to numbers: medians of a method's steps with their intervals, over its period, in the device's time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from harness.records.timings import Method, Step, Timing
from report.speed.cost_model import over_period

COVERAGE = 0.95
"""Of the interval of a median."""


@dataclass(frozen=True)
class Timed:
    """One method in one timing record: seconds of a step, the mean over its period of the medians of its two kinds.

    All are of the device's time, so a dilated clock is undone. `seconds` has the codec in it where it was measured, and
    not where it was emulated, since the codec was not dilated. `low` and `high` bound it. `codec` is as on the clock.
    """

    seconds: float
    low: float
    high: float
    compute: float
    codec: float
    waiting: float | None
    transfer: float
    num_steps: int


def timed(timing: Timing, method: Method) -> Timed | None:
    """The numbers of a method; None where a kind of step that its period has was not timed."""
    steps = [step for step in timing.steps if step.method == method.name]
    kinds = [[step for step in steps if step.synchronises == kind] for kind in (False, True)]
    if method.period == 1:
        kinds = [steps, steps]
    if not all(kinds):
        return None
    dilation = timing.fabric.dilation
    emulated = timing.basis == "emulated"

    def whole(step: Step) -> float:
        return (step.seconds - step.codec_seconds) / dilation if emulated else step.seconds

    def mean(of: Callable[[Step], float]) -> float:
        ordinary, synchronising = (median(map(of, kind)) for kind in kinds)
        return over_period(ordinary, synchronising, method.period)

    bounds = [median_interval([whole(step) for step in kind]) for kind in kinds]
    shared_clock = all(step.waiting_seconds is not None for step in steps)
    return Timed(
        seconds=mean(whole),
        low=over_period(bounds[0][0], bounds[1][0], method.period),
        high=over_period(bounds[0][1], bounds[1][1], method.period),
        compute=mean(lambda step: step.compute_seconds / dilation),
        codec=mean(lambda step: step.codec_seconds),
        waiting=mean(lambda step: (step.waiting_seconds or 0.0) / dilation) if shared_clock else None,
        transfer=mean(lambda step: step.transfer_seconds / dilation),
        num_steps=len(steps),
    )


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Interval of the median by order statistics, of at least 95 % coverage; lowest to highest of fewer than six."""
    ordered, count = sorted(values), len(values)
    tail, below = 0.0, 0
    while below < (count - 1) // 2:
        tail += math.comb(count, below) / 2**count
        if 2 * tail > 1 - COVERAGE:
            break
        below += 1
    left_out = max(below - 1, 0)
    return ordered[left_out], ordered[count - 1 - left_out]
