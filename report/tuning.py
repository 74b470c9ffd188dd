"""Where the learning rates came from: the tuning experiment's rows gathered per row of the main experiment."""

from __future__ import annotations

import math
from dataclasses import dataclass

from report.records import Records, RowRuns
from report.statistics import mean_of


@dataclass(frozen=True)
class GridPoint:
    """One learning rate tried for one row. `scores` are held-out accuracies by seed, of the finished runs."""

    learning_rate: float
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
    """A row of the main experiment with every rate tried for it, from small to large."""

    row: str
    method: str
    ratio: float
    selected: float | None
    points: tuple[GridPoint, ...]

    @property
    def by_training_loss(self) -> float | None:
        """The rate that the other rule, least training loss, would have chosen."""
        known = [point for point in self.points if point.loss is not None]
        best = min(known, key=lambda point: math.inf if point.loss is None else point.loss, default=None)
        return best.learning_rate if best else None

    @property
    def at_end(self) -> bool:
        """Whether the selected rate is the smallest or the largest tried, so that a better one may lie outside."""
        rates = [point.learning_rate for point in self.points]
        return len(rates) > 1 and self.selected in (rates[0], rates[-1])

    @property
    def has_results(self) -> bool:
        """Whether any run of it is done."""
        return any(point.scores or point.diverged for point in self.points)


def is_tuning(records: Records) -> bool:
    """Whether an experiment is a tuning experiment: its rows tune those of another."""
    return any(rows.row.tunes is not None for rows in records.rows)


def tuned_rows(main: Records, tuning: Records) -> tuple[Tuned, ...]:
    """Gather the tuning rows by the row that they tune, in the order of the main experiment."""
    selected = main.experiment.tuning.selected if main.experiment.tuning else {}
    points = _points(tuning)
    return tuple(
        Tuned(rows.row.row, rows.method, rows.row.ratio, selected.get(rows.row.row), points[rows.row.row])
        for rows in main.rows
        if rows.row.row in points
    )


def tuned_alone(tuning: Records) -> tuple[Tuned, ...]:
    """The same from the tuning records alone, which hold no selection: the rate of the highest mean stands for it."""
    first = {rows.row.tunes: rows for rows in reversed(tuning.rows) if rows.row.tunes is not None}
    tuned = []
    for name, points in _points(tuning).items():
        scored = [(point.score, point.learning_rate) for point in points if point.score is not None]
        best = max(scored, key=lambda pair: (pair[0], -pair[1]))[1] if scored else None
        tuned.append(Tuned(name, first[name].method, first[name].row.ratio, best, points))
    return tuple(tuned)


def _points(tuning: Records) -> dict[str, tuple[GridPoint, ...]]:
    """Grid points by the row that they tune, from small to large rates."""
    points: dict[str, list[GridPoint]] = {}
    for rows in tuning.rows:
        if rows.row.tunes is not None:
            points.setdefault(rows.row.tunes, []).append(_point(rows))
    return {name: tuple(sorted(found, key=lambda point: point.learning_rate)) for name, found in points.items()}


def _point(rows: RowRuns) -> GridPoint:
    losses = {seed: run.result.train_loss for seed, run in rows.finished.items() if run.result}
    return GridPoint(
        learning_rate=rows.row.learning_rate,
        planned=len(rows.runs),
        scores=rows.accuracy,
        losses={seed: loss for seed, loss in losses.items() if loss is not None and math.isfinite(loss)},
        diverged=len(rows.diverged),
        run_ids=rows.run_ids,
    )
