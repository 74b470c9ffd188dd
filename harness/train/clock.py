"""How a run spends its time."""

from __future__ import annotations

from typing import Literal

import torch

from cser_bench.algorithms import Collectives
from cser_bench.algorithms.core.traffic import Elapsed, mark

Phase = Literal["data", "compute", "communicate", "evaluate", "checkpoint"]
PHASES: tuple[Phase, ...] = ("data", "compute", "communicate", "evaluate", "checkpoint")


class Clock:
    """Phases of a run, which exclude each other and sum to the wall clock.

    It is always in one phase; what a phase spends in collectives is "communicate" (waiting for
    others included). On a GPU phases are timed by events on its stream: a phase begins when the
    GPU comes to its work and not when the host hands it over, so time in which the GPU waits for
    the host counts for the phase that it waits in. To switch phases never waits for the GPU; to
    read `seconds` does.

    Args:
        seconds: of earlier attempts, by phase.
    """

    def __init__(
        self,
        collectives: Collectives,
        device: torch.device,
        seconds: dict[str, float] | None = None,
    ) -> None:
        self._before: dict[str, float] = dict.fromkeys(PHASES, 0.0) | (seconds or {})
        self._device = device
        self._phases = Elapsed()
        self._talks = Elapsed()
        """Seconds of each phase that were spent in collectives."""
        self._collectives = collectives
        self._phase: Phase = "compute"
        self._began = mark(device)
        # From here on collectives note their seconds under the phase that is on.
        collectives.elapsed = self._talks
        collectives.account = self._phase

    def switch(self, phase: Phase) -> None:
        """End the present phase and begin another."""
        now = mark(self._device)
        # On a GPU `now` is an event on its stream, whose time is read only when `seconds` is asked
        # for.
        self._phases.add(self._phase, self._began, now)
        self._phase = phase
        self._began = now
        self._collectives.account = phase

    @property
    def seconds(self) -> dict[str, float]:
        """Return seconds by phase, of phases that have ended and of earlier attempts.

        Waits until a GPU has ended them.
        """
        phases = self._phases.seconds()
        talks = self._talks.seconds()
        seconds = dict(self._before)
        for phase in PHASES:
            # Collectives lie inside the phases: their time moves, so the sum stays the wall.
            seconds[phase] += phases.get(phase, 0.0) - talks.get(phase, 0.0)
        seconds["communicate"] += sum(talks.values())
        return seconds

    @property
    def wall_seconds(self) -> float:
        """Return the sum over the phases."""
        return sum(self.seconds.values())
