"""Which jobs have started a run and how each start ended: `slurm.json` in its folder; and which start may begin."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from harness.records import store
from harness.records.recorder import write_failure
from harness.records.run_lock import BusyError, owned
from harness.records.state import is_done, saved_step
from harness.records.store import Failure, FailureKind, Record, RunFile
from slurm.allocation import Allocation
from slurm.campaign import now

ALWAYS: tuple[FailureKind, ...] = ("preempted",)
COUNTED: tuple[FailureKind, ...] = ("node", "communication", "timeout")
"""Ends after which a job goes on: always, or `max_retries` times. All others - oom, disk, data, bug - would come again;
a run that diverged has a result, and is done."""


class Start(Record):
    """One start of a job, and how it ended, which is filled in when the next start looks back.

    `progressed`: whether it left a later checkpoint than it began from.
    """

    job: str
    restart: int
    attempt: str
    time: str
    ended: FailureKind | None = None
    progressed: bool | None = None

    @property
    def counts(self) -> bool:
        """Whether going on after it is a retry: a long run meets its time limit again and again, and gets on."""
        return self.ended in COUNTED and not (self.ended == "timeout" and self.progressed)


class Starts(Record):
    """slurm.json."""

    version: int
    starts: list[Start]


class NothingToDo(RuntimeError):
    """The job ends here; the message says why."""


def read_starts(folder: Path) -> list[Start]:
    """The starts so far, the last one closed where there is a record of how it ended: no record means `node`.

    Raises:
        RecordError: damaged, or of another version.
    """
    record = store.read_optional(folder / "slurm.json", Starts)
    if record is None or not record.starts:
        return []
    *before, last = record.starts
    if last.ended:
        return record.starts
    found = {"ended": recorded_end(folder, last.attempt), "progressed": _has_progressed(folder, last.attempt)}
    return [*before, last.model_copy(update=found)]


def add_start(folder: Path, before: list[Start], start: Start) -> None:
    """Write the next start down."""
    store.write_record(folder / "slurm.json", Starts(version=store.VERSION, starts=[*before, start]))


def read_failure(folder: Path, attempt: str) -> Failure | None:
    """What there is on how this attempt failed."""
    failure = store.read_optional(folder / "failure.json", Failure)
    return failure if failure is not None and failure.attempt == attempt else None


def recorded_end(folder: Path, attempt: str) -> FailureKind:
    """How an attempt that left no result ended."""
    failure = read_failure(folder, attempt)
    return failure.kind if failure else "node"


def num_retries(starts: Sequence[Start], job: str) -> int:
    """Starts of this job after which going on is a retry; another job of the same run begins to count anew."""
    return sum(start.counts for start in starts if start.job == job)


def begins(attempt: str) -> str:
    """What every worker of an attempt says first: a job that is requeued goes on in the same logs."""
    return f"attempt {attempt} begins"


def begin_attempt(folder: Path, run_id: str, allocation: Allocation, max_retries: int, stack: ExitStack) -> None:
    """Begin this start's attempt, over any that its job left; the run's lock is held until `stack` ends.

    Raises:
        NothingToDo: the run is done, another process is at it, or its processes ended without a word too often.
        RecordError: a record is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = read_starts(folder)
    run = store.read_optional(folder / "run.json", RunFile)
    newest = run.attempts[-1].attempt if run and run.attempts else None
    try:
        stack.enter_context(owned(folder))
    except BusyError as error:
        ours = [start.attempt for start in starts if start.job == allocation.job]
        if newest not in ours if newest else not ours:
            raise NothingToDo(str(error)) from None
        # An orphan of this job has the lock, and will find out that it was replaced.
    if num_retries(starts, allocation.job) > max_retries:
        kinds = ", ".join(start.ended or "node" for start in starts if start.job == allocation.job)
        message, last = f"gave up: the attempts of job {allocation.job} ended with {kinds}", starts[-1]
        write_failure(folder, run_id, last.attempt, last.ended or "node", message, "", is_last_word=True)
        raise NothingToDo(message)
    start = Start(job=allocation.job, restart=allocation.restart, attempt=allocation.attempt, time=now())
    add_start(folder, starts, start)
    # Only now: having written to the folder, this node sees what others wrote to it before.
    if is_done(folder):
        raise NothingToDo(f"run {run_id} is done")


def _has_progressed(folder: Path, attempt: str) -> bool:
    """Whether the newest attempt, if it is this one, has left a later checkpoint than it began from."""
    run, saved = store.read_optional(folder / "run.json", RunFile), saved_step(folder)
    newest = run.attempts[-1] if run and run.attempts else None
    return bool(newest and newest.attempt == attempt and saved is not None and saved > newest.resumed_from_step)
