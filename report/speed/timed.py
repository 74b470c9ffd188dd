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
from harness.records.timings import Cell, Sweep, Timing, TimingStudy, mean_step
from report.frame import UsageError

STUDY = "study.json"
SCORED = "scored_speedups"
"""The folder beside a study's that may hold sessions of scored methods, too."""
ENOUGH = 10
"""Steps of each kind from which on a mean has a t interval; of fewer there are medians and their range."""
CROWDED = 0.15
"""Share of the slowed passes beyond which a codec that hides behind them no longer fits, on the host's cores."""
_ENCODES = 2.5
"""Baselines of a larger ratio encode behind the backward pass; an fp16 hook's ratio is 2."""
_PARTS = ["compute_seconds", "codec_seconds", "waiting_seconds", "transfer_seconds"]


@dataclass(frozen=True)
class SpeedRecords:
    """Everything read of one study, in the order of its lists.

    `sessions` are of scored methods; `wide` are on links of several latencies, and so are `consecutive` steps.
    """

    study: TimingStudy
    sweeps: tuple[Sweep, ...]
    timings: tuple[Timing, ...]
    sessions: tuple[Timing, ...]
    wide: tuple[Timing, ...]
    consecutive: tuple[Timing, ...]

    @property
    def attempts(self) -> list[Attempt]:
        """Of the sweeps, then of the timings, then of the sessions."""
        records: list[Sweep | Timing] = [*self.sweeps, *self.timings, *self.sessions]
        records += [*self.wide, *self.consecutive]
        return [record.attempt for record in records]


def read_speed_records(folder: Path) -> SpeedRecords:
    """Read a study's folder.

    Raises:
        UsageError: no such folder, or no study in it.
        RecordError: a record is missing or damaged, or two are from different machines; the message names the file.
    """
    if not (folder / STUDY).exists():
        raise UsageError(f"{folder} holds no {STUDY}; give the folder of a study, as results/speedups")
    study = read_record(folder / STUDY, TimingStudy)
    paths = sorted({*folder.glob("scored-*.json"), *(folder.parent / SCORED).glob("scored-*.json")})
    wide, consecutive = (
        {path: read_record(path, Timing) for path in sorted(folder.glob(f"{name}-*.json"))}
        for name in ("wide", "consecutive")
    )
    sweeps = {folder / name: read_record(folder / name, Sweep) for name in study.sweeps}
    timings = {folder / name: read_record(folder / name, Timing) for name in study.timings}
    sessions = {path: read_record(path, Timing) for path in paths}
    _refuse_mixed({path: record.attempt for path, record in (sweeps | timings).items()})
    for records in (sessions, wide, consecutive):
        _refuse_mixed({path: record.attempt for path, record in records.items()})
    of_steps = [tuple(records.values()) for records in (timings, sessions, wide, consecutive)]
    return SpeedRecords(study, tuple(sweeps.values()), *of_steps)


def _refuse_mixed(attempts: dict[Path, Attempt]) -> None:
    """Times of two machines, or of two versions of torch, cannot be set beside one another."""
    machines = [(path, (a.host, a.cpu, a.packages.get("torch", "unknown"))) for path, a in attempts.items()]
    for path, machine in machines:
        first, expected = machines[0]
        for what, ours, theirs in zip(("host", "CPU", "torch"), expected, machine, strict=True):
            if ours != theirs:
                raise RecordError(
                    f"{path} was timed on another machine than {first.name} ({what} {theirs}, not {ours}); "
                    "keep each machine's records in a study of their own"
                )


