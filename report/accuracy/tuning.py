"""Where settings and rates came from: the tuning experiment's rows gathered per row of the main experiment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.records.experiment import Choice, Experiment, Row
from report.accuracy.bounds import Role, role_of
from report.accuracy.records import Records, RowRuns
from report.kit.statistics import mean_of


@dataclass(frozen=True)
class GridPoint:
    """Settings and a learning rate tried for one row. `scores` are held-out accuracies by seed, of finished runs."""

    learning_rate: float
    candidate: int
    settings: str
    planned: int
    scores: dict[int, float]
    losses: dict[int, float]
    diverged: int
    run_ids: tuple[str, ...]

    @property
    def score(self) -> float | None:
        """Mean held-out accuracy; None where a run diverged or none is finished."""
        return None if self.diverged or not self.scores else mean_of(list(self.scores.values()))

    @property
    def loss(self) -> float | None:
        """Mean training loss at the end; None where a run diverged or none is finished."""
        return None if self.diverged or not self.losses else mean_of(list(self.losses.values()))


@dataclass(frozen=True)
class Tuned:
    """A row of the main experiment with everything tried for it: candidate by candidate, from small to large rates.

    `plan` is the row that is tuned; of tuning records alone, the first of those that tune it. `selected` and
    `by_loss` are the points that highest held-out accuracy and least training loss choose.
    """

    plan: Row
    role: Role | None
    choice: Choice | None
    points: tuple[GridPoint, ...]
    selected_point: GridPoint | None
    by_loss: GridPoint | None

    @property
    def row(self) -> str:
        """Name of the row that is tuned."""
        return self.plan.tunes or self.plan.row

    @property
    def method(self) -> str:
        """The row's label."""
        return self.plan.label

    @property
    def name(self) -> str:
        """The method's name as tables print it, marked as in `Finding.name`."""
        return f"{self.method}{f' ({self.role})' if self.role else ''}{'†' if self.at_end else ''}"

    @property
    def ratio(self) -> float:
        """The row's nominal ratio."""
        return self.plan.ratio

    @property
    def selected(self) -> float | None:
        """The chosen learning rate."""
        return self.selected_point.learning_rate if self.selected_point else None

    @property
    def num_candidates(self) -> int:
        """How many tables of settings were tried."""
        return len({point.candidate for point in self.points})

    @property
    def num_trials(self) -> int:
        """Pairs of settings and learning rate that were tried."""
        return self.choice.num_trials if self.choice else len(self.points)

    @property
    def at_end(self) -> bool:
        """Whether the selected rate is the smallest or the largest tried, so that a better one may lie outside."""
        if self.choice:
            return self.choice.at_end
        if self.selected_point is None:
            return False
        rates = [p.learning_rate for p in self.points if p.candidate == self.selected_point.candidate]
        return len(rates) > 1 and self.selected in (min(rates), max(rates))

    @property
    def has_results(self) -> bool:
        """Whether any run of it is done."""
        return any(point.scores or point.diverged for point in self.points)


def is_tuning(records: Records) -> bool:
    """Whether an experiment is a tuning experiment: its rows tune those of another."""
    return any(rows.row.tunes is not None for rows in records.rows)


def tuned_rows(main: Records, tuning: Records) -> tuple[Tuned, ...]:
    """Gather the tuning rows by the row that they tune, in the order of the main experiment."""
    points = _points(tuning)
    return tuple(_tuned(main.experiment, r.row, points[r.row.row]) for r in main.main_rows if r.row.row in points)


def _tuned(experiment: Experiment, row: Row, points: tuple[GridPoint, ...]) -> Tuned:
    tuning = experiment.tuning
    choice = tuning.choices.get(row.row) if tuning else None
    other = tuning.choices_by_training_loss.get(row.row) if tuning else None
    rate = choice.learning_rate if choice else tuning.selected.get(row.row) if tuning else None
    selected = _find(points, rate, choice)
    by_loss = _find(points, other.learning_rate, other) if other else _least_loss(points)
    return Tuned(row, role_of(row, experiment), choice, points, selected, by_loss)


def _find(points: Sequence[GridPoint], rate: float | None, choice: Choice | None) -> GridPoint | None:
    candidate = choice.candidate if choice else 0
    return next((p for p in points if p.learning_rate == rate and p.candidate == candidate), None)


def _least_loss(points: Sequence[GridPoint]) -> GridPoint | None:
    known = [point for point in points if point.loss is not None]
    return min(known, key=lambda point: math.inf if point.loss is None else point.loss, default=None)


def tuned_alone(tuning: Records) -> tuple[Tuned, ...]:
    """The same from the tuning records alone, which hold no selection.

    The highest mean stands for it, among the points that were tried with the most seeds; of equals the smaller rate.
    """
    first = {rows.row.tunes: rows.row for rows in reversed(tuning.rows) if rows.row.tunes is not None}
    tuned = []
    for name, points in _points(tuning).items():
        most = max(point.planned for point in points)
        scored = [(p.score, -p.learning_rate, p) for p in points if p.score is not None and p.planned == most]
        best = max(scored, key=lambda entry: entry[:2])[2] if scored else None
        tuned.append(Tuned(first[name], None, None, points, best, _least_loss(points)))
    return tuple(tuned)


def _points(tuning: Records) -> dict[str, tuple[GridPoint, ...]]:
    """Points by the row that they tune: candidate by candidate, from small to large rates."""
    points: dict[str, list[GridPoint]] = {}
    for rows in tuning.rows:
        if rows.row.tunes is not None:
            points.setdefault(rows.row.tunes, []).append(_point(rows))
    return {name: tuple(sorted(found, key=lambda p: (p.candidate, p.learning_rate))) for name, found in points.items()}


def _point(rows: RowRuns) -> GridPoint:
    losses = {seed: run.result.train_loss for seed, run in rows.finished.items() if run.result}
    return GridPoint(
        learning_rate=rows.row.learning_rate,
        candidate=rows.row.candidate or 0,
        settings=rows.row.words,
        planned=len(rows.runs),
        scores=rows.accuracy,
        losses={seed: loss for seed, loss in losses.items() if loss is not None and math.isfinite(loss)},
        diverged=len(rows.diverged),
        run_ids=rows.run_ids,
    )
