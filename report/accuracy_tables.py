"""The tables of an accuracy experiment, whole and unrounded, as they go to CSV and, cut down, to the report's pages."""

from __future__ import annotations

import math

import pandas as pd

from report.frame import Frames
from report.regime import assay_frame, lost_frame, needs_frame, predictors_frame
from report.statistics import against_baseline, contrasts_frame, summary_frame
from report.wording import short


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

    Columns: those of `Frames.rows` without its settings; num_runs, num_planned, num_diverged, mean, deviation, low,
    high; difference, standard_error, degrees, difference_low, difference_high; is_bound, is_own (a row of its own, at
    the experiment's length and the settings that were chosen for it).
    """
    columns = [
        "row",
        "label",
        "algorithm",
        "ratio",
        "learning_rate",
        "momentum",
        "num_steps",
        "models_sent",
        "link_models",
    ]
    found = frames.rows[[*columns, "base", "rule"]].merge(summary_frame(frames), on="row", how="left")
    names = {"estimate": "difference", "low": "difference_low", "high": "difference_high"}
    against = against_baseline(frames).rename(columns=names).drop(columns=["reference"])
    found = found.merge(against, on="row", how="left")
    counts = frames.runs.groupby("row")["status"]
    found.insert(11, "num_planned", found["row"].map(counts.size()))
    found.insert(12, "num_diverged", found["row"].map(counts.agg(lambda status: int((status == "diverged").sum()))))
    found["num_runs"] = found["num_runs"].fillna(0).astype(int)
    bounds = {frames.experiment.baseline, frames.experiment.floor}
    found["is_bound"] = found["row"].isin(bounds) | found["base"].isin(bounds) & found["base"].notna()
    found["is_own"] = found["base"].isna() & (found["rule"] == "held_out")
    return found


def rates_frame(frames: Frames) -> pd.DataFrame:
    """Scores at full length by row and learning rate: row, label, learning_rate, is_chosen, score, num_runs, kind.

    `kind` "test": rows that the experiment ran at neighbouring rates, over the seeds that these have. "held out": runs
    of the tuning, where that ran as long as the experiment, with the table of settings that was chosen.
    """
    rows, lines = frames.rows, []
    for base, group in rows[rows["rule"] == "sensitivity"].groupby("base", sort=False):
        seeds = set(frames.runs.loc[frames.runs["row"].isin(group["row"]), "seed"])
        chosen = frames.by_row.loc[base]
        for row, rate, is_chosen in [
            *zip(group["row"], group["learning_rate"], [False] * len(group), strict=True),
            (base, chosen["learning_rate"], True),
        ]:
            scores = frames.done(row)
            scores = scores[scores.index.isin(seeds)]
            lines.append((base, chosen["label"], rate, is_chosen, scores.mean(), len(scores), "test"))
    tuning, choices = frames.tuning, frames.experiment.tuning.choices if frames.experiment.tuning else {}
    for base, group in tuning[tuning["num_epochs"] == rows["num_epochs"].max()].groupby("row", sort=False):
        if base not in choices:
            continue
        mine = group[group["candidate"].fillna(0) == choices[base].candidate]
        for rate, trials in mine.groupby("learning_rate"):
            is_chosen = math.isclose(rate, choices[base].learning_rate)
            lines.append(
                (base, group["label"].iloc[0], rate, is_chosen, trials["score"].mean(), len(trials), "held out")
            )
    columns = ["row", "label", "learning_rate", "is_chosen", "score", "num_runs", "kind"]
    return pd.DataFrame(lines, columns=columns).sort_values(["kind", "row", "learning_rate"], kind="stable")


def tuning_frame(frames: Frames) -> pd.DataFrame:
    """What the search cost by method: label, num_rows, num_trials, num_runs, num_epochs, rates, num_at_end."""
    named = frames.experiment.tuning
    choices = named.choices if named else {}
    selected = named.selected if named else {}
    lines = []
    for label, group in frames.tuning.groupby("label", sort=False):
        mine = list(dict.fromkeys(row for row in group["row"] if row in frames.by_row.index or not selected))
        group = group[group["row"].isin(mine)]
        if mine:
            rates = sorted({selected[row] for row in mine if row in selected})
            at_end = sum(choices[row].at_end for row in mine if row in choices)
            epochs = group.drop_duplicates("run_id")["num_epochs"].sum()
            said = ", ".join(short(rate) for rate in rates) or None
            lines.append((label, len(mine), group["trial"].nunique(), group["run_id"].nunique(), epochs, said, at_end))
    columns = ["label", "num_rows", "num_trials", "num_runs", "num_epochs", "rates", "num_at_end"]
    return pd.DataFrame(lines, columns=columns)


def main_load(frames: Frames) -> float:
    """The link load at which methods are compared first: the baseline's over the main ratio; NaN where unknown."""
    experiment = frames.experiment
    if experiment.baseline is None or experiment.main_ratio is None:
        return math.nan
    load = frames.row(experiment.baseline)["link_models"]
    return math.nan if load is None else float(load) / experiment.main_ratio
