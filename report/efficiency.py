"""Statistical efficiency: what a step of a method is worth, in steps of the baseline.

A method's run of T steps reaches a score. The baseline, annealed to its own end at each of several
lengths, reaches that score in t steps. The efficiency is w = t / T. It is the second factor of
goodput (Qiao et al., Pollux, OSDI 2021): goodput = throughput x statistical efficiency.

The curve of the baseline is an isotonic regression of its means over lengths, weighted by runs,
and a monotone cubic (PCHIP) in ln t through it; t is the smallest that reaches the score. Intervals
are of 4,000 draws, in each of which every mean is redrawn by its t distribution. All methods of an
experiment share the draws of the baseline, as they share its runs.

docs/efficiency.md explains the definition and its limits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

from cser_bench.harness.errors import UsageError
from cser_bench.report.frame import Frames
from cser_bench.report.statistics import COVERAGE, rows_by_place

NUM_DRAWS = 4000
"""With so many an interval's ends move by some 4 % of a standard deviation from one seed to another."""

SEED = 20201
"""Seed of the draws, so that a report says the same each time."""

LEAST_LENGTHS = 6
"""Fewest lengths of a baseline's curve; fewer, an octave apart, leave its shape open."""

MOST_APART = 1.5
"""Largest factor between the lengths below and above t for the curve between them to be known."""

MOST_FROM_TUNED = 1.75
"""Factor between t and the nearest length at which the baseline's learning rate was tuned."""

WIDEST = 2.5
"""Ratio of an interval's ends, beyond which it says too little to be shown."""

OWN_DEVIATION_RUNS = 5
"""Runs from which on a method's own deviation is taken; with fewer, that of all rows together."""

Kind = Literal["estimate", "at least", "at most", "none"]
ScoreName = Literal["test_loss", "score"]

REGIME = ("task", "model", "num_workers", "batch_size", "partition", "label_smoothing")
"""Keys of an experiment's configuration that it must share with its curve. The precision of passes is
none of them: AdamW's test losses in fp32 and in bf16 differ by less than seeds do."""

COLUMNS = [
    "row",
    "num_parameters",
    "num_steps",
    "num_runs",
    "score_name",
    "kind",
    "efficiency",
    "low",
    "high",
    "reason",
    "quadratic",
]


@dataclass(frozen=True)
class Curve:
    """The baseline's scores at several lengths, by rising length.

    Attributes:
        steps: lengths of its runs, (lengths,).
        means, counts: of the scores at each length, (lengths,); more is better.
        deviation: between seeds, pooled over lengths; NaN where no length has two runs.
        degrees: of freedom of that deviation.
        tuned: the lengths at which the learning rate was tuned.
    """

    steps: np.ndarray
    means: np.ndarray
    counts: np.ndarray
    deviation: float
    degrees: int
    tuned: tuple[int, ...]

    @property
    def is_monotone(self) -> bool:
        """Whether each longer run came further on average, before any regression."""
        return bool((np.diff(self.means) > 0).all())


@dataclass(frozen=True)
class Reached:
    """The scores of a row's runs of one length; more is better."""

    row: str
    num_parameters: int
    num_steps: int
    scores: np.ndarray


def efficiency_frame(
    frames: Frames, curve_frames: Frames | None = None
) -> pd.DataFrame:
    """Return the statistical efficiency of every row, by test loss and by the experiment's score.

    Args:
        curve_frames: the experiment that ran the baseline at other lengths, which the experiment's
            record names; None where its own cells have them.

    Columns: `COLUMNS`. A row has one line by each score, the test loss first; where the curve of the
    test loss does not fall from each length to the next, it has none by that. `kind` says what
    `efficiency` is: an estimate with an interval of 95 % (low, high), a bound, or nothing, with the
    `reason`. `quadratic` is the efficiency by a weighted quadratic in ln t, as a check. The frame is
    empty where the baseline has too few lengths.

    Raises UsageError: the curve is of another network, task or recipe.
    """
    if curve_frames is not None:
        _check_same_regime(frames, curve_frames)
    lines = []
    # A curve is of one network, so each size of an experiment that crosses sizes has its own.
    for size in sorted(frames.rows["num_parameters"].unique()):
        for score_name in _score_names(frames):
            curve = curve_of(frames, curve_frames, int(size), score_name)
            if curve is None or _is_left_out(frames, curve, score_name):
                continue
            for reached, by_draw in draws(frames, curve, int(size), score_name):
                lines.append(_efficiency_line(curve, reached, by_draw, score_name))
    return pd.DataFrame(lines, columns=COLUMNS)


