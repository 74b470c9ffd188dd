"""Which jobs have started a run, and how each start ended: `slurm.json` in the run's folder, written by rank 0."""

from __future__ import annotations

from pathlib import Path

from harness.records import store
from harness.records.store import Failure, FailureKind, Record


class Start(Record):
    """One start of a job."""

    job: str
    restart: int
    attempt: str
    time: str
    ended: FailureKind | None = None
    """Filled in when the next start looks back."""


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
    return [*before, last if last.ended else last.model_copy(update={"ended": end_of(folder, last.attempt)})]


def end_of(folder: Path, attempt: str) -> FailureKind:
    """How an attempt that left no result ended."""
    failure = store.read_optional(folder / "failure.json", Failure)
    return failure.kind if failure is not None and failure.attempt == attempt else "node"


def begins(attempt: str) -> str:
    """What every worker of an attempt says first: a job that is requeued goes on in the same logs."""
    return f"attempt {attempt} begins"


def add_start(folder: Path, before: list[Start], start: Start) -> None:
    """Write the next start down."""
    store.write_record(folder / "slurm.json", Starts(version=store.VERSION, starts=[*before, start]))


def ends_of_job(starts: list[Start], job: str) -> list[FailureKind]:
    """How this job's starts ended; another job of the same run begins to count anew."""
    return [start.ended for start in starts if start.job == job and start.ended]
