"""A study's records, and every cell of them, a method's step on a network as the clock had it, as a line of a frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from harness.records.store import Attempt, RecordError, read_record
from harness.records.timings import Method, Sweep, Timing, TimingStudy, mean_step
from report.frame import UsageError

STUDY = "study.json"
SCORED = "scored_speedups"
"""The folder beside a study's that may hold sessions of scored methods, too."""
ENOUGH = 10
"""Steps of each kind from which on a cell has a t interval of its mean; of fewer, medians and their range."""
CROWDED = 0.15
"""Share of the slowed passes beyond which a codec that hides behind them no longer fits, on the host's cores."""
_ENCODES = 2.5
"""Baselines of a larger ratio encode behind the backward pass; an fp16 hook's ratio is 2."""


@dataclass(frozen=True)
class SpeedRecords:
    """Everything read of one study, in the order of its lists; `sessions` are of scored methods."""

    folder: Path
    study: TimingStudy
    sweeps: tuple[Sweep, ...]
    timings: tuple[Timing, ...]
    sessions: tuple[Timing, ...]

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Of the sweeps, then of the timings, then of the sessions."""
        sweeps, timings = (sweep.attempt for sweep in self.sweeps), (timing.attempt for timing in self.timings)
        return (*sweeps, *timings, *(session.attempt for session in self.sessions))


def read_speed_records(folder: Path) -> SpeedRecords:
    """Read a study's folder.

    Raises:
        UsageError: no such folder, or no study in it.
        RecordError: a record is missing or damaged, or two are from different machines; the message names the file.
    """
    if not (folder / STUDY).exists():
        raise UsageError(f"{folder} holds no {STUDY}; give the folder of a study, as results/speedups")
    study = read_record(folder / STUDY, TimingStudy)
    sessions = sorted({*folder.glob("scored-*.json"), *(folder.parent / SCORED).glob("scored-*.json")})
    records = SpeedRecords(
        folder,
        study,
        tuple(read_record(folder / name, Sweep) for name in study.sweeps),
        tuple(read_record(folder / name, Timing) for name in study.timings),
        tuple(read_record(path, Timing) for path in sessions),
    )
    timed = [folder / name for name in (*study.sweeps, *study.timings)]
    _refuse_mixed(timed, records.attempts[: len(timed)])
    _refuse_mixed(sessions, records.attempts[len(timed) :])
    return records


def _refuse_mixed(paths: Sequence[Path], attempts: Sequence[Attempt]) -> None:
    """Times of two machines, or of two versions of torch, cannot be set beside one another."""
    for path, attempt in zip(paths, attempts, strict=True):
        for what, ours, theirs in zip(("host", "CPU", "torch"), _machine(attempts[0]), _machine(attempt), strict=True):
            if ours != theirs:
                raise RecordError(
                    f"{path} was timed on another machine than {paths[0].name} ({what} {theirs}, not {ours}); "
                    "keep each machine's records in a study of their own"
                )


def _machine(attempt: Attempt) -> tuple[str, str, str]:
    return attempt.host, attempt.cpu, attempt.packages.get("torch", "unknown")


def cells_frame(timings: Sequence[Timing]) -> pd.DataFrame:
    """One line a timing and method whose kinds of step were all timed, in the order of the records.

    `seconds` is the mean step over the method's period, in the device's time: a slowed clock is undone. It has the
    codec in it where it was measured, and not where it was emulated, since the codec was not slowed. `low` and `high`
    bound it, and `interval` says how: "t" is 95 % of the mean of ten steps or more of each kind; "range" is lowest to
    highest of fewer, whose `seconds` are medians. `codec_seconds` is as on the clock, and `communication_seconds` is
    neither passes nor codec.
    """
    lines = []
    for number, timing in enumerate(timings):
        fabric = timing.fabric
        for method in timing.methods:
            numbers = _numbers(timing, method)
            if numbers is None:
                continue
            ratio = method.ratio(timing.workload.num_parameters)
            slowed = fabric.dilation * numbers["compute_seconds"]
            measured = 0.0 if timing.basis == "emulated" else numbers["codec_seconds"]
            lines.append(
                {
                    "timing": number,
                    "workload": timing.workload.name,
                    "basis": timing.basis,
                    "machines": fabric.num_machines,
                    "workers_per_machine": fabric.workers_per_machine,
                    "bits_per_second": fabric.stands_for_bits_per_second,
                    "dilation": fabric.dilation,
                    "method": method.name,
                    "label": method.label,
                    "baseline": method.baseline,
                    "ratio": ratio,
                    **numbers,
                    "communication_seconds": numbers["seconds"] - numbers["compute_seconds"] - measured,
                    "crowded": timing.basis == "emulated"
                    and method.baseline
                    and ratio > _ENCODES
                    and numbers["codec_seconds"] > CROWDED * slowed,
                }
            )
    return pd.DataFrame(lines)


def _numbers(timing: Timing, method: Method) -> dict[str, Any] | None:
    """Of one method; None where a kind of step that its period has was not timed."""
    cells = [cell for cell in timing.cells if cell.method == method.name and cell.seconds]
    if not math.isclose(sum(cell.share for cell in cells), 1.0):
        return None

    def mixed(name: str, of: Callable[[Sequence[float]], float] = median) -> float:
        return math.fsum(cell.share * of(getattr(cell, name)) for cell in cells)

    seconds, low, high = (mixed("seconds", of) for of in (median, min, max))
    enough = min(len(cell.seconds) for cell in cells) >= ENOUGH
    if enough:
        seconds, low, high = mean_step(cells)
    parts = ("compute_seconds", "codec_seconds", "waiting_seconds", "transfer_seconds")
    return {
        "seconds": seconds,
        "low": low,
        "high": high,
        "interval": "t" if enough else "range",
        "num_steps": sum(len(cell.seconds) for cell in cells),
        **{name: mixed(name) for name in parts},
    }
