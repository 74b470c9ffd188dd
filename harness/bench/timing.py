"""Interleaved timing: contenders take turns, so that what disturbs the machine disturbs them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence


def wall_seconds(work: Callable[[], object]) -> float:
    """Do the work; how long it took by the clock."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    repetitions: int,
    seconds_of: Callable[[Callable[[], object]], float] = wall_seconds,
) -> dict[str, list[float]]:
    """Seconds of each contender in each repetition: there and back again (A B, B A, ...), after a turn not counted."""
    for contender in contenders.values():
        contender()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repetition in range(repetitions):
        names = list(contenders)
        for name in names if repetition % 2 == 0 else reversed(names):
            seconds[name].append(seconds_of(contenders[name]))
    return seconds


def sums(seconds: Sequence[float], length: int) -> list[float]:
    """Sums over consecutive runs of `length` timings; a shorter rest is left out."""
    return [sum(seconds[start : start + length]) for start in range(0, len(seconds) - length + 1, length)]
