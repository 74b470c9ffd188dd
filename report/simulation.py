"""Which rule for the error of a difference, and for a family of them: experiments of which the
truth is known.

Five rules give a standard error and degrees of freedom to the same draws: Welch's; a variance
moderated between rows (Smyth, Stat. Appl. Genet. Mol. Biol. 3, 2004), also with robust
hyperparameters (Phipson et al., Ann. Appl. Stat. 10, 2016), both as in limma; the rows' variances
pooled where a Brown-Forsythe test does not object; and seeds as a block. What came out is in
results/statistics/, made by `python -m cser_bench.report.simulation`, and in docs/statistics.md.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from cser_bench.report.frame import read_frames
from cser_bench.report.statistics import COVERAGE, satterthwaite, seed_correlation

Array = NDArray[np.float64]
Noise = Literal["equal", "row", "other row", "baseline", "as shipped"]
"""Which row has four times the standard deviation; "as shipped": each row's is drawn from
`DECILES`."""

LEVEL = 0.05
TIMES = 4.0
"""The deviation of the noisy row over that of the others."""

MARGIN = 3.0
"""In standard deviations between seeds of a usual row: half a point against 0.17, as in the shipped
experiments."""

DECILES = (0.32, 0.61, 0.79, 0.87, 0.95, 1.0, 1.05, 1.12, 1.2, 1.33, 4.03)
"""Of the 87 shipped rows in contrasts with five seeds or more: their deviation over their
experiment's median, lowest and highest at the ends. They are a sample's, so they lie somewhat
further apart than the true ones."""

SEEDS = ((3, 3), (5, 5), (5, 20), (20, 20))
"""Seeds of a row, and of the baseline."""

ROWS = (4, 10, 20)
"""The baseline among them."""

CORRELATIONS = (0.0, 0.3, 0.55)
"""Intraclass, of scores at the same seed: nearly all shipped experiments, and the highest."""

DRAWS, SEED = 10_000, 0

PRIORS = np.geomspace(0.1, 1e4, 120)
"""Degrees of freedom that a common variance may count for."""

TAILS = (0.05, 0.1)
"""Shares of the lowest and highest variances that are set to the next ones, as in limma."""


@dataclass(frozen=True)
class Scenario:
    """A kind of experiment: seeds of a row and of the baseline, rows with the baseline, noise,
    correlation by seed."""

    seeds: int
    baseline_seeds: int
    rows: int
    noise: Noise
    correlation: float


@dataclass(frozen=True)
class Draws:
    """Scores of many experiments where all means are 0: of the rows, (draws, rows, seeds), and of
    the baseline."""

    rows: Array
    baseline: Array

    @property
    def estimates(self) -> Array:
        """Of each row less the baseline, over all seeds: (draws, rows)."""
        return np.asarray(self.rows.mean(axis=2) - self.baseline.mean(axis=1)[:, None])

    @property
    def variances(self) -> tuple[Array, Array]:
        """Of each row's scores, (draws, rows), and of the baseline's, (draws, 1)."""
        return self.rows.var(axis=2, ddof=1), self.baseline.var(axis=1, ddof=1, keepdims=True)

    @property
    def paired(self) -> Array:
        """Each row less the baseline at the row's seeds: (draws, rows, seeds)."""
        return self.rows - self.baseline[:, None, : self.rows.shape[2]]


_Errors = tuple[Array, Array]
"""Standard errors and degrees of freedom of `Draws.estimates`, or of the means of `Draws.paired`:
(draws, rows)."""

Rule = Callable[[Draws], _Errors]

Prior = Callable[[Array, int], tuple[Array, Array]]
"""From variances, (draws, rows), of so many degrees of freedom: the common variance, (draws, 1),
and the degrees of freedom that it counts for in each row, (draws, rows)."""


def scenarios() -> list[Scenario]:
    """All that are tried: seeds, rows, noise and correlation, each with each."""
    noises: tuple[Noise, ...] = ("equal", "row", "other row", "baseline", "as shipped")
    return [
        Scenario(seeds, baseline_seeds, rows, noise, correlation)
        for (seeds, baseline_seeds), rows, noise, correlation in product(
            SEEDS, ROWS, noises, CORRELATIONS
        )
    ]


