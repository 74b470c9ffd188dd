"""The law of the gap: what a method loses, as a power of network size, of rounds of communication
and of interval.

The gap is the baseline's score less the row's, at the same size, length and seed, so that initial
parameters and order are the same; of a loss it is in nats. A cell is a size and a length.

    gap = c N^a R^b H^g        N parameters, R rounds of communication, H steps between two of them

The fit is Poisson's pseudo-likelihood with a logarithmic link (Santos Silva and Tenreyro, Rev.
Econ. Stat. 2006): the mean of the gap is the power law. A gap that is zero or below counts as it
is, where logarithms would have to leave it out, and large gaps do not outweigh all others, as they
do in least squares.

Errors are those of a jackknife that leaves out each cell in turn. The seeds of a cell share its
learning rate and what the law misses there, so that cells and not seeds are what could have come
out otherwise, and three seeds would be too few to resample. Methods of a cell share its baseline;
leaving out the cell leaves it out for all of them, and so the difference of two methods' exponents
has an error too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special

from cser_bench.harness.records.experiment import Exponent
from cser_bench.report.frame import Frames
from cser_bench.report.statistics import COVERAGE, holm

Vector = npt.NDArray[np.float64]

LAW = "size, rounds and interval"
MODELS: dict[str, tuple[str, ...]] = {
    LAW: ("num_parameters", "rounds", "interval"),
    "size": ("num_parameters",),
    "rounds": ("rounds",),
    "steps": ("num_steps",),
    "steps a parameter": ("steps_a_parameter",),
}
"""What the gap may be a power of; samples a parameter are steps a parameter, times the batch."""

EXPONENT_OF = {"size": "num_parameters", "rounds": "rounds"}

LEAST_VALUES = 3
"""Sizes and lengths that a law needs: with one of them left out a slope must remain."""
LEAST_SPARE = 4
"""Cells beyond the numbers that are fitted."""

NO_ANSWER = (math.nan, math.nan, 0)
"""Estimate, standard error and degrees of freedom of an exponent that there is not."""

_MAX_ITERATIONS, _TOLERANCE, _ROUNDING, _STEEPEST = 100, 1e-10, 1e-12, 20.0


@dataclass(frozen=True)
class Law:
    """A power law of the gap, fitted to a method's cells.

    Attributes:
        terms: columns of the cells that the gap is a power of.
        centre: means of their logarithms, where `coefficients` has the logarithm of the gap.
        coefficients: that logarithm, and the exponents of the terms.
        left_out: coefficients with each cell left out, by place (parameters, steps).
        dispersion: variance of cells about the law, over its gap: the fit takes it to be in
            proportion.
        ranges: of each term, the smallest and the largest value that was fitted.
    """

    terms: tuple[str, ...]
    centre: Vector
    coefficients: Vector
    left_out: pd.DataFrame
    dispersion: float
    ranges: dict[str, tuple[float, float]]

    @property
    def degrees(self) -> int:
        """Of freedom, of the intervals: cells less the numbers that are fitted."""
        return len(self.left_out) - len(self.coefficients)

    def exponent(self, term: str) -> tuple[float, float]:
        """Of a term, with its standard error."""
        place = 1 + self.terms.index(term)
        return float(self.coefficients[place]), jackknife_error(self.left_out[place].to_numpy())


SHARED = [
    *(
        "row",
        "label",
        "name",
        "cell",
        "num_parameters",
        "num_steps",
        "interval",
        "rounds",
        "steps_a_parameter",
    ),
    "held_back",
]
"""What a cell's seeds have in common: columns of the next two."""


def gaps_frame(frames: Frames) -> pd.DataFrame:
    """One line a row, cell and seed of which both the row's run and the baseline's are done.

    Columns: row (as it is called in all cells), label, name (of the planned row), cell,
    num_parameters, num_steps, interval, rounds, steps_a_parameter, held_back, seed, score,
    baseline, gap.
    """
    baselines, lines = dict[tuple[int, int], dict[Any, float]](), list[dict[str, Any]]()
    rows = list(_rows(frames))
    for shared in rows:
        if shared["row"] == frames.experiment.baseline:
            baselines[_place(shared)] = frames.done(shared["name"]).to_dict()
    for shared in rows:
        if shared["row"] == frames.experiment.baseline:
            continue
        known = baselines.get(_place(shared), {})
        for seed, score in frames.done(shared["name"]).to_dict().items():
            if seed in known:
                scores = {"score": score, "baseline": known[seed], "gap": known[seed] - score}
                lines.append(shared | {"seed": seed} | scores)
    return pd.DataFrame(lines, columns=[*SHARED, "seed", "score", "baseline", "gap"])


