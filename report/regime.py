"""The regime map: rows of every length, each beside the floor and the ceiling of its own length."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from report.findings import Study
from report.records import Records, RowRuns
from report.statistics import Comparison, Word, compare, deviation_of, judge, mean_of

LEAST_MARGINS, LEAST_DEVIATIONS = 3, 10
"""So many margins, and standard deviations between seeds, must lie between floor and ceiling for a length to tell."""


@dataclass(frozen=True)
class Length:
    """One length of run. `gap` is ceiling minus floor, mean over the seeds that both have; None without a floor."""

    num_steps: int
    ceiling: RowRuns
    floor: RowRuns | None
    gap: float | None
    deviation: float | None
    """The larger of ceiling's and floor's standard deviation between seeds."""
    tells: bool
    """Whether floor and ceiling lie far enough apart for a loss to be seen."""


@dataclass(frozen=True)
class Point:
    """One row at one length, against SGD of the same length, paired by seed."""

    rows: RowRuns
    length: Length
    models: float
    """Models sent, M."""
    comparison: Comparison | None
    word: Word

    @property
    def method(self) -> str:
        return self.rows.method

    @property
    def ratio(self) -> float:
        """The true ratio, steps over models sent."""
        return self.length.num_steps / self.models

    @property
    def differences(self) -> dict[int, float]:
        """Accuracy minus SGD's, by the seeds that both have."""
        mine, theirs = self.rows.accuracy, self.length.ceiling.accuracy
        return {seed: mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())}

    @property
    def closed(self) -> float | None:
        """Share of the gap between floor and ceiling that it closes: 1 is no loss, 0 is a worker alone."""
        if self.comparison is None or not self.length.gap or self.length.gap <= 0:
            return None
        return 1 + self.comparison.difference / self.length.gap

    @property
    def lost(self) -> float | None:
        """Share of the gap that it loses; a row below the floor counts as one that lost all of it."""
        return None if self.closed is None else min(1 - self.closed, 1.0)

    @property
    def fits(self) -> bool:
        """Whether curves are fitted to it: no diverged run, and a length that tells."""
        return self.lost is not None and not self.rows.diverged and self.length.tells


@dataclass(frozen=True)
class Regime:
    """All points, from the longest run to the shortest."""

    lengths: tuple[Length, ...]
    points: tuple[Point, ...]
    margin: float | None

    @cached_property
    def methods(self) -> dict[str, tuple[Point, ...]]:
        """Points by method, of methods that are there with more than one number of models sent."""
        names = dict.fromkeys(point.method for point in self.points)
        groups = {name: tuple(point for point in self.points if point.method == name) for name in names}
        return {name: points for name, points in groups.items() if len({point.models for point in points}) > 1}

    @property
    def telling(self) -> tuple[Length, ...]:
        """The lengths that can tell a loss."""
        return tuple(length for length in self.lengths if length.tells)


def regime_of(study: Study) -> Regime | None:
    """Gather the rows of all lengths, those chosen on held-out samples; None for fewer than two lengths with runs."""
    records = study.records
    experiment = records.experiment
    ceilings = _by_length(records, experiment.baseline)
    floors = _by_length(records, experiment.floor)
    lengths = [
        _length(steps, ceiling, floors.get(steps), experiment.margin)
        for steps, ceiling in sorted(ceilings.items(), reverse=True)
        if ceiling.finished
    ]
    if len(lengths) < 2:
        return None
    bounds = {id(rows) for rows in (*ceilings.values(), *floors.values())}
    points = [
        _point(rows, length, experiment.margin, experiment.confidence)
        for length in lengths
        for rows in _held_out(records)
        if rows.row.num_steps == length.num_steps and id(rows) not in bounds and rows.row.models_sent
    ]
    return Regime(tuple(lengths), tuple(points), experiment.margin)


def _held_out(records: Records) -> Iterable[RowRuns]:
    return (rows for rows in records.rows if rows.row.rule == "held_out")


def _by_length(records: Records, name: str | None) -> dict[int, RowRuns]:
    return {rows.row.num_steps: rows for rows in _held_out(records) if name and name in (rows.row.row, rows.row.base)}


def _length(steps: int, ceiling: RowRuns, floor: RowRuns | None, margin: float | None) -> Length:
    high, low = ceiling.accuracy, floor.accuracy if floor else {}
    seeds = high.keys() & low.keys()
    gap = mean_of([high[seed] - low[seed] for seed in sorted(seeds)]) if seeds else None
    spreads = [deviation_of(list(values.values())) for values in (high, low) if len(values) > 1]
    deviation = max(spreads, default=None)
    tells = (
        gap is not None
        and margin is not None
        and deviation is not None
        and gap >= max(LEAST_MARGINS * margin, LEAST_DEVIATIONS * deviation)
    )
    return Length(steps, ceiling, floor, gap, deviation, tells)


def _point(rows: RowRuns, length: Length, margin: float | None, confidence: float) -> Point:
    comparison = compare(rows.accuracy, length.ceiling.accuracy, margin, confidence)
    word = judge(comparison, margin, len(rows.diverged))
    return Point(rows, length, rows.row.models_sent or 0.0, comparison, word)
