"""The tables of an accuracy experiment, whole and unrounded, as they go to CSV and, cut down, to the report's pages."""

from __future__ import annotations

import pandas as pd

from report.frame import Frames
from report.regime import assay_frame, lost_frame, needs_frame, predictors_frame
from report.statistics import against_baseline, contrasts_frame, rates_frame, summary_frame
from report.wording import short

_ROW = ["row", "label", "algorithm", "ratio", "learning_rate", "momentum", "num_steps", "models_sent", "link_models"]


def tables_of(frames: Frames) -> dict[str, pd.DataFrame]:
    """Every table of the report, whole and unrounded, by the name of its CSV file."""
    lost = lost_frame(frames)
    return {
        "accuracy": accuracy_frame(frames),
        "contrasts": contrasts_frame(frames),
        "needs": needs_frame(frames),
        "lengths": assay_frame(frames),
        "lost": lost,
        "predictors": predictors_frame(lost),
        "rates": rates_frame(frames),
        "tuning_cost": tuning_frame(frames),
    }


def accuracy_frame(frames: Frames) -> pd.DataFrame:
    """All rows with their mean and their difference to the baseline of their length, in the order of the plan.

    Columns: those of `Frames.rows` without its settings; num_planned, num_diverged, num_runs, mean, deviation, low,
    high; difference, standard_error, degrees, difference_low, difference_high; is_bound, is_own (a row of its own, at
    the experiment's length and the settings that were chosen for it).
    """
    status = frames.runs.groupby("row")["status"]
    counts = pd.DataFrame(
        {"num_planned": status.size(), "num_diverged": status.agg(lambda of: (of == "diverged").sum())}
    )
    names = {"estimate": "difference", "low": "difference_low", "high": "difference_high"}
    against = against_baseline(frames).rename(columns=names).drop(columns="reference")
    found = frames.rows[[*_ROW, "base", "rule"]]
    for others in (counts, summary_frame(frames), against):
        found = found.merge(others, on="row", how="left")
    found["num_runs"] = found["num_runs"].fillna(0).astype(int)
    bounds = {frames.experiment.baseline, frames.experiment.floor} - {None}
    found["is_bound"] = found["row"].isin(bounds) | found["base"].isin(bounds)
    found["is_own"] = found["base"].isna() & (found["rule"] == "held_out")
    return found


def tuning_frame(frames: Frames) -> pd.DataFrame:
    """What the search cost by method: label, num_rows, num_trials, num_runs, num_epochs, rates, num_at_end."""
    named = frames.experiment.tuning
    choices, selected = (named.choices, named.selected) if named else ({}, {})
    tried = frames.tuning[frames.tuning["row"].isin(frames.by_row.index)] if selected else frames.tuning
    lines = []
    for label, group in tried.groupby("label", sort=False):
        mine = list(group["row"].unique())
        rates = sorted({selected[row] for row in mine if row in selected})
        at_end = sum(choices[row].at_end for row in mine if row in choices)
        epochs = group.drop_duplicates("run_id")["num_epochs"].sum()
        said = ", ".join(short(rate) for rate in rates) or None
        lines.append((label, len(mine), group["trial"].nunique(), group["run_id"].nunique(), epochs, said, at_end))
    columns = ["label", "num_rows", "num_trials", "num_runs", "num_epochs", "rates", "num_at_end"]
    return pd.DataFrame(lines, columns=columns)
