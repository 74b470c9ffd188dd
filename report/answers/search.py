"""Queries on searches for settings and learning rates, for the placeholders of answers.

They are of the long experiment on the perceptron, whose search tried every row at one seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from cser_bench.harness.errors import UsageError
from cser_bench.report.collection import Collection
from cser_bench.report.wording import percent, short

SEARCHED = "fashion_mnist_long"

NEAR = 0.002
"""A trial is as good as the best where its validation accuracy is no further behind."""

ROUNDING = 1e-12
"""Rounding of a difference of two accuracies, so that one of exactly `NEAR` counts as near."""

DECADE = math.sqrt(10) * 1.1
"""Learning rates no further than this factor from a row's best are of its decade: the grid has two a
decade."""


@dataclass(frozen=True)
class Search:
    """Queries on trials; each returns a text or raises UsageError."""

    collection: Collection

    def trials(self, experiment: str, row: str) -> str:
        """Return how many runs tuned a row."""
        frames = self.collection.find(experiment)
        if frames is None or not (frames.tuning["row"] == row).any():
            raise UsageError(f"{experiment} has no search of a row {row} at hand")
        return str(frames.tuning.loc[frames.tuning["row"] == row, "run_id"].nunique())

    def searched(self, what: str) -> str:
        """Return a number of the search on the perceptron.

        Args:
            what: one of the names in `_numbers`.
        """
        if what not in self._numbers:
            raise UsageError(
                f"there is no number {what!r}; name one of {', '.join(self._numbers)}"
            )
        return self._numbers[what]

    def random_trials(self, settings: int) -> str:
        """Return how many random trials of a decade of rates find one near the best half the time.

        Args:
            settings: tables of settings that a row's search tries beside its rates, 1 or 3.
        """
        return f"{self._decades_of(settings)['needed'].median():g}"

    def wrong_rate(self, settings: int) -> str:
        """Return what the worst learning rate of that decade costs in the median, in points."""
        return f"{percent(self._decades_of(settings)['spread'].median())} points"

    def _decades_of(self, settings: int) -> pd.DataFrame:
        found = self._decades[self._decades["settings"] == settings]
        if found.empty:
            raise UsageError(
                f"no row of {SEARCHED} was searched over {settings} tables of settings"
            )
        return found

    @cached_property
    def _trials(self) -> pd.DataFrame:
        """All trials, each at the one seed that all have; only one that is done has a score."""
        frames = self.collection.find(SEARCHED)
        if frames is None or frames.tuning.empty:
            raise UsageError(f"the search of {SEARCHED} does not ship")
        trials: pd.DataFrame = frames.tuning[
            frames.tuning["seed"] == frames.tuning["seed"].min()
        ]
        return trials

    @cached_property
    def _decades(self) -> pd.DataFrame:
        rows = self._trials.groupby("row", sort=False)
        return pd.DataFrame(
            [_decade(group) for _, group in rows if group["score"].notna().any()]
        )

    @cached_property
    def _numbers(self) -> dict[str, str]:
        trials = self._trials
        done = trials.dropna(subset=["score"])
        best_trials = done.loc[done.groupby("row")["score"].idxmax()].set_index("row")
        # Index: row.
        best = best_trials["learning_rate"]
        diverged = trials[trials["status"] == "diverged"]
        below = diverged[diverged["learning_rate"] < best["sgd"]]
        both = trials.dropna(subset=["score", "train_loss"]).groupby("row")
        # By row, what choosing by the least training loss costs of the validation score.
        by_loss = trials.loc[both["train_loss"].idxmin()].set_index("row")
        cost = both["score"].max() - by_loss["score"]
        costs = self._costs_on_test()
        return {
            "runs": str(trials["run_id"].nunique()),
            "diverged": str(diverged["run_id"].nunique()),
            "diverged from": short(diverged["learning_rate"].min()),
            "diverged below SGD's rate": " and ".join(sorted(set(below["label"]))),
            "rows beside SGD": str(len(best) - 1),
            "rows below SGD's rate": str(int((best < best["sgd"]).sum())),
            "SGD's rate": short(best["sgd"]),
            "rows": str(len(cost)),
            "rows with other settings by loss": str(int((cost > 0).sum())),
            "cost by loss": f"{percent(cost[cost > 0].mean())} points",
            "rows tested": str(len(costs)),
            "cost on test": f"{percent(float(np.median(costs)))} points",
            "most cost on test": f"{percent(max(costs))} points",
            "gain on test": str(sum(each < 0 for each in costs)),
        }

    def _costs_on_test(self) -> list[float]:
        """Return what the least training loss costs on test samples, of rows run by both rules."""
        frames = self.collection.find(SEARCHED)
        assert frames is not None, "its trials were read before"
        costs = []
        chosen = frames.rows[frames.rows["rule"] == "training_loss"]
        for row, base in zip(chosen["row"], chosen["base"], strict=True):
            # By seed: one that either row lacks is NaN, and so not in the mean.
            cost = (frames.done(base) - frames.done(row)).mean()
            if not math.isnan(cost):
                costs.append(float(cost))
        return costs


def _decade(group: pd.DataFrame) -> dict[str, float]:
    """Count a row's trials within a decade about its best rate, and say what a wrong rate costs."""
    best: Any = group.iloc[group["score"].argmax()]
    ratio = group["learning_rate"] / best["learning_rate"]
    within = group[(ratio < DECADE) & (ratio > 1 / DECADE)]
    # A trial that diverged has no score: it is near nothing, and as bad as can be.
    scores = within["score"].fillna(-np.inf)
    num_near = int((scores >= scores.max() - NEAR - ROUNDING).sum())
    # Index: learning_rate. One at which all trials diverged has an accuracy of 0.
    by_rate = within.groupby("learning_rate")["score"].max().fillna(0.0)
    return {
        "settings": max(1, within["candidate"].nunique()),
        "needed": _needed(len(within), num_near),
        "spread": float(by_rate.max() - by_rate.min()),
    }


def _needed(trials: int, near: int) -> int:
    """Return how many trials drawn at random have a near one among them with a chance of half."""
    # Without replacement: none of k is near with a chance of C(trials - near, k) / C(trials, k).
    drawn = 1
    while math.comb(trials - near, drawn) > 0.5 * math.comb(trials, drawn):
        drawn += 1
    return drawn
