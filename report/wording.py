"""How numbers, gaps, intervals and findings are written, the same everywhere in a report.

Scores are such that more is better, and a difference is a row's mean score minus its reference's. What is printed
is the gap, which has the other sign: an accuracy drop or a loss gap is positive where the row is worse.
Templates have these as filters.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

from markupsafe import Markup

from cser_bench.harness.measures.declared import RunsBegun
from cser_bench.harness.measures.metrics import Metric
from cser_bench.report.statistics import (
    BETTER,
    BETTER_BY_MARGIN,
    DIVERGED,
    EQUAL,
    LESS,
    MORE,
    NO_DIFFERENCE,
    NO_RUNS,
    NOT_RUN,
    OTHER_RATE,
    TOO_LATE,
    UNDECIDED,
    WORSE,
    WORSE_BY_MARGIN,
)

MINUS = "\u2212"
NONE = "\u2013"
"""Shown where there is no number."""

FORMATS: dict[str, Callable[[Any], str]] = {}
"""Ways to write a cell of a table, by name: `span` writes two numbers, `text` and `code` a word,
others one number."""


Columns = dict[str, tuple[str, str]]
"""A table's columns: by the frame's column its head, and the name of one of `FORMATS`."""


def _format(write: Callable[[Any], str]) -> Callable[[Any], str]:
    """Return a way to write a cell, which shows a dash for None and for what is not finite.

    It is one of `FORMATS` from then on.
    """

    @wraps(write)
    def written(value: Any) -> str:
        if value is None:
            return NONE
        if isinstance(value, float) and not math.isfinite(value):
            return NONE
        return write(value)

    FORMATS[write.__name__] = written
    return written


@_format
def percent(value: float) -> str:
    """Write a share in percent with two decimals, without the sign: 0.91234 is "91.23"."""
    # Rounded first, as sums in two orders differ in the last bits and are to be printed alike.
    return f"{round(100 * value, 9):.2f}".replace("-", MINUS)


@_format
def nats(score: float) -> str:
    """Write the test loss whose negative is the score, in nats: -1.23456 is "1.2346"."""
    return f"{-score:.4f}".replace("-", MINUS)


@_format
def traffic(value: float) -> str:
    """Write a share of DDP's traffic: "1/24", "0.67" of more than a half, "1.14" of more than all; nothing is "0"."""
    if value == 0:
        return "0"
    # Beyond a half, 1/1.5 and the like would say less than the decimals.
    if value > 1:
        return f"{value:.3g}"
    if value > 0.55:
        return f"{value:.2g}"
    parts = 1 / value
    # Three digits of more would be written with an exponent.
    if parts >= 999.5:
        return f"1/{parts:,.0f}"
    return f"1/{parts:.3g}"


@_format
def loss(value: float) -> str:
    """Write a loss in nats, which is no score: 1.23456 is "1.2346"."""
    return f"{value:.4f}"


@_format
def signed(value: float) -> str:
    """Write a number with its sign in two decimals, as a correlation: "+0.55"."""
    return f"{value:+.2f}".replace("-", MINUS)


@_format
def amount(value: float) -> str:
    """Write a number of models, a ratio or a factor in three digits: 18.3, 4.00.

    A whole number, and any from 100 on, has no decimals: 96, 292, 28,050.
    """
    # From 99.95 on three digits round to 100, and have no decimals.
    is_whole = abs(value) >= 99.95 or value == round(value)
    digits = f"{value:#.3g}"
    if is_whole:
        digits = f"{value:,.0f}"
    return digits.replace("-", MINUS)


@_format
def span(ends: tuple[float, float]) -> str:
    """Write from the least to the most, as amounts: "19.2 to 2,337"; one where they are equal."""
    least = amount(ends[0])
    most = amount(ends[1])
    if least == most:
        return least
    return f"{least} to {most}"


@_format
def short(value: float) -> str:
    """Write a number in at most four digits: 0.1, 256, 2.5e−05."""
    return f"{value:.4g}".replace("-", MINUS)


@_format
def count(value: float) -> str:
    """Write a count with its thousands set apart: 12,345,678."""
    return f"{int(value):,}"


@_format
def probability(value: float) -> str:
    """Write a p value: 0.031, or "below 0.001"."""
    if value < 0.001:
        return "below 0.001"
    return f"{value:.3f}"


@_format
def text(value: Any) -> str:
    """Write a word as it is; Markdown stays Markdown."""
    # Not `str` of a text: a `Markup` would lose that it is Markdown.
    if isinstance(value, str):
        return value
    return str(value)


