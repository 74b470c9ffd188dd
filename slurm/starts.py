"""Which jobs have started a run, and how each start ended: `slurm.json` in the run's folder, written by rank 0."""

from __future__ import annotations

from pathlib import Path

from harness.records import store
from harness.records.state import saved_step
from harness.records.store import Failure, FailureKind, Record, RunFile
from slurm.policy import End


class Start(Record):
    """One start of a job."""

    job: str
    restart: int
    attempt: str
    time: str
    ended: FailureKind | None = None
    progressed: bool | None = None
    """Whether it left a later checkpoint than it began from. Both are filled in when the next start looks back."""


class Starts(Record):
    """slurm.json."""

    version: int
    starts: list[Start]


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
    found = {"ended": end_of(folder, last.attempt), "progressed": has_progressed(folder, last.attempt)}
    return [*before, last.model_copy(update=found)]


def end_of(folder: Path, attempt: str) -> FailureKind:
    """How an attempt that left no result ended."""
    failure = store.read_optional(folder / "failure.json", Failure)
    return failure.kind if failure is not None and failure.attempt == attempt else "node"


def begins(attempt: str) -> str:
    """What every worker of an attempt says first: a job that is requeued goes on in the same logs."""
    return f"attempt {attempt} begins"


def has_progressed(folder: Path, attempt: str) -> bool:
    """Whether the newest attempt, if it is this one, has left a later checkpoint than it began from."""
    run, saved = store.read_optional(folder / "run.json", RunFile), saved_step(folder)
    if run is None or not run.attempts or run.attempts[-1].attempt != attempt or saved is None:
        return False
    return saved > run.attempts[-1].resumed_from_step


def add_start(folder: Path, before: list[Start], start: Start) -> None:
    """Write the next start down."""
    store.write_record(folder / "slurm.json", Starts(version=store.VERSION, starts=[*before, start]))


def ends_of_job(starts: list[Start], job: str) -> list[End]:
    """How this job's starts ended; another job of the same run begins to count anew."""
    return [End(start.ended, bool(start.progressed)) for start in starts if start.job == job and start.ended]
