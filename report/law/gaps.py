"""Gaps: what a method loses to the baseline, of each seed and of each cell.

The gap is the baseline's score less the row's, at the same size, length and seed, so that initial
parameters and order are the same; of a loss it is in nats. A cell is a size and a length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from cser_bench.report.frame import Frames

SHARED = [
    "row",
    "label",
    "name",
    "cell",
    "num_parameters",
    "num_steps",
    "interval",
    "rounds",
    "steps_a_parameter",
    "held_back",
]
"""What a cell's seeds have in common: columns of `gaps_frame` and `cells_frame`."""


def gaps_frame(frames: Frames) -> pd.DataFrame:
    """Return one line a row, cell and seed of which both the row's run and the baseline's are done.

    Columns: row (as it is called in all cells), label, name (of the planned row), cell,
    num_parameters, num_steps, interval, rounds, steps_a_parameter, held_back, seed, score,
    baseline, gap.
    """
    baselines: dict[tuple[int, int], dict[Any, float]] = {}
    others = []
    for row in _rows(frames):
        if row["row"] == frames.experiment.baseline:
            baselines[_place(row)] = frames.done(row["name"]).to_dict()
        else:
            others.append(row)
    lines = []
    for row in others:
        baseline_scores = baselines.get(_place(row), {})
        for seed, score in frames.done(row["name"]).to_dict().items():
            if seed not in baseline_scores:
                continue
            baseline = baseline_scores[seed]
            line = {
                "seed": seed,
                "score": score,
                "baseline": baseline,
                "gap": baseline - score,
            }
            lines.append(row | line)
    columns = [*SHARED, "seed", "score", "baseline", "gap"]
    # Of no line the columns would be objects, which cannot be asked for what is not so.
    return pd.DataFrame(lines, columns=columns).astype({"held_back": bool})


def _rows(frames: Frames) -> Iterator[dict[str, Any]]:
    """Yield what the plan says of each row in each cell: the columns `SHARED`."""
    planned = frames.rows[frames.rows["rule"] == "held_out"]
    for row in planned.to_dict("records"):
        # A row of another cell than the experiment's first is named NAME@CELL.
        base, _, cell = str(row["row"]).partition("@")
        interval = interval_of(row)
        num_steps = int(row["num_steps"])
        yield {
            "row": base,
            "label": row["label"],
            "name": row["row"],
            "cell": cell,
            "num_parameters": int(row["num_parameters"]),
            "num_steps": num_steps,
            "interval": interval,
            "rounds": num_steps / interval,
            "steps_a_parameter": num_steps / row["num_parameters"],
            # Absent, or NaN where another row of the frame is held back.
            "held_back": row.get("held_back") is True,
        }


def _place(row: dict[str, Any]) -> tuple[int, int]:
    return row["num_parameters"], row["num_steps"]


def diverged_rows(frames: Frames) -> dict[str, str]:
    """Return the planned row of which a run diverged, by row as it is called in all cells.

    Rows that no law is fitted to are left out.
    """
    diverged = {}
    for row in _rows(frames):
        if not row["held_back"] and frames.count(row["name"], "diverged"):
            diverged[row["row"]] = row["name"]
    return diverged


def interval_of(row: Mapping[Any, Any]) -> float:
    """Return the steps between two rounds in which all that a method sends has been sent.

    1 where it sends at every step.
    """
    for key in ("sync_interval", "reset_interval"):
        value = row.get(key)
        if isinstance(value, int | float) and not math.isnan(value):
            return float(value)
    return 1.0


