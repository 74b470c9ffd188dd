"""What an experiment's declared contrasts can show: the power of each at its margin, before its runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2, nct, norm, t

from harness.records.experiment import Contrast, Experiment

LEVEL = 0.05
_POINTS = 2000
"""Quantiles of the estimated variance that an equivalence test's power is averaged over."""


@dataclass(frozen=True)
class Power:
    """The chance that a contrast's claim is shown. `alone`: judged at 5 % by itself; `first`: at Holm's first step.

    It is the chance of two rows that are equal, and for superiority of two that are the margin apart.
    """

    contrast: Contrast
    alone: float
    first: float


def powers(experiment: Experiment, deviation: float) -> list[Power]:
    """By declared contrast, with scores that have this standard deviation between seeds in every row.

    The degrees of freedom are those of the two rows alone; a variance pooled over rows has more, and more power.
    """
    contrasts = experiment.contrasts or []
    seeds = {row.row: len(row.runs) for row in experiment.rows}
    found = []
    for contrast in contrasts:
        row, reference = seeds[contrast.row], seeds[contrast.reference]
        error, degrees = deviation * math.sqrt(1 / row + 1 / reference), row + reference - 2
        alone, first = (_power(contrast, error, degrees, level) for level in (LEVEL, LEVEL / len(contrasts)))
        found.append(Power(contrast, alone, first))
    return found


def _power(contrast: Contrast, error: float, degrees: int, level: float) -> float:
    if degrees < 1:
        return 0.0
    away, two_sided = contrast.margin / error, contrast.kind == "superiority"
    critical = float(t.isf(level / 2 if two_sided else level, degrees))
    if contrast.kind == "equivalence":
        # Both one-sided tests hold where |difference| < margin - critical * (its estimated error), averaged over that.
        shares = (np.arange(_POINTS) + 0.5) / _POINTS
        room = away - critical * np.sqrt(chi2.ppf(shares, degrees) / degrees)
        return float(np.maximum(2 * norm.cdf(room) - 1, 0).mean())
    other_side = float(nct.cdf(-critical, degrees, away)) if two_sided else 0.0
    return float(nct.sf(critical, degrees, away)) + other_side