def drawn(scenario: Scenario, draws: int, generator: np.random.Generator) -> Draws:
    """Normal scores, with a part in common at the same seed; the row under test is the first."""
    most = max(scenario.seeds, scenario.baseline_seeds)
    common = generator.standard_normal((draws, 1, most))
    noise = generator.standard_normal((draws, scenario.rows, most))
    scores = np.sqrt(scenario.correlation) * common + np.sqrt(1 - scenario.correlation) * noise
    scores *= _deviations(scenario, draws, generator)[:, :, None]
    return Draws(scores[:, :-1, : scenario.seeds], scores[:, -1, : scenario.baseline_seeds])


def _deviations(scenario: Scenario, draws: int, generator: np.random.Generator) -> Array:
    """Of each row, the baseline last: (draws, rows)."""
    if scenario.noise == "as shipped":
        shares = np.linspace(0, 1, len(DECILES))
        return np.interp(generator.random((draws, scenario.rows)), shares, DECILES)
    deviations = np.ones((draws, scenario.rows))
    place = {"row": 0, "other row": 1, "baseline": -1}.get(scenario.noise)
    if place is not None:
        deviations[:, place] = TIMES
    return deviations


# The rules.


def by_welch(found: Draws) -> _Errors:
    """Each row has a variance of its own."""
    variances, own = found.variances
    return _joined(found, variances, own, found.rows.shape[2] - 1.0, found.baseline.shape[1] - 1.0)


def _joined(
    found: Draws, variances: Array, own: Array, degrees: Array | float, others: Array | float
) -> _Errors:
    """Errors of differences from the variances of rows and of the baseline, with the degrees of
    freedom of each."""
    part, other = variances / found.rows.shape[2], own / found.baseline.shape[1]
    return np.sqrt(part + other), np.asarray(satterthwaite(part, degrees, other, others))


def by_block(found: Draws) -> _Errors:
    """Paired by seed: the variance is that of the differences; seeds of the baseline alone go
    unused."""
    apart, seeds = found.paired, found.rows.shape[2]
    return np.sqrt(apart.var(axis=2, ddof=1) / seeds), np.full(apart.shape[:2], seeds - 1.0)


def by_pool(found: Draws) -> _Errors:
    """The rows share a variance where a Brown-Forsythe test at 5 % does not object; the baseline
    has its own."""
    rows, seeds = found.rows.shape[1:]
    variances, own = found.variances
    pooled = variances.mean(axis=1, keepdims=True) + np.zeros_like(variances)
    error, degrees = _joined(
        found, pooled, own, rows * (seeds - 1.0), found.baseline.shape[1] - 1.0
    )
    own_error, own_degrees = by_welch(found)
    objects = _brown_forsythe(found.rows)[:, None] < LEVEL
    return np.where(objects, own_error, error), np.where(objects, own_degrees, degrees)


def _brown_forsythe(scores: Array) -> Array:
    """p of each draw: an analysis of variance of the distances from the rows' medians."""
    rows, seeds = scores.shape[1:]
    distances = np.abs(scores - np.median(scores, axis=2, keepdims=True))
    means = distances.mean(axis=2)
    between = seeds * means.var(axis=1, ddof=1)
    within = distances.var(axis=2, ddof=1).mean(axis=1)
    return np.asarray(special.fdtrc(rows - 1, rows * (seeds - 1), between / within))


def by_moderation(found: Draws) -> _Errors:
    """Variances drawn to a common one, as far as they spread no more than by chance."""
    return _moderated(found, _prior)


def by_robust_moderation(found: Draws) -> _Errors:
    """The same, where a row that stands out is drawn less and has no part in the common
    variance."""
    return _moderated(found, _robust_prior)


def _moderated(found: Draws, prior: Prior) -> _Errors:
    """Errors by moderated variances; a baseline of more seeds than the rows keeps its own alone."""
    seeds, others = found.rows.shape[2], found.baseline.shape[1]
    variances, own = found.variances
    if seeds != others:
        moderated, degrees = _squeezed(variances, seeds - 1, prior)
        return _joined(found, moderated, own, degrees, others - 1.0)
    moderated, degrees = _squeezed(np.concatenate([variances, own], axis=1), seeds - 1, prior)
    return _joined(found, moderated[:, :-1], moderated[:, -1:], degrees[:, :-1], degrees[:, -1:])


def _squeezed(variances: Array, degrees: int, prior: Prior) -> _Errors:
    """Variances drawn to the common one, and their degrees of freedom, at most all rows': limma's
    squeezeVar."""
    scale, added = prior(variances, degrees)
    own_share = degrees / (added + degrees)
    most = degrees * variances.shape[1]
    return (1 - own_share) * scale + own_share * variances, np.minimum(added + degrees, most)


