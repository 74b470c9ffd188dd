"""The regime map: rows of every length, each beside the floor and the ceiling of its own length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from harness.records.experiment import Experiment
from report.accuracy.assay import Assay
from report.accuracy.bounds import role_of
from report.accuracy.findings import Study
from report.accuracy.records import RowRuns
from report.kit.statistics import Comparison, Word, compare, judge


@dataclass(frozen=True)
class RegimePoint:
    """One row at one length, against SGD of the same length, paired by seed."""

    rows: RowRuns
    length: Assay
    ceiling: RowRuns
    models: float
    """Models sent, M."""
    comparison: Comparison | None
    word: Word
    is_bound: bool

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
        mine, theirs = self.rows.accuracy, self.ceiling.accuracy
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
        return self.lost is not None and not self.rows.diverged and self.length.reason is None


@dataclass(frozen=True)
class Regime:
    """All points, from the longest run to the shortest."""

    lengths: tuple[Assay, ...]
    points: tuple[RegimePoint, ...]
    margin: float | None

    @cached_property
    def methods(self) -> dict[str, tuple[RegimePoint, ...]]:
        """Points by method, of methods that are there with more than one number of models sent."""
        names = dict.fromkeys(point.method for point in self.points)
        groups = {name: tuple(point for point in self.points if point.method == name) for name in names}
        return {name: points for name, points in groups.items() if len({point.models for point in points}) > 1}

    @property
    def telling(self) -> tuple[Assay, ...]:
        """The lengths that can tell a loss."""
        return tuple(length for length in self.lengths if length.reason is None)


def regime_of(study: Study) -> Regime | None:
    """Gather the rows of all lengths, those chosen on held-out samples; None for fewer than two lengths with runs."""
    records, experiment = study.records, study.records.experiment
    ceilings = {a.num_steps: a.ceiling for a in reversed(study.assays) if a.ceiling and a.ceiling.finished}
    if len(ceilings) < 2:
        return None
    lengths = {assay.num_steps: assay for assay in reversed(study.assays) if assay.num_steps in ceilings}
    points = [
        _point(rows, lengths, ceilings, experiment, role == "bound")
        for rows in records.rows
        if rows.row.rule == "held_out" and rows.row.models_sent and rows.row.num_steps in lengths
        if (role := role_of(rows.row, experiment)) not in ("ceiling", "floor")
    ]
    return Regime(tuple(lengths.values()), tuple(points), experiment.margin)


def _point(
    rows: RowRuns,
    lengths: Mapping[int, Assay],
    ceilings: Mapping[int, RowRuns],
    experiment: Experiment,
    is_bound: bool,
) -> RegimePoint:
    steps = rows.row.num_steps
    comparison = compare(rows.accuracy, ceilings[steps].accuracy, experiment.margin, experiment.confidence)
    word = judge(comparison, experiment.margin, len(rows.diverged))
    if word == "non-inferior" and lengths[steps].reason is not None:
        word = "cannot tell"
    return RegimePoint(rows, lengths[steps], ceilings[steps], rows.row.models_sent or 0.0, comparison, word, is_bound)
