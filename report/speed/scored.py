"""Speed joined to accuracy: steps of exactly the configurations that an experiment scores, found by their settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.records.experiment import Row
from harness.records.timings import Method, Timing, mean_step
from report.frame import Frames, read_frames
from report.speed.timed import ENOUGH
from report.statistics import against_baseline


def scored_steps_frame(sessions: Sequence[Timing]) -> pd.DataFrame:
    """One line a scored method and rate of the links: its emulated step, without encoding and update.

    `seconds` is the mean over sessions of each one's mean step over the method's period. Of one session `low` and
    `high` are its 95 % t interval, and `interval` is "t"; of several they are the lowest and highest of their means,
    and it is "sessions". A session with fewer than ten steps of a kind gives a "range", the lowest to the highest step.
    """
    found: dict[tuple[str, float], list[tuple[Timing, Method]]] = {}
    for session in sessions:
        rates = sorted({cell.bits_per_second for cell in session.cells if cell.bits_per_second})
        for method in session.methods:
            for bits in rates:
                if math.isclose(sum(cell.share for cell in session.cells_of(method.name, bits)), 1.0):
                    found.setdefault((method.name, bits), []).append((session, method))
    lines = []
    for (name, bits), known in found.items():
        method, steps = known[0][1], [_step(session, name, bits) for session, _ in known]
        means = [step[0] for step in steps]
        low, high, kind = steps[0][1:4] if len(steps) == 1 else (min(means), max(means), "sessions")
        alone = [each.codec_alone_seconds for _, each in known if each.codec_alone_seconds is not None]
        lines.append(
            {
                "method": name,
                "label": method.label,
                "algorithm": method.algorithm,
                "bits_per_second": bits,
                "seconds": math.fsum(means) / len(means),
                "low": low,
                "high": high,
                "interval": kind,
                "num_steps": sum(step[4] for step in steps),
                "num_sessions": len(steps),
                "codec_alone_seconds": alone[0] if alone else math.nan,
            }
        )
    return pd.DataFrame(lines)


def _step(session: Timing, name: str, bits: float) -> tuple[float, float, float, str, int]:
    """Mean seconds of a session's step, low and high, which interval that is, and how many steps were timed."""
    cells = session.cells_of(name, bits)
    count = sum(len(cell.seconds) for cell in cells)
    if min(len(cell.seconds) for cell in cells) >= ENOUGH:
        return (*mean_step(cells), "t", count)
    mean, low, high = (
        math.fsum(cell.share * of(cell.seconds) for cell in cells)
        for of in (lambda each: math.fsum(each) / len(each), min, max)
    )
    return mean, low, high, "range", count


def joined_frame(frames: Frames, sessions: Sequence[Timing]) -> pd.DataFrame:
    """One line a row of the experiment's own length and rate of the links: what it loses, and its step.

    A row and a timed method are joined where algorithm, settings and momentum are equal, or where the method computes
    what the row does, as DDP does SGD's, and its record says so. `estimate` is the row's score minus the baseline's, a
    share, with its 95 % interval; a row that diverged has none. A row that was not timed has no seconds. `frontier`: no
    other line of the same rate is as fast or faster and loses no more.
    """
    losses = against_baseline(frames).set_index("row")
    steps = scored_steps_frame(sessions)
    rates = sorted(steps["bits_per_second"].unique()) if len(steps) else [math.nan]
    lines = []
    for row in frames.experiment.rows:
        if row.base is not None or row.rule != "held_out" or row.tunes is not None:
            continue
        loss: dict[Any, float] = dict.fromkeys(("estimate", "low", "high"), math.nan)
        if row.row == frames.experiment.baseline:
            loss = dict.fromkeys(loss, 0.0)
        elif row.row in losses.index and not frames.count(row.row, "diverged"):
            loss = losses.loc[row.row, ["estimate", "low", "high"]].to_dict()
        names: list[str | None] = list(_methods_of(row, frames.experiment.name, sessions)) or [None]
        for name in names:
            for bits in rates:
                timed = steps[(steps["method"] == name) & (steps["bits_per_second"] == bits)] if name else steps[:0]
                step = timed.iloc[0].to_dict() if len(timed) else {}
                lines.append(
                    {
                        "experiment": frames.experiment.name,
                        "row": row.row,
                        "label": step.get("label", row.label) if row.row == frames.experiment.baseline else row.label,
                        "algorithm": row.algorithm,
                        "ratio": row.ratio,
                        "models_sent": row.models_sent,
                        **loss,
                        "method": name,
                        "bits_per_second": bits,
                        "seconds": step.get("seconds", math.nan),
                        "seconds_low": step.get("low", math.nan),
                        "seconds_high": step.get("high", math.nan),
                        "interval": step.get("interval"),
                        "num_steps": step.get("num_steps", 0),
                        "num_sessions": step.get("num_sessions", 0),
                    }
                )
    frame = pd.DataFrame(lines)
    frame["frontier"] = False
    for _, group in frame.dropna(subset=["seconds", "estimate"]).groupby("bits_per_second"):
        ordered = group.sort_values(["seconds", "estimate"], ascending=[True, False])
        best = ordered["estimate"].cummax()
        frame.loc[ordered.index[ordered["estimate"] > best.shift(fill_value=-math.inf)], "frontier"] = True
    return frame


def _methods_of(row: Row, experiment: str, sessions: Sequence[Timing]) -> Iterator[str]:
    """Names of the timed methods that are the row's, each once."""
    seen = set()
    for session in sessions:
        for method in session.methods:
            is_equal = (method.algorithm, method.settings, method.momentum) == (
                row.algorithm,
                row.settings,
                row.momentum,
            )
            is_said = f"{experiment}/{row.row}" in method.rows and method.algorithm == "ddp"
            if (is_equal or is_said) and method.name not in seen:
                seen.add(method.name)
                yield method.name


def scored_experiments(folder: Path, sessions: Sequence[Timing]) -> list[Frames]:
    """The experiments whose rows the sessions name, where their records lie beside the study or under reference/."""
    names = dict.fromkeys(row.split("/")[0] for s in sessions for method in s.methods for row in method.rows)
    places = [place / name for name in names for place in (folder.parent, folder.parent / "reference")]
    return [read_frames(place) for place in places if (place / "experiment.json").exists()]
