"""Numbers on the command line: as types of click's options, and as sentences count things."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import click


def number(
    least: float, wanted: str, kind: type[float] = float
) -> Callable[[str], Any]:
    """Return a function that reads a word as a number, from `least` to a thousand million.

    A larger number is a slip, or overflows. `wanted` says in the error message what the word must
    be.
    """

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= 1e9:
            raise click.BadParameter(f"must be {wanted}, not {text!r}")
        return value

    read.__name__ = "number"  # what help shows in the place of a value
    return read


count = number(1, "a whole number of at least 1", int)
whole = number(0, "a whole number of at least 0", int)
# From the least number above 0, as `number` takes its bound too.
above_0 = number(math.ulp(0), "a number above 0")
at_least_0 = number(0, "a number of at least 0")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, which is a plural unless it is 1: "1 run", "2 runs"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
