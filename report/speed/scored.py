"""Speed joined to accuracy: steps of exactly the configurations that an experiment scores, found by their settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.records.experiment import Row
from harness.records.timings import Method, Timing
from report.frame import JUDGED, Frames, read_frames
from report.speed.timed import step_of
from report.statistics import against_baseline

_STEP = ["method", "label", "algorithm", "bits_per_second", "seconds", "low", "high", "interval", "num_steps"]
_STEP += ["num_sessions", "codec_alone_seconds"]


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


def scored_experiments(folder: Path, sessions: Sequence[Timing]) -> list[Frames]:
    """The judged experiment, then those whose rows the sessions name: beside the study or under reference/."""
    named = (row.split("/")[0] for s in sessions for method in s.methods for row in method.rows)
    names = dict.fromkeys((JUDGED, *named))
    places = [place / name for name in names for place in (folder.parent, folder.parent / "reference")]
    return [read_frames(place) for place in places if (place / "experiment.json").exists()]
