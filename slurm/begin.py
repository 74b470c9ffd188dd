"""Rank 0's first decision in a job: whether there is anything to do, and if so under which attempt's name."""

from __future__ import annotations

import time
import uuid
from contextlib import ExitStack
from pathlib import Path

from harness.records import store
from harness.records.recorder import write_failure
from harness.records.run_lock import BusyError, owned
from harness.records.state import is_done
from harness.records.store import Failure, Heartbeat, RunFile
from slurm.allocation import Allocation
from slurm.campaign import now
from slurm.policy import num_retries
from slurm.starts import Start, add_start, ends_of_job, read_starts

LISTEN_SECONDS = 60.0
"""How long the heartbeat of another job's attempt may stand still before that attempt counts as dead."""

LONG_DEAD_SECONDS = 1800.0
"""A heartbeat older than this is not listened to, however much the clocks of two machines differ."""


class NothingToDo(RuntimeError):
    """The job ends here; the message says why."""


def begin_attempt(folder: Path, run_id: str, allocation: Allocation, max_retries: int, stack: ExitStack) -> str:
    """Begin a new attempt, over any that this job left, and return its name; the lock is held until `stack` ends.

    Raises:
        NothingToDo: the run is done, another process is at it, or its processes ended without a word too often.
        RecordError: a record is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = read_starts(folder)
    ours = {start.attempt for start in starts if start.job == allocation.job}
    _check_owner(folder, ours, stack)
    ends = ends_of_job(starts, allocation.job)
    if num_retries(ends) > max_retries:
        message = f"gave up: the attempts of job {allocation.job} ended with {', '.join(end.kind for end in ends)}"
        ended = starts[-1].ended or "node"
        write_failure(folder, run_id, starts[-1].attempt, ended, message, "", is_last_word=True)
        raise NothingToDo(message)
    attempt = uuid.uuid4().hex[:8]
    add_start(folder, starts, Start(job=allocation.job, restart=allocation.restart, attempt=attempt, time=now()))
    # Only now: having written to the folder, this node sees what others wrote to it before.
    if is_done(folder):
        raise NothingToDo(f"run {run_id} is done")
    return attempt


def _check_owner(folder: Path, ours: set[str], stack: ExitStack) -> None:
    """Take the run's lock; raises NothingToDo where an attempt of another job is alive, for ours makes way."""
    newest = _newest_attempt(folder)
    foreign = newest not in ours if newest else not ours
    try:
        stack.enter_context(owned(folder))
    except BusyError as error:
        if foreign:
            raise NothingToDo(str(error)) from None
        # An orphan of this job has the lock, and will find out that it was replaced.
    if foreign and newest and _is_alive(folder, newest):  # on another machine, where the lock is not seen
        raise NothingToDo(f"attempt {newest}, which is not of this job, is at the run")


def _newest_attempt(folder: Path) -> str | None:
    run = store.read_optional(folder / "run.json", RunFile)
    return run.attempts[-1].attempt if run is not None and run.attempts else None


def _is_alive(folder: Path, attempt: str) -> bool:
    """Whether the attempt's heartbeat goes on: seen to, since two machines' clocks may differ."""
    failure = store.read_optional(folder / "failure.json", Failure)
    first = store.read_optional(folder / "heartbeat.json", Heartbeat)
    if first is None or first.attempt != attempt or (failure is not None and failure.attempt == attempt):
        return False
    ends = time.monotonic() + LISTEN_SECONDS
    while time.monotonic() < ends and time.time() - first.time < LONG_DEAD_SECONDS:
        if store.read_optional(folder / "heartbeat.json", Heartbeat) != first:
            return True
        time.sleep(0.5)
    return False
