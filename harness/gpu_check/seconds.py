"""How long work on a device takes: by CUDA events on a GPU, by the clock on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch

from harness.bench.timing import wall_seconds


def seconds_on(device: torch.device) -> Callable[[Callable[[], object]], float]:
    """The function that does a piece of work and times it there."""
    return event_seconds if device.type == "cuda" else wall_seconds


def event_seconds(work: Callable[[], object]) -> float:
    """From an idle GPU's start of the work to its end, so waiting for the CPU to say what to do counts too."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
