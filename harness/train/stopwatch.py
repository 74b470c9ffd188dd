"""Timing on any device: by the clock on a CPU, by events or to the end of the work on a GPU; calls take turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch


def there_and_back(names: Sequence[str], num_rounds: int) -> Iterator[tuple[int, str]]:
    """Number of the round and name: A B C, C B A, A B C, ... so that what disturbs the machine disturbs all alike."""
    for number in range(num_rounds):
        for name in names if number % 2 == 0 else reversed(names):
            yield number, name


def wall_seconds(work: Callable[[], object]) -> float:
    """Do the work; how long it took by the clock."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def seconds_to_idle(work: Callable[[], object], device: torch.device) -> float:
    """Do the work; how long until the device had done what was asked of it."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def seconds_on(device: torch.device) -> Callable[[Callable[[], object]], float]:
    """The function that does a piece of work and times it there: by CUDA events on a GPU, by the clock on a CPU."""
    return event_seconds if device.type == "cuda" else wall_seconds


def event_seconds(work: Callable[[], object]) -> float:
    """From an idle GPU's start of the work to its end, so waiting for the CPU to say what to do counts too."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def interleave(
    calls: Mapping[str, Callable[[], object]],
    repetitions: int,
    seconds_of: Callable[[Callable[[], object]], float] = wall_seconds,
) -> dict[str, list[float]]:
    """Seconds of each call in each repetition, there and back again, after a turn that is not counted."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _, name in there_and_back(list(calls), repetitions):
        seconds[name].append(seconds_of(calls[name]))
    return seconds


def sums(seconds: Sequence[float], length: int) -> list[float]:
    """Sums over consecutive runs of `length` timings; a shorter rest is left out."""
    return [sum(seconds[start : start + length]) for start in range(0, len(seconds) - length + 1, length)]
