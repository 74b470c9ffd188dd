"""Predicted efficiencies, held to what was found by the test that they were declared with.

The test is one of equivalence: |ln(found / predicted)| is below a tolerance. All predictions of an
experiment share 5 %, by Holm's procedure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from cser_bench.report.efficiency import ends_of
from cser_bench.report.statistics import COVERAGE, holm

AS_PREDICTED = "as predicted"
FAILS = "fails"
UNDECIDED = "inconclusive"
NOT_KNOWN = "not known"

COLUMNS = ["log_ratio", "p", "p_holm", "verdict"]


def equivalence_p(log_ratios: np.ndarray, tolerance: float) -> float:
    """Return the p of equivalence within a tolerance: the larger p of two one-sided tests.

    Args:
        log_ratios: drawn ln(found / predicted), (draws,).

    1 where the draws are not known.
    """
    if np.isnan(log_ratios).any():
        return 1.0
    # Of no draws at all the share is not 0 but at most one more draw's.
    num_draws = 1 + len(log_ratios)
    above = (1 + np.count_nonzero(log_ratios >= tolerance)) / num_draws
    below = (1 + np.count_nonzero(log_ratios <= -tolerance)) / num_draws
    return float(max(above, below))


def judged_frame(
    predicted: Sequence[float], tolerances: Sequence[float], found: Sequence[np.ndarray]
) -> pd.DataFrame:
    """Return the test of each prediction, a line each.

    Columns: log_ratio, which is ln(found / predicted); p; p_holm, adjusted for all predictions; and
    verdict. A prediction whose efficiency is not known stays among the tests with a p of 1.

    Args:
        found: the efficiency and then draws of it, (1 + draws,) for each; NaN where it is not known.
    """
    # (1 + draws,) each. An efficiency of 0 lies before the curve, and has no logarithm but -inf.
    with np.errstate(divide="ignore"):
        log_ratios = [
            np.log(efficiencies / value)
            for efficiencies, value in zip(found, predicted, strict=True)
        ]
    p_values = [
        equivalence_p(ratios[1:], tolerance)
        for ratios, tolerance in zip(log_ratios, tolerances, strict=True)
    ]
    adjusted = holm(p_values)
    lines = [
        (ratios[0], p, p_holm, _verdict(ratios[1:], p_holm, tolerance))
        for ratios, p, p_holm, tolerance in zip(
            log_ratios, p_values, adjusted, tolerances, strict=True
        )
    ]
    return pd.DataFrame(lines, columns=COLUMNS)


def _verdict(log_ratios: np.ndarray, p_holm: float, tolerance: float) -> str:
    """Return what is said of a prediction; it fails where the whole interval lies outside."""
    low, high = ends_of(log_ratios)
    if math.isnan(low):
        return NOT_KNOWN
    if p_holm <= 1 - COVERAGE:
        return AS_PREDICTED
    if low > tolerance or high < -tolerance:
        return FAILS
    return UNDECIDED
