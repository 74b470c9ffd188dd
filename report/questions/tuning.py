"""Questions on tuning: both rules of choice, what tuning costs, and which rates diverge.

Costs are those at equal grids.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from cser_bench.report.frame import DIVERGED_FACTOR, Frames
from cser_bench.report.plotting import FAMILIES, legend_beside, new_figure
from cser_bench.report.questions.evidence import Answer, Compared, Evidence, Speaker
from cser_bench.report.wording import listed, short

NEAR = 0.002
"""A trial is as good as the best where its held-out accuracy is no further behind."""

ROUNDING = 1e-12
"""Of a difference of two accuracies, so that one of exactly `NEAR` counts as near."""

DECADE = math.sqrt(10) * 1.1
"""Rates no further than this factor from a row's best one are of its decade: the grid has two a
decade."""

MOST_COSTLY = 4
"""Rows that question 13 shows, those first that lose most by the other rule."""

SHOWN: dict[Speaker, str] = {
    "baseline": FAMILIES["all sent"],
    "topk": FAMILIES["error reset"],
    "local": FAMILIES["local steps"],
    "feedback": FAMILIES["error feedback"],
    "feedback_blocks": "#B07A00",
}
"""Rows of the figure over rates, by what they speak for, and their colours."""

MARKS = "Po^sv"
"""Their marks, in the same order."""


def _trials(frames: Frames) -> pd.DataFrame:
    """Return all trials of the experiment's search, each at the one seed that all have.

    Only one that is done has a score.
    """
    trials = frames.tuning
    first_seed = trials["seed"].min()
    first: pd.DataFrame = trials[trials["seed"] == first_seed]
    return first.reset_index(drop=True)


def _num_trial_steps(frames: Frames) -> int:
    """Return the steps of a trial, by the experiment's own steps an epoch."""
    row: Any = frames.rows.iloc[0]
    steps_an_epoch = row["num_steps"] / row["num_epochs"]
    epochs = frames.tuning["num_epochs"].max()
    return int(steps_an_epoch * epochs)


def is_least_loss_best(evidence: Evidence) -> Answer | None:
    """Answer question 13: held-out accuracy that is lost where the least training loss chooses."""
    frames = evidence["search"].frames
    trials = _trials(frames).dropna(subset=["score"])
    if trials.empty:
        return None
    # Trials that have both numbers, so that both rules choose among the same.
    groups = trials.dropna(subset="train_loss").groupby("row", sort=False)
    best = trials.loc[groups["score"].idxmax()]
    best = best.set_index("row")
    least = trials.loc[groups["train_loss"].idxmin()]
    least = least.set_index("row")
    frame = frames.by_row.reindex(best.index)[["label", "ratio"]]
    # A row that was searched and then not run has no label: its name stands for it.
    names = frame.index.to_series()
    frame["label"] = frame["label"].fillna(names)
    frame["best_rate"] = best["learning_rate"]
    frame["best"] = best["score"]
    frame["loss_rate"] = least["learning_rate"]
    frame["at_loss"] = least["score"]
    frame["cost"] = frame["best"] - frame["at_loss"]
    frame = frame.sort_values("cost", ascending=False)
    costs = frame["cost"]
    worse = costs[costs > 0]
    numbers = {
        "rows_count": len(frame),
        "other": len(worse),
        "mean": worse.mean(),
        "mean_of_all": costs.mean(),
        "tested": _tested_by_both_rules(frames),
        "correlation": _correlation(frames),
        "trial_steps": _num_trial_steps(frames),
    }
    # A row that was searched over rates alone has no candidates.
    best_candidate = best["candidate"].fillna(0)
    least_candidate = least["candidate"].fillna(0)
    has_other_settings = best_candidate != least_candidate
    shown = frame.head(MOST_COSTLY)
    differs = []
    for row, line in shown.iterrows():
        is_other = bool(has_other_settings.loc[str(row)])
        differs.append(_what_differs(line, is_other))
    shown = shown.assign(differs=differs)
    return Answer(frame.reset_index(), numbers, rows=shown)


def _what_differs(line: pd.Series, has_other_settings: bool) -> str:
    """Say what the least training loss picks for a row."""
    best = line["best_rate"]
    picked = line["loss_rate"]
    words = []
    if picked != best:
        words.append(f"rate {short(picked)} for {short(best)}")
    if has_other_settings:
        words.append("other settings")
    return listed(words)


def _correlation(frames: Frames) -> float:
    """Return the rank correlation of training loss and score over the experiment's rows."""
    rows = frames.rows
    own = rows.loc[rows["base"].isna(), "row"]
    runs = frames.runs
    is_done = runs["status"] == "done"
    done = runs[is_done & runs["row"].isin(own)]
    means = done.groupby("row")[["score", "train_loss"]].mean()
    ranks = stats.spearmanr(means["train_loss"], means["score"])
    return float(ranks.statistic)


