"""Assay sensitivity: whether an experiment could have shown a loss, by the gap between its ceiling and its floor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.records.experiment import Experiment
from report.accuracy.bounds import Role, role_of
from report.accuracy.records import Records, RowRuns
from report.kit.statistics import deviation_of, mean_of
from report.kit.wording import amount, points

MARGINS = 3
"""The gap must hold so many margins."""

DEVIATIONS = 10
"""And so many standard deviations between seeds, of the bound that spreads more."""


@dataclass(frozen=True)
class Assay:
    """The check at one length. Accuracies as shares; `reason` says why the experiment cannot tell, None if it can."""

    num_steps: int
    ceiling: RowRuns | None
    floor: RowRuns | None
    gap: float | None
    deviation: float | None
    reason: str | None

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Ids of the runs behind the check."""
        return tuple(run_id for rows in (self.ceiling, self.floor) if rows for run_id in rows.run_ids)


def assays_of(records: Records) -> tuple[Assay, ...]:
    """The check at every length of the experiment, from short to long."""
    held_out = [rows for rows in records.rows if rows.row.rule == "held_out" and rows.row.tunes is None]
    lengths = sorted({rows.row.num_steps for rows in held_out})
    return tuple(_assay(records.experiment, steps, held_out) for steps in lengths)


def _assay(experiment: Experiment, num_steps: int, rows: Sequence[RowRuns]) -> Assay:
    ceiling = _bound(experiment, "ceiling", num_steps, rows)
    floor = _bound(experiment, "floor", num_steps, rows)
    if ceiling is None:
        return Assay(num_steps, None, floor, None, None, "it has no row that sends everything")
    if floor is None:
        text = "it has no floor, a worker alone that sends nothing, so what could be lost is unknown"
        return Assay(num_steps, ceiling, None, None, None, text)
    high, low = list(ceiling.accuracy.values()), list(floor.accuracy.values())
    if min(len(high), len(low)) < 2:
        text = f"ceiling and floor have {len(high)} and {len(low)} finished runs, and each needs two"
        return Assay(num_steps, ceiling, floor, None, None, text)
    gap, deviation = mean_of(high) - mean_of(low), max(deviation_of(high), deviation_of(low))
    lost = len(ceiling.diverged) + len(floor.diverged)
    reason = "a run of its ceiling or its floor diverged" if lost else _too_small(gap, deviation, experiment.margin)
    return Assay(num_steps, ceiling, floor, gap, deviation, reason)


def _bound(experiment: Experiment, role: Role, num_steps: int, rows: Sequence[RowRuns]) -> RowRuns | None:
    return next((r for r in rows if r.row.num_steps == num_steps and role_of(r.row, experiment) == role), None)


def _too_small(gap: float, deviation: float, margin: float | None) -> str | None:
    head = f"its floor lies {points(gap).lstrip('+')} points below its ceiling, which is"
    if margin is None:
        return "it sets no margin"
    if gap < MARGINS * margin:
        return f"{head} {amount(gap / margin)} margins where {MARGINS} are needed"
    if gap < DEVIATIONS * deviation:
        return f"{head} {amount(gap / deviation)} standard deviations between seeds where {DEVIATIONS} are needed"
    return None


def epochs_of(rows: RowRuns) -> float | None:
    """Epochs of a row's runs, by the last evaluation of one that is finished; None where none is."""
    return next((run.events[-1].epoch for run in rows.finished.values() if run.events), None)


def margin_cost(assays: Sequence[Assay], margin: float | None) -> str:
    """What a margin costs in epochs of the ceiling, in a sentence; empty where two lengths are not at hand."""
    known = [(epochs_of(assay.ceiling), mean_of(list(assay.ceiling.accuracy.values()))) for assay in assays
             if assay.ceiling and assay.ceiling.accuracy]  # fmt: skip
    curve = [(epochs, mean) for epochs, mean in known if epochs]
    if margin is None or len(curve) < 2:
        return ""
    (last, best), target = curve[-1], curve[-1][1] - margin
    below = [index for index, (_, mean) in enumerate(curve[:-1]) if mean < target]
    if not below:
        return f"The baseline is within one margin of its accuracy at {last:g} epochs after {curve[0][0]:g} already."
    (few, low), (more, high) = curve[below[-1]], curve[below[-1] + 1]
    share = (target - low) / (high - low)
    between = math.exp(math.log(few) + share * (math.log(more) - math.log(few)))
    return (
        f"One margin costs epochs: the baseline reaches {100 * best:.2f} % in {last:g} epochs and one margin less in "
        f"about {amount(between)} (modelled: a line through {few:g} and {more:g} epochs, by their logarithms)."
    )
