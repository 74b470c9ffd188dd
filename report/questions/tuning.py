"""Questions on tuning: both rules of choice, what tuning costs at equal grids, and which rates
diverge."""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from cser_bench.report.frame import LONG, Frames
from cser_bench.report.plotting import legend_beside, new_figure
from cser_bench.report.questions.evidence import Answer, Evidence
from cser_bench.report.wording import listed, short

NEAR = 0.002
"""A trial is as good as the best where its held-out accuracy is no further behind."""

DECADE = math.sqrt(10) * 1.1
"""Rates no further than this factor from a row's best one are of its decade: the grid has two a
decade."""

SHOWN = {
    "sgd": ("SGD", "#555555"), "mcser-96": ("M-CSER", "#1A5FD0"), "local_sgd-96": ("local SGD", "#1C8C4B"),
    "ef_topk-96": ("EF-SGD top-k", "#C23B00"), "ef_block-96": ("EF-SGD blocks", "#E08A5B"),
}  # fmt: skip
"""Rows of the figure over rates."""


def _trials(frames: Frames) -> pd.DataFrame:
    """All trials of the experiment's search, each at the one seed that all have; only one that is
    done has a score."""
    trials = frames.tuning
    first: pd.DataFrame = trials[trials["seed"] == trials["seed"].min()].reset_index(drop=True)
    return first


def is_least_loss_best(evidence: Evidence) -> Answer | None:
    """Question 13: held-out accuracy that is lost where the least training loss chooses."""
    frames = evidence[LONG].frames
    trials = _trials(frames).dropna(subset=["score"])
    if trials.empty:
        return None
    groups = trials.dropna(subset="train_loss").groupby("row", sort=False)
    best, least = (
        trials.loc[index].set_index("row")
        for index in (groups["score"].idxmax(), groups["train_loss"].idxmin())
    )
    frame = frames.by_row.reindex(best.index)[["label", "ratio"]]
    frame["label"] = frame["label"].fillna(frame.index.to_series())
    frame["best_rate"], frame["best"] = best["learning_rate"], best["score"]
    frame["loss_rate"], frame["at_loss"] = least["learning_rate"], least["score"]
    frame["cost"] = frame["best"] - frame["at_loss"]
    frame = frame.sort_values("cost", ascending=False)
    done = frames.runs[frames.runs["status"] == "done"]
    own = done[done["row"].isin(frames.rows.loc[frames.rows["base"].isna(), "row"])]
    means = own.groupby("row")[["score", "train_loss"]].mean()
    is_worse = frame["cost"] > 0
    numbers = {
        "rows_count": len(frame),
        "other": int(is_worse.sum()),
        "mean": frame.loc[is_worse, "cost"].mean(),
        "mean_of_all": frame["cost"].mean(),
        "tested": _tested_by_both_rules(frames),
        "correlation": float(stats.spearmanr(means["train_loss"], means["score"]).statistic),
    }
    is_other = best["candidate"].fillna(0) != least["candidate"].fillna(0)
    shown = frame.head(4)
    differs = [
        listed(
            [f"rate {short(loss)} for {short(rate)}"] * (loss != rate)
            + ["other settings"] * bool(is_other[row])
        )
        for row, rate, loss in zip(shown.index, shown["best_rate"], shown["loss_rate"], strict=True)
    ]
    return Answer(frame.reset_index(), numbers, rows=shown.assign(differs=differs))


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
    frames = evidence[LONG].frames
    groups = _trials(frames).groupby("row", sort=False)
    frame = pd.DataFrame(
        [{"row": row} | _decade(group) for row, group in groups if group["score"].notna().any()]
    )
    if frame.empty:
        return None
    shown = frame.groupby("settings", as_index=False).agg(
        rows=("row", "size"),
        trials=("trials", "median"),
        needed=("needed", "median"),
        spread=("spread", "median"),
    )
    return Answer(frame, {"runs": frames.tuning["run_id"].nunique()}, rows=shown)


def _decade(group: pd.DataFrame) -> dict[str, float]:
    """Of a row's trials within a decade about its best rate: how many, how many are needed, what a
    wrong rate costs."""
    best: Any = group.iloc[group["score"].argmax()]
    ratio = group["learning_rate"] / best["learning_rate"]
    own = group[(ratio < DECADE) & (ratio > 1 / DECADE)]
    scores = own["score"].fillna(-np.inf).to_numpy()
    rates = own.groupby("learning_rate")["score"].max().fillna(0.0)
    near = int((scores >= scores.max() - NEAR - 1e-12).sum())
    return {
        "settings": max(1, own["candidate"].nunique()),
        "trials": len(own),
        "near": near,
        "needed": _needed(len(own), near),
        "spread": float(rates.max() - rates.min()),
    }


def _needed(trials: int, near: int) -> int:
    """Trials drawn at random, without putting back, until one of the near ones is among them with a
    chance of half."""
    return next(
        k for k in range(1, trials + 1) if math.comb(trials - near, k) <= 0.5 * math.comb(trials, k)
    )


def which_learning_rate(evidence: Evidence) -> Answer | None:
    """Question 20: the rates chosen, and the lowest at which anything diverged."""
    trials = _trials(evidence[LONG].frames)
    done, diverged = trials.dropna(subset=["score"]), trials[trials["status"] == "diverged"]
    if "sgd" not in set(done["row"]):
        return None
    best = done.loc[done.groupby("row")["score"].idxmax()].set_index("row")["learning_rate"]
    numbers = {
        "sgd": best["sgd"],
        "lower": int((best < best["sgd"]).sum()),
        "others": len(best) - 1,
        "trials": len(trials),
        "diverged": len(diverged),
        "from": diverged["learning_rate"].min(),
        "labels_from": sorted(set(diverged.loc[diverged["learning_rate"] < 0.1, "label"])),
    }
    return Answer(trials, numbers, _rates(trials))


def _rates(trials: pd.DataFrame) -> Figure:
    figure, (axes,) = new_figure(1.45)
    for row, (name, colour) in SHOWN.items():
        own = trials[trials["row"] == row].groupby("learning_rate")["score"].max()
        axes.plot(own.index, 100 * own, "o-", color=colour, label=name)
        gone = own.index[own.isna()]
        axes.plot(gone, np.full(len(gone), 71.0), "x", color=colour)
    axes.set(
        xscale="log",
        ylim=(70, 90),
        xlabel="learning rate; a cross: diverged",
        ylabel="held-out accuracy, %",
    )
    legend_beside(axes)
    return figure
