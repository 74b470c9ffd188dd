"""How a run spends its time: phases that exclude each other and sum to the wall clock.

On a GPU the times are those at which it comes to the work and not those at which it is told to, so a phase in which it
waits for the CPU has that time. Nobody waits for it: its events are read when they are over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch

from algorithms import Collectives
from algorithms.core.traffic import Elapsed, mark

Phase = Literal["data", "compute", "communicate", "evaluate", "checkpoint"]
PHASES: tuple[Phase, ...] = ("data", "compute", "communicate", "evaluate", "checkpoint")


class Clock:
    """Always in one phase; what a phase spends in collectives is "communicate" (waiting for others included).

    Args:
        device: where the run computes.
        seconds: of earlier attempts, by phase.
    """

    def __init__(self, collectives: Collectives, device: torch.device, seconds: dict[str, float] | None = None) -> None:
        self._before: dict[str, float] = dict.fromkeys(PHASES, 0.0) | (seconds or {})
        self._device, self._phases = device, Elapsed()
        self._talks = collectives.elapsed = Elapsed()
        self._collectives = collectives
        self._phase: Phase = "compute"
        collectives.account = self._phase
        self._mark = mark(device)

    def switch(self, phase: Phase) -> None:
        """End the present phase and begin another."""
        now = mark(self._device)
        self._phases.add(self._phase, self._mark, now)
        self._phase, self._mark = phase, now
        self._collectives.account = phase

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase, of phases that have ended and of earlier attempts; waits until a GPU has ended them."""
        phases, talks = self._phases.seconds(), self._talks.seconds()
        seconds = dict(self._before)
        for phase in PHASES:
            seconds[phase] += phases.get(phase, 0.0) - talks.get(phase, 0.0)
        seconds["communicate"] += sum(talks.values())
        return seconds

    @property
    def wall_seconds(self) -> float:
        """Sum over the phases."""
        return sum(self.seconds.values())


def seconds_to_idle(work: Callable[[], object], device: torch.device) -> float:
    """Do the work; how long until the device had done what was asked of it."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def there_and_back(names: Sequence[str], num_rounds: int) -> Iterator[tuple[int, str]]:
    """Number of the round and name: A B C, C B A, A B C, ... so that what disturbs the machine disturbs all alike."""
    for number in range(num_rounds):
        for name in names if number % 2 == 0 else reversed(names):
            yield number, name