def cells_frame(gaps: pd.DataFrame) -> pd.DataFrame:
    """Return one line a row and cell: the means over seeds, in three units.

    Columns: those of `gaps_frame` without seed; num_seeds; deviation (of the gap between seeds);
    share (of the baseline's loss, or of a score that is a share); baseline_steps (in which the
    baseline would come as far, from its own scores at this size) and steps_saved. Steps are NaN
    where the row came less far than the baseline's shortest run, or the baseline has one length at
    this size. baseline_steps_below: the steps of that shortest run, where it came further and was
    shorter than the row's own; else NaN.
    """
    curves = {}
    for size, of_size in gaps.groupby("num_parameters"):
        curves[size] = of_size.groupby("num_steps")["baseline"].mean()
    lines = []
    for _, seeds in gaps.groupby(["row", "num_parameters", "num_steps"], sort=False):
        shared = seeds.iloc[0][SHARED].to_dict()
        means = seeds[["score", "baseline", "gap"]].mean().to_dict()
        # Another size would come to the score in other steps, so each has a curve of its own.
        baseline_steps = steps_to(means["score"], curves[shared["num_parameters"]])
        numbers = {
            "num_seeds": len(seeds),
            "deviation": float(seeds["gap"].std(ddof=1)),
            "share": means["gap"] / abs(means["baseline"]),
            "baseline_steps": baseline_steps,
            "steps_saved": shared["num_steps"] - baseline_steps,
            "baseline_steps_below": math.nan,
        }
        shortest = curves[shared["num_parameters"]].sort_index()
        came_further = shortest.iloc[0] >= means["score"]
        if came_further and shortest.index[0] < shared["num_steps"]:
            numbers["baseline_steps_below"] = float(shortest.index[0])
        lines.append(shared | means | numbers)
    columns = [
        *SHARED,
        "score",
        "baseline",
        "gap",
        "num_seeds",
        "deviation",
        "share",
        "baseline_steps",
        "steps_saved",
        "baseline_steps_below",
    ]
    return pd.DataFrame(lines, columns=columns).astype({"held_back": bool})


def steps_to(score: float, curve: pd.Series[float]) -> float:
    """Return the steps in which the baseline comes to a score, by its scores by number of steps.

    Between them it goes in straight lines over log steps. NaN where that is before its shortest
    run; where it is beyond its longest, the last stretch goes on.
    """
    curve = curve.sort_index()
    log_steps = np.log(curve.index.to_numpy(dtype=float))
    # A longer run that came less far, by chance, does not make the curve turn back.
    scores = np.maximum.accumulate(curve.to_numpy(dtype=float))
    last = len(log_steps) - 1
    if last < 1 or score < scores[0]:
        return math.nan
    after = int(np.searchsorted(scores, score))
    after = min(max(after, 1), last)
    before = after - 1
    rise = scores[after] - scores[before]
    # Only a first or last stretch can be flat here: it does not say in how many steps a score is
    # reached.
    if rise <= 0:
        return math.nan
    share = (score - scores[before]) / rise
    stretch = log_steps[after] - log_steps[before]
    return float(np.exp(log_steps[before] + share * stretch))


def rate_costs_frame(frames: Frames) -> pd.DataFrame:
    """Return what half a step of the learning rate costs where it was chosen, from the trials.

    It is read off a parabola through three. Columns: row (as it is called in all cells), name (of
    the tuned row), learning_rate, half_step (in the unit of the gap; NaN where a neighbour
    diverged), at_end (whether the chosen rate is the last tried). Half a step is the most by which
    a best rate between those tried can be missed.
    """
    columns = ["row", "name", "learning_rate", "half_step", "at_end"]
    if frames.experiment.tuning is None:
        return pd.DataFrame(columns=columns)
    trials = frames.tuning
    lines = []
    for name, choice in frames.experiment.tuning.choices.items():
        # A row that was searched over rates alone has no candidates, and its choice says 0.
        is_candidate = trials["candidate"].fillna(0) == choice.candidate
        own_trials = trials[(trials["row"] == name) & is_candidate]
        means = own_trials.groupby("learning_rate")["score"].mean().sort_index()
        half_step = _half_step(means, choice.learning_rate)
        row = name.partition("@")[0]
        lines.append(
            (
                row,
                name,
                choice.learning_rate,
                half_step,
                # Not where it is NaN: then a neighbour diverged, and the rate is at no end.
                half_step is None,
            )
        )
    costs = pd.DataFrame(lines, columns=columns)
    return costs.astype({"half_step": float})


def _half_step(means: pd.Series[float], chosen_rate: float) -> float | None:
    """Return what half a step costs, of scores by rate; None where the chosen rate is at an end."""
    if means.empty:
        return None
    rates = means.index.to_numpy(dtype=float)
    chosen = int(np.abs(np.log(rates / chosen_rate)).argmin())
    if not 0 < chosen < len(rates) - 1:
        return None
    # The second difference of a parabola is twice what a whole step costs, half a step a quarter.
    neighbours = means.iloc[[chosen - 1, chosen + 1]].sum()
    return float(2 * means.iloc[chosen] - neighbours) / 8
