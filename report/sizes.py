"""The table of an experiment that crosses a network's sizes with lengths of runs."""

from __future__ import annotations

import pandas as pd

from cser_bench.report.efficiency_section import drop_cell
from cser_bench.report.frame import Frames
from cser_bench.report.statistics import against_baseline, summary_frame


def sizes_frame(frames: Frames) -> pd.DataFrame:
    """Return the drop of each method at each size and length, a line each; none at a single size.

    Columns: label, num_parameters, num_steps, num_runs, mean, baseline (its mean there),
    difference, difference_low, difference_high (two-sided 95 %), drop (in words).
    """
    # Index: row, of both frames.
    rows = frames.by_row
    lines = []
    if rows["num_parameters"].nunique() > 1:
        means = summary_frame(frames).set_index("row")
        for line in against_baseline(frames).to_dict("records"):
            planned = rows.loc[line["row"]]
            scored = means.loc[line["row"]]
            lines.append(
                (
                    planned["label"],
                    planned["num_parameters"],
                    planned["num_steps"],
                    int(scored["num_runs"]),
                    scored["mean"],
                    means.loc[line["reference"], "mean"],
                    line["estimate"],
                    line["low"],
                    line["high"],
                )
            )
    columns = [
        "label",
        "num_parameters",
        "num_steps",
        "num_runs",
        "mean",
        "baseline",
        "difference",
        "difference_low",
        "difference_high",
    ]
    frame = pd.DataFrame(lines, columns=columns)
    drops = [drop_cell(line, frames) for line in frame.to_dict("records")]
    # As objects: of no drops at all pandas would make a column of floats.
    frame["drop"] = pd.Series(drops, dtype=object)
    return _in_plan_order(frame, rows["label"])


def _in_plan_order(table: pd.DataFrame, labels: pd.Series[str]) -> pd.DataFrame:
    """Return a table by size and length within a method, and methods in the plan's order."""
    # Not of the alphabet, in which `sort_values` has labels.
    places = {label: number for number, label in enumerate(labels.unique())}
    ordered = table.assign(place=table["label"].map(places))
    ordered = ordered.sort_values(
        ["place", "num_parameters", "num_steps"], ignore_index=True
    )
    return ordered.drop(columns="place")
