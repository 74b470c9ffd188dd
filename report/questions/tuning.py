"""Questions on tuning: both rules of choice, what tuning costs at equal grids, and which rates diverge."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from report.plotting import new_figure
from report.questions.evidence import LONG, Answer, Evidence

NEAR = 0.002
"""A trial is as good as the best where its held-out accuracy is no further behind."""

DECADE = math.sqrt(10) * 1.1
"""Rates no further than this factor from a row's best one are of its decade: the grid has two a decade."""

SHOWN = {
    "sgd": ("SGD", "#555555"), "mcser-96": ("M-CSER", "#1A5FD0"), "local_sgd-96": ("local SGD", "#1C8C4B"),
    "ef_topk-96": ("EF-SGD top-k", "#C23B00"), "ef_block-96": ("EF-SGD blocks", "#E08A5B"),
}  # fmt: skip
"""Rows of the figure over rates."""


def _trials(evidence: Evidence) -> pd.DataFrame | None:
    """All trials of the long experiment's search, each at the one seed that all have; a diverged one has no score."""
    long = evidence.experiment(LONG)
    if long is None or long.frames.tuning.empty:
        return None
    trials: pd.DataFrame = long.frames.tuning
    trials = trials[trials["seed"] == trials["seed"].min()].copy()
    trials.loc[trials["status"] != "done", "score"] = np.nan
    known: pd.DataFrame = trials.reset_index(drop=True)
    return known


def is_least_loss_best(evidence: Evidence) -> Answer | None:
    """Question 13: held-out accuracy that is lost where the least training loss chooses."""
    trials, long = _trials(evidence), evidence.experiment(LONG)
    if trials is None or long is None:
        return None
    lines = []
    for row, group in trials[trials["status"] == "done"].groupby("row", sort=False):
        best: Any = group.iloc[group["score"].argmax()]
        least: Any = group.iloc[group["train_loss"].argmin()]
        known = row in long.frames.by_row.index
        label, ratio = long.frames.by_row.loc[row, ["label", "ratio"]] if known else (row, np.nan)
        line: dict[str, Any] = {
            "row": row,
            "label": label,
            "ratio": ratio,
            "best_rate": best["learning_rate"],
            "best": best["score"],
        }
        line |= {"loss_rate": least["learning_rate"], "at_loss": least["score"], "cost": best["score"] - least["score"]}
        lines.append(line)
    frame = pd.DataFrame(lines).sort_values("cost", ascending=False, ignore_index=True)
    means = long.frames.runs[long.frames.runs["status"] == "done"].groupby("row")[["score", "train_loss"]].mean()
    main = long.frames.rows[long.frames.rows["base"].isna()]["row"]
    means = means.loc[[row for row in main if row in means.index]]
    rho = float(stats.spearmanr(means["train_loss"], means["score"]).statistic)
    numbers: dict[str, Any] = {
        "rows_count": len(frame),
        "other": int((frame["cost"] > 0).sum()),
        "mean": frame["cost"].mean(),
    }
    numbers |= {"most": frame["cost"].iloc[0], "correlation": rho, "regime": long.regime}
    return Answer(frame, numbers, None, frame.head(4))


def what_tuning_costs(evidence: Evidence) -> Answer | None:
    """Question 14: trials of a decade of rates until the best is near, for rows with one setting and with three."""
    trials, long = _trials(evidence), evidence.experiment(LONG)
    if trials is None or long is None:
        return None
    lines = []
    for row, group in trials.groupby("row", sort=False):
        if group["score"].notna().any():
            lines.append({"row": row} | _decade(group))
    frame = pd.DataFrame(lines)
    shown = frame.groupby("settings", as_index=False).agg(
        rows=("row", "size"), trials=("trials", "median"), needed=("needed", "median"), spread=("spread", "median")
    )
    seconds = long.frames.tuning.drop_duplicates("run_id")
    numbers = {"lines": shown.to_dict("records"), "runs": len(seconds), "regime": long.regime}
    return Answer(frame, numbers, None, shown)


def _decade(group: pd.DataFrame) -> dict[str, float]:
    """Of a row's trials within a decade about its best rate: how many, how many are needed, what a wrong rate costs."""
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
    """Trials drawn at random, without putting back, until one of the near ones is among them with a chance of half."""
    return next(k for k in range(1, trials + 1) if math.comb(trials - near, k) <= 0.5 * math.comb(trials, k))


def which_learning_rate(evidence: Evidence) -> Answer | None:
    """Question 20: the rates chosen, and the lowest at which anything diverged."""
    trials, long = _trials(evidence), evidence.experiment(LONG)
    if trials is None or long is None:
        return None
    done = trials[trials["status"] == "done"]
    best = done.loc[done.groupby("row")["score"].idxmax()].set_index("row")["learning_rate"]
    diverged = trials[trials["status"] == "diverged"]
    first = diverged.sort_values("learning_rate").head(1)
    numbers = {
        "sgd": best.get("sgd", np.nan),
        "lower": int((best.drop("sgd", errors="ignore") < best.get("sgd", np.nan)).sum()),
        "others": len(best) - 1,
        "trials": len(trials),
        "diverged": len(diverged),
        "from": float(first["learning_rate"].iloc[0]) if len(first) else np.nan,
        "rows_from": sorted(set(diverged[diverged["learning_rate"] < 0.1]["row"])),
        "regime": long.regime,
    }
    return Answer(trials, numbers, _rates(trials))


def _rates(trials: pd.DataFrame) -> Figure:
    figure, (axes,) = new_figure(1.45)
    for row, (name, colour) in SHOWN.items():
        own = trials[trials["row"] == row].groupby("learning_rate")["score"].max()
        axes.plot(own.index, 100 * own, "o-", color=colour, label=name)
        gone = own.index[own.isna()]
        axes.plot(gone, np.full(len(gone), 71.0), "x", color=colour)
    axes.set_xscale("log")
    axes.set_ylim(70, 90)
    axes.set_xlabel("learning rate; a cross: diverged")
    axes.set_ylabel("held-out accuracy, %")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
