"""Reading: a study's folder as sweeps and timings, all of one machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.records.store import Attempt, RecordError, read_record
from harness.records.timings import Sweep, Timing, TimingStudy
from report.accuracy.records import UsageError

STUDY = "study.json"


@dataclass(frozen=True)
class SpeedRecords:
    """Everything read of one study, in the order of its lists."""

    folder: Path
    study: TimingStudy
    sweeps: tuple[Sweep, ...]
    timings: tuple[Timing, ...]

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Of the sweeps, then of the timings."""
        return (*(sweep.attempt for sweep in self.sweeps), *(timing.attempt for timing in self.timings))


def read_speed_records(folder: Path) -> SpeedRecords:
    """Read a study's folder.

    Raises:
        UsageError: no such folder, or no study in it.
        RecordError: a record is missing or damaged, or two are from different machines; the message names the file.
    """
    if not (folder / STUDY).exists():
        raise UsageError(f"{folder} holds no {STUDY}; give the folder of a study, as results/speedups")
    study = read_record(folder / STUDY, TimingStudy)
    sweeps = tuple(read_record(folder / name, Sweep) for name in study.sweeps)
    timings = tuple(read_record(folder / name, Timing) for name in study.timings)
    records = SpeedRecords(folder, study, sweeps, timings)
    _refuse_mixed(folder, (*study.sweeps, *study.timings), records.attempts)
    return records


def _refuse_mixed(folder: Path, names: Sequence[str], attempts: Sequence[Attempt]) -> None:
    """Times of two machines, or of two versions of torch, cannot be set beside one another."""
    for name, attempt in zip(names, attempts, strict=True):
        for what, ours, theirs in zip(("host", "CPU", "torch"), _machine(attempts[0]), _machine(attempt), strict=True):
            if ours != theirs:
                raise RecordError(
                    f"{folder / name} was timed on another machine than {names[0]} ({what} {theirs}, not {ours}); "
                    "keep each machine's records in a study of their own"
                )


def _machine(attempt: Attempt) -> tuple[str, str, str]:
    return attempt.host, attempt.cpu, attempt.packages.get("torch", "unknown")
