"""What the regime map says that a row loses in another run, how surely, and how far that is from what was run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from report.accuracy.models_needed import share_draws
from report.accuracy.regime import Regime
from report.accuracy.regime_predictors import PREDICTORS, curve_of_method, left_out_misses

COVERAGE = 1.96
"""Standard deviations of a 95 % interval."""

NUM_DRAWS = 50
"""Times that the seeds are drawn anew: only a standard deviation is asked of them."""


@dataclass(frozen=True)
class Loss:
    """Of the gap between a worker alone and SGD, the share that is expected to be lost, and its interval.

    `beyond`: how many times more, or fewer, models sent or steps than in any run of the method; 1 within what was run.
    """

    share: float
    low: float
    high: float
    beyond: float


def expected_loss(regime: Regime, method: str, models: float, num_steps: int, predictor: str) -> Loss | None:
    """By the method's curve over a predictor (see `PREDICTORS`); None where its rows do not give one.

    The interval joins two errors: the seeds', by drawing them anew, and the curve's own, by the misses of rows of one
    length that are predicted from the other lengths alone.
    """
    points = [point for point in regime.methods.get(method, ()) if point.fits]
    curve = curve_of_method(points, predictor)
    if curve is None:
        return None
    values = {"M": models, "R": num_steps / models, "T": float(num_steps)}
    logs = np.log([[values[letter] for letter in PREDICTORS[predictor]]])
    share = float(curve.at(logs)[0])
    drawn = np.array([float(each.at(logs)[0]) for each in share_draws(points, predictor, NUM_DRAWS)])
    misses = left_out_misses(points, predictor)
    error = math.hypot(float(drawn.std()), math.sqrt(float((misses**2).mean())) if len(misses) else 0.0)
    beyond = _beyond([point.models for point in points], models)
    if "T" in PREDICTORS[predictor]:
        beyond = max(beyond, _beyond([point.length.num_steps for point in points], num_steps))
    return Loss(share, share - COVERAGE * error, share + COVERAGE * error, beyond)


def _beyond(tried: Sequence[float], value: float) -> float:
    return max(value / max(tried), min(tried) / value, 1.0)
