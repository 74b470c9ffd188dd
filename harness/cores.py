"""The cores that this process may run on, also where the system binds no process to any."""

from __future__ import annotations

import os
from collections.abc import Collection


def usable_cores() -> list[int]:
    """Return the numbers of the cores that this process may run on, in order."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    # macOS binds no process, so all cores are usable.
    return list(range(os.cpu_count() or 1))


def bind_to(cores: Collection[int]) -> None:
    """Let this process run on these cores alone, where the system can bind it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