def step_of(cells: Sequence[Cell]) -> dict[str, Any]:
    """A method's step over its period, from a cell of each kind of its steps.

    Returns:
        `seconds`, bounded by `low` and `high`, and `interval`, which says how: "t" is 95 % of the mean of ten steps or
        more of each kind; "range" is the lowest to the highest of fewer, whose `seconds` are medians. And `num_steps`.
    """
    if min(len(cell.seconds) for cell in cells) >= ENOUGH:
        interval, (seconds, low, high) = "t", mean_step(cells)
    else:
        interval, (seconds, low, high) = "range", tuple(_mixed(cells, "seconds", of) for of in (median, min, max))
    num_steps = sum(len(cell.seconds) for cell in cells)
    return {"seconds": seconds, "low": low, "high": high, "interval": interval, "num_steps": num_steps}


def wide_frame(timings: Sequence[Timing]) -> pd.DataFrame:
    """One line a method and latency of the links, with its step over its period, as in `step_of`."""
    lines = []
    for timing in sorted(timings, key=lambda each: each.fabric.latency_seconds):
        place = {key: getattr(timing.fabric, key) for key in ("latency_seconds", "bits_per_second")}
        for method in timing.methods:
            step = step_of(timing.cells_of(method.name, timing.fabric.bits_per_second))
            lines.append({"method": method.name, "label": method.label, **place, **step})
    return pd.DataFrame(lines)


def consecutive_frame(timings: Sequence[Timing]) -> pd.DataFrame:
    """One line a method and condition, which is a latency or who is slow, with its consecutive steps, as `wide_frame`.

    `passes_seconds` is a worker's own time of a step, the mean over workers.
    """

    def order(timing: Timing) -> tuple[float, ...]:
        slow = timing.stragglers
        return (0, timing.fabric.latency_seconds) if slow is None else (1, slow.who == "in turn", slow.factor)

    frames = []
    for timing in sorted(timings, key=order):
        latency, slow = f"{1e3 * timing.fabric.latency_seconds:g} ms", timing.stragglers
        condition = latency if slow is None else f"{slow.who} {slow.factor:g}x"
        cells = [timing.cells_of(each.name, timing.fabric.bits_per_second) for each in timing.methods]
        passes = [_mixed(each, "compute_seconds") for each in cells]
        frames.append(wide_frame([timing]).assign(condition=condition, passes_seconds=passes))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _mixed(cells: Sequence[Cell], name: str, of: Callable[[Sequence[float]], float] = median) -> float:
    return math.fsum(cell.share * of(getattr(cell, name)) for cell in cells)


def cells_frame(timings: Sequence[Timing]) -> pd.DataFrame:
    """One line a timing and method whose kinds of step were all timed, in the order of the records.

    `seconds`, `low`, `high` and `interval` are as in `step_of`, in the device's time: a slowed clock is undone. They
    have the codec in them where it was measured, and not where it was emulated, since the codec was not slowed.
    `codec_seconds` is as on the clock, and `communication_seconds` is neither passes nor codec.
    """
    lines = []
    for number, timing in enumerate(timings):
        fabric, is_emulated = timing.fabric, timing.basis == "emulated"
        place = {
            "timing": number,
            "workload": timing.workload.name,
            "basis": timing.basis,
            "machines": fabric.num_machines,
            "workers_per_machine": fabric.workers_per_machine,
            "bits_per_second": fabric.stands_for_bits_per_second,
            "dilation": fabric.dilation,
        }
        for method in timing.methods:
            cells = [cell for cell in timing.cells if cell.method == method.name and cell.seconds]
            if not math.isclose(sum(cell.share for cell in cells), 1.0):
                continue
            ratio = method.ratio(timing.workload.num_parameters)
            numbers = step_of(cells) | {name: _mixed(cells, name) for name in _PARTS}
            codec, passes = numbers["codec_seconds"], numbers["compute_seconds"]
            hides = is_emulated and method.baseline and ratio > _ENCODES
            named = {"method": method.name, "label": method.label, "baseline": method.baseline, "ratio": ratio}
            derived = {
                "communication_seconds": numbers["seconds"] - passes - (0.0 if is_emulated else codec),
                "crowded": hides and codec > CROWDED * fabric.dilation * passes,
            }
            lines.append(place | named | numbers | derived)
    return pd.DataFrame(lines)
