"""How numbers are written, the same everywhere in a report; templates have these as filters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

MINUS = "\u2212"
NONE = "\u2013"
"""Shown where there is no number."""


def _known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def percent(value: float | None) -> str:
    """A share in percent with two decimals, without the sign: 0.91234 is "91.23"."""
    return f"{100 * value:.2f}".replace("-", MINUS) if value is not None and _known(value) else NONE


def points(value: float | None) -> str:
    """A difference of shares in percentage points, with its sign: -0.0012 is "−0.12"."""
    if value is None or not _known(value):
        return NONE
    text = f"{100 * value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", MINUS)


def amount(value: float | None) -> str:
    """Models, ratios, factors: three digits, whole from 100 on: 28,050, 292, 18.3, 1.75."""
    if value is None or not _known(value):
        return NONE
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}").replace("-", MINUS)


def short(value: float | None) -> str:
    """A number in at most four digits: 0.1, 256, 2.5e−05."""
    return f"{value:.4g}".replace("-", MINUS) if value is not None and _known(value) else NONE


def count(value: float | None) -> str:
    """A count with its thousands set apart: 12,345,678."""
    return f"{int(value):,}" if value is not None and _known(value) else NONE


def probability(value: float | None) -> str:
    """A p value: 0.031, or "below 0.001"."""
    if value is None or not _known(value):
        return NONE
    return "below 0.001" if value < 0.001 else f"{value:.3f}"


def text(value: Any) -> str:
    """A word as it is; a dash for none."""
    return str(value) if _known(value) else NONE


def listed(items: Sequence[str]) -> str:
    """ "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def counted(number: int, noun: str) -> str:
    """ "1 run", "2 runs"."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"


def number(value: Any) -> str:
    """A number that is text already."""
    return text(value)


def code(value: Any) -> str:
    """A name, as a row's or a run's, in type of a fixed width."""
    return f"`{value}`" if _known(value) else NONE


def rate(bits_per_second: float | None) -> str:
    """A rate in three digits: "1 Mb/s", "2.5 Gb/s"; a dash for none."""
    if bits_per_second is None or not _known(bits_per_second):
        return NONE
    power, unit = next(
        pair for pair in ((9, "Gb/s"), (6, "Mb/s"), (3, "kb/s")) if bits_per_second >= 0.9995 * 10 ** pair[0]
    )
    return f"{_digits(bits_per_second / 10**power)} {unit}"


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds in three digits, without the unit."""
    return _digits(1e3 * seconds) if seconds is not None and _known(seconds) else NONE


def factor(value: float | None) -> str:
    """A speed-up: "1.25x", "12.3x", "123x"."""
    if value is None or not _known(value):
        return NONE
    return f"{value:.2f}x" if value < 9.95 else f"{value:.1f}x" if value < 99.5 else f"{value:,.0f}x"


def share(value: float | None) -> str:
    """A share in percent in three digits, without the sign, as of a relative error: 0.0416 is "4.2"."""
    return f"{100 * value:.1f}".replace("-", MINUS) if value is not None and _known(value) else NONE


def dollars(value: float | None) -> str:
    """An amount of money below a hundred: "0.190"."""
    return f"{value:.3f}" if value is not None and _known(value) else NONE


def _digits(value: float) -> str:
    """Three digits, without zeros at the end: 1.5, 0.00687, 1,527."""
    decimals = max(2 - math.floor(math.log10(abs(value))), 0) if value else 0
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


FORMATS: dict[str, Callable[[Any], str]] = {
    each.__name__: each
    for each in (
        percent,
        points,
        amount,
        short,
        count,
        probability,
        number,
        text,
        code,
        rate,
        milliseconds,
        factor,
        share,
        dollars,
    )
}
"""Ways to write a cell of a table, by name; all but `text` and `code` are for numbers."""