def efficiency_draws(
    frames: Frames, curve_frames: Frames | None, row: str
) -> np.ndarray:
    """Return a row's efficiency by the test loss, and then draws of it: (1 + draws,).

    A draw is 0 before the curve and infinite beyond it. All are NaN where the row or its curve is
    not known.
    """
    line = frames.row(row)
    size = int(line["num_parameters"])
    curve = curve_of(frames, curve_frames, size, "test_loss")
    if curve is not None:
        for reached, steps in draws(frames, curve, size, "test_loss"):
            if reached.row == row:
                return steps / reached.num_steps
    return np.full(1 + NUM_DRAWS, math.nan)


def _is_left_out(frames: Frames, curve: Curve, score_name: ScoreName) -> bool:
    """Tell whether a curve of the test loss is not used, as longer runs have a larger one.

    An accuracy may rise while the test loss does, as where a network grows too sure of itself. Where
    the loss is what the experiment compares there is no other score to go by.
    """
    if score_name != "test_loss" or frames.experiment.metric == "loss":
        return False
    return not curve.is_monotone


def _score_names(frames: Frames) -> list[ScoreName]:
    """Return the scores that steps are valued by: the loss, and what the experiment compares."""
    if frames.experiment.metric == "loss":
        return ["test_loss"]
    return ["test_loss", "score"]


def _check_same_regime(frames: Frames, curve_frames: Frames) -> None:
    """Raise UsageError where the curve does not belong to the experiment."""
    here = frames.experiment.config
    other = curve_frames.experiment.config
    for key in REGIME:
        if here.get(key) != other.get(key):
            raise UsageError(
                f"{frames.experiment.name} takes its baseline's curve from "
                f"{curve_frames.experiment.name}, whose {key} is {other.get(key)!r} and not "
                f"{here.get(key)!r}; name a curve of the same network, task and recipe"
            )


def curve_of(
    frames: Frames, curve_frames: Frames | None, size: int, score_name: ScoreName
) -> Curve | None:
    """Return the baseline's curve at a size; None where it has too few lengths.

    At a length that the experiment ran itself, its own baseline counts and the other's does not:
    the methods were tuned in the same experiment as its learning rate, and a run must not count twice.
    """
    # By steps: (runs,) each.
    scores: dict[int, np.ndarray] = {}
    tuned: set[int] = set()
    # The experiment itself comes last, so that its runs replace the curve's at the same length.
    for source in filter(None, (curve_frames, frames)):
        for (row_size, steps), row in rows_by_place(
            source, source.experiment.baseline
        ).items():
            of_row = _finished_scores(source, row, score_name)
            if row_size == size and len(of_row):
                scores[steps] = of_row
        tuned |= _tuned_lengths(source, size)
    if len(scores) < LEAST_LENGTHS:
        return None
    by_length = [scores[steps] for steps in sorted(scores)]
    # Pooled: two or three runs a length say little of their spread, those of all lengths more.
    deviation, degrees = pooled_deviation(by_length)
    return Curve(
        steps=np.array(sorted(scores), dtype=float),
        means=np.array([values.mean() for values in by_length]),
        counts=np.array([len(values) for values in by_length]),
        deviation=deviation,
        degrees=degrees,
        tuned=tuple(sorted(tuned)),
    )


