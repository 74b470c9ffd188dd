"""Models needed: per method the fewest models sent at which the expected loss is the margin, with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from report.accuracy.assay import Assay
from report.accuracy.regime import Regime, RegimePoint
from report.accuracy.regime_predictors import curve_of_method, logs_of
from report.kit.logistic import Logistic, fit_logistics
from report.kit.statistics import mean_of
from report.kit.wording import NONE, amount

DRAWS = 400
"""Times that the seeds of every length are drawn anew, with replacement."""

_FAR = 100.0
"""Stands for the logarithm of more models than anyone sends."""

Kind = Literal["between", "at most", "more than", "cannot tell"]


@dataclass(frozen=True)
class Needed:
    """What one method needs. `least` and `most` are the fewest and the most models that were sent in its rows.

    Numbers under `least` or over `most` are where the curve points beyond what was run, and are not printed.
    """

    method: str
    kind: Kind
    models: float | None
    low: float | None
    high: float | None
    least: float
    most: float
    num_rows: int
    num_good: int
    """Rows that are non-inferior."""
    links: float | None
    """Models that a worker's link carries for one model sent, mean over the rows; None where not recorded."""
    to_neighbours: bool = False
    """Whether workers send to their neighbours alone, so that a link carries once what they send."""

    def said(self) -> str:
        """ "120", "at most 18", "more than 2,338", or "cannot tell"."""
        return (
            self._end(self.models)
            if self.kind == "between"
            else self.kind + f" {amount(self.models)}" * (self.models is not None)
        )

    def interval(self) -> str:
        """ "80 to 190", "under 12 to 190"."""
        return NONE if self.low is None else f"{self._end(self.low)} to {self._end(self.high)}"

    def _end(self, models: float | None) -> str:
        if models is not None and models < self.least:
            return f"under {amount(self.least)}"
        return f"over {amount(self.most)}" if models is not None and models > self.most else amount(models)


def needed_of(regime: Regime) -> tuple[Needed, ...]:
    """Every method of the map, the one that needs the fewest first; those that cannot be told come last.

    The loss in points is the share lost times the gap of the longest run that tells. Interval: 95 % of the draws.
    """
    known = [_needed(regime, name, points) for name, points in regime.methods.items()]
    order = {"at most": 0, "between": 0, "more than": 1, "cannot tell": 2}
    return tuple(sorted(known, key=lambda needed: (order[needed.kind], needed.models or 0.0)))


def _needed(regime: Regime, name: str, all_points: Sequence[RegimePoint]) -> Needed:
    points = [point for point in all_points if point.fits]
    good = sum(point.word == "non-inferior" for point in points)
    links = [point.rows.row.link_models / point.models for point in points if point.rows.row.link_models is not None]
    least, most = min((point.models for point in points), default=0.0), max((p.models for p in points), default=0.0)
    link = mean_of(links) if links else None
    mixes = any(point.rows.row.spectral_gap is not None for point in points)
    blank = Needed(name, "cannot tell", None, None, None, least, most, len(points), good, link, mixes)
    if not points or regime.margin is None:
        return blank
    if good == len(points):
        return replace(blank, kind="at most", models=least)
    share = _margin_share(regime.telling[0], regime.margin)
    curve = curve_of_method(points)
    if curve is None:
        return blank
    ends = (math.log(least), math.log(most))
    where = _log_needed(curve, share, ends)
    if where > ends[1]:
        return replace(blank, kind="more than", models=most) if good == 0 else blank
    if where < ends[0] and good == 0:
        return blank
    models = math.exp(where)
    low, high = np.exp(np.quantile(_draws(points, share, ends), (0.025, 0.975)))
    found = replace(blank, kind="between", models=models, low=min(float(low), models), high=max(float(high), models))
    return replace(found, kind="at most", models=least) if where < ends[0] else found


def _log_needed(curve: Logistic, share: float, ends: tuple[float, float]) -> float:
    """Where the curve loses the share, as a logarithm of models; far below or above where it never does."""
    where = curve.where(share)
    if max(curve.at(np.array(ends)[:, None])) < share:
        return ends[0] - 1 if where is None else min(where, ends[0] - 1)
    return _FAR if where is None else min(where, _FAR)


def _margin_share(length: Assay, margin: float) -> float:
    return margin / (length.gap or math.inf)


def _draws(points: Sequence[RegimePoint], share: float, ends: tuple[float, float]) -> list[float]:
    """The logarithm of the models needed in each draw."""
    return [_log_needed(curve, share, ends) for curve in share_draws(points)]


def share_draws(
    points: Sequence[RegimePoint], predictor: str = "models sent", num_draws: int = DRAWS
) -> list[Logistic]:
    """Curves through a method's rows, with the seeds of every length drawn anew."""
    generator = np.random.default_rng(0)
    seeds = {point.length.num_steps: sorted(point.ceiling.accuracy) for point in points}
    lost = []
    for _ in range(num_draws):
        drawn = {steps: generator.choice(known, len(known)).tolist() for steps, known in seeds.items()}
        lost.append([_lost(point, drawn[point.length.num_steps]) for point in points])
    return fit_logistics(logs_of(points, predictor), np.array(lost))


def _lost(point: RegimePoint, seeds: Sequence[int]) -> float:
    """The share lost over drawn seeds; of a row that has none of them, over its own."""
    known = point.differences
    values = [known[seed] for seed in seeds if seed in known] or list(known.values())
    return min(-mean_of(values) / (point.length.gap or math.inf), 1.0)
