"""A check's outcome and its record: what was looked at, what was expected, what was found, whether that is well."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

MOST_SECONDS = 600.0
"""What all checks together are meant to take at most."""


@dataclass(frozen=True)
class Outcome:
    """What a check expected and found. `measured` is plain data; `remark` is what else is to be said of it."""

    passed: bool
    expected: str
    measured: Mapping[str, Any]
    remark: str = ""


Checks = Iterator[tuple[str, Callable[[], Outcome]]]
"""A subject's checks by their names, to be made one after the other."""


@dataclass(frozen=True)
class CheckResult:
    """One line of the table and of the JSON."""

    name: str
    passed: bool
    expected: str
    measured: Mapping[str, Any]
    seconds: float
    remark: str


def record(name: str, check: Callable[[], Outcome]) -> CheckResult:
    """Make the check; an exception is an outcome too, so that it spares the others."""
    started = time.perf_counter()
    try:
        outcome = check()
    except Exception as error:
        outcome = Outcome(False, "an end without an error", {}, f"{type(error).__name__}: {error}")
    measured = {key: _plain(value) for key, value in outcome.measured.items()}
    return CheckResult(name, outcome.passed, outcome.expected, measured, time.perf_counter() - started, outcome.remark)


def as_table(records: Sequence[CheckResult]) -> str:
    """All records in one table, and a line with their sum."""
    table = [[each.name, each.expected, _found(each), _verdict(each), f"{each.seconds:.1f}"] for each in records]
    num_well, seconds = sum(each.passed for each in records), sum(each.seconds for each in records)
    late = f", more than the {MOST_SECONDS / 60:g} that it is meant to take" if seconds > MOST_SECONDS else ""
    headers = ["what", "expected", "found", "", "seconds"]
    return (
        f"{tabulate(table, headers, disable_numparse=True)}\n\n"
        f"{num_well} of {len(records)} checks are well, in {seconds / 60:.1f} min{late}"
    )


def _found(record: CheckResult) -> str:
    measured = [f"{key}: {_words(value)}" for key, value in record.measured.items()]
    return "\n".join([*measured, *([record.remark] if record.remark else [])])


def _verdict(record: CheckResult) -> str:
    return "ok" if record.passed else "FAIL"


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
