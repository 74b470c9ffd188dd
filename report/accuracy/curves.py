"""Curves: a quantity over steps, gathered over the seeds of a row."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from harness.records.store import Event
from report.accuracy.records import RowRuns
from report.kit.statistics import mean_of


@dataclass(frozen=True)
class Curve:
    """Mean, lowest and highest over the seeds that have a finite value at each step."""

    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def curve_of(rows: RowRuns, value: Callable[[Event], float | None], positive: bool = False) -> Curve | None:
    """Gather a quantity over a row's runs; None where no run has it.

    Args:
        positive: leave out values that a log axis cannot show.
    """
    by_step: dict[int, list[float]] = {}
    for run in rows.runs.values():
        for event in run.events if run else ():
            number = value(event)
            if number is not None and math.isfinite(number) and (number > 0 or not positive):
                by_step.setdefault(event.step, []).append(number)
    if not by_step:
        return None
    steps = tuple(sorted(by_step))
    return Curve(
        steps,
        tuple(mean_of(by_step[step]) for step in steps),
        tuple(min(by_step[step]) for step in steps),
        tuple(max(by_step[step]) for step in steps),
    )
