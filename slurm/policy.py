"""What follows when an attempt has ended without a result: once more, or not."""

from __future__ import annotations

from collections.abc import Sequence

from harness.records.store import FailureKind

ALWAYS: tuple[FailureKind, ...] = ("preempted",)
COUNTED: tuple[FailureKind, ...] = ("node", "communication", "timeout")
"""All others - oom, disk, data, bug - would come again; a run that diverged has a result, and is done."""


def goes_on(kind: FailureKind, before: Sequence[FailureKind], max_retries: int) -> bool:
    """Whether a job whose attempt ended in this way is requeued.

    Args:
        before: how the job's earlier attempts ended.
        max_retries: how many times a job goes on after an end that is counted.
    """
    if kind in ALWAYS:
        return True
    return kind in COUNTED and num_retries(before) < max_retries


def num_retries(ends: Sequence[FailureKind]) -> int:
    """How many of these ends count."""
    return sum(kind in COUNTED for kind in ends)
