"""The state of one run of a campaign: from its records and heartbeat first, and from Slurm's queue as a hint."""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness import packs, store
from harness.store import Failure, Heartbeat, RecordError, Result
from slurm.campaign import Submission
from slurm.policy import ALWAYS, COUNTED

State = Literal["done", "running", "queued", "failed", "stale", "missing"]

FRESH_SECONDS, GONE_FRESH_SECONDS = 600.0, 60.0
"""A heartbeat no older is that of a run that is on: there is none while a model is scored, which can take minutes. The
second holds where the run's job has left the queue, and its last records are on their way."""

TRUST_SECONDS = 86_400.0
"""For so long a submitted run counts as queued without a word from it, where the queue cannot be seen."""


@dataclass(frozen=True)
class Seen:
    """What there is on one run. `queue`: the job's state in Slurm's queue, "" if it is not there, None if unknown."""

    submission: Submission | None
    job: str | None
    result: Result | None
    failure: Failure | None
    heartbeat: Heartbeat | None
    queue: str | None
    log: Path | None


def look(folder: Path, submission: Submission | None, job: str | None, queue: dict[str, str] | None) -> Seen:
    """Read what there is on the run in this folder.

    Raises:
        RecordError: the result or the failure is damaged, or of another version.
    """
    try:
        heartbeat = store.read_optional(folder / "heartbeat.json", Heartbeat)
    except RecordError:  # taken away between the look and the reading
        heartbeat = None
    return Seen(
        submission=submission,
        job=job,
        result=packs.read_result(folder),
        failure=store.read_optional(folder / "failure.json", Failure),
        heartbeat=heartbeat,
        queue=None if queue is None else queue.get(job or "", ""),
        log=submission.log_of(job) if submission and job else None,
    )


def judge(seen: Seen, now: float | None = None) -> tuple[State, str]:
    """The run's state, and what there is to say of it."""
    now = time.time() if now is None else now
    if seen.result is not None:
        return "done", "" if seen.result.status == "done" else f"diverged at step {seen.result.diverged_at_step}"
    fresh = GONE_FRESH_SECONDS if seen.queue == "" and seen.submission is not None else FRESH_SECONDS
    beats = seen.heartbeat is not None and not _ended(seen) and now - seen.heartbeat.time < fresh
    if seen.queue:
        return _in_queue(seen, now, beats)
    if beats:
        return "running", ""
    if seen.failure is not None and not (seen.queue is None and _may_be_waiting(seen, now)):
        return "failed", f"{seen.failure.kind}: {seen.failure.message}"
    if seen.queue is None and _may_be_waiting(seen, now):
        return "queued", "as far as its records say: squeue does not answer"
    if seen.submission is not None:
        return "stale", "its job left the queue, and no record of how it ended"
    if seen.heartbeat is not None:
        return "stale", f"silent for {now - seen.heartbeat.time:.0f} s"
    return "missing", ""


def _in_queue(seen: Seen, now: float, beats: bool) -> tuple[State, str]:
    if seen.queue in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"):
        return "queued", f"again, after {seen.failure.kind}" if seen.failure is not None else ""
    if beats:
        return "running", ""
    if seen.heartbeat is not None and not _ended(seen):
        return "running", f"silent for {now - seen.heartbeat.time:.0f} s"
    return "running", "starting or ending"


def _ended(seen: Seen) -> bool:
    """Whether the heartbeat is that of an attempt which has failed since."""
    failure, heartbeat = seen.failure, seen.heartbeat
    return failure is not None and heartbeat is not None and failure.attempt == heartbeat.attempt


def _may_be_waiting(seen: Seen, now: float) -> bool:
    """Whether a job that cannot be asked after was submitted not long ago, and has not failed for good."""
    if seen.submission is None:
        return False
    age = now - datetime.datetime.fromisoformat(seen.submission.submitted_at).timestamp()
    return age < TRUST_SECONDS and (seen.failure is None or seen.failure.kind in (*ALWAYS, *COUNTED))