def _tuned_lengths(frames: Frames, size: int) -> set[int]:
    """Return the lengths at which the baseline's learning rate was tuned, at a size."""
    tuning = frames.experiment.tuning
    if tuning is None:
        return set()
    rows = frames.rows
    baseline = frames.experiment.baseline
    # Repetitions at other lengths are rows of their own, whose `base` is the baseline. Only some of
    # them were tuned; the others have their rate from these.
    is_baseline = (rows["row"] == baseline) | (rows["base"] == baseline)
    is_tuned = is_baseline & rows["row"].isin(list(tuning.choices))
    return {
        int(steps)
        for steps in rows.loc[is_tuned & (rows["num_parameters"] == size), "num_steps"]
    }


def _finished_scores(frames: Frames, row: str, score_name: ScoreName) -> np.ndarray:
    """Return the scores of a row's finished runs by rising seed, (runs,); more is better."""
    runs = frames.runs
    done = runs[(runs["row"] == row) & (runs["status"] == "done")].sort_values("seed")
    values = done[score_name].to_numpy(dtype=float)
    # The score of a loss is its negative.
    if score_name == "test_loss":
        return -values
    return values


def pooled_deviation(samples: list[np.ndarray]) -> tuple[float, int]:
    """Return the standard deviation within samples, pooled over them, and its degrees of freedom.

    NaN and 0 where no sample has two values.
    """
    # s^2 = sum_j sum_i (x_ij - mean_j)^2 / sum_j (n_j - 1); a sample of one value adds nothing.
    degrees = sum(len(values) - 1 for values in samples)
    if degrees == 0:
        return math.nan, 0
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in samples)
    return math.sqrt(squares / degrees), degrees


def draws(
    frames: Frames, curve: Curve, size: int, score_name: ScoreName
) -> list[tuple[Reached, np.ndarray]]:
    """Return each row of a size with the steps in which the baseline reaches its score, drawn.

    The steps are those of `steps_in_draws`.
    """
    rows = _reached(frames, size, score_name)
    by_length: dict[int, list[np.ndarray]] = {}
    for reached in rows:
        by_length.setdefault(reached.num_steps, []).append(reached.scores)
    # The spread between seeds may change with the length, so a row borrows from its own length alone.
    siblings = [by_length[reached.num_steps] for reached in rows]
    steps = steps_in_draws(curve, [reached.scores for reached in rows], siblings)
    return list(zip(rows, steps, strict=True))


def steps_in_draws(
    curve: Curve,
    samples: list[np.ndarray],
    siblings: list[list[np.ndarray]] | None = None,
) -> list[np.ndarray]:
    """Return the steps in which the baseline reaches the mean of each sample: (1 + draws,) each.

    The first is that of the means themselves, the others are of redrawn means. Steps are 0 where
    the sample did not come as far as the baseline's shortest run, and infinite where it came
    further than the longest.

    Args:
        samples: scores of a row's runs, more being better.
        siblings: for each sample those of the same length, itself among them. Their deviation is
            taken where the sample has too few runs for one of its own.
    """
    generator = np.random.default_rng(SEED)
    # (1 + draws, lengths): the whole curve is redrawn, so that its own spread counts too.
    means = _redrawn(
        generator, curve.means, curve.counts, curve.deviation, curve.degrees
    )
    log_steps, curves = _grid_of(curve, means)
    # One generator for all: each row sees the same curves, and targets that are its own.
    found = []
    for number, scores in enumerate(samples):
        deviation, degrees = pooled_deviation([scores])
        if siblings is not None and len(scores) < OWN_DEVIATION_RUNS:
            deviation, degrees = pooled_deviation(siblings[number])
        mean = np.array([scores.mean()])
        # A single mean gives (1 + draws, 1), whose column has a target for each redrawn curve.
        targets = _redrawn(
            generator, mean, np.array([len(scores)]), deviation, degrees
        )[:, 0]
        steps = _steps_to(targets, log_steps, curves)
        # Where each length has one run nothing says how far its mean may be off.
        if curve.degrees == 0:
            steps[1:] = math.nan
        found.append(steps)
    return found


