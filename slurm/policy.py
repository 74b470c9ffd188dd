"""What follows when an attempt has ended without a result: once more, or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from harness.records.store import FailureKind

ALWAYS: tuple[FailureKind, ...] = ("preempted",)
COUNTED: tuple[FailureKind, ...] = ("node", "communication", "timeout")
"""All others - oom, disk, data, bug - would come again; a run that diverged has a result, and is done."""


class End(NamedTuple):
    """How an attempt ended. `progressed`: whether it left a later checkpoint than it began from."""

    kind: FailureKind
    progressed: bool

    @property
    def counts(self) -> bool:
        """Whether going on after it is a retry: a long run meets its time limit again and again, and gets on."""
        return self.kind in COUNTED and not (self.kind == "timeout" and self.progressed)


def goes_on(end: End, before: Sequence[End], max_retries: int) -> bool:
    """Whether a job whose attempt ended in this way is requeued.

    Args:
        before: how the job's earlier attempts ended.
        max_retries: how many times a job goes on after an end that counts.
    """
    if end.counts:
        return num_retries(before) < max_retries
    return end.kind in (*ALWAYS, *COUNTED)


def num_retries(ends: Sequence[End]) -> int:
    """How many of these ends count."""
    return sum(end.counts for end in ends)