def _rows(frames: Frames) -> Iterator[dict[str, Any]]:
    """What the plan says of each row in each cell."""
    for row in frames.rows[frames.rows["rule"] == "held_out"].to_dict("records"):
        base, cell = str(row["row"]).partition("@")[::2]
        interval, num_steps = interval_of(row), int(row["num_steps"])
        yield {
            "row": base,
            "label": row["label"],
            "name": row["row"],
            "cell": cell,
            "num_parameters": int(row["num_parameters"]),
            "num_steps": num_steps,
            "interval": interval,
            "rounds": num_steps / interval,
            "steps_a_parameter": num_steps / row["num_parameters"],
            "held_back": row.get("held_back") is True,
        }


def _place(shared: dict[str, Any]) -> tuple[int, int]:
    return shared["num_parameters"], shared["num_steps"]


def diverged_rows(frames: Frames) -> dict[str, str]:
    """By row, as it is called in all cells, one of which a run diverged; but for what no law is
    fitted to."""
    return {
        shared["row"]: shared["name"]
        for shared in _rows(frames)
        if not shared["held_back"] and frames.count(shared["name"], "diverged")
    }


def interval_of(row: Mapping[Any, Any]) -> float:
    """Steps between two rounds in which all that a method sends has been sent; 1 where it sends at
    every step."""
    for key in ("sync_interval", "reset_interval"):
        value = row.get(key)
        if isinstance(value, int | float) and not math.isnan(value):
            return float(value)
    return 1.0


def cells_frame(gaps: pd.DataFrame) -> pd.DataFrame:
    """One line a row and cell: the means over seeds, in three units.

    Columns: those of `gaps_frame` without seed; num_seeds; deviation (of the gap between seeds);
    share (of the baseline's loss, or of a score that is a share); baseline_steps (in which the
    baseline would come as far, from its own scores at this size) and steps_saved. Steps are NaN
    where the row came less far than the baseline's shortest run, or the baseline has one length at
    this size.
    """
    lines = []
    sizes = {size: of_size for size, of_size in gaps.groupby("num_parameters")}
    curves = {
        size: of_size.groupby("num_steps")["baseline"].mean() for size, of_size in sizes.items()
    }
    for _, seeds in gaps.groupby(["row", "num_parameters", "num_steps"], sort=False):
        line = seeds.iloc[0][SHARED].to_dict()
        line |= seeds[["score", "baseline", "gap"]].mean().to_dict()
        line |= {"num_seeds": len(seeds), "deviation": float(seeds["gap"].std(ddof=1))}
        line["share"] = line["gap"] / abs(line["baseline"])
        line["baseline_steps"] = steps_to(line["score"], curves[line["num_parameters"]])
        line["steps_saved"] = line["num_steps"] - line["baseline_steps"]
        lines.append(line)
    numbers = (
        "score",
        "baseline",
        "gap",
        "num_seeds",
        "deviation",
        "share",
        "baseline_steps",
        "steps_saved",
    )
    return pd.DataFrame(lines, columns=[*SHARED, *numbers])


def steps_to(score: float, curve: pd.Series[float]) -> float:
    """Steps in which the baseline comes to a score, by its scores by number of steps, as straight
    lines over log steps.

    NaN where that is before its shortest run; where it is beyond its longest, the last stretch goes
    on.
    """
    curve = curve.sort_index()
    steps = np.log(curve.index.to_numpy(dtype=float))
    scores = np.maximum.accumulate(curve.to_numpy(dtype=float))
    if len(steps) < 2 or score < scores[0]:
        return math.nan
    after = min(max(int(np.searchsorted(scores, score)), 1), len(steps) - 1)
    rise = scores[after] - scores[after - 1]
    if rise <= 0:
        return math.nan
    share = (score - scores[after - 1]) / rise
    return float(np.exp(steps[after - 1] + share * (steps[after] - steps[after - 1])))


