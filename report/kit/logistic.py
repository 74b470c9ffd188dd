"""Logistic curves in logarithms, fitted by least squares over rows: share lost = 1 / (1 + exp(-(a + b · log x)))."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

_INTERCEPTS, _SLOPES = 10.0, 4.0
"""Half the ranges that are searched, for logarithms taken from their mean."""

_STEPS = 10
"""Steps from the middle of a range to its end."""

_CLOSER, _ROUNDS = 3, 6
"""The same in the rounds that follow, each within one and a half steps of the last, and their number."""

_TIE = 1e-7
"""Weight of a slope's square, as a share of the curve's other costs: of equal curves the flattest is taken."""


@dataclass(frozen=True)
class Logistic:
    """A fitted curve. `centres` are the means of the logarithms, so `intercept` is the value amid the data."""

    intercept: float
    slopes: tuple[float, ...]
    centres: tuple[float, ...]

    def at(self, logs: Vector) -> Vector:
        """Values at logarithms of shape (rows, predictors)."""
        exponent = self.intercept + (logs - np.array(self.centres)) @ np.array(self.slopes)
        return np.asarray(1 / (1 + np.exp(-exponent)), dtype=np.float64)

    def where(self, value: float) -> float | None:
        """The logarithm of the one predictor at which a falling curve takes a value; None where it does not fall."""
        if self.slopes[0] >= 0 or not 0 < value < 1:
            return None
        return float(self.centres[0] + (np.log(value / (1 - value)) - self.intercept) / self.slopes[0])


def fit_logistic(logs: Vector, shares: Vector) -> Logistic:
    """One curve through shares of shape (rows,); see `fit_logistics`."""
    return fit_logistics(logs, shares[None])[0]


def fit_logistics(logs: Vector, shares: Vector) -> list[Logistic]:
    """Least squares by a grid that closes in on its best point, so that no start decides and bytes repeat.

    Args:
        logs: natural logarithms of the predictors, of shape (rows, predictors).
        shares: what is to be predicted, a curve for each line, of shape (curves, rows).
    """
    centres = logs.mean(axis=0)
    design = np.hstack([np.ones((len(logs), 1)), logs - centres])
    limits = np.array([_INTERCEPTS] + [_SLOPES] * logs.shape[1])
    best, spans = np.zeros((len(shares), len(limits))), limits
    for steps in (_STEPS, *[_CLOSER] * _ROUNDS):
        offsets = np.array(list(itertools.product(np.linspace(-1, 1, 2 * steps + 1), repeat=len(limits))))
        tried = np.clip(best[:, None] + offsets * spans, -limits, limits)
        values = 1 / (1 + np.exp(-tried @ design.T))
        costs = ((values - shares[:, None]) ** 2).sum(axis=2) + _TIE * (tried[..., 1:] ** 2).sum(axis=2)
        best = tried[np.arange(len(shares)), costs.argmin(axis=1)]
        spans = spans * 1.5 / steps
    middle = tuple(float(centre) for centre in centres)
    return [Logistic(float(found[0]), tuple(float(slope) for slope in found[1:]), middle) for found in best]
