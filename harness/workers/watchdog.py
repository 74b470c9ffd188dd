"""What NCCL's watchdog leaves: it ends a process that waits in vain by SIGABRT. This file needs no torch."""

from __future__ import annotations

import re
from pathlib import Path

from harness.records.store import FailureKind

LAST_BYTES = 1_000_000
"""So much of a log's end is read."""

LOST = re.compile(r"Watchdog caught collective operation timeout|watchdog thread terminated with exception")
OWN_FAULT = re.compile(r"(?:detected by watchdog|terminated with exception)[^\n]*CUDA error")
"""The watchdog asks the GPU, too, and may be the first to hear that a kernel failed."""


def end_by_watchdog(said: str) -> tuple[FailureKind, str] | None:
    """Kind and words of an end by NCCL's watchdog, from what the processes said; None if it says nothing of one.

    The watchdog ends a process that waits in vain by SIGABRT, past every handler of exceptions. That one worker's
    kernel failed comes before what the others, who lost it, say of it.
    """
    if not LOST.search(said):
        return None
    if not OWN_FAULT.search(said):
        return "communication", "NCCL's watchdog ended workers that waited in vain for one that was lost or late"
    if "CUDA error: out of memory" in said:
        return "oom", "the GPU's memory was full; use a smaller batch or lower precision"
    return "bug", "a kernel failed on the GPU, and NCCL's watchdog ended the process"


def tail_of(log: Path, start: int = 0) -> str:
    """The end of what a log has from byte `start` on; nothing where there is no such file."""
    try:
        with open(log, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(start, size - LAST_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