def _reached(frames: Frames, size: int, score_name: ScoreName) -> list[Reached]:
    """Return the rows of a size that have finished runs, without the baseline."""
    baselines = set(rows_by_place(frames, frames.experiment.baseline).values())
    rows = []
    of_size = frames.rows[frames.rows["num_parameters"] == size]
    for name in of_size.loc[of_size["rule"] == "held_out", "row"]:
        scores = _finished_scores(frames, name, score_name)
        if len(scores) and name not in baselines:
            num_steps = int(frames.by_row.loc[name, "num_steps"])
            rows.append(Reached(name, size, num_steps, scores))
    return rows


def _redrawn(
    generator: np.random.Generator,
    means: np.ndarray,
    counts: np.ndarray,
    deviation: float,
    degrees: int,
) -> np.ndarray:
    """Return the means, and then `NUM_DRAWS` draws of them: (1 + draws, means).

    A mean of n runs is drawn as mean + t s / sqrt(n), with the degrees of freedom of s. All draws
    are NaN where s is not known.
    """
    noise = np.full((NUM_DRAWS, len(means)), math.nan)
    if degrees > 0:
        noise = generator.standard_t(degrees, size=(NUM_DRAWS, len(means)))
    # (draws, means): each column's noise over the root of its own number of runs.
    drawn = means + noise * deviation / np.sqrt(counts)
    return np.vstack([means, drawn])


