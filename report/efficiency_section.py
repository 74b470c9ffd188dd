"""What an accuracy report says of efficiency below its first table: the baseline's curve, and predictions."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from cser_bench.harness.records.experiment import Prediction
from cser_bench.report.efficiency import efficiency_draws, efficiency_frame
from cser_bench.report.frame import Frames, read_frames
from cser_bench.report.predictions import judged_frame
from cser_bench.report.statistics import rows_by_place
from cser_bench.report.wording import NONE, Columns, gap_cell, score_format, score_unit

BY_DEFINITION = "1"
"""The efficiency of the baseline itself."""


@dataclass(frozen=True)
class EfficiencySection:
    """What the template shows.

    Attributes:
        curve: the baseline's lengths. Columns: num_steps, learning_rate, num_runs, mean, test_loss.
        predictions: columns label, source, found, predicted, p_holm, verdict.
        has_two_scores: whether efficiencies are known by another score than the test loss.
        curve_name: the experiment that the other lengths are from; None where it is this one.
    """

    curve: pd.DataFrame
    predictions: pd.DataFrame
    has_two_scores: bool
    curve_name: str | None


def efficiency_section(
    frames: Frames, accuracy: pd.DataFrame, efficiency: pd.DataFrame
) -> EfficiencySection | None:
    """Return the section; None where no efficiency is known at the experiment's own place.

    Args:
        accuracy: as `accuracy_frame` has it. efficiency: as `efficiency_frame` has it.
    """
    rows = accuracy.loc[accuracy["is_own"], "row"]
    of_rows = efficiency[efficiency["row"].isin(rows)]
    curve = _curve_table(frames)
    # An experiment of the baseline alone is nothing but its curve.
    is_curve_alone = len(frames.experiment.rows) == len(curve)
    if of_rows.empty and not is_curve_alone:
        return None
    return EfficiencySection(
        curve=curve,
        predictions=_predictions_table(frames, efficiency),
        has_two_scores=bool((efficiency["score_name"] == "score").any()),
        curve_name=frames.experiment.curve,
    )


@lru_cache(maxsize=64)
def efficiency_of(frames: Frames) -> pd.DataFrame:
    """Return `efficiency_frame` by the curve that the experiment names, worked out once.

    Frames stay as they were read, so the object itself is the key.
    """
    return efficiency_frame(frames, curve_frames(frames))


@lru_cache(maxsize=64)
def curve_frames(frames: Frames) -> Frames | None:
    """Return the experiment that ran the baseline at other lengths; None where none is at hand."""
    if frames.experiment.curve is None:
        return None
    folder = beside(frames, frames.experiment.curve)
    if folder is None:
        return None
    return read_frames(folder)


def beside(frames: Frames, name: str) -> Path | None:
    """Return the folder of another experiment, beside this one's or where records ship."""
    above = frames.folder.parent
    for place in (above, above / "reference", above.parent, above.parent / "reference"):
        if (place / name / "experiment.json").exists():
            return place / name
    return None


def efficiency_cell(line: Mapping[Any, Any]) -> str:
    """Write an efficiency: "0.63 (0.55 to 0.71)", "at most 0.20", or a dash with its reason."""
    if line["kind"] == "none":
        return f"{NONE} ({line['reason']})"
    if line["kind"] != "estimate":
        return f"{line['kind']} {line['efficiency']:.2f}"
    return f"{line['efficiency']:.2f} ({line['low']:.2f} to {line['high']:.2f})"


def drop_cell(line: Mapping[Any, Any], frames: Frames) -> str:
    """Write how much worse than the baseline a row is: positive is worse."""
    ends = (line["difference"], line["difference_low"], line["difference_high"])
    return gap_cell(*ends, frames.metric.loss_unit)


def _curve_table(frames: Frames) -> pd.DataFrame:
    """Return the baseline's lengths with their learning rates, means and numbers of runs."""
    own_size = int(frames.rows["num_parameters"].iloc[0])
    lines = {}
    # The experiment itself comes last: its runs replace the curve's, as in `efficiency.curve_of`.
    for source in filter(None, (curve_frames(frames), frames)):
        places = rows_by_place(source, source.experiment.baseline)
        is_done = source.runs["status"] == "done"
        for (size, steps), row in places.items():
            runs = source.runs[(source.runs["row"] == row) & is_done]
            if size == own_size and len(runs):
                rate = float(source.row(row)["learning_rate"])
                means = (runs["score"].mean(), runs["test_loss"].mean())
                lines[steps] = (steps, rate, len(runs), *means)
    columns = ["num_steps", "learning_rate", "num_runs", "mean", "test_loss"]
    return pd.DataFrame([lines[steps] for steps in sorted(lines)], columns=columns)


def _predictions_table(frames: Frames, efficiency: pd.DataFrame) -> pd.DataFrame:
    """Return what was predicted beside what was found."""
    predictions = frames.experiment.predictions or []
    values = [_predicted_efficiency(frames, predicted) for predicted in predictions]
    curve = curve_frames(frames)
    judged = judged_frame(
        values,
        [predicted.tolerance for predicted in predictions],
        [efficiency_draws(frames, curve, predicted.row) for predicted in predictions],
    )
    lines = []
    for predicted in predictions:
        line: dict[Hashable, Any] = {"kind": "none", "reason": "not run"}
        # A line by each score, the test loss first: predictions are of that.
        of_row = efficiency[efficiency["row"] == predicted.row]
        if len(of_row):
            line = of_row.iloc[0].to_dict()
        lines.append(
            {
                "label": frames.row(predicted.row)["label"],
                "source": predicted.source,
                "found": efficiency_cell(line),
            }
        )
    table = pd.DataFrame(lines, columns=["label", "source", "found"])
    return table.assign(
        predicted=values, p_holm=judged["p_holm"], verdict=judged["verdict"]
    )


def _predicted_efficiency(frames: Frames, predicted: Prediction) -> float:
    """Return the predicted efficiency; NaN where its experiment has none."""
    if predicted.efficiency is not None:
        return predicted.efficiency
    assert predicted.experiment is not None, "a prediction has either"
    folder = beside(frames, predicted.experiment)
    if folder is None:
        return math.nan
    other = read_frames(folder)
    table = efficiency_of(other)
    found = table[(table["row"] == predicted.row) & (table["kind"] == "estimate")]
    if found.empty:
        return math.nan
    return float(found["efficiency"].iloc[0])


def curve_columns(frames: Frames, section: EfficiencySection | None) -> Columns:
    """Return the columns of the table of the baseline's lengths."""
    metric = frames.metric
    columns = {
        "num_steps": ("steps", "count"),
        "learning_rate": ("learning rate", "short"),
        "num_runs": ("runs", "count"),
        "mean": (f"{metric.score_label}, {score_unit(metric)}", score_format(metric)),
        "test_loss": ("test loss, nats", "loss"),
    }
    if section is not None and not section.has_two_scores:
        del columns["test_loss"]
    return columns