@_format
def digits(value: Any) -> str:
    """Write a number that is a text already, as a loss is; it is aligned as numbers are."""
    return str(value)


@_format
def code(value: Any) -> Markup:
    """Write a name, as a row's or a run's, in type of a fixed width.

    It is Markdown: nothing between backquotes is taken as markup.
    """
    return Markup(f"`{value}`")


@_format
def rate(bits_per_second: float) -> str:
    """Write a rate in three digits: "1 Mb/s", "2.5 Gb/s"."""
    for power, unit in ((9, "Gb/s"), (6, "Mb/s"), (3, "kb/s")):
        if bits_per_second >= 0.9995 * 10**power:  # which rounds to a whole unit
            return f"{_digits(bits_per_second / 10**power)} {unit}"
    return f"{_digits(bits_per_second)} b/s"


@_format
def milliseconds(seconds: float) -> str:
    """Write seconds as milliseconds in three digits, without the unit."""
    return _digits(1e3 * seconds)


@_format
def factor(value: float) -> str:
    """Write a speed-up: "1.25x", "12.3x", "123x"."""
    # The limits are those at which rounding would give a fourth digit.
    if value < 9.95:
        return f"{value:.2f}x"
    if value < 99.5:
        return f"{value:.1f}x"
    return f"{value:,.0f}x"


@_format
def share(value: float) -> str:
    """Write a share in percent with one decimal, without the sign: 0.0416 is "4.2".

    Relative errors are written so.
    """
    return f"{100 * value:.1f}".replace("-", MINUS)


@_format
def dollars(value: float) -> str:
    """Write an amount of money below a hundred: "0.190"."""
    return f"{value:.3f}"


def listed(items: Sequence[str]) -> str:
    """Join items as a sentence has them: "a, b and c"."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def counted(number: float, noun: str) -> str:
    """Write a number with its noun, a plural unless it is 1: "1 run", "2 runs", "0.5 points"."""
    # A float prints without decimals where it is whole; `g` would shorten a large integer.
    digits = f"{number:,}"
    if isinstance(number, float):
        digits = f"{number:,g}"
    if number == 1:
        return f"{digits} {noun}"
    return f"{digits} {noun}s"


def capitalised(text: str) -> str:
    """Return a text with a capital first letter; the others stay, as those of BLEU."""
    return text[:1].upper() + text[1:]


NUMBERS = (
    "none",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
)


def number_word(number: int) -> str:
    """Write a small number as a word: "two"; a larger one in digits."""
    if 0 <= number < len(NUMBERS):
        return NUMBERS[number]
    return f"{number:,}"


def _digits(value: float) -> str:
    """Write three digits, without zeros at the end: 1.5, 0.00687, 1,527."""
    if not value:
        return "0"
    # Of a number from 1 to below 10 two, and one more for each power of ten below that.
    decimals = max(2 - math.floor(math.log10(abs(value))), 0)
    digits = f"{value:,.{decimals}f}"
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    return digits


def gap(difference: float, unit: str) -> str:
    """Write how much worse a row is than its reference: "1.27" points, "-0.0017" nats.

    Args:
        difference: of scores, the row's minus the reference's.
        unit: "points" are hundredths of a share.
    """
    if math.isnan(difference):
        return NONE
    # Rounded first, as sums in two orders differ in the last bits and are to be printed alike.
    if unit == "points":
        return f"{_unsigned_zero(round(-100 * difference, 9), 2):.2f}"
    return f"{_unsigned_zero(round(-difference, 11), 4):.4f}"


def _unsigned_zero(value: float, decimals: int) -> float:
    """Round a number; what rounds to nothing has no sign."""
    # -0.0 + 0.0 is 0.0.
    return round(value, decimals) + 0.0


def interval(low: float, high: float, unit: str) -> str:
    """Write the interval of a gap, from the ends of the difference's: "0.06 to 0.37"."""
    if math.isnan(low):
        return NONE
    # A gap is the negative of a difference, which swaps the ends.
    return f"{gap(high, unit)} to {gap(low, unit)}"


def gap_cell(difference: float, low: float, high: float, unit: str) -> str:
    """Write a gap with its interval as a table has it: "0.22 (0.06 to 0.37)"."""
    if math.isnan(low):
        return gap(difference, unit)
    return f"{gap(difference, unit)} ({interval(low, high, unit)})"


