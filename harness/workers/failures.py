"""What kind of failure ended a worker, by its exception or by what NCCL's watchdog left in the log."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import torch
import torch.distributed as dist

from algorithms import CollectiveError
from harness.records.store import FailureKind, RecordError
from harness.spec import SpecError
from harness.tasks.errors import DataError
from harness.train.checkpoint import CheckpointError
from harness.train.training import Preempted

NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch and the libraries under it say in plain RuntimeErrors."""

NO_PEER = "gloo/transport/"
"""In every error of gloo's connections, whatever it says. Most arise in a collective, which names them; those of an
all-reduce that DistributedDataParallel makes by itself come out of a backward pass."""

LAST_BYTES = 1_000_000
"""So much of a log's end is read."""

LOST = re.compile(r"Watchdog caught collective operation timeout|watchdog thread terminated with exception")
OWN_FAULT = re.compile(r"(?:detected by watchdog|terminated with exception)[^\n]*CUDA error")
"""The watchdog asks the GPU, too, and may be the first to hear that a kernel failed."""


def failure_kind(error: BaseException) -> FailureKind:
    """What kind of failure an exception is, for records and for the decision to try again."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in NO_MEMORY):
        return "oom"
    if isinstance(error, Preempted):
        return "preempted"
    from_gloo = isinstance(error, RuntimeError) and NO_PEER in str(error)
    if from_gloo or isinstance(error, CollectiveError | dist.DistError):
        return "communication"
    if isinstance(error, DataError | CheckpointError | RecordError | SpecError):
        return "data"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        return "disk"
    return "bug"


def sentence(error: BaseException) -> str:
    """What an exception says, and what to do where that is known."""
    advice = "; use a smaller batch or lower precision" if failure_kind(error) == "oom" else ""
    return f"{str(error) or type(error).__name__}{advice}"


def end_by_watchdog(said: str) -> tuple[FailureKind, str] | None:
    """Kind and words of an end by NCCL's watchdog, from what the processes said; None if it says nothing of one.

    The watchdog ends a process that waits in vain by SIGABRT, past every handler of exceptions. That one worker's
    kernel failed comes before what the others, who lost it, say of it.
    """
    if not LOST.search(said):
        return None
    if not OWN_FAULT.search(said):
        return "communication", "NCCL's watchdog ended workers that waited in vain for one that was lost or late"
    if NO_MEMORY[1] in said:
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