def why_no_law(cells: pd.DataFrame, terms: Sequence[str] = MODELS[LAW]) -> str | None:
    """Why a law cannot be fitted to these cells, as a sentence; None where it can."""
    for column, name in (("num_parameters", "sizes"), ("num_steps", "lengths")):
        count = cells[column].nunique()
        if count < LEAST_VALUES:
            return f"a law needs runs of {LEAST_VALUES} {name}, and there are {count}"
    num_places, num_fitted = len(_places(cells).unique()), 1 + len(terms_of(cells, terms))
    if num_places < num_fitted + LEAST_SPARE:
        return (
            f"{num_fitted} numbers need {num_fitted + LEAST_SPARE} cells, and there are "
            f"{num_places}"
        )
    if cells["gap"].mean() <= 0:
        return "nothing is lost on the whole, so there is no gap to have a law"
    return None


def terms_of(cells: pd.DataFrame, terms: Sequence[str]) -> tuple[str, ...]:
    """Those that have more than one value, without which they have no exponent."""
    return tuple(term for term in terms if cells[term].nunique() > 1)


def fit_law(cells: pd.DataFrame, terms: Sequence[str] = MODELS[LAW]) -> Law | None:
    """The power law of one method's cells; None where there is none, see `why_no_law`, or where the
    fit has no end."""
    kept = terms_of(cells, terms)
    if why_no_law(cells, terms) is not None:
        return None
    logs, gaps, places = (
        np.log(cells[list(kept)].to_numpy(dtype=float)),
        cells["gap"].to_numpy(float),
        _places(cells),
    )
    centre = logs.mean(axis=0)
    design = _design(logs, centre)
    coefficients = pseudo_poisson(design, gaps)
    left_out = {}
    for place in places.unique():
        others = (places != place).to_numpy()
        found = pseudo_poisson(design[others], gaps[others])
        if found is None:
            return None
        left_out[place] = found
    if coefficients is None:
        return None
    fitted = np.exp(design @ coefficients)
    spare = max(len(gaps) - len(coefficients), 1)
    dispersion = float(((gaps - fitted) ** 2 / fitted).sum()) / spare
    ranges = {term: (float(cells[term].min()), float(cells[term].max())) for term in kept}
    return Law(
        kept,
        centre,
        coefficients,
        pd.DataFrame.from_dict(left_out, orient="index"),
        dispersion,
        ranges,
    )


def _places(cells: pd.DataFrame) -> pd.Series[str]:
    return cells["num_parameters"].astype(str) + " x " + cells["num_steps"].astype(str)


def _design(logs: Vector, centre: Vector) -> Vector:
    return np.hstack([np.ones((len(logs), 1)), logs - centre])


def pseudo_poisson(design: Vector, gaps: Vector) -> Vector | None:
    """Coefficients whose exponential is the mean of the gaps, by Newton's method on a convex
    function.

    The function is the sum of exp(x b) - gap x b. None where it has no minimum, as where too many
    gaps are negative.
    """
    if gaps.mean() <= 0:
        return None
    coefficients = np.zeros(design.shape[1])
    coefficients[0] = math.log(gaps.mean())

    def value(at: Vector) -> float:
        powers = design @ at
        return float((np.exp(np.minimum(powers, 700.0)) - gaps * powers).sum())

    for _ in range(_MAX_ITERATIONS):
        means = np.exp(np.minimum(design @ coefficients, 700.0))
        curvature = design.T @ (design * means[:, None])
        if np.linalg.matrix_rank(curvature) < len(coefficients):
            return None
        step = np.linalg.solve(curvature, design.T @ (gaps - means))
        size, most = 1.0, value(coefficients) + _ROUNDING * np.abs(gaps).sum()
        while size > _TOLERANCE and value(coefficients + size * step) > most:
            size /= 2
        coefficients = coefficients + size * step
        if np.abs(coefficients[1:]).max(initial=0.0) > _STEEPEST:
            return None
        if np.abs(step).max() < _TOLERANCE:
            return coefficients
    return None


