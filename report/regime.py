"""The regime: whether an experiment can tell a loss, and what it tells of losses.

How many models a method needs, and what predicts what it loses.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from cser_bench.report.frame import Frames
from cser_bench.report.statistics import against_baseline, contrasts_frame, rows_by_length

MARGINS, DEVIATIONS = 3, 10
"""An experiment can tell if its gap from floor to ceiling holds so many margins, and so many
standard deviations."""

PREDICTORS = {
    "models sent": ("models_sent",),
    "ratio": ("ratio_sent",),
    "steps": ("num_steps",),
    "steps and ratio": ("num_steps", "ratio_sent"),
}
"""By name: the columns whose logarithms a curve is fitted in. `ratio_sent` is steps over models
sent."""

_LEAST_ROWS = 5
"""Rows that a method needs for its curves."""

_LIMITS = (10.0, 4.0)
"""Bounds of a curve's middle value and of its slopes, either way. Without them, a curve through a
jump would grow ever steeper."""

Vector = NDArray[np.float64]


NOT_CLAIMED = "inconclusive, not sensitive enough"
"""The verdict of an experiment that could not have told a drop."""


def assay_frame(frames: Frames) -> pd.DataFrame:
    """Return the gap between DDP and no communication, at each length.

    First the experiment's own length, then from the longest down. Sizes other than its own are left
    out.

    Columns: num_steps, ceiling, floor, gap (shares), deviation (between seeds, of the bound that
    spreads more), reason (why a loss could not be told; None where it could).
    """
    experiment = frames.experiment
    rows = frames.rows
    ceilings = rows_by_length(frames, experiment.baseline)
    floors = rows_by_length(frames, experiment.floor)
    here = rows[(rows["rule"] == "held_out") & rows["tunes"].isna()]
    # The first row has the experiment's own size.
    here = here[here["num_parameters"] == rows["num_parameters"].iloc[0]]
    lengths = [int(steps) for steps in here["num_steps"].unique()]
    own_length = {row: steps for steps, row in ceilings.items()}.get(str(experiment.baseline))
    lines = []
    for steps in sorted(lengths, key=lambda steps: (steps != own_length, -steps)):
        # No row has an empty name: a bound that was not planned at this length has no scores.
        ceiling = frames.done(ceilings.get(steps, ""))
        floor = frames.done(floors.get(steps, ""))
        gap = ceiling.mean() - floor.mean()
        deviation = math.nan
        if min(len(ceiling), len(floor)) > 1:
            deviation = max(ceiling.std(ddof=1), floor.std(ddof=1))
        line = {
            "num_steps": steps,
            "ceiling": ceiling.mean(),
            "floor": floor.mean(),
            "gap": gap,
            "deviation": deviation,
            "reason": _reason(experiment.margin, gap, deviation),
        }
        lines.append(line)
    columns = ["num_steps", "ceiling", "floor", "gap", "deviation", "reason"]
    frame = pd.DataFrame(lines, columns=columns)
    # As objects: pandas would make texts of a column with some None, and NaN of None.
    reasons = [line["reason"] for line in lines]
    frame["reason"] = pd.Series(reasons, index=frame.index, dtype=object)
    return frame


def claimed_contrasts(frames: Frames) -> pd.DataFrame:
    """Return `contrasts_frame`, without its verdicts where the experiment cannot tell a loss.

    Such an experiment claims nothing.
    """
    lines = contrasts_frame(frames)
    if tells(frames):
        return lines
    return lines.assign(verdict=NOT_CLAIMED)


def tells(frames: Frames) -> bool:
    """Tell whether an experiment can tell a loss at its own length."""
    # `assay_frame` has the experiment's own length first; without any line nothing can be told.
    return bool(assay_frame(frames)["reason"].head(1).isna().any())


def _reason(margin: float | None, gap: float, deviation: float) -> str | None:
    if margin is None:
        return "the experiment sets no margin"
    if math.isnan(gap):
        return "finished runs of no communication, or of the baseline, are missing"
    if gap < MARGINS * margin:
        return (
            f"the gap of no communication is {gap / margin:.2g} margins, where {MARGINS} are needed"
        )
    if math.isnan(deviation) or gap < DEVIATIONS * deviation:
        return f"the gap of no communication is less than {DEVIATIONS} standard deviations between seeds"
    return None


def needs_frame(frames: Frames) -> pd.DataFrame:
    """Return what each method needs, at the experiment's own length alone.

    One line a method with a row that sends anything; none where the experiment sets no margin or
    has no baseline. Each row is judged alone, by a one-sided bound of 95 % without a correction.

    Columns: label, algorithm, num_tried, fewest_tried, most_tried (models sent by one worker),
    shown_more (the most models at which it is shown to lose more than the margin), shown_less (the
    fewest above those at which it is shown to lose less) with the rows, shown_less_link (the models
    that a link then carries), and `crossing`: the models at which a line between two neighbouring
    measured points, by the logarithm of models, crosses the margin; it exists only between such
    points. NaN where there is none.
    """
    experiment = frames.experiment
    if experiment.margin is None or experiment.baseline is None:
        return pd.DataFrame()
    known = against_baseline(frames).merge(frames.rows, on="row")
    own = (
        known["base"].isna()
        & (known["rule"] == "held_out")
        & (known["reference"] == experiment.baseline)
    )
    known = known[own & (known["models_sent"].fillna(0) > 0)]
    lines = [
        {
            "label": label,
            "algorithm": group["algorithm"].iloc[0],
            **_need(group.sort_values("models_sent"), experiment.margin),
        }
        for label, group in known.groupby("label", sort=False)
    ]
    return pd.DataFrame(lines)


def _need(tried: pd.DataFrame, margin: float) -> dict[str, object]:
    """Return what one method needs, given its rows from the fewest models sent to the most."""
    models = tried["models_sent"].to_numpy(dtype=float)
    need = {
        "num_tried": len(tried),
        "fewest_tried": models[0],
        "most_tried": models[-1],
        "shown_more": math.nan,
        "shown_more_row": None,
        "shown_less": math.nan,
        "shown_less_row": None,
        "shown_less_link": math.nan,
        "crossing": math.nan,
    }
    more = np.flatnonzero(tried["high_one_sided"].to_numpy(dtype=float) < -margin)
    less = np.flatnonzero(tried["low_one_sided"].to_numpy(dtype=float) > -margin)
    # The margin is crossed between the last row that is shown to lose more and the first after it
    # that is shown to lose less; without such a row, up to the end of what was tried.
    start = 0
    if len(more):
        start = int(more[-1])
        less = less[less > start]
        need |= {"shown_more": models[start], "shown_more_row": tried["row"].iloc[start]}
    end = len(models) - 1
    if len(less):
        end = int(less[0])
        need |= {
            "shown_less": models[end],
            "shown_less_row": tried["row"].iloc[end],
            "shown_less_link": tried["link_models"].iloc[end],
        }
    estimates = tried["estimate"].to_numpy(dtype=float)
    for first in range(start, end):
        pair = slice(first, first + 2)
        if estimates[first] < -margin <= estimates[first + 1]:
            need["crossing"] = _crossing(models[pair], estimates[pair], margin)
    return need


def _crossing(models: Vector, estimates: Vector, margin: float) -> float:
    """Return the models at which a line between two points crosses the margin.

    The line is straight over the logarithm of models.
    """
    share = (-margin - estimates[0]) / (estimates[1] - estimates[0])
    log_first = math.log(models[0])
    log_second = math.log(models[1])
    return math.exp(log_first + share * (log_second - log_first))


def lost_frame(frames: Frames) -> pd.DataFrame:
    """Return the lines of `lost_rows` of methods with runs at two lengths or more.

    Such a method must have at least five rows.
    """
    return _of_several_lengths(lost_rows(frames))


def _of_several_lengths(lost: pd.DataFrame) -> pd.DataFrame:
    groups = lost.groupby("label", sort=False)
    enough = (groups["row"].transform("size") >= _LEAST_ROWS) & (
        groups["num_steps"].transform("nunique") > 1
    )
    return lost[enough].reset_index(drop=True)


def lost_rows(frames: Frames) -> pd.DataFrame:
    """Return the share of the gap that each row of each length loses.

    0 is as good as DDP, 1 as no communication. A drop larger than that counts as 1, seed by
    seed and in the mean, so that both can be compared. Sizes other than the experiment's own are
    left out, and so are lengths that cannot tell.

    Columns: row, label, num_steps, models_sent, ratio_sent, lost, noise (variance of `lost` between
    seeds, the ceiling's with it).
    """
    telling = _telling(frames)
    bounds = {frames.experiment.baseline, frames.experiment.floor}
    rows = frames.rows
    rows = rows[rows["num_parameters"] == rows["num_parameters"].iloc[0]]
    rows = rows[(rows["rule"] == "held_out") & ~rows["row"].isin(bounds)]
    lines = []
    for row in rows[~rows["base"].isin(bounds)].to_dict("records"):
        steps = int(row["num_steps"])
        scores = frames.done(row["row"]).to_numpy(dtype=float)
        if not row["models_sent"] or steps not in telling or not len(scores):
            continue
        ceiling, ceiling_noise, gap = telling[steps]
        shares = np.minimum((ceiling - scores) / gap, 1.0)
        lost = float(shares.mean())
        noise = math.nan
        if len(shares) > 1:
            noise = float(shares.var(ddof=1)) / len(shares)
        if lost < 1:  # what is capped does not move with the ceiling
            noise += ceiling_noise
        models = float(row["models_sent"])
        lines.append((row["row"], row["label"], steps, models, steps / models, lost, noise))
    columns = ["row", "label", "num_steps", "models_sent", "ratio_sent", "lost", "noise"]
    return pd.DataFrame(lines, columns=columns)


def _telling(frames: Frames) -> dict[int, tuple[float, float, float]]:
    """Return, by each length that can tell a loss: the ceiling's mean, its variance, the gap.

    The variance is that of the mean, in shares of the gap.
    """
    baselines = rows_by_length(frames, frames.experiment.baseline)
    found = {}
    for line in assay_frame(frames).to_dict("records"):
        if line["reason"] is None:
            scores = frames.done(baselines[line["num_steps"]]).to_numpy(dtype=float)
            noise = float(scores.var(ddof=1)) / len(scores) / line["gap"] ** 2
            found[int(line["num_steps"])] = (line["ceiling"], noise, line["gap"])
    return found


def predictors_frame(lost: pd.DataFrame) -> pd.DataFrame:
    """Return how much of the variance of what is lost a curve a method explains, by each predictor.

    The variance is that of `lost_frame`, about each method's mean. To six digits, as fits differ
    beyond them between machines.

    Columns: predictor, num_rows, fitted (by curves through all rows), left_out (each length from
    the other lengths alone; below 0 is worse than the method's mean).
    """
    if lost.empty:
        return pd.DataFrame(columns=["predictor", "num_rows", "fitted", "left_out"])
    groups = [group for _, group in lost.groupby("label", sort=False)]
    total = sum(float(((group["lost"] - group["lost"].mean()) ** 2).sum()) for group in groups)
    lines = []
    for name, columns in PREDICTORS.items():
        misses = np.array([_misses(group, columns) for group in groups]).sum(axis=0)
        fitted, left_out = (
            round(float(1 - miss / total), 6) if total else math.nan for miss in misses
        )
        lines.append((name, len(lost), fitted, left_out))
    return pd.DataFrame(lines, columns=["predictor", "num_rows", "fitted", "left_out"])


def _misses(group: pd.DataFrame, columns: Sequence[str]) -> tuple[float, float]:
    """Return the squared misses of a method's curves, with each row's length seen and unseen.

    Seen by the curve through all rows; unseen by a curve through the rows of other lengths alone.
    """
    logs, lost = (
        np.log(group[list(columns)].to_numpy(dtype=float)),
        group["lost"].to_numpy(dtype=float),
    )
    left_out = left_out_values(logs, lost, group["num_steps"].to_numpy())
    return float(((lost - fitted_values(logs, lost, logs)) ** 2).sum()), float(
        ((lost - left_out) ** 2).sum()
    )


def left_out_values(logs: Vector, lost: Vector, groups: Vector) -> Vector:
    """Predict what a method's rows of each group lose, from its rows of the other groups alone.

    A group has one length, say.
    """
    left_out = np.empty(len(lost))
    for each in np.unique(groups):
        there = groups == each
        left_out[there] = fitted_values(logs[~there], lost[~there], logs[there])
    return left_out


def fitted_values(logs: Vector, lost: Vector, at: Vector) -> Vector:
    """Return the values at `at` of the logistic curve nearest to `lost` by least squares."""
    # Imported here: it takes a quarter of a second, and few experiments have several lengths.
    from scipy.optimize import least_squares

    centre = logs.mean(axis=0)
    design, wanted = (np.hstack([np.ones((len(each), 1)), each - centre]) for each in (logs, at))
    limits = np.array([_LIMITS[0], *[_LIMITS[1]] * logs.shape[1]])

    def misses(parameters: Vector) -> Vector:
        return np.asarray(expit(design @ parameters) - lost, dtype=np.float64)

    def slopes(parameters: Vector) -> Vector:
        values = expit(design @ parameters)
        return np.asarray((values * (1 - values))[:, None] * design, dtype=np.float64)

    # At a mean of 0 or 1 the curve would have to start at infinity.
    mean = float(np.clip(lost.mean(), 0.01, 0.99))
    start = np.array([math.log(mean / (1 - mean)), *[-0.5] * logs.shape[1]])
    found = least_squares(misses, start, jac=slopes, bounds=(-limits, limits), method="dogbox")
    return np.asarray(expit(wanted @ found.x), dtype=np.float64)
