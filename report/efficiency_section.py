"""The first section of an accuracy report: what a step of each method is worth.

templates/efficiency.md.j2 puts its tables in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from cser_bench.harness.records.experiment import Prediction
from cser_bench.report.efficiency import efficiency_frame
from cser_bench.report.frame import Frames, read_frames
from cser_bench.report.setting import setting_in_short
from cser_bench.report.statistics import accuracy_frame, rows_by_place
from cser_bench.report.wording import FORMATS, NONE, gap_cell

BY_DEFINITION = "1"
"""The efficiency of the baseline itself."""


@dataclass(frozen=True)
class EfficiencySection:
    """What the template shows.

    Attributes:
        methods: one line a method at the experiment's own size and length, the baseline first and
            then by falling score. Columns: label, setting, traffic (share of DDP's in fp32), mean, drop, by_loss,
            by_score.
        curve: the baseline's lengths. Columns: num_steps, learning_rate, num_runs, mean, test_loss.
        predictions: columns label, predicted, tolerance, source, found, verdict.
        has_two_scores: whether `by_score` is another score than the test loss.
        curve_name: the experiment that the other lengths are from; None where it is this one.
    """

    methods: pd.DataFrame
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
    own = accuracy[accuracy["is_own"]]
    by_loss = _cells(efficiency, "test_loss")
    by_score = _cells(efficiency, "score")
    has_two_scores = bool(by_score)
    shown = own[own["row"].isin(by_loss.keys() | by_score.keys())]
    if shown.empty:
        return None
    baseline = str(frames.experiment.baseline)
    by_loss[baseline] = by_score[baseline] = BY_DEFINITION
    shown = pd.concat([own[own["row"] == baseline], shown])
    settings = {row.row: setting_in_short(row) for row in frames.experiment.rows}
    methods = pd.DataFrame(
        {
            "label": shown["label"],
            "setting": [settings[row] for row in shown["row"]],
            "traffic": shown["link_models"] / _baseline_models(frames),
            "mean": shown["mean"],
            "drop": [drop_in_words(line, frames) for line in shown.to_dict("records")],
            "by_loss": [by_loss.get(row, NONE) for row in shown["row"]],
            "by_score": [by_score.get(row, NONE) for row in shown["row"]],
        }
    )
    # The baseline stays first.
    order = 1 + np.argsort(-shown["mean"].to_numpy()[1:], kind="stable")
    methods = methods.iloc[[0, *order]]
    return EfficiencySection(
        methods=methods,
        curve=_curve_table(frames),
        predictions=_predictions_table(frames, efficiency),
        has_two_scores=has_two_scores,
        curve_name=frames.experiment.curve,
    )


def curve_frames(frames: Frames) -> Frames | None:
    """Return the experiment that ran the baseline at other lengths; None where none is at hand."""
    folder = None if frames.experiment.curve is None else beside(frames, frames.experiment.curve)
    return None if folder is None else read_frames(folder)


def beside(frames: Frames, name: str) -> Path | None:
    """Return the folder of another experiment, beside this one's or where records ship."""
    above = frames.folder.parent
    for place in (above, above / "reference", above.parent, above.parent / "reference"):
        if (place / name / "experiment.json").exists():
            return place / name
    return None


def _baseline_models(frames: Frames) -> float:
    """Return what the baseline's link carries in a run, in models."""
    assert frames.experiment.baseline is not None, "rows were compared with it"
    return float(frames.row(frames.experiment.baseline)["link_models"])


def _cells(efficiency: pd.DataFrame, score_name: str) -> dict[str, str]:
    """Return the text of each row's efficiency by a score."""
    lines = efficiency[efficiency["score_name"] == score_name]
    return {str(line["row"]): efficiency_cell(line) for line in lines.to_dict("records")}


def efficiency_cell(line: Mapping[Any, Any]) -> str:
    """Write an efficiency: "0.63 (0.55 to 0.71)", "at most 0.20", or a dash with its reason."""
    if line["kind"] == "none":
        return f"{NONE} ({line['reason']})"
    if line["kind"] != "estimate":
        return f"{line['kind']} {line['efficiency']:.2f}"
    return f"{line['efficiency']:.2f} ({line['low']:.2f} to {line['high']:.2f})"


def drop_in_words(line: Mapping[Any, Any], frames: Frames) -> str:
    """Write how much worse than the baseline a row is: positive is worse."""
    ends = (line["difference"], line["difference_low"], line["difference_high"])
    return gap_cell(*ends, frames.metric.loss_unit)


def _curve_table(frames: Frames) -> pd.DataFrame:
    """Return the baseline's lengths with their learning rates, means and numbers of runs."""
    lines = {}
    for source in filter(None, (curve_frames(frames), frames)):
        own_size = int(frames.rows["num_parameters"].iloc[0])
        for (size, steps), row in rows_by_place(source, source.experiment.baseline).items():
            runs = source.runs[(source.runs["row"] == row) & (source.runs["status"] == "done")]
            if size == own_size and len(runs):
                rate = float(source.row(row)["learning_rate"])
                means = (runs["score"].mean(), runs["test_loss"].mean())
                lines[steps] = (steps, rate, len(runs), *means)
    columns = ["num_steps", "learning_rate", "num_runs", "mean", "test_loss"]
    return pd.DataFrame([lines[steps] for steps in sorted(lines)], columns=columns)


def _predictions_table(frames: Frames, efficiency: pd.DataFrame) -> pd.DataFrame:
    """Return what was predicted beside what was found."""
    lines = []
    for predicted in frames.experiment.predictions or []:
        found = efficiency[efficiency["row"] == predicted.row]
        value = _predicted(frames, predicted)
        line = found.iloc[0].to_dict() if len(found) else {"kind": "none", "reason": "not run"}
        lines.append(
            {
                "label": frames.row(predicted.row)["label"],
                "predicted": value,
                "source": predicted.source,
                "found": efficiency_cell(line),
                "verdict": _verdict(line, value, predicted.tolerance),
            }
        )
    return pd.DataFrame(lines, columns=["label", "predicted", "source", "found", "verdict"])


def _predicted(frames: Frames, predicted: Prediction) -> float:
    """Return the predicted efficiency; NaN where its experiment has none."""
    if predicted.efficiency is not None:
        return predicted.efficiency
    assert predicted.experiment is not None, "a prediction has either"
    folder = beside(frames, predicted.experiment)
    if folder is None:
        return math.nan
    other = read_frames(folder)
    table = efficiency_frame(other, curve_frames(other))
    found = table[(table["row"] == predicted.row) & (table["kind"] == "estimate")]
    return float(found["efficiency"].iloc[0]) if len(found) else math.nan


def _verdict(line: Mapping[Any, Any], predicted: float, tolerance: float) -> str:
    """Say whether the whole interval, part of it, or none lies within the tolerance."""
    if line["kind"] != "estimate" or math.isnan(predicted):
        return "not known"
    low, high = (math.log(line[end] / predicted) for end in ("low", "high"))
    if -tolerance < low and high < tolerance:
        return "as predicted"
    if low > tolerance or high < -tolerance:
        return "fails"
    return "inconclusive"


Columns = dict[str, tuple[str, str]]
"""Of a table: by the frame's column its head, and the name of a format of `report.wording`."""


def method_columns(frames: Frames, section: EfficiencySection | None) -> Columns:
    """Return the columns of the table of methods."""
    unit = "%" if frames.metric.is_share else "nats"
    columns = {
        "label": ("method", "text"),
        "setting": ("setting", "text"),
        "traffic": ("traffic", "traffic"),
        "mean": (f"{frames.metric.score_label}, {unit}", _score_format(frames)),
        "drop": (f"drop, {frames.metric.loss_unit}", "text"),
        "by_loss": ("efficiency by test loss", "text"),
        "by_score": (f"by {frames.metric.score_label}", "text"),
    }
    if section is not None and not section.has_two_scores:
        del columns["by_score"]
    return columns


def curve_columns(frames: Frames, section: EfficiencySection | None) -> Columns:
    """Return the columns of the table of the baseline's lengths."""
    unit = "%" if frames.metric.is_share else "nats"
    columns = {
        "num_steps": ("steps", "count"),
        "learning_rate": ("learning rate", "short"),
        "num_runs": ("runs", "count"),
        "mean": (f"{frames.metric.score_label}, {unit}", _score_format(frames)),
        "test_loss": ("test loss, nats", "loss"),
    }
    if section is not None and not section.has_two_scores:
        del columns["test_loss"]
    return columns


def _score_format(frames: Frames) -> str:
    return "percent" if frames.metric.is_share else "nats"


def terminal_table(section: EfficiencySection, columns: Columns) -> str:
    """Return the methods as a table for a terminal, with the efficiency by one score."""
    columns = {key: column for key, column in columns.items() if key != "by_score"}
    cells = [
        [FORMATS[name](line[column]) for column, (_, name) in columns.items()]
        for line in section.methods.to_dict("records")
    ]
    heads = [head for head, _ in columns.values()]
    # Numbers are texts by now, which tabulate would read as numbers again.
    return tabulate(cells, heads, disable_numparse=True)


READING = """Efficiency: the steps that the baseline needs to a method's score, over the method's steps; 0.6 means that
ten steps of the method are worth six of DDP. Drop: how far the score lies below the baseline's. Traffic: a share
of DDP's in fp32. In brackets: 95 % CI."""
"""How to read the table, below it on a terminal."""


def terminal_text(frames: Frames) -> str | None:
    """Return the table of efficiencies with how to read it; None where the experiment has none."""
    accuracy = accuracy_frame(frames)
    section = efficiency_section(frames, accuracy, efficiency_frame(frames, curve_frames(frames)))
    if section is None:
        return None
    return f"{terminal_table(section, method_columns(frames, section))}\n\n{READING}"