def jackknife_error(left_out: Vector) -> float:
    """Standard error of a number from its values with each cell left out."""
    count = len(left_out)
    return math.sqrt((count - 1) / count * float(((left_out - left_out.mean()) ** 2).sum()))


def predicted(law: Law, at: pd.DataFrame) -> pd.DataFrame:
    """The gap that the law predicts of cells, with the 95 % interval of one that is run: cells lie
    about the law.

    Columns: gap, low, high, beyond (the factor by which a term lies outside of what was fitted; 1
        inside).
    """
    design = _design(np.log(at[list(law.terms)].to_numpy(dtype=float)), law.centre)
    powers, left_out = design @ law.coefficients, law.left_out.to_numpy() @ design.T
    gaps, errors = np.exp(powers), np.array([jackknife_error(column) for column in left_out.T])
    half = float(special.stdtrit(law.degrees, (1 + COVERAGE) / 2)) * np.sqrt(
        errors**2 + law.dispersion / gaps
    )
    beyond = np.ones(len(at))
    for term, (low, high) in law.ranges.items():
        values = at[term].to_numpy(dtype=float)
        beyond = np.maximum.reduce([beyond, values / high, low / values])
    ends = {"low": gaps * np.exp(-half), "high": gaps * np.exp(half)}
    return pd.DataFrame({"gap": gaps, **ends, "beyond": beyond}, index=at.index)


def models_frame(cells: pd.DataFrame) -> pd.DataFrame:
    """How far each model of the gap misses cells that it has not seen, of one method.

    Columns: model, num_fitted (numbers), fitted, size_left_out, length_left_out (roots of mean
    squared misses, in the unit of the gap: of all cells, and of those of each size, or each length,
    from the others alone), is_chosen (the least of the two together). NaN where a model cannot be
    fitted without them.
    """
    lines = []
    for model, terms in MODELS.items():
        kept = terms_of(cells, terms)
        misses = [
            _miss(cells, kept, cells[column].to_numpy()) if column else _miss(cells, kept, None)
            for column in (None, "num_parameters", "num_steps")
        ]
        lines.append((model, 1 + len(kept), *misses))
    frame = pd.DataFrame(
        lines, columns=["model", "num_fitted", "fitted", "size_left_out", "length_left_out"]
    )
    both = frame["size_left_out"] ** 2 + frame["length_left_out"] ** 2
    frame["is_chosen"] = both == both.min()
    return frame


def _miss(cells: pd.DataFrame, terms: Sequence[str], groups: Vector | None) -> float:
    """Root of the mean squared miss: of each group from the others alone, or where there are none
    of all from all."""
    logs, gaps = (
        np.log(cells[list(terms)].to_numpy(dtype=float)),
        cells["gap"].to_numpy(dtype=float),
    )
    design = _design(logs, logs.mean(axis=0))
    squares = 0.0
    for group in [None] if groups is None else np.unique(groups):
        there = (
            np.ones(len(gaps), dtype=bool) if group is None or groups is None else groups == group
        )
        known = there if group is None else ~there
        coefficients = pseudo_poisson(design[known], gaps[known])
        if coefficients is None:
            return math.nan
        squares += float(((gaps[there] - np.exp(design[there] @ coefficients)) ** 2).sum())
    return math.sqrt(squares / len(gaps))


def fitted_cells(cells: pd.DataFrame, rows: Sequence[str]) -> pd.DataFrame:
    """The cells of these rows that a law is fitted to."""
    return cells[cells["row"].isin(rows) & ~cells["held_back"]]


