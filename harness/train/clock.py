"""Where the time of a run goes: phases that exclude each other and sum to the wall clock."""

from __future__ import annotations

import time
from typing import Literal

from algorithms import Collectives

Phase = Literal["data", "compute", "communicate", "evaluate", "checkpoint"]
PHASES: tuple[Phase, ...] = ("data", "compute", "communicate", "evaluate", "checkpoint")


class Clock:
    """Always in one phase; what a phase spends in collectives is "communicate" (waiting for others included)."""

    def __init__(self, collectives: Collectives, seconds: dict[str, float] | None = None) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0) | (seconds or {})
        self._collectives = collectives
        self._phase: Phase = "compute"
        self._mark = time.perf_counter()
        self._talked = collectives.seconds

    def switch(self, phase: Phase) -> None:
        """End the present phase and begin another."""
        now, talked = time.perf_counter(), self._collectives.seconds
        self.seconds[self._phase] += (now - self._mark) - (talked - self._talked)
        self.seconds["communicate"] += talked - self._talked
        self._phase, self._mark, self._talked = phase, now, talked

    @property
    def wall_seconds(self) -> float:
        """Sum over the phases that have ended, of earlier attempts too."""
        return sum(self.seconds.values())
