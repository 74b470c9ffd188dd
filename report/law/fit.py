"""The fit of the law: a power law of the gap, its errors, its predictions, and rival laws.

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
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special

from cser_bench.report.statistics import COVERAGE

Vector = npt.NDArray[np.float64]

LAW = "size, rounds and interval"
MEAN = "nothing: the mean of all cells"
MODELS: dict[str, tuple[str, ...]] = {
    LAW: ("num_parameters", "rounds", "interval"),
    "size": ("num_parameters",),
    "rounds": ("rounds",),
    "steps": ("num_steps",),
    "steps a parameter": ("steps_a_parameter",),
    MEAN: (),
}
"""What the gap may be a power of; samples a parameter are steps a parameter, times the batch. The
mean of all cells, which knows neither size nor length, is what a law must do better than."""

LEAST_VALUES = 3
"""Sizes and lengths that a law needs: with one of them left out a slope must remain."""

LEAST_SPARE = 4
"""Cells beyond the numbers that are fitted."""

# Newton's method is done when a step is this small, and gives up after so many, or where an exponent
# is this steep: a fit without a minimum runs off to infinity.
_TOLERANCE = 1e-10
_MAX_ITERATIONS = 100
_STEEPEST = 20.0

# What rounding may add to the function at its minimum, in the sum of the gaps.
_ROUNDING = 1e-12

# The exponential of more overflows; steps that go so far are halved in any case.
_MOST_POWER = 700.0


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
        """Return that of a term, with its standard error."""
        estimate = self.coefficients[1 + self.terms.index(term)]
        left_out = np.asarray(self.exponents_left_out(term), dtype=np.float64)
        return float(estimate), jackknife_error(left_out)

    def interval(self, term: str) -> tuple[float, float]:
        """Return that of a term's exponent, two-sided, of 95 %."""
        estimate, error = self.exponent(term)
        half = float(special.stdtrit(self.degrees, (1 + COVERAGE) / 2)) * error
        return estimate - half, estimate + half

    def exponents_left_out(self, term: str) -> pd.Series[float]:
        """Return the exponent of a term with each cell left out, by place."""
        return self.left_out[1 + self.terms.index(term)]


def why_no_law(cells: pd.DataFrame, terms: Sequence[str] = MODELS[LAW]) -> str | None:
    """Return why a law cannot be fitted to these cells, as a sentence; None where it can."""
    for column, name in (("num_parameters", "sizes"), ("num_steps", "lengths")):
        count = cells[column].nunique()
        if count < LEAST_VALUES:
            return f"a law needs runs of {LEAST_VALUES} {name}, and there are {count}"
    num_places = _places(cells).nunique()
    num_fitted = 1 + len(terms_of(cells, terms))
    num_needed = num_fitted + LEAST_SPARE
    if num_places < num_needed:
        return f"{num_fitted} numbers need {num_needed} cells, and there are {num_places}"
    if cells["gap"].mean() <= 0:
        return "nothing is lost on the whole, so there is no gap to have a law"
    return None


def terms_of(cells: pd.DataFrame, terms: Sequence[str]) -> tuple[str, ...]:
    """Return those that have more than one value, without which they have no exponent."""
    return tuple(term for term in terms if cells[term].nunique() > 1)


def fit_law(cells: pd.DataFrame, terms: Sequence[str] = MODELS[LAW]) -> Law | None:
    """Return the power law of one method's cells.

    None where there is none, see `why_no_law`, or where the fit has no end.
    """
    if why_no_law(cells, terms) is not None:
        return None
    kept = terms_of(cells, terms)
    logs = _logs(cells, kept)
    gaps = cells["gap"].to_numpy(float)
    # Centred, so that the constant is the gap of a typical cell and Newton's method starts near it.
    centre = logs.mean(axis=0)
    design = _design(logs, centre)
    coefficients = pseudo_poisson(design, gaps)
    if coefficients is None:
        return None
    places = _places(cells)
    left_out = {}
    for place in places.unique():
        others = (places != place).to_numpy()
        # About the centre of all cells, not of the others: the constants must be of one place.
        without = pseudo_poisson(design[others], gaps[others])
        if without is None:
            return None
        left_out[place] = without
    fitted = np.exp(design @ coefficients)
    spare = max(len(gaps) - len(coefficients), 1)
    scatter = (gaps - fitted) ** 2 / fitted
    ranges = {}
    for term in kept:
        ranges[term] = (float(cells[term].min()), float(cells[term].max()))
    return Law(
        kept,
        centre,
        coefficients,
        left_out=pd.DataFrame.from_dict(left_out, orient="index"),
        dispersion=float(scatter.sum()) / spare,
        ranges=ranges,
    )


def _places(cells: pd.DataFrame) -> pd.Series[str]:
    return cells["num_parameters"].astype(str) + " x " + cells["num_steps"].astype(str)


def _logs(cells: pd.DataFrame, terms: Sequence[str]) -> Vector:
    values = cells[list(terms)].to_numpy(dtype=float)
    return np.asarray(np.log(values))


def _design(logs: Vector, centre: Vector) -> Vector:
    ones = np.ones((len(logs), 1))
    return np.hstack([ones, logs - centre])


