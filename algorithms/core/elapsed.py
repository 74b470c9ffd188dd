"""How long work takes where it is done: by the clock on a CPU, by CUDA events on a GPU, which are read late."""

from __future__ import annotations

import time
from collections import Counter, deque

import torch

Mark = float | torch.cuda.Event
"""A moment: on the CPU's clock, in seconds, or in the order of a GPU's work."""


def mark(device: torch.device) -> Mark:
    """Now, or for a GPU when it will have done all that it has been told on the current stream."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


class Elapsed:
    """Adds up the seconds of pieces of work under names, and waits for no GPU meanwhile."""

    def __init__(self) -> None:
        self._over: Counter[str] = Counter()
        self._on: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()
        """Pieces that a GPU may still be at, in the order of their ends."""

    def add(self, name: str, start: Mark, end: Mark) -> None:
        """Count the time between two marks of one device."""
        if isinstance(start, float) or isinstance(end, float):
            assert isinstance(start, float) and isinstance(end, float)
            self._over[name] += end - start  # type: ignore[assignment]
            return
        self._on.append((name, start, end))
        while self._on and self._on[0][2].query():  # type: ignore[no-untyped-call]
            self._count_first()

    def seconds(self) -> dict[str, float]:
        """By name; waits for the last piece of work to end."""
        while self._on:
            self._on[0][2].synchronize()
            self._count_first()
        return dict(self._over)

    def _count_first(self) -> None:
        name, start, end = self._on.popleft()
        self._over[name] += start.elapsed_time(end) / 1e3