def exponents_frame(
    cells: pd.DataFrame, asked: Sequence[Exponent], diverged: Mapping[str, str], level: float = 0.05
) -> pd.DataFrame:
    """The declared questions and their answers, one line each.

    Args:
        diverged: see `diverged_rows`; the gap of a run that diverged has no number, so its method
            has no law.

    Columns: rows, of, than, question, estimate (the exponent, or how much it is above that of
    `than`), standard_error, degrees, low, high (two-sided 95 %), p (one-sided, that it is
    negative), p_holm, is_shown, reason (why there is no answer; None where there is). A question
    without an answer counts in Holm's family with a p of 1.
    """
    lines = []
    for question in asked:
        term = EXPONENT_OF[question.of]
        lost = [diverged[row] for row in (*question.rows, *question.than) if row in diverged]
        answer = _exponent(cells, question.rows, question.than, term)
        estimate, error, degrees, reason = (
            (*NO_ANSWER, f"a run of {lost[0]} diverged") if lost else answer
        )
        half = (
            float(special.stdtrit(degrees, (1 + COVERAGE) / 2)) * error
            if reason is None
            else math.nan
        )
        p = (
            1.0
            if reason is not None
            else float(special.stdtr(degrees, estimate / error))
            if error
            else 0.0
        )
        names = [
            " and ".join(question.rows),
            question.of,
            " and ".join(question.than),
            question.question,
        ]
        lines.append(
            (*names, estimate, error, degrees, estimate - half, estimate + half, p, reason)
        )
    columns = [
        "rows",
        "of",
        "than",
        "question",
        "estimate",
        "standard_error",
        "degrees",
        "low",
        "high",
        "p",
        "reason",
    ]
    frame = pd.DataFrame(lines, columns=columns)
    frame["p_holm"] = holm(frame["p"].to_numpy(dtype=float))
    frame["is_shown"] = (frame["p_holm"] <= level) & frame["reason"].isna()
    return frame


def _exponent(
    cells: pd.DataFrame, rows: Sequence[str], than: Sequence[str], term: str
) -> tuple[float, float, int, str | None]:
    """Exponent, or difference of two, with its error and degrees of freedom; and why there is
    none."""
    laws = []
    for names in (rows, than) if than else (rows,):
        chosen = fitted_cells(cells, names)
        law = fit_law(chosen)
        if law is None or term not in law.terms:
            reason = why_no_law(chosen) or "the fit has no end: gaps cannot be told from nothing"
            return *NO_ANSWER, f"{' and '.join(names)}: {reason}"
        laws.append(law)
    values = [law.left_out[1 + law.terms.index(term)] for law in laws]
    estimates = [law.exponent(term)[0] for law in laws]
    degrees = min(law.degrees for law in laws)
    if len(laws) == 1:
        return estimates[0], jackknife_error(values[0].to_numpy()), degrees, None
    # A cell that only one of them has changes nothing of the other.
    joint = pd.concat(values, axis=1, keys=["own", "other"]).fillna(
        {"own": estimates[0], "other": estimates[1]}
    )
    apart = (joint["own"] - joint["other"]).to_numpy()
    return estimates[0] - estimates[1], jackknife_error(apart), degrees, None


def rate_costs_frame(frames: Frames) -> pd.DataFrame:
    """What half a step of the learning rate costs where it was chosen, from the trials, by a
    parabola through three.

    Columns: row (as it is called in all cells), name (of the tuned row), learning_rate, half_step
    (in the unit of the gap; NaN where a neighbour diverged), at_end (whether the chosen rate is the
    last tried). Half a step is the most by which a best rate between those tried can be missed.
    """
    choices = frames.experiment.tuning.choices if frames.experiment.tuning else {}
    trials = frames.tuning
    lines = []
    for name, choice in choices.items():
        mine = trials[(trials["row"] == name) & (trials["candidate"].fillna(0) == choice.candidate)]
        means = mine.groupby("learning_rate")["score"].mean().sort_index()
        rates = means.index.to_numpy(dtype=float)
        chosen = int(np.abs(np.log(rates / choice.learning_rate)).argmin()) if len(rates) else 0
        inside = 0 < chosen < len(rates) - 1
        beside = means.iloc[[chosen - 1, chosen + 1]].sum() if inside else math.nan
        half_step = (2 * means.iloc[chosen] - beside) / 8 if inside else math.nan
        lines.append((name.partition("@")[0], name, choice.learning_rate, half_step, not inside))
    return pd.DataFrame(lines, columns=["row", "name", "learning_rate", "half_step", "at_end"])