def pseudo_poisson(design: Vector, gaps: Vector) -> Vector | None:
    """Return the coefficients whose exponential is the mean of the gaps.

    They are the minimum of the sum of exp(x b) - gap x b, a convex function, by Newton's method.
    None where it has no minimum, as where too many gaps are negative.
    """
    if gaps.mean() <= 0:
        return None
    coefficients = np.zeros(design.shape[1])
    coefficients[0] = math.log(gaps.mean())
    rounding = _ROUNDING * np.abs(gaps).sum()

    def value(coefficients: Vector) -> float:
        powers = design @ coefficients
        means = np.exp(np.minimum(powers, _MOST_POWER))
        return float((means - gaps * powers).sum())

    for _ in range(_MAX_ITERATIONS):
        means = np.exp(np.minimum(design @ coefficients, _MOST_POWER))
        curvature = design.T @ (design * means[:, None])
        # Means that vanish leave the curvature without a direction: the fit runs off to infinity.
        if np.linalg.matrix_rank(curvature) < len(coefficients):
            return None
        step = np.linalg.solve(curvature, design.T @ (gaps - means))
        # A whole step may go too far where the function bends: halve it until the value falls.
        size = 1.0
        most = value(coefficients) + rounding
        while size > _TOLERANCE and value(coefficients + size * step) > most:
            size /= 2
        coefficients = coefficients + size * step
        if np.abs(coefficients[1:]).max(initial=0.0) > _STEEPEST:
            return None
        # By the whole step: one that was halved to nothing is short too, and is at no minimum.
        if np.abs(step).max() < _TOLERANCE:
            return coefficients
    return None


def jackknife_error(left_out: Vector) -> float:
    """Return the standard error of a number from its values with each cell left out."""
    count = len(left_out)
    squares = (left_out - left_out.mean()) ** 2
    return math.sqrt((count - 1) / count * float(squares.sum()))


def predicted(law: Law, cells: pd.DataFrame) -> pd.DataFrame:
    """Return the gap that the law predicts of cells, with the 95 % interval of one that is run.

    Cells lie about the law, which widens the interval. Columns: gap, low, high, beyond (the factor
    by which a term lies outside of what was fitted; 1 inside).
    """
    design = _design(_logs(cells, law.terms), law.centre)
    gaps = np.exp(design @ law.coefficients)
    powers_left_out = law.left_out.to_numpy() @ design.T
    errors = np.array([jackknife_error(powers) for powers in powers_left_out.T])
    quantile = float(special.stdtrit(law.degrees, (1 + COVERAGE) / 2))
    # In logarithms: the law's own error, and a cell's about it, whose variance is in proportion to
    # the gap.
    half = quantile * np.sqrt(errors**2 + law.dispersion / gaps)
    beyond = np.ones(len(cells))
    for term, (low, high) in law.ranges.items():
        values = cells[term].to_numpy(dtype=float)
        beyond = np.maximum.reduce([beyond, values / high, low / values])
    return pd.DataFrame(
        {
            "gap": gaps,
            "low": gaps * np.exp(-half),
            "high": gaps * np.exp(half),
            "beyond": beyond,
        },
        index=cells.index,
    )


def models_frame(cells: pd.DataFrame) -> pd.DataFrame:
    """Return how far each model of the gap misses cells that it has not seen, of one method.

    Columns: model, num_fitted (numbers), fitted, size_left_out, length_left_out (roots of mean
    squared misses, in the unit of the gap: of all cells, and of those of each size, or each length,
    from the others alone), is_chosen (the least of the two together). NaN where a model cannot be
    fitted without them.
    """
    lines = []
    for model, terms in MODELS.items():
        kept = terms_of(cells, terms)
        lines.append(
            {
                "model": model,
                "num_fitted": 1 + len(kept),
                "fitted": _miss(cells, kept),
                "size_left_out": _miss_left_out(cells, kept, "num_parameters"),
                "length_left_out": _miss_left_out(cells, kept, "num_steps"),
            }
        )
    frame = pd.DataFrame(lines)
    both = frame["size_left_out"] ** 2 + frame["length_left_out"] ** 2
    frame["is_chosen"] = both == both.min()
    return frame


def _miss(cells: pd.DataFrame, terms: Sequence[str]) -> float:
    """Return the root of the mean squared miss of all cells from all."""
    everything = np.ones(len(cells), dtype=bool)
    return math.sqrt(
        _squared_misses(
            cells,
            terms,
            everything,
            everything,
        )
        / len(cells)
    )


def _miss_left_out(
    cells: pd.DataFrame,
    terms: Sequence[str],
    column: str,
) -> float:
    """Return the same of the cells of each value of a column from the others alone."""
    values = cells[column].to_numpy()
    squares = 0.0
    for value in np.unique(values):
        left_out = values == value
        squares += _squared_misses(cells, terms, ~left_out, left_out)
    return math.sqrt(squares / len(cells))


def _squared_misses(
    cells: pd.DataFrame,
    terms: Sequence[str],
    fitted: npt.NDArray[np.bool_],
    wanted: npt.NDArray[np.bool_],
) -> float:
    """Return the sum of the squared misses of some cells by a fit to some; NaN without a fit."""
    logs = _logs(cells, terms)
    gaps = cells["gap"].to_numpy(dtype=float)
    design = _design(logs, logs.mean(axis=0))
    coefficients = pseudo_poisson(design[fitted], gaps[fitted])
    if coefficients is None:
        return math.nan
    misses = gaps[wanted] - np.exp(design[wanted] @ coefficients)
    return float((misses**2).sum())


def fitted_cells(cells: pd.DataFrame, rows: Sequence[str]) -> pd.DataFrame:
    """Return the cells of these rows that a law is fitted to."""
    return cells[cells["row"].isin(rows) & ~cells["held_back"]]
