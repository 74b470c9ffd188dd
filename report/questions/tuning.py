"""Questions on tuning: both rules of choice, what tuning costs at equal grids, and which rates
diverge."""

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
    "feedback_blocks": "#E08A5B",
}
"""Rows of the figure over rates, by what they speak for, and their colours."""


def _trials(frames: Frames) -> pd.DataFrame:
    """All trials of the experiment's search, each at the one seed that all have; only one that is
    done has a score."""
    trials = frames.tuning
    first: pd.DataFrame = trials[trials["seed"] == trials["seed"].min()].reset_index(drop=True)
    return first


def _num_trial_steps(frames: Frames) -> int:
    """Steps of a trial, by the experiment's own steps an epoch."""
    row: Any = frames.rows.iloc[0]
    epochs = frames.tuning["num_epochs"].max()
    return int(row["num_steps"] / row["num_epochs"] * epochs)


def is_least_loss_best(evidence: Evidence) -> Answer | None:
    """Question 13: held-out accuracy that is lost where the least training loss chooses."""
    frames = evidence["search"].frames
    trials = _trials(frames).dropna(subset=["score"])
    if trials.empty:
        return None
    groups = trials.dropna(subset="train_loss").groupby("row", sort=False)
    best = trials.loc[groups["score"].idxmax()].set_index("row")
    least = trials.loc[groups["train_loss"].idxmin()].set_index("row")
    frame = frames.by_row.reindex(best.index)[["label", "ratio"]]
    frame["label"] = frame["label"].fillna(frame.index.to_series())
    frame["best_rate"] = best["learning_rate"]
    frame["best"] = best["score"]
    frame["loss_rate"] = least["learning_rate"]
    frame["at_loss"] = least["score"]
    frame["cost"] = frame["best"] - frame["at_loss"]
    frame = frame.sort_values("cost", ascending=False)
    is_worse = frame["cost"] > 0
    numbers = {
        "rows_count": len(frame),
        "other": int(is_worse.sum()),
        "mean": frame.loc[is_worse, "cost"].mean(),
        "mean_of_all": frame["cost"].mean(),
        "tested": _tested_by_both_rules(frames),
        "correlation": _correlation(frames),
        "trial_steps": _num_trial_steps(frames),
    }
    has_other_settings = best["candidate"].fillna(0) != least["candidate"].fillna(0)
    shown = frame.head(MOST_COSTLY)
    differs = [
        _what_differs(line, has_other_settings=bool(has_other_settings.loc[str(row)]))
        for row, line in shown.iterrows()
    ]
    return Answer(frame.reset_index(), numbers, rows=shown.assign(differs=differs))


def _what_differs(line: pd.Series, has_other_settings: bool) -> str:
    """What the least training loss picks for a row, in words."""
    words = []
    if line["loss_rate"] != line["best_rate"]:
        words.append(f"rate {short(line['loss_rate'])} for {short(line['best_rate'])}")
    if has_other_settings:
        words.append("other settings")
    return listed(words)


def _correlation(frames: Frames) -> float:
    """The rank correlation of training loss and score over the experiment's rows."""
    rows = frames.rows.loc[frames.rows["base"].isna(), "row"]
    done = frames.runs[(frames.runs["status"] == "done") & frames.runs["row"].isin(rows)]
    means = done.groupby("row")[["score", "train_loss"]].mean()
    return float(stats.spearmanr(means["train_loss"], means["score"]).statistic)


def _tested_by_both_rules(frames: Frames) -> dict[str, float]:
    """What the least training loss costs on test samples at full length: rows, and their median and
    ends, in shares.

    Each row that the rule chose is compared with the row that held-out samples chose, at the seeds
    that both have. Test samples chose neither, so this may be a gain.
    """
    scores = frames.runs[frames.runs["status"] == "done"].set_index(["row", "seed"])["score"]
    costs = []
    for row in frames.rows[frames.rows["rule"] == "training_loss"].to_dict("records"):
        if row["row"] in scores.index and row["base"] in scores.index:
            costs.append(float((scores[row["base"]] - scores[row["row"]]).mean()))
    if not costs:
        return {"rows": 0}
    return {
        "rows": len(costs),
        "median": float(np.median(costs)),
        "least": min(costs),
        "most": max(costs),
    }


def what_tuning_costs(evidence: Evidence) -> Answer | None:
    """Question 14: trials of a decade of rates until the best is near, for rows with one setting
    and with three."""
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
    return Answer(
        frame,
        {
            "runs": frames.tuning["run_id"].nunique(),
            "near": NEAR,
        },
        rows=shown,
    )


def _decade(group: pd.DataFrame) -> dict[str, float]:
    """Of a row's trials within a decade about its best rate: how many, how many are needed, what a
    wrong rate costs."""
    best: Any = group.iloc[group["score"].argmax()]
    ratio = group["learning_rate"] / best["learning_rate"]
    within = group[(ratio < DECADE) & (ratio > 1 / DECADE)]
    scores = within["score"].fillna(-np.inf).to_numpy()
    rates = within.groupby("learning_rate")["score"].max().fillna(0.0)
    near = int((scores >= scores.max() - NEAR - ROUNDING).sum())
    return {
        "settings": max(1, within["candidate"].nunique()),
        "trials": len(within),
        "near": near,
        "needed": _needed(len(within), near),
        "spread": float(rates.max() - rates.min()),
    }


def _needed(trials: int, near: int) -> int:
    """Trials drawn at random, without putting back, until one of the near ones is among them with a
    chance of half."""
    drawn = 1
    while math.comb(trials - near, drawn) > 0.5 * math.comb(trials, drawn):
        drawn += 1
    return drawn


def which_learning_rate(evidence: Evidence) -> Answer | None:
    """Question 20: the rates chosen, and the lowest at which anything diverged."""
    search = evidence["search"]
    trials = _trials(search.frames)
    done = trials.dropna(subset=["score"])
    diverged = trials[trials["status"] == "diverged"]
    if search.baseline not in set(done["row"]):
        return None
    best = done.loc[done.groupby("row")["score"].idxmax()].set_index("row")["learning_rate"]
    of_baseline = best[search.baseline]
    at_lower = diverged[diverged["learning_rate"] < of_baseline]
    numbers = {
        "baseline": search.value(search.baseline, "label"),
        "best": of_baseline,
        "lower": int((best < of_baseline).sum()),
        "others": len(best) - 1,
        "trials": len(trials),
        "diverged": len(diverged),
        "from": diverged["learning_rate"].min(),
        "labels_from": sorted(set(at_lower["label"])),
        "trial_steps": _num_trial_steps(search.frames),
        "diverged_factor": DIVERGED_FACTOR,
    }
    return Answer(trials, numbers, _rates(search, trials))


def _rates(search: Compared, trials: pd.DataFrame) -> Figure:
    figure, (axes,) = new_figure(1.45)
    for speaker, colour in SHOWN.items():
        row = search.row(speaker)
        if row is None:
            continue
        best = trials[trials["row"] == row].groupby("learning_rate")["score"].max()
        name = search.value(row, "label")
        axes.plot(
            best.index,
            100 * best,
            "o-",
            color=colour,
            label=name,
        )
        diverged = best.index[best.isna()]
        axes.plot(
            diverged,
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