def _prior(variances: Array, degrees: int) -> tuple[Array, Array]:
    """Common variance and degrees of freedom that it counts for, of each draw: limma's fitFDist."""
    logs = np.log(variances) - special.digamma(degrees / 2) + np.log(degrees / 2)
    excess = logs.var(axis=1, ddof=1) - special.polygamma(1, degrees / 2)
    halves = np.geomspace(1e-2, 1e5, 4000)
    half = np.interp(np.maximum(excess, 1e-9), special.polygamma(1, halves)[::-1], halves[::-1])
    added = np.where(excess > 0, 2 * half, np.inf)
    shift = np.where(excess > 0, special.digamma(half) - np.log(half), 0.0)
    scale = np.where(excess > 0, np.exp(logs.mean(axis=1) + shift), variances.mean(axis=1))
    return scale[:, None], np.repeat(added[:, None], variances.shape[1], axis=1)


def _robust_prior(variances: Array, degrees: int) -> tuple[Array, Array]:
    """The same of each row: limma's fitFDistRobustly, by variances of which the ends are set to the
    next ones."""
    logs = np.log(variances)
    rows = logs.shape[1]
    lowest, highest = np.quantile(logs, [TAILS[0], 1 - TAILS[1]], axis=1, keepdims=True)
    kept = np.clip(logs, lowest, highest)
    means, spreads = _kept_moments(degrees)
    place = np.log(PRIORS)
    spread = kept.var(axis=1, ddof=1)
    found = np.exp(np.interp(spread, spreads[-2::-1], place[::-1]))
    is_finite = spread > spreads[-1]
    mean = np.where(is_finite, np.interp(np.log(found), place, means[:-1]), means[-1])
    scale = np.exp(kept.mean(axis=1) - mean)[:, None]
    added = np.where(is_finite, found, np.inf)[:, None]
    ratios = variances / scale
    finite = np.where(np.isinf(added), 1.0, added)
    tails = np.where(
        np.isinf(added),
        special.chdtrc(degrees, degrees * ratios),
        special.fdtrc(degrees, finite, ratios),
    )
    return scale, _for_outliers(added, ratios, np.maximum(tails, 1e-300), degrees * rows, degrees)


@cache
def _kept_moments(degrees: int) -> tuple[Array, Array]:
    """Mean and variance of log F of `degrees` and each of `PRIORS`, then infinity; ends are set to
    the next."""
    shares = (np.arange(1000) + 0.5) / 1000
    shares = np.clip(shares, TAILS[0], 1 - TAILS[1])
    finite = [np.log(special.fdtri(degrees, each, shares)) for each in PRIORS]
    logs = np.array([*finite, np.log(special.chdtri(degrees, 1 - shares) / degrees)])
    return logs.mean(axis=1), logs.var(axis=1)


def _for_outliers(added: Array, ratios: Array, tails: Array, pooled: int, degrees: int) -> Array:
    """Degrees of freedom that the common variance counts for in each row: fewer where its own is
    too large."""
    rows = ratios.shape[1]
    order = np.argsort(-ratios, axis=1)
    tails = np.take_along_axis(tails, order, axis=1)
    ratios = np.take_along_axis(ratios, order, axis=1)
    expected = (np.arange(rows) + 0.5) / rows
    usual = np.minimum(tails / expected, 1.0)
    is_infinite = np.isinf(added)
    limit = np.minimum(added, pooled)
    outlying = np.log(0.5) / np.log(tails[:, :1]) * limit
    again = special.fdtrc(degrees, np.maximum(outlying, 1e-6), ratios[:, :1])
    outlying = np.log(0.5) / np.log(np.clip(again, 1e-300, 1 - 1e-12)) * outlying
    shrunk = usual * limit + (1 - usual) * np.minimum(outlying, limit)
    running = np.cumsum(shrunk, axis=1) / np.arange(1, rows + 1)
    least = running.argmin(axis=1)[:, None]
    shrunk = np.where(np.arange(rows) <= least, np.take_along_axis(running, least, axis=1), shrunk)
    without_limit = np.where(usual < 1, usual * pooled, np.inf)
    shrunk = np.maximum.accumulate(np.where(is_infinite, without_limit, shrunk), axis=1)
    back = np.empty_like(shrunk)
    np.put_along_axis(back, order, shrunk, axis=1)
    return back


