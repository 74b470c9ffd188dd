"""How a loss and a verdict are said, the same everywhere.

Scores are such that more is better, and `estimate` is a row's mean score less its reference's, with
`low` and `high` about it. What is said has one direction: a loss is a positive number, and a gain
says that it is one.
"""

import math
from collections.abc import Mapping
from typing import Any

from cser_bench.report.statistics import (
    BETTER,
    BETTER_BY_MARGIN,
    EQUAL,
    LESS,
    MORE,
    NO_DIFFERENCE,
    UNDECIDED,
    WORSE,
    WORSE_BY_MARGIN,
)
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


def answer(line: Line, question: str) -> str:
    """Answer a declared question in a sentence, of the row that it asks about.

    Args:
        line: with the `label` of the row and the one of its reference, `other`.
    """
    word = verdict(line)
    if math.isnan(line["estimate"]):
        return word
    if line["kind"] == "non-inferiority":
        return _answer_on_loss(line, word)
    turned = asks_of_reference(question, line["label"], line["other"])
    row, other = line["label"], line["other"]
    if turned:
        row, other = other, row
    said = f"{row} is {worse(line, turned)} than {other}"
    if line["verdict"] == EQUAL:
        return f"Yes, {word}: {said}"
    if line["verdict"] in (BETTER_BY_MARGIN, WORSE_BY_MARGIN):
        is_better = (line["verdict"] == BETTER_BY_MARGIN) != turned
        return f"{'Yes' if is_better else 'No'}: {said}, more than the margin"
    if line["verdict"] in (BETTER, WORSE):
        return f"{said[0].upper()}{said[1:]}"
    if line["verdict"] == UNDECIDED and word != UNDECIDED:
        return f"{said[0].upper()}{said[1:]}; whether by more than the margin is undecided"
    if line["verdict"] == UNDECIDED:
        return f"Undecided: {row} against {other}"
    if line["verdict"] == NO_DIFFERENCE and word != NO_DIFFERENCE:
        return f"{said[0].upper()}{said[1:]}, not shown after correction"
    return f"{word[0].upper()}{word[1:]}: {row} against {other}"


def _answer_on_loss(line: Line, word: str) -> str:
    """Answer whether a method loses less than the margin."""
    said = f"it {loses(line)}"
    if line["verdict"] == LESS:
        return f"Yes: {said}"
    if line["verdict"] == MORE:
        return f"No: {said}"
    if line["verdict"] == UNDECIDED and word != UNDECIDED:
        return f"It {loses(line)}; whether more than the margin is undecided"
    return f"{word[0].upper()}{word[1:]}"


def asks_of_reference(question: str, row: str, reference: str) -> bool:
    """Tell whether a question is about the reference of a comparison, beside the row.

    Specs ask both "does local SGD do as well as M-CSER" and "does DiLoCo do as well as SGD": what is
    named first is what is asked about. A label may have more words than the question uses.
    """
    return _place_in(question, reference) < _place_in(question, row)


def _place_in(question: str, label: str) -> int:
    """Return where a question names a label, by as many of its first words as it uses."""
    words = label.replace(",", "").split()
    for count in range(len(words), 0, -1):
        place = question.find(" ".join(words[:count]))
        if place >= 0:
            return place
    # Behind all that is named: a question that names neither is then about the row.
    return len(question)
