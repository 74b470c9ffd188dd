"""A check's outcome, and its record: what was looked at, whether it is well, what was measured, and why not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What a check found. `measured` is plain data; `reason` says what was expected where that was not met."""

    passed: bool
    measured: Mapping[str, Any]
    reason: str = ""


Checks = Iterator[tuple[str, Callable[[], Outcome]]]
"""A subject's checks by their names, to be made one after the other."""


@dataclass(frozen=True)
class Record:
    """One line of the table and of the JSON."""

    name: str
    passed: bool
    measured: Mapping[str, Any]
    seconds: float
    reason: str


def record(name: str, check: Callable[[], Outcome]) -> Record:
    """Make the check; an exception is an outcome too, so that it spares the others."""
    started = time.perf_counter()
    try:
        outcome = check()
    except Exception as error:
        outcome = Outcome(False, {}, f"{type(error).__name__}: {error}")
    measured = {key: _plain(value) for key, value in outcome.measured.items()}
    return Record(name, outcome.passed, measured, time.perf_counter() - started, outcome.reason)


def show(record: Record) -> list[str]:
    """The record's cells in the table."""
    lines = "\n".join(f"{key}: {_words(value)}" for key, value in record.measured.items())
    return [record.name, "ok" if record.passed else "FAIL", lines, f"{record.seconds:.1f}", record.reason]


def _plain(value: Any) -> Any:
    """The value as JSON has it, which knows no infinity and no NaN."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(each)}" for key, each in value.items())
    if isinstance(value, list):
        return " ".join(map(_words, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
