"""How answers say a loss and a verdict; reports and all else have `wording`.

Scores are such that more is better, and `estimate` is a row's mean score less its reference's, with
`low` and `high` about it. What is said has one direction: a loss is a positive number, and a gain
says that it is one.
"""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from cser_bench.report.statistics import EQUAL, NO_DIFFERENCE, UNDECIDED
from cser_bench.report.wording import NONE

NOT_JUDGED = "not judged"

Line = Mapping[Any, Any]
"""A comparison: `estimate`, `low`, `high` (differences of scores), `unit` ("points" are hundredths
of a share), `margin`, `kind` and `verdict`; the last two are None where it was not declared."""


def size(share: float, unit: str) -> str:
    """Write how large a difference is, without sign and unit: "1.27" points, "0.1360" nats."""
    if math.isnan(share):
        return NONE
    # Rounded first, as sums in two orders differ in the last bits and are to be printed alike.
    if unit == "points":
        return f"{round(100 * abs(share), 9):.2f}"
    return f"{round(abs(share), 11):.4f}"


def loss(estimate: float, unit: str) -> str:
    """Write a loss without its unit: "1.27", or "gain 0.02"."""
    digits = size(estimate, unit)
    # A gain that rounds to nothing is written as a loss of nothing, not as a gain of it.
    if estimate > 0 and float(digits) > 0:
        return f"gain {digits}"
    return digits


def loss_interval(low: float, high: float, unit: str) -> str:
    """Write the interval of a loss without its unit.

    "0.25 to 0.85", "gain 0.05 to 0.44", or "gain 0.28 to loss 0.33".
    """
    if math.isnan(low):
        return NONE
    least = loss(high, unit)
    most = loss(low, unit)
    if not least.startswith("gain"):
        return f"{least} to {most}"
    if most.startswith("gain"):
        return f"{most} to {size(high, unit)}"
    return f"{least} to loss {most}"


def interval_of(line: Line) -> str:
    """Write the interval of a comparison's loss, without its unit."""
    return loss_interval(line["low"], line["high"], line["unit"])


def with_unit(line: Line) -> str:
    """Write a comparison's loss with its unit: "1.27 points", or "gain 0.0017 nats"."""
    return f"{loss(line['estimate'], line['unit'])} {line['unit']}"


def loses(line: Line) -> str:
    """Say what a method loses against everything sent: "loses 1.27 points", "gains 0.02 points"."""
    estimate = line["estimate"]
    unit = line["unit"]
    verb = "gains" if loss(estimate, unit).startswith("gain") else "loses"
    return f"{verb} {size(estimate, unit)} {unit}"


def worse(line: Line, turned: bool = False) -> str:
    """Say how a method compares with another: "1.27 points worse", "0.25 points better".

    Args:
        turned: say it of the reference beside the row.
    """
    estimate = -line["estimate"] if turned else line["estimate"]
    unit = line["unit"]
    word = "better" if loss(estimate, unit).startswith("gain") else "worse"
    return f"{size(estimate, unit)} {unit} {word}"


def margin_of(line: Line) -> str:
    """Write the margin with its unit: "0.5 points", "1 point", "0.01 nats"."""
    unit = str(line["unit"])
    number = round(100 * line["margin"] if unit == "points" else line["margin"], 6)
    if number == 1:
        unit = unit.removesuffix("s")
    return f"{number:g} {unit}"


def between(line: Line) -> str:
    """Say where a loss lies: "between a gain of 0.28 and a loss of 0.33 points"."""
    unit = line["unit"]
    best = size(line["high"], unit)
    worst = size(line["low"], unit)
    if line["high"] <= 0:
        return f"between a loss of {best} and one of {worst} {unit}"
    if line["low"] >= 0:
        return f"between a gain of {worst} and one of {best} {unit}"
    return f"between a gain of {best} and a loss of {worst} {unit}"


def verdict(line: Line) -> str:
    """Say what a comparison has shown, where its interval stands beside it."""
    word = line.get("verdict")
    if not isinstance(word, str):
        return NOT_JUDGED
    if word == EQUAL:
        return f"equal within {margin_of(line)}"
    if word not in (UNDECIDED, NO_DIFFERENCE):
        return word
    if line["low"] <= 0 <= line["high"]:
        return word
    side = "loss" if line["high"] < 0 else "gain"
    if word == NO_DIFFERENCE:
        return f"a {side}, not shown after correction"
    return f"a {side}; whether more than the margin is undecided"


def verdict_in_words(line: Line) -> str:
    """Say what a comparison has shown, where it stands alone: with the interval if undecided."""
    word = verdict(line)
    if word == UNDECIDED:
        return f"undecided: {between(line)}"
    return word


def with_words(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of comparisons with its texts: loss, loss_interval, shown."""
    lines = table.to_dict("records")
    return table.assign(
        loss=[with_unit(line) for line in lines],
        loss_interval=[interval_of(line) for line in lines],
        shown=[verdict(line) for line in lines],
    )