RULES: dict[str, Rule] = {
    "Welch": by_welch,
    "moderated": by_moderation,
    "moderated, robust": by_robust_moderation,
    "pooled": by_pool,
    "paired": by_block,
}


# What each is worth.


def simulated(chosen: Sequence[Scenario], draws: int = DRAWS, seed: int = SEED) -> pd.DataFrame:
    """Every rule in the chosen scenarios, of the first row against the baseline.

    Columns: those of `Scenario`; rule; error_margin (share of true nulls that the one-sided test at
    5 % rejects at the margin's edge); error_better (share of equal rows that are called better or
    worse by two such tests that share 5 %); coverage (of the 95 % interval); half_width (its mean,
    in standard deviations of a usual row); power and power_holm (the chance that a row as good as
    the baseline is shown to lose less than `MARGIN` deviations: by a test at 5 %, and at the first
    step of Holm's procedure over two tests a row).
    """
    lines = []
    for scenario, stream in zip(
        chosen, np.random.SeedSequence(seed).spawn(len(chosen)), strict=True
    ):
        found = drawn(scenario, draws, np.random.default_rng(stream))
        for name, rule in RULES.items():
            errors, degrees = rule(found)
            estimates = found.paired.mean(axis=2) if rule is by_block else found.estimates
            worth = _worth(estimates[:, 0], errors[:, 0], degrees[:, 0], 2 * (scenario.rows - 1))
            lines.append(asdict(scenario) | {"rule": name} | worth)
    return pd.DataFrame(lines)


def _worth(estimates: Array, errors: Array, degrees: Array, tests: int) -> dict[str, float]:
    one_sided = special.stdtrit(degrees, 1 - LEVEL) * errors
    two_sided = special.stdtrit(degrees, (1 + COVERAGE) / 2) * errors
    first_step = special.stdtrit(degrees, 1 - LEVEL / tests) * errors
    return {
        "error_margin": float((estimates > one_sided).mean()),
        "error_better": float((np.abs(estimates) > two_sided).mean()),
        "coverage": float((np.abs(estimates) <= two_sided).mean()),
        "half_width": float(two_sided.mean()),
        "power": float((estimates + MARGIN > one_sided).mean()),
        "power_holm": float((estimates + MARGIN > first_step).mean()),
    }


def families(draws: int = DRAWS, seed: int = SEED) -> pd.DataFrame:
    """The chance that an experiment errs anywhere, where all rows lie at the margin's edge; by
    Welch's errors.

    Columns: seeds, rows, noise, one_family ("loses less" and "loses more" of all rows share 5 %),
    two_families (each has 5 %).
    """
    lines = []
    noises: tuple[Noise, ...] = ("equal", "baseline", "as shipped")
    cases = list(product((3, 5, 20), ROWS, noises))
    for (seeds, rows, noise), stream in zip(
        cases, np.random.SeedSequence(seed + 1).spawn(len(cases)), strict=True
    ):
        found = drawn(
            Scenario(seeds, seeds, rows, noise, 0.0), draws, np.random.default_rng(stream)
        )
        errors, degrees = by_welch(found)
        least = special.stdtr(degrees, -np.abs(found.estimates) / errors).min(axis=1)
        one = (least * 2 * (rows - 1) <= LEVEL).mean()
        two = (least * (rows - 1) <= LEVEL).mean()
        lines.append((seeds, rows, noise, float(one), float(two)))
    return pd.DataFrame(lines, columns=["seeds", "rows", "noise", "one_family", "two_families"])


def correlations(results: Path) -> pd.DataFrame:
    """The intraclass correlation by seed of each experiment with contrasts in a folder: name,
    seeds, rows, value, ends.

    Raises:
        RecordError: a record is damaged or of another version.
    """
    lines = []
    for path in sorted(results.rglob("experiment.json"), key=lambda path: path.parent.name):
        found = seed_correlation(frames) if (frames := read_frames(path.parent)).contrasts else None
        if found:
            lines.append({"experiment": frames.experiment.name} | asdict(found))
    return pd.DataFrame(lines)


def main(results: Path) -> None:
    """Write simulation.csv, families.csv and correlations.csv into the folder "statistics" of
    results."""
    tables = {
        "simulation": simulated(scenarios()),
        "families": families(),
        "correlations": correlations(results),
    }
    (results / "statistics").mkdir(exist_ok=True)
    for name, table in tables.items():
        table.round(4).to_csv(
            results / "statistics" / f"{name}.csv", index=False, lineterminator="\n"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "results"))