def gap_in_prose(difference: float, low: float, high: float, unit: str) -> str:
    """Write a gap as a sentence has it: "0.22 points (95 % CI 0.06 to 0.37)"."""
    with_unit = f"{gap(difference, unit)} {unit}"
    if math.isnan(low):
        return with_unit
    return f"{with_unit} (95 % CI {interval(low, high, unit)})"


def units_in_one(unit: str) -> int:
    """Return how many of a unit one is of a score: points are hundredths of a share."""
    if unit == "points":
        return 100
    return 1


def margin_text(margin: float, unit: str) -> str:
    """Write a margin with its unit: "0.5 points", "1 point", "0.01 nats"."""
    number = round(units_in_one(unit) * margin, 6)
    if number == 1:
        return f"1 {unit.removesuffix('s')}"
    return f"{number:g} {unit}"


def gap_name(metric: Metric) -> str:
    """Return what a gap in this metric is called: "accuracy drop", "BLEU drop", "loss gap"."""
    if metric.name == "loss":
        return "loss gap"
    if metric.higher_is_better:
        return f"{metric.label} drop"
    return f"{metric.label} gap"


def gap_unit(metric: Metric) -> str:
    """Return the unit of a gap in this metric as prose has it: "points", "nats", "BLEU"."""
    if metric.name == "bleu":
        return metric.label
    return metric.loss_unit


def score_format(metric: Metric) -> str:
    """Return the name of the format that scores are written in."""
    if metric.is_share:
        return "percent"
    return "nats"


def score_unit(metric: Metric) -> str:
    """Return the unit of scores in that format."""
    if metric.is_share:
        return "%"
    return "nats"


NOT_TESTED = "not tested"
INCONCLUSIVE = "inconclusive"

_FINDINGS = {
    LESS: "below {margin}",
    MORE: "above {margin}",
    EQUAL: "equal within {margin}",
    BETTER: "better",
    WORSE: "worse",
    BETTER_BY_MARGIN: "better by over {margin}",
    WORSE_BY_MARGIN: "worse by over {margin}",
    OTHER_RATE: f"{INCONCLUSIVE} at the same learning rate",
    NOT_RUN: f"{INCONCLUSIVE}, not run at the same learning rate",
    UNDECIDED: INCONCLUSIVE,
    NO_DIFFERENCE: INCONCLUSIVE,
    DIVERGED: "a run diverged",
    NO_RUNS: "not enough runs",
    TOO_LATE: f"post hoc, {NOT_TESTED}",
}
"""What is printed of each verdict, of the row against its reference."""

INCONCLUSIVE_VERDICTS = (OTHER_RATE, NOT_RUN, UNDECIDED, NO_DIFFERENCE)
"""Verdicts of a test that was made and leaves its question open."""

SIGNIFICANT = (LESS, MORE, EQUAL, BETTER, WORSE, BETTER_BY_MARGIN, WORSE_BY_MARGIN)
"""Verdicts of a test that is significant after Holm's correction."""


_ANSWERS = {
    LESS: "yes",
    MORE: "no",
    EQUAL: "no",
    BETTER: "yes",
    WORSE: "no",
    BETTER_BY_MARGIN: "yes",
    WORSE_BY_MARGIN: "no",
}
"""What a significant verdict answers to "is the drop below the margin?" or "is the row better?"."""


def answer(line: Mapping[Any, Any]) -> str:
    """Return the answer to a comparison's question, as a cell: "yes: better", "no: worse", "inconclusive".

    Args:
        line: with `verdict`, `margin` and `unit`.
    """
    found = finding(line)
    word = _ANSWERS.get(line["verdict"])
    if word is None:
        return found
    return f"{word}: {found}"


def finding(line: Mapping[Any, Any]) -> str:
    """Return what a comparison's test found, as a cell: "below 0.5 points", "worse", "inconclusive".

    Args:
        line: with `verdict`, `margin` and `unit`; a verdict that is no text was not asked for.
    """
    verdict = line.get("verdict")
    if not isinstance(verdict, str):
        return NOT_TESTED
    words = _FINDINGS.get(verdict, verdict)
    return words.format(margin=margin_text(line["margin"], line["unit"]))


def declaration(begun: RunsBegun | None) -> str:
    """Return what had been run of a comparison's two rows when it was declared, as a cell."""
    if begun is None:
        return "not known"
    if begun.num_rows == 0:
        return "pre-registered"
    runs = f"{begun.num_begun} of {begun.num_planned} runs begun"
    if begun.num_rows == 1:
        return f"{runs}, all of one row"
    return f"post hoc, {runs}"