def _grid_of(curve: Curve, means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return curves through means on a fine grid of ln t.

    Args:
        means: of shape (draws, lengths).

    Returns the grid, (points,), and the scores there, (points, draws).
    """
    log_steps = np.log(curve.steps)
    # Straight lines between so many points differ from the cubic by less than 1e-5 of w.
    grid = np.linspace(log_steps[0], log_steps[-1], 1001)
    if np.isnan(means).any():
        # Without a deviation only the means themselves are known.
        means = np.where(np.isnan(means), means[0], means)
    # Longer runs are taken to score no worse: noise would else give a score two lengths.
    regressed = means.copy()
    # Where nothing falls the regression is the means themselves: most draws, and each call is slow.
    for draw in np.flatnonzero((np.diff(means) < 0).any(axis=1)):
        regressed[draw] = isotonic_regression(means[draw], weights=curve.counts).x
    # PCHIP does not overshoot, so a curve through rising means rises, which a spline's need not.
    # It takes the first axis, so (lengths, draws).
    return grid, PchipInterpolator(log_steps, regressed.T)(grid)


def _steps_to(
    targets: np.ndarray, log_steps: np.ndarray, scores: np.ndarray
) -> np.ndarray:
    """Return the smallest number of steps in which each curve reaches its target.

    Args:
        targets: a score for each draw, (draws,).
        log_steps, scores: the curves, (points,) and (points, draws).

    0 where the target lies before a curve's first point, infinite where it lies beyond the last.
    """
    draw = np.arange(len(targets))
    # (draws,): by bisection, as scores never fall along a curve, the last point but one that does
    # not reach the target, and the first that does.
    left = np.zeros(len(targets), dtype=int)
    right = np.full(len(targets), len(log_steps) - 1)
    while (right - left).max() > 1:
        # Not the first point, which has none before it: another draw may need more rounds.
        middle = np.maximum((left + right) // 2, 1)
        is_beyond = scores[middle, draw] >= targets
        right = np.where(is_beyond, middle, right)
        left = np.where(is_beyond, left, middle)
    # (draws,) each: the scores on both sides of the target, on each draw's own curve.
    below = scores[right - 1, draw]
    above = scores[right, draw]
    # A target on the first point is at its beginning, where a flat curve has no rise to divide by.
    rise = np.where(above > below, above - below, 1.0)
    share = np.clip((targets - below) / rise, 0.0, 1.0)
    # Linear in ln t between two points of the grid.
    steps = np.exp(
        log_steps[right - 1] + share * (log_steps[right] - log_steps[right - 1])
    )
    # (draws,) each. A comparison with NaN is false, so an unknown target needs a line of its own.
    steps = np.where(targets < scores[0], 0.0, steps)
    steps = np.where(np.isnan(targets), math.nan, steps)
    return np.where(targets > scores[-1], math.inf, steps)


def _efficiency_line(
    curve: Curve, reached: Reached, by_draw: np.ndarray, score_name: str
) -> tuple[object, ...]:
    """Return the row's line of `efficiency_frame`, in the order of `COLUMNS`."""
    # The first is of the means themselves, which is the estimate.
    steps = by_draw[0]
    low, high = ends_of(by_draw[1:])
    kind, shown, reason = _judged(curve, float(steps), low, high)
    # A bound has no interval: it is the end of one already.
    if kind != "estimate":
        low = high = math.nan
    length = reached.num_steps
    return (
        reached.row,
        reached.num_parameters,
        length,
        len(reached.scores),
        score_name,
        kind,
        shown / length,
        low / length,
        high / length,
        reason,
        quadratic_steps(curve, float(reached.scores.mean())) / length,
    )


def ends_of(drawn: np.ndarray) -> tuple[float, float]:
    """Return the interval of 95 % of draws, (draws,), that may be infinite; NaN if any is NaN."""
    if np.isnan(drawn).any():
        return math.nan, math.nan
    tail = (1 - COVERAGE) / 2
    # "lower" and "higher" do not interpolate, which infinite draws could not stand.
    low = float(np.quantile(drawn, tail, method="lower"))
    high = float(np.quantile(drawn, 1 - tail, method="higher"))
    return low, high


def _judged(
    curve: Curve, steps: float, low: float, high: float
) -> tuple[Kind, float, str]:
    """Return what can be said of the steps that a score is worth: its kind, the steps, the reason.

    A bound is the interval's end on the side that the curve covers, or the curve's own end.
    """
    shortest = curve.steps[0]
    longest = curve.steps[-1]
    # In this order: first what the curve does not reach, then where it is too coarse to be read.
    if math.isnan(low):
        return "none", math.nan, "too few runs"
    if low == 0 and high == math.inf:
        return "none", math.nan, "interval too wide"
    if low == 0:
        return "at most", max(high, shortest), ""
    if high == math.inf:
        return "at least", min(low, longest), ""
    if high > WIDEST * low:
        return "none", math.nan, "interval too wide"
    # The place of the length above `steps`; that below is one before it.
    after = min(max(int(np.searchsorted(curve.steps, steps)), 1), len(curve.steps) - 1)
    if curve.steps[after] > MOST_APART * curve.steps[after - 1]:
        return "none", math.nan, "curve too coarse there"
    # How far off the next tuned length is, as a logarithm of a factor.
    nearest = min(
        (abs(math.log(steps / length)) for length in curve.tuned), default=math.inf
    )
    if nearest > math.log(MOST_FROM_TUNED):
        return "none", math.nan, "rate not tuned near there"
    return "estimate", steps, ""


def quadratic_steps(curve: Curve, score: float) -> float:
    """Return the steps to the score by a quadratic in ln t, weighted by runs.

    NaN where the parabola does not rise to it within the curve's lengths.
    """
    log_steps = np.log(curve.steps)
    # With x = ln t: score = square x^2 + slope x + constant, of which the roots x are sought.
    # polyfit weights residuals, so a weight of n on squares is sqrt(n) here.
    square, slope, constant = np.polyfit(
        log_steps, curve.means, 2, w=np.sqrt(curve.counts)
    )
    roots = np.roots([square, slope, constant - score])
    # Of the two roots the one on the rising branch, where a longer run scores better.
    inside = [
        float(root.real)
        for root in roots
        if abs(root.imag) < 1e-9
        and log_steps[0] <= root.real <= log_steps[-1]
        and 2 * square * root.real + slope > 0
    ]
    if not inside:
        return math.nan
    return math.exp(min(inside))
