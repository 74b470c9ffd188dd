"""The state of a run, and the one place where it is told.

It follows from the run's records, its lock, and what a queue says of its job.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cser_bench.harness.records import packs, store
from cser_bench.harness.records.ending import ending_of
from cser_bench.harness.records.run_lock import is_owned
from cser_bench.harness.records.store import (
    Failure,
    FailureKind,
    Heartbeat,
    Result,
    RunFile,
)

State = Literal["done", "running", "queued", "stopped", "failed", "stale", "missing"]
"""`stopped`: asked to, with its state saved. `stale`: it ended, and no
record says how. A run that diverged
is done."""

FRESH_SECONDS = 600.0
"""A heartbeat no older is that of a run that is on: there is none while a model is scored, which
can take minutes."""

GONE_FRESH_SECONDS = 60.0
"""The same where the run's job has left the queue, and its last records are on their way."""

ALWAYS: tuple[FailureKind, ...] = ("preempted",)
RETRIED: tuple[FailureKind, ...] = ("node", "communication", "timeout")
"""Ends after which a cluster's job goes on: always, or as often without a later checkpoint as its
profile says. All others - oom, disk, data, bug - would come again; a run that diverged has a
result, and is done."""


@dataclass(frozen=True)
class RunFolder:
    """What a run's folder tells: its records, and who holds its lock.

    `owned`: whether a process holds the run's lock; None where this machine cannot tell, as the
    newest attempt was on another one. `replaced`: whether the attempt that failed was not the last
    one.
    """

    result: Result | None
    failure: Failure | None
    heartbeat: Heartbeat | None
    owned: bool | None
    replaced: bool = False


@dataclass(frozen=True)
class Submitted:
    """What is known of the job that a run was submitted as.

    The job's name and log are None before it has them.

    `queue`: None where the queue does not answer, so that records are all there is; "nameless"
    where sbatch has not answered yet, or never did, so that nobody can ask for the job.
    """

    name: str | None
    log: str | None
    queue: Literal["waits", "runs", "gone", "nameless"] | None


@dataclass(frozen=True)
class RunStatus:
    """One run, as it is shown.

    `job` and `log`: of the newest job that it was submitted as to a cluster.
    """

    folder: Path
    row: str
    seed: int
    state: State
    detail: str
    seen: RunFolder
    job: str | None = None
    log: str | None = None


def is_done(folder: Path) -> bool:
    """Say whether the run of this folder has a valid result, in the folder or packed.

    Raises RecordError: one of its records is damaged, or contradicts the result.
    """
    return packs.read_checked_result(folder) is not None


def saved_step(folder: Path) -> int | None:
    """Return the step of the newest checkpoint of the run in this folder.

    None where there is none.
    """
    try:
        # Without `train.checkpoint`, which loads torch: a cluster's job asks for it between two
        # starts, and has no time for that.
        return int(
            (folder / "checkpoint" / "latest").read_text().strip().removeprefix("step-")
        )
    except (OSError, ValueError):
        return None


def look(folder: Path) -> RunFolder:
    """Read what there is on the run in this folder.

    Raises RecordError: the failure, or a record of a run that is done, is damaged.
    """
    # First: a result stands over whatever a later attempt left.
    result = packs.read_checked_result(folder)
    if result is not None:
        return RunFolder(result, None, None, None)
    failure = store.read_optional(folder / "failure.json", Failure)
    run = store.read_if_whole(folder / "run.json", RunFile)
    attempts = run.attempts if run else []
    owned: bool | None = is_owned(folder)
    if owned is False and attempts and attempts[-1].host != platform.node():
        owned = None  # Locks are seen from another machine on some file systems only.
    earlier = [attempt.attempt for attempt in attempts[:-1]]
    return RunFolder(
        result=None,
        failure=failure,
        heartbeat=store.read_if_whole(folder / "heartbeat.json", Heartbeat),
        owned=owned,
        replaced=failure is not None and failure.attempt in earlier,
    )


def judge(
    seen: RunFolder, job: Submitted | None = None, now: float | None = None
) -> tuple[State, str]:
    """Return the run's state, and what there is to say of it.

    Args:
        job: where it was submitted to a cluster.
    """
    if seen.result is not None:
        return "done", _how_done(seen.result)
    queue = None if job is None else job.queue
    failure = seen.failure
    # Before the heartbeat is looked at: that of the start before may still be fresh.
    if queue == "waits":
        return "queued", "" if failure is None else f"again, after {failure.kind}"
    silent_seconds = _silent_seconds(seen, time.time() if now is None else now)
    fresh_seconds = GONE_FRESH_SECONDS if queue == "gone" else FRESH_SECONDS
    # The run's process lives: by its lock where that can be seen, else by its heartbeat.
    is_on = seen.owned
    # A clock of the node that is ahead makes the silence negative, which is fresh too.
    if is_on is None:
        is_on = silent_seconds is not None and silent_seconds < fresh_seconds
    if is_on or queue == "runs":
        if silent_seconds is None:
            return "running", "starting or ending"
        if silent_seconds < FRESH_SECONDS:
            return "running", ""
        return "running", f"silent for {silent_seconds:.0f} s"
    if failure is not None and not seen.replaced:
        return _state_after_failure(failure, job)
    if job is not None and queue == "gone":
        return "stale", (
            f"its job left the queue, and no record of how it ended; `sacct -j {job.name}` may know"
        )
    if silent_seconds is None:
        return "missing", _why_missing(job)
    if seen.owned is False:
        return "stale", "its process ended without a word"
    return "stale", f"silent for {silent_seconds:.0f} s"


def _how_done(result: Result) -> str:
    if ending_of(result) == "done":
        return ""
    if result.diverged_at_step is None:
        return "diverged by its loss at the end"
    return f"diverged at step {result.diverged_at_step}"


def _silent_seconds(seen: RunFolder, now: float) -> float | None:
    """Return how old the newest heartbeat is, in seconds.

    None where there is none, or its attempt has failed since.
    """
    if seen.heartbeat is None:
        return None
    # A failed attempt leaves its heartbeat behind.
    if seen.failure is not None and seen.failure.attempt == seen.heartbeat.attempt:
        return None
    return now - seen.heartbeat.time


def _state_after_failure(failure: Failure, job: Submitted | None) -> tuple[State, str]:
    """Return the state of a run whose last attempt failed, and what there is to say of it."""
    # The queue does not answer, so all that is known is that such an end is tried again.
    if job is not None and job.queue is None and failure.kind in (*ALWAYS, *RETRIED):
        return "queued", (
            f"again, after {failure.kind}, if it was requeued: squeue does not answer"
        )
    if failure.kind == "preempted":
        return "stopped", failure.message
    return "failed", f"{failure.kind}: {failure.message}"


def _why_missing(job: Submitted | None) -> str:
    """Return what there is to say of a run that nobody has begun."""
    if job is None:
        return ""
    if job.queue == "nameless":
        return "sbatch has not answered; if no `submit` is at work, `squeue --me` may show its job"
    return "squeue does not answer"


def status_of(
    folder: Path, row: str, seed: int, job: Submitted | None = None
) -> RunStatus:
    """Return what is shown of the run in this folder; see `judge`.

    Raises RecordError as `look` does.
    """
    seen = look(folder)
    state, detail = judge(seen, job)
    return RunStatus(
        folder=folder,
        row=row,
        seed=seed,
        state=state,
        detail=detail,
        seen=seen,
        job=None if job is None else job.name,
        log=None if job is None else job.log,
    )
