"""How numbers and lists are written, the same everywhere in a report."""

from __future__ import annotations

import math
from collections.abc import Sequence

MINUS = "\u2212"
NONE = "\u2013"
"""Shown where there is no number."""


def percent(value: float | None) -> str:
    """A share as percent with two decimals, without the sign: 0.91234 is "91.23"."""
    return NONE if value is None or not math.isfinite(value) else f"{100 * value:.2f}".replace("-", MINUS)


def points(value: float | None) -> str:
    """A difference of shares in percentage points with its sign: -0.0012 is "−0.12"."""
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{100 * value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", MINUS)


def interval(low: float | None, high: float | None) -> str:
    """Two shares as "90.11 to 91.32", in percent."""
    return NONE if low is None or high is None else f"{percent(low)} to {percent(high)}"


def short(value: float | None, digits: int = 4) -> str:
    """A number in few digits: 0.1, 256, 2.5e−05."""
    return NONE if value is None else f"{value:.{digits}g}".replace("-", MINUS)


def amount(value: float | None) -> str:
    """A number of models, a true ratio: 28,050, 292, 18.3, 1.75; whole from 100 on."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ratio_name(ratio: float) -> str:
    """A nominal ratio in full, 28050 too; where nothing is sent there is none."""
    return f"{ratio:g}" if math.isfinite(ratio) else NONE


def bounds(low: float | None, high: float | None) -> str:
    """Two differences of shares as "−0.32 to +0.06", in percentage points."""
    return NONE if low is None or high is None else f"{points(low)} to {points(high)}"


def whole(value: int | None) -> str:
    """A count with its thousands set apart: 12,345,678."""
    return NONE if value is None else f"{value:,}"


def count_of(count: int, noun: str) -> str:
    """ "1 run", "2 runs"."""
    return f"{whole(count)} {noun if count == 1 else noun + 's'}"


def listed(items: Sequence[str]) -> str:
    """ "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def share(done: int, planned: int) -> str:
    """ "5" where all are there, "3 of 5" where some are missing."""
    return str(planned) if done == planned else f"{done} of {planned}"
