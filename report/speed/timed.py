"""Steps by the clock as lines of frames: of a study's networks, and of the settings that an experiment scores.

Speed is joined to accuracy by settings: a row's step is that of the timed method whose settings are the row's.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from harness.records.experiment import Row
from harness.records.store import Attempt, RecordError, read_record
from harness.records.timings import Cell, Method, Sweep, Timing, TimingStudy, mean_step
from report.frame import JUDGED, Frames, UsageError, read_frames
from report.statistics import against_baseline

STUDY = "study.json"
SCORED = "scored_speedups"
"""The folder beside a study's that may hold sessions of scored methods, too."""
ENOUGH = 10
"""Steps of each kind from which on a mean has a t interval; of fewer there are medians and their range."""
CROWDED = 0.15
"""Share of the slowed passes beyond which a codec that hides behind them no longer fits, on the host's cores."""
_ENCODES = 2.5
"""Baselines of a larger ratio encode behind the backward pass; an fp16 hook's ratio is 2."""
_STEP = ["method", "label", "algorithm", "bits_per_second", "seconds", "low", "high", "interval", "num_steps"]
_STEP += ["num_sessions", "codec_alone_seconds"]
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


def scored_steps_frame(sessions: Sequence[Timing]) -> pd.DataFrame:
    """One line a scored method and rate of the links: its emulated step, without encoding and update.

    `seconds` is the mean over sessions of each one's step over the method's period. Of one session `low`, `high` and
    `interval` are as in `step_of`; of several they are the lowest and highest of their means, and it is "sessions".
    """
    found: dict[tuple[str, float], list[tuple[Method, dict[str, Any]]]] = {}
    for session in sessions:
        rates = sorted({cell.bits_per_second for cell in session.cells if cell.bits_per_second})
        for method in session.methods:
            for bits in rates:
                cells = session.cells_of(method.name, bits)
                if math.isclose(sum(cell.share for cell in cells), 1.0):
                    found.setdefault((method.name, bits), []).append((method, step_of(cells)))
    lines = []
    for (name, bits), known in found.items():
        method, step = known[0]
        means = [each["seconds"] for _, each in known]
        if len(known) > 1:
            step = {"low": min(means), "high": max(means), "interval": "sessions"}
        alone = [each.codec_alone_seconds for each, _ in known if each.codec_alone_seconds is not None]
        named = {"method": name, "label": method.label, "algorithm": method.algorithm, "bits_per_second": bits}
        step |= {"seconds": math.fsum(means) / len(means), "num_steps": sum(each["num_steps"] for _, each in known)}
        lines.append(named | step | {"num_sessions": len(known), "codec_alone_seconds": alone[0] if alone else None})
    return pd.DataFrame(lines, columns=_STEP)


def joined_frame(frames: Frames, sessions: Sequence[Timing]) -> pd.DataFrame:
    """One line a row of the experiment's own length and rate of the links: what it loses, and its step.

    A row and a timed method are joined where algorithm, settings and momentum are equal, or where the row is SGD's
    and the method is DDP with rows of its own. `estimate` is the row's score minus the baseline's, a
    share, with its 95 % interval; a row that diverged has none. A row that was not timed has one line, without rate and
    seconds. `frontier`: no other line of the same rate is as fast or faster and loses no more.
    """
    name, baseline = frames.experiment.name, frames.experiment.baseline
    own = [row for row in frames.experiment.rows if row.base is None and row.rule == "held_out" and row.tunes is None]
    methods = [method for session in sessions for method in session.methods]
    pairs = dict.fromkeys((row.row, method.name) for row in own for method in methods if _is_of(method, row))
    steps = scored_steps_frame(sessions).drop(columns=["algorithm", "codec_alone_seconds"])
    steps = steps.rename(columns={"label": "timed_label", "low": "seconds_low", "high": "seconds_high"})
    losses = against_baseline(frames)[["row", "estimate", "low", "high"]]
    losses = losses[~losses["row"].isin(frames.runs.loc[frames.runs["status"] == "diverged", "row"])]
    nothing = pd.DataFrame([(baseline, 0.0, 0.0, 0.0)], columns=losses.columns)

    rows = frames.rows[frames.rows["row"].isin([row.row for row in own])]
    frame = rows[["row", "label", "algorithm", "ratio", "models_sent"]].assign(experiment=name)
    frame = frame.merge(pd.concat([losses, nothing]), how="left", on="row")
    frame = frame.merge(pd.DataFrame([*pairs], columns=["row", "method"]), how="left", on="row")
    frame = frame.merge(steps, how="left", on="method")
    frame["label"] = frame["timed_label"].where(frame["row"] == baseline).fillna(frame["label"])
    ordered = frame.dropna(subset=["seconds", "estimate"]).sort_values(["seconds", "estimate"], ascending=[True, False])
    best = ordered.groupby("bits_per_second")["estimate"].cummax()
    beaten = best.groupby(ordered["bits_per_second"]).shift(fill_value=-math.inf)
    frame["frontier"] = frame.index.isin(ordered.index[ordered["estimate"] > beaten])
    return frame.drop(columns="timed_label")


def baselines_frame(sessions: Sequence[Timing]) -> pd.DataFrame:
    """Steps of the sessions' baselines with the columns of `joined_frame`, scored or not; the ratio is of the timed
    network."""
    ratios = {m.name: m.ratio(each.workload.num_parameters) for each in sessions for m in each.methods if m.baseline}
    steps = scored_steps_frame(sessions).rename(columns={"low": "seconds_low", "high": "seconds_high"})
    steps = steps[steps["method"].isin(ratios.keys())]
    return steps.assign(row=steps["method"], ratio=steps["method"].map(ratios), estimate=math.nan)


def _is_of(method: Method, row: Row) -> bool:
    equal = (method.algorithm, method.settings, method.momentum) == (row.algorithm, row.settings, row.momentum)
    return equal or (method.algorithm == "ddp" and bool(method.rows) and row.algorithm == "sgd")


def experiments_beside(folder: Path, records: SpeedRecords, given: Sequence[Path] = ()) -> list[Frames]:
    """The accuracy experiments whose losses stand beside a study's step times.

    Args:
        folder: of the study.
        given: the experiments' folders; none: the judged one and those whose rows the sessions name, where they lie
            beside the study or under reference/.

    Raises:
        UsageError: a folder holds no experiment, or is given twice.
    """
    if len({path.resolve() for path in given}) < len(given):
        raise UsageError("--accuracy names the same experiment twice; give each once")
    if given:
        return [read_frames(path) for path in given]
    named = (row.split("/")[0] for each in records.sessions for method in each.methods for row in method.rows)
    names = dict.fromkeys((JUDGED, *named))
    places = [place / name for name in names for place in (folder.parent, folder.parent / "reference")]
    return [read_frames(place) for place in places if (place / "experiment.json").exists()]
