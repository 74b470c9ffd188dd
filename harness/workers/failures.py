"""What kind of failure an exception is, and the sentence that is recorded of it."""

from __future__ import annotations

import errno

import torch
import torch.distributed as dist

from algorithms import CollectiveError
from harness.records.store import FailureKind, RecordError
from harness.spec import SpecError
from harness.tasks import DataError
from harness.train.checkpoint import CheckpointError
from harness.train.training import Preempted

NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch and the libraries under it say in plain RuntimeErrors."""

NO_PEER = "gloo/transport/"
"""In every error of gloo's connections, whatever it says. Most arise in a collective, which names them; those of an
all-reduce that DistributedDataParallel makes by itself come out of a backward pass."""


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
    kind = failure_kind(error)
    if kind == "disk" and isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {error.filename}; make room or give permission, and call again"
    advice = "; use a smaller batch or lower precision" if kind == "oom" else ""
    return f"{str(error) or type(error).__name__}{advice}"
