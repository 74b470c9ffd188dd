"""Hours of an experiment's own runs on GPUs, and how much sooner each row ends than the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cser_bench.harness.records.packs import read_runs
from cser_bench.report.frame import Frames
from cser_bench.report.plotting import (
    FAMILIES,
    GREY,
    colour_of,
    end_labels,
    family_handles,
    headline,
    new_figure,
    shape_of,
    style,
)
from cser_bench.report.wording import amount

_LEFT_OUT = ("evaluate", "checkpoint")
"""Phases of a run's clock that are no part of training."""

_COLUMNS = [
    "row",
    "label",
    "algorithm",
    "ratio",
    "learning_rate",
    "mean",
    "num_runs",
    "hours",
    "speed_up",
]

_MOST_NAMED = 12
"""Number of marks whose names have room next to a figure."""


def gpu_set_ups(frames: Frames) -> list[str]:
    """Name the kinds of GPU that runs with a GPU for each worker had, and what started them.

    The latter stands for the network: one machine's own, or that of a cluster. Hours of other runs
    say nothing of a method, as their messages cross no network.
    """
    attempts = frames.attempts
    if attempts.empty:
        return []
    on_gpus = attempts[attempts["backend"] == "nccl"]
    return sorted(
        {f"{line.accelerator} ({line.launch})" for line in on_gpus.itertuples()}
    )


def hours_frame(frames: Frames, accuracy: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each row with finished runs that had a GPU for each worker.

    Columns: row, label, algorithm, ratio, learning_rate, mean (score), num_runs, hours (of training,
    on average over runs), speed_up (the baseline's hours over these). It is empty where there are no
    such runs, or these had several set-ups.
    """
    if len(gpu_set_ups(frames)) != 1:
        return pd.DataFrame(columns=_COLUMNS)
    attempts = frames.attempts
    # A run with an attempt elsewhere has some of its hours from there.
    elsewhere = set(attempts.loc[attempts["backend"] != "nccl", "run_id"])
    records = read_runs(frames.folder)
    done = frames.runs[frames.runs["status"] == "done"]
    lines = []
    for run in done[~done["run_id"].isin(elsewhere)].itertuples():
        result = records[str(run.run_id)].result
        assert result is not None, "the run is done"
        seconds = result.clock_seconds
        trained = sum(
            value for phase, value in seconds.items() if phase not in _LEFT_OUT
        )
        lines.append((run.row, trained / 3600))
    by_row = pd.DataFrame(lines, columns=["row", "hours"]).groupby("row")["hours"]
    hours = by_row.agg(num_runs="size", hours="mean").reset_index()
    # Its own number of runs, of those on GPUs alone.
    table = accuracy.drop(columns="num_runs").merge(hours, on="row")
    of_baseline = table.loc[table["row"] == frames.experiment.baseline, "hours"]
    baseline_hours = math.nan
    if len(of_baseline):
        baseline_hours = of_baseline.iloc[0]
    return table.assign(speed_up=baseline_hours / table["hours"])[_COLUMNS]


def draw_hours(hours: pd.DataFrame, frames: Frames, title: str) -> Figure:
    """Draw scores against speed-ups: a mark for each method and ratio, at the best of its settings.

    Args:
        hours: of `hours_frame`, where the baseline has hours.
    """
    metric = frames.metric
    factor = 1
    axis_name = metric.score_label
    if metric.is_share:
        factor = 100
        axis_name = f"{metric.score_label}, %"
    best = hours.loc[hours.groupby(["label", "ratio"], sort=False)["mean"].idxmax()]
    families = frames.experiment.families
    with style():
        figure, (axes,) = new_figure(3.2)
        ends = _draw_marks(axes, best, families, factor)
        axes.axvline(1, **GREY)
        is_named = len(ends) <= _MOST_NAMED
        room = 1.05
        # Names stand at the right, and take room.
        if is_named:
            room = 1.6
        axes.set_xlim(0, room * float(best["speed_up"].max()))
        axes.set_xlabel("speed-up: the baseline's hours of training over these")
        axes.set_ylabel(axis_name)
        drawn = dict.fromkeys(families.get(name, "") for name in best["algorithm"])
        figure.legend(
            handles=family_handles([family for family in drawn if family in FAMILIES]),
            loc="outside lower center",
            ncols=4,
        )
        headline(figure, title)
        # After the legend and the headline, which take room.
        if is_named:
            end_labels(axes, ends)
    return figure


def _draw_marks(
    axes: Axes, best: pd.DataFrame, families: Mapping[str, str], factor: int
) -> list[tuple[float, float, str, str]]:
    """Draw a mark a line, and return what `end_labels` takes of each."""
    ends = []
    for line in best.to_dict("records"):
        speed_up = float(line["speed_up"])
        score = factor * float(line["mean"])
        colour = colour_of(line["algorithm"], families)
        shape = shape_of(line["algorithm"], families)
        axes.plot([speed_up], [score], linestyle="None", marker=shape, color=colour)
        name = f"{line['label']}, ratio {amount(line['ratio'])}"
        ends.append((speed_up, score, name, colour))
    return ends
