"""Marks on a clock: of this host for CPUs, whose workers share it, or of a GPU's stream."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Mark = Any
"""Seconds of the host's monotonic clock, or a CUDA event."""
Now = Callable[[], Mark]


def now_on(device: torch.device) -> Now:
    """The function that makes marks: on a GPU, of when what was asked of it so far is done."""
    return _cuda_now if device.type == "cuda" else time.monotonic


def _cuda_now() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def seconds_at(mark: Mark, origin: Mark) -> float:
    """A host's mark as it is; of events, the seconds since `origin`."""
    if isinstance(mark, torch.cuda.Event):
        mark.synchronize()
        return float(origin.elapsed_time(mark)) / 1e3
    return float(mark)


def clock_name(device: torch.device) -> str | None:
    """Equal for workers whose marks can be compared; None where they cannot be with anybody's."""
    if device.type == "cuda":
        return None
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{platform.node()} {boot.read_text().strip() if boot.exists() else ''}"
