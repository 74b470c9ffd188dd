"""What predicts the share of the gap that a row loses: models sent, ratio, steps, or two of them. With numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from report.accuracy.regime import Regime, RegimePoint
from report.kit.logistic import Logistic, Vector, fit_logistic

PREDICTORS = {"models sent": "M", "ratio": "R", "steps": "T", "steps and ratio": "TR"}
"""By name: M = T/R models sent, the true ratio R, the steps T. Given both, a curve can weigh T and R as it likes."""

ALL = "all methods"
_LEAST_ROWS = 5
"""Rows that a method needs for its curves."""


@dataclass(frozen=True)
class Explained:
    """One predictor for one method, or for all methods together, each with a curve of its own.

    `fitted` is the share of the variance over rows (about the method's own mean) that the curves explain; `left_out`
    the same where each length is predicted from the other lengths alone, so that it can be below zero. Both are None
    where there is no variance.
    """

    method: str
    predictor: str
    num_rows: int
    fitted: float | None
    left_out: float | None
    residuals: dict[int, float]
    """By length (steps): root mean square of observed minus predicted from the other lengths, as a share of the gap."""
    biases: dict[int, float]
    """By length: the mean of the same; above zero more is lost than predicted."""


@dataclass(frozen=True)
class _Rows:
    points: tuple[RegimePoint, ...]
    fitted: Vector
    left_out: Vector

    @property
    def lost(self) -> Vector:
        return np.array([point.lost for point in self.points])

    @property
    def total(self) -> float:
        return float(((self.lost - self.lost.mean()) ** 2).sum())


def logs_of(points: Sequence[RegimePoint], predictor: str) -> Vector:
    """Natural logarithms of a predictor, of shape (rows, 1) or, for two, (rows, 2)."""
    values = {"M": lambda p: p.models, "R": lambda p: p.ratio, "T": lambda p: p.length.num_steps}
    letters = PREDICTORS[predictor]
    numbers = np.array([[float(values[letter](point)) for letter in letters] for point in points])
    return np.asarray(np.log(numbers), dtype=np.float64)


def curve_of_method(points: Sequence[RegimePoint], predictor: str = "models sent") -> Logistic | None:
    """The curve through a method's rows; None where there are too few or they do not differ in the predictor."""
    known = [point for point in points if point.fits]
    if len(known) < 3 or len({point.models for point in known}) < 2:
        return None
    return fit_logistic(logs_of(known, predictor), np.array([point.lost for point in known]))


def fitted_methods(regime: Regime) -> dict[str, tuple[RegimePoint, ...]]:
    """Methods with enough rows, at two lengths or more, and the rows that count."""
    groups = {name: tuple(p for p in points if p.fits) for name, points in regime.methods.items()}
    return {
        name: points
        for name, points in groups.items()
        if len(points) >= _LEAST_ROWS and len({point.length.num_steps for point in points}) > 1
    }


def explained(regime: Regime) -> list[Explained]:
    """Every method under every predictor, then all methods together; empty where no method has enough rows."""
    groups = fitted_methods(regime)
    found = []
    for predictor in PREDICTORS if groups else ():
        rows = {name: _rows(points, predictor) for name, points in groups.items()}
        found += [_explained(name, predictor, [entry]) for name, entry in rows.items()]
        found.append(_explained(ALL, predictor, list(rows.values())))
    return found


def _rows(points: tuple[RegimePoint, ...], predictor: str) -> _Rows:
    logs = logs_of(points, predictor)
    lost = np.array([point.lost for point in points])
    return _Rows(points, fit_logistic(logs, lost).at(logs), _left_out(points, logs, lost))


def _left_out(points: Sequence[RegimePoint], logs: Vector, lost: Vector) -> Vector:
    """Each row's share lost as the rows of the other lengths predict it."""
    steps = np.array([point.length.num_steps for point in points])
    predicted = np.empty(len(points))
    for length in set(steps.tolist()):
        there = steps == length
        predicted[there] = fit_logistic(logs[~there], lost[~there]).at(logs[there])
    return predicted


def left_out_misses(points: Sequence[RegimePoint], predictor: str) -> Vector:
    """Observed minus predicted share lost, each length from the others; empty for one length alone."""
    if len({point.length.num_steps for point in points}) < 2:
        return np.empty(0)
    lost = np.array([point.lost for point in points])
    return np.asarray(lost - _left_out(points, logs_of(points, predictor), lost), dtype=np.float64)


def _explained(method: str, predictor: str, groups: Sequence[_Rows]) -> Explained:
    total = sum(group.total for group in groups)
    fitted, left_out = (
        1 - sum(float(((group.lost - getattr(group, which)) ** 2).sum()) for group in groups) / total if total else None
        for which in ("fitted", "left_out")
    )
    misses: dict[int, list[float]] = {}
    for group in groups:
        for point, miss in zip(group.points, group.lost - group.left_out, strict=True):
            misses.setdefault(point.length.num_steps, []).append(float(miss))
    ordered = {steps: np.array(misses[steps]) for steps in sorted(misses, reverse=True)}
    return Explained(
        method,
        predictor,
        sum(len(group.points) for group in groups),
        fitted,
        left_out,
        {steps: float(np.sqrt((values**2).mean())) for steps, values in ordered.items()},
        {steps: float(values.mean()) for steps, values in ordered.items()},
    )


def best_predictor(regime: Regime) -> str:
    """Models sent, or steps and ratio: the one that explains more at lengths that its curves have not seen."""
    found = {each.predictor: each.left_out for each in explained(regime) if each.method == ALL}
    known = {name: value for name in ("models sent", "steps and ratio") if (value := found.get(name)) is not None}
    return max(known, key=known.__getitem__, default="models sent")


def noise_share(regime: Regime) -> float | None:
    """Share of the variance over rows that is the seeds' own, and that nothing could explain; None where unknown."""
    noise = total = 0.0
    for points in fitted_methods(regime).values():
        lost = np.array([point.lost for point in points])
        total += float(((lost - lost.mean()) ** 2).sum())
        for point in points:
            values = np.array(list(point.differences.values()))
            if len(values) > 1 and point.length.gap:
                noise += float(values.var(ddof=1)) / len(values) / point.length.gap**2
    return noise / total if total else None
