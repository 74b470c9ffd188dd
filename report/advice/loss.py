"""What the regime map says that a row loses at another number of models sent, and how surely."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from report.accuracy.models_needed import share_draws
from report.accuracy.regime import Point, Regime
from report.accuracy.regime_predictors import curve_of_method, left_out_misses

COVERAGE = 1.96
"""Standard deviations of a 95 % interval."""


@dataclass(frozen=True)
class Loss:
    """Of the gap between a worker alone and SGD, the share that is expected to be lost, and its interval.

    `beyond`: how many times more models than in any run, or fewer; 1 where the number lies inside what was run.
    """

    share: float
    low: float
    high: float
    beyond: float


def expected_loss(regime: Regime, method: str, models: float) -> Loss | None:
    """By the method's curve over models sent; None where its rows do not give one.

    The interval joins two errors: the seeds', by drawing them anew, and the curve's own, by the misses of rows of one
    length that are predicted from the other lengths alone.
    """
    points = [point for point in regime.methods.get(method, ()) if point.fits]
    curve = curve_of_method(points)
    if curve is None:
        return None
    log = np.array([[math.log(models)]])
    share = float(curve.at(log)[0])
    drawn = np.array([float(each.at(log)[0]) for each in share_draws(points)])
    misses = left_out_misses(points)
    error = math.hypot(float(drawn.std()), math.sqrt(float((misses**2).mean())) if len(misses) else 0.0)
    return Loss(share, share - COVERAGE * error, share + COVERAGE * error, _beyond(points, models))


def _beyond(points: Sequence[Point], models: float) -> float:
    least, most = min(point.models for point in points), max(point.models for point in points)
    return max(models / most, least / models, 1.0)