def _tested_by_both_rules(frames: Frames) -> dict[str, float]:
    """Return what the least training loss costs on test samples at full length, in shares.

    Each row that the rule chose is compared with the row that held-out samples chose, at the seeds
    that both have. Test samples chose neither, so this may be a gain.

    Returns:
        How many rows there are, how many of them gain, and the median, the least and the most of
        their costs.
    """
    runs = frames.runs
    done = runs[runs["status"] == "done"]
    scores = done.set_index(["row", "seed"])["score"]
    rows = frames.rows
    by_training_loss = rows[rows["rule"] == "training_loss"]
    costs = []
    for row in by_training_loss.to_dict("records"):
        if row["row"] in scores.index and row["base"] in scores.index:
            # By seed: one that either row lacks is NaN, and so not in the mean.
            lost = scores[row["base"]] - scores[row["row"]]
            costs.append(float(lost.mean()))
    if not costs:
        return {"rows": 0}
    return {
        "rows": len(costs),
        "gaining": sum(cost < 0 for cost in costs),
        "median": float(np.median(costs)),
        "least": min(costs),
        "most": max(costs),
    }


def what_tuning_costs(evidence: Evidence) -> Answer | None:
    """Answer question 14: trials of a decade of rates until the best is near.

    Rows with one setting and rows with three are told apart.
    """
    frames = evidence["search"].frames
    lines = []
    for row, group in _trials(frames).groupby("row", sort=False):
        if group["score"].notna().any():
            lines.append({"row": row} | _decade(group))
    if not lines:
        return None
    frame = pd.DataFrame(lines)
    shown = frame.groupby("settings", as_index=False).agg(
        rows=("row", "size"),
        trials=("trials", "median"),
        needed=("needed", "median"),
        spread=("spread", "median"),
    )
    numbers = {"runs": _trials(frames)["run_id"].nunique(), "near": NEAR}
    return Answer(frame, numbers, rows=shown)


def _decade(group: pd.DataFrame) -> dict[str, float]:
    """Count a row's trials within a decade about its best rate.

    Returns:
        How many trials there are, how many are near the best, how many are needed, and what a wrong
        rate costs.
    """
    best: Any = group.iloc[group["score"].argmax()]
    ratio = group["learning_rate"] / best["learning_rate"]
    within = group[(ratio < DECADE) & (ratio > 1 / DECADE)]
    num_trials = len(within)
    # A trial that diverged has no score: it is near nothing, and as bad as can be.
    scores = within["score"].fillna(-np.inf)
    is_near = scores >= scores.max() - NEAR - ROUNDING
    num_near = int(is_near.sum())
    by_rate = within.groupby("learning_rate")["score"].max()
    by_rate = by_rate.fillna(0.0)
    num_candidates = within["candidate"].nunique()
    return {
        "settings": max(1, num_candidates),
        "trials": num_trials,
        "near": num_near,
        "needed": _needed(num_trials, num_near),
        "spread": float(by_rate.max() - by_rate.min()),
    }


def _needed(trials: int, near: int) -> int:
    """Return how many trials drawn at random have a near one among them with a chance of half.

    None is put back.
    """
    drawn = 1
    while math.comb(trials - near, drawn) > 0.5 * math.comb(trials, drawn):
        drawn += 1
    return drawn


def which_learning_rate(evidence: Evidence) -> Answer | None:
    """Answer question 20: the rates chosen, and the lowest at which anything diverged."""
    search = evidence["search"]
    trials = _trials(search.frames)
    done = trials.dropna(subset=["score"])
    diverged = trials[trials["status"] == "diverged"]
    if search.baseline not in set(done["row"]):
        return None
    best_trials = done.loc[done.groupby("row")["score"].idxmax()]
    best = best_trials.set_index("row")["learning_rate"]
    of_baseline = best[search.baseline]
    is_lower = best < of_baseline
    at_lower = diverged[diverged["learning_rate"] < of_baseline]
    quoted = evidence["reference"]
    numbers = {
        "baseline": search.value(search.baseline, "label"),
        "best": of_baseline,
        "at_full_length": quoted.value(quoted.baseline, "learning_rate"),
        "quoted": quoted.name,
        "lower": int(is_lower.sum()),
        "others": len(best) - 1,
        "trials": trials["run_id"].nunique(),
        "diverged": diverged["run_id"].nunique(),
        "from": diverged["learning_rate"].min(),
        "labels_from": sorted(set(at_lower["label"])),
        "trial_steps": _num_trial_steps(search.frames),
        "diverged_factor": DIVERGED_FACTOR,
    }
    return Answer(trials, numbers, _rates(search, trials))


def _rates(search: Compared, trials: pd.DataFrame) -> Figure:
    """Draw each row's best score by rate, and a cross where every trial diverged."""
    figure, (axes,) = new_figure(1.45)
    for (speaker, colour), shape in zip(SHOWN.items(), MARKS, strict=True):
        row = search.row(speaker)
        if row is None:
            continue
        of_row = trials[trials["row"] == row]
        best = of_row.groupby("learning_rate")["score"].max()
        axes.plot(
            best.index, 100 * best, f"{shape}-", color=colour, label=search.value(row, "label")
        )
        diverged = best.index[best.isna()]
        axes.plot(
            diverged,
            # What diverged has no score: its cross stands just above the foot of the axis.
            np.full(len(diverged), 71.0),
            "x",
            color=colour,
        )
    axes.set(
        xscale="log",
        ylim=(70, 90),
        xlabel="learning rate; a cross: diverged",
        ylabel="held-out accuracy, %",
    )
    legend_beside(axes)
    return figure
