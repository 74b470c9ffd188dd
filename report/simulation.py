"""Simulated experiments, whose truth is known: which rule for the error of a difference holds.

Five rules give a standard error and degrees of freedom to the same draws: Welch's; a variance
moderated between rows (`report.moderation`), also with robust hyperparameters; the rows' variances
pooled where a Brown-Forsythe test does not object; and seeds as a block. The results are in
results/statistics/, made by `python -m cser_bench.report.simulation`, and in docs/statistics.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Literal

import numpy as np
import pandas as pd
from scipy import special

from cser_bench.harness.records.shipped import SHIPPED, shipped_experiments
from cser_bench.report.frame import read_frames
from cser_bench.report.moderation import Array, Prior, moderated, plain_prior, robust_prior
from cser_bench.report.statistics import COVERAGE, satterthwaite, seed_correlation

Noise = Literal["equal", "row", "other row", "baseline", "as shipped"]
"""Which row has four times the standard deviation; "as shipped": each row's is drawn from
`DECILES`."""

LEVEL = 0.05
"""Of a one-sided test, and of Holm's family."""

NOISY = 4.0
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

DRAWS = 10_000
"""Experiments in a scenario: a share of 5 % then has a standard error of 0.2 %."""

SEED = 0


@dataclass(frozen=True)
class Scenario:
    """A kind of experiment: seeds of a row and of the baseline, rows with the baseline, noise.

    `correlation` is that of scores at the same seed.
    """

    seeds: int
    baseline_seeds: int
    rows: int
    noise: Noise
    correlation: float


@dataclass(frozen=True)
class Draws:
    """Scores of many experiments where all means are 0.

    Of the rows, (draws, rows, seeds), and of the baseline, (draws, seeds).
    """

    rows: Array
    baseline: Array

    @property
    def num_seeds(self) -> int:
        """Seeds of a row."""
        return int(self.rows.shape[2])

    @property
    def num_baseline_seeds(self) -> int:
        """Seeds of the baseline."""
        return int(self.baseline.shape[1])

    @property
    def estimates(self) -> Array:
        """Of each row less the baseline, over all seeds: (draws, rows)."""
        baseline_means = self.baseline.mean(axis=1)
        return np.asarray(self.rows.mean(axis=2) - baseline_means[:, None])

    @property
    def row_variances(self) -> Array:
        """Of each row's scores, (draws, rows)."""
        return np.asarray(self.rows.var(axis=2, ddof=1))

    @property
    def baseline_variance(self) -> Array:
        """Of the baseline's scores, (draws, 1)."""
        variance = self.baseline.var(axis=1, ddof=1, keepdims=True)
        return np.asarray(variance)

    @property
    def paired(self) -> Array:
        """Each row less the baseline at the row's seeds: (draws, rows, seeds)."""
        same_seeds = self.baseline[:, None, : self.num_seeds]
        return self.rows - same_seeds


_Errors = tuple[Array, Array]
"""Standard errors and degrees of freedom of `Draws.estimates`, or of the means of `Draws.paired`:
(draws, rows)."""

Rule = Callable[[Draws], _Errors]


def scenarios() -> list[Scenario]:
    """Return all that are tried: seeds, rows, noise and correlation, each with each."""
    noises: tuple[Noise, ...] = ("equal", "row", "other row", "baseline", "as shipped")
    tried = []
    for seeds, rows, noise, correlation in product(SEEDS, ROWS, noises, CORRELATIONS):
        tried.append(Scenario(*seeds, rows, noise, correlation))
    return tried


def drawn(scenario: Scenario, num_draws: int, generator: np.random.Generator) -> Draws:
    """Return normal scores, with a part in common at the same seed.

    The row under test is the first.
    """
    # All rows are drawn at the larger number and then cut, so that a row's seeds are the baseline's
    # first and share their common part.
    num_seeds = max(scenario.seeds, scenario.baseline_seeds)
    common = generator.standard_normal((num_draws, 1, num_seeds))
    noise = generator.standard_normal((num_draws, scenario.rows, num_seeds))
    common_share = np.sqrt(scenario.correlation)
    noise_share = np.sqrt(1 - scenario.correlation)
    scores = common_share * common + noise_share * noise
    # Scaled after the parts are joined: so the correlation is the same whatever a row's deviation.
    scores *= _deviations(scenario, num_draws, generator)[:, :, None]
    rows = scores[:, :-1, : scenario.seeds]
    baseline = scores[:, -1, : scenario.baseline_seeds]
    return Draws(rows, baseline)


def _deviations(scenario: Scenario, num_draws: int, generator: np.random.Generator) -> Array:
    """Return those of each row, the baseline last: (draws, rows)."""
    if scenario.noise == "as shipped":
        # The deciles are a distribution's inverse: a uniform draw between them is one of it.
        shares = np.linspace(0, 1, len(DECILES))
        drawn_shares = generator.random((num_draws, scenario.rows))
        return np.interp(drawn_shares, shares, DECILES)
    deviations = np.ones((num_draws, scenario.rows))
    noisy_row = {"row": 0, "other row": 1, "baseline": -1}.get(scenario.noise)
    if noisy_row is not None:
        deviations[:, noisy_row] = NOISY
    return deviations


# The rules.


def by_welch(draws: Draws) -> _Errors:
    """Give each row a variance of its own."""
    return _joined(
        draws,
        draws.row_variances,
        draws.baseline_variance,
        draws.num_seeds - 1.0,
        draws.num_baseline_seeds - 1.0,
    )


def _joined(
    draws: Draws,
    row_variances: Array,
    baseline_variance: Array,
    row_degrees: Array | float,
    baseline_degrees: Array | float,
) -> _Errors:
    """Return the errors of differences from variances and their degrees of freedom."""
    row_part = row_variances / draws.num_seeds
    baseline_part = baseline_variance / draws.num_baseline_seeds
    degrees = satterthwaite(row_part, row_degrees, baseline_part, baseline_degrees)
    return np.sqrt(row_part + baseline_part), np.asarray(degrees)


def by_block(draws: Draws) -> _Errors:
    """Pair by seed: the variance is that of the differences.

    Seeds of the baseline alone go unused.
    """
    differences = draws.paired
    variances = differences.var(axis=2, ddof=1)
    degrees = np.full(variances.shape, draws.num_seeds - 1.0)
    return np.sqrt(variances / draws.num_seeds), degrees


def by_pool(draws: Draws) -> _Errors:
    """Let the rows share a variance where a Brown-Forsythe test at 5 % does not object.

    The baseline has its own.
    """
    num_rows = draws.rows.shape[1]
    row_variances = draws.row_variances
    pooled = row_variances.mean(axis=1, keepdims=True)
    pooled_errors, pooled_degrees = _joined(
        draws,
        np.broadcast_to(pooled, row_variances.shape),
        draws.baseline_variance,
        num_rows * (draws.num_seeds - 1.0),
        draws.num_baseline_seeds - 1.0,
    )
    own_errors, own_degrees = by_welch(draws)
    objects = _brown_forsythe(draws.rows)[:, None] < LEVEL
    errors = np.where(objects, own_errors, pooled_errors)
    return errors, np.where(objects, own_degrees, pooled_degrees)


def _brown_forsythe(scores: Array) -> Array:
    """Return p of each draw: an analysis of variance of the distances from the rows' medians."""
    _, num_rows, num_seeds = scores.shape
    medians = np.median(scores, axis=2, keepdims=True)
    distances = np.abs(scores - medians)
    means = distances.mean(axis=2)
    between = num_seeds * means.var(axis=1, ddof=1)
    within = distances.var(axis=2, ddof=1).mean(axis=1)
    p = special.fdtrc(num_rows - 1, num_rows * (num_seeds - 1), between / within)
    return np.asarray(p)


def by_moderation(draws: Draws) -> _Errors:
    """Draw variances to a common one, as far as they spread no more than by chance."""
    return _moderated(draws, plain_prior)


def by_robust_moderation(draws: Draws) -> _Errors:
    """Do the same, but draw a row that stands out less.

    Such a row has no part in the common variance.
    """
    return _moderated(draws, robust_prior)


def _moderated(draws: Draws, prior: Prior) -> _Errors:
    baseline_variance = draws.baseline_variance
    row_degrees = draws.num_seeds - 1
    if draws.num_seeds != draws.num_baseline_seeds:
        # The prior takes variances of equal degrees of freedom: a baseline of more seeds keeps its
        # own alone.
        variances, degrees = moderated(draws.row_variances, row_degrees, prior)
        baseline_degrees = draws.num_baseline_seeds - 1.0
        return _joined(draws, variances, baseline_variance, degrees, baseline_degrees)
    together = np.concatenate([draws.row_variances, baseline_variance], axis=1)
    variances, degrees = moderated(together, row_degrees, prior)
    return _joined(draws, variances[:, :-1], variances[:, -1:], degrees[:, :-1], degrees[:, -1:])


RULES: dict[str, Rule] = {
    "Welch": by_welch,
    "moderated": by_moderation,
    "moderated, robust": by_robust_moderation,
    "pooled": by_pool,
    "paired": by_block,
}


# What each is worth.


def simulated(chosen: Sequence[Scenario], num_draws: int = DRAWS, seed: int = SEED) -> pd.DataFrame:
    """Return what every rule is worth in the chosen scenarios, of the first row and the baseline.

    Columns: those of `Scenario`; rule; error_margin (share of true nulls that the one-sided test at
    5 % rejects at the margin's edge); error_better (share of equal rows that are called better or
    worse by two such tests that share 5 %); coverage (of the 95 % interval); half_width (its mean,
    in standard deviations of a usual row); power and power_holm (the chance that a row as good as
    the baseline is shown to lose less than `MARGIN` deviations: by a test at 5 %, and at the first
    step of Holm's procedure over two tests a row).
    """
    # A stream for each scenario, so that its draws are the same whatever else is simulated.
    streams = np.random.SeedSequence(seed).spawn(len(chosen))
    lines = []
    for scenario, stream in zip(chosen, streams, strict=True):
        draws = drawn(scenario, num_draws, np.random.default_rng(stream))
        num_tests = 2 * (scenario.rows - 1)
        for name, rule in RULES.items():
            errors, degrees = rule(draws)
            estimates = draws.estimates
            # This rule's error is of the seeds that both have, and so must its estimate be.
            if rule is by_block:
                estimates = draws.paired.mean(axis=2)
            worth = _worth(estimates[:, 0], errors[:, 0], degrees[:, 0], num_tests)
            lines.append(asdict(scenario) | {"rule": name} | worth)
    return pd.DataFrame(lines)


def _worth(estimates: Array, errors: Array, degrees: Array, num_tests: int) -> dict[str, float]:
    one_sided = special.stdtrit(degrees, 1 - LEVEL) * errors
    two_sided = special.stdtrit(degrees, (1 + COVERAGE) / 2) * errors
    # Holm's first step tests the least p at the level over the number of tests.
    first_step = special.stdtrit(degrees, 1 - LEVEL / num_tests) * errors
    sizes = np.abs(estimates)
    # The true difference is 0. Scores that are `MARGIN` higher are those of a row as good as the
    # baseline, tested against the margin.
    shifted = estimates + MARGIN
    return {
        "error_margin": float((estimates > one_sided).mean()),
        "error_better": float((sizes > two_sided).mean()),
        "coverage": float((sizes <= two_sided).mean()),
        "half_width": float(two_sided.mean()),
        "power": float((shifted > one_sided).mean()),
        "power_holm": float((shifted > first_step).mean()),
    }


def families(num_draws: int = DRAWS, seed: int = SEED) -> pd.DataFrame:
    """Return the chance that an experiment errs anywhere, by Welch's errors.

    All rows lie at the margin's edge. Columns: seeds, rows, noise, one_family ("loses less" and
    "loses more" of all rows share 5 %), two_families (each has 5 %).
    """
    noises: tuple[Noise, ...] = ("equal", "baseline", "as shipped")
    cases = list(product((3, 5, 20), ROWS, noises))
    # Another seed than that of `simulated`, whose draws these would be.
    streams = np.random.SeedSequence(seed + 1).spawn(len(cases))
    lines = []
    for (seeds, rows, noise), stream in zip(cases, streams, strict=True):
        scenario = Scenario(seeds, seeds, rows, noise, correlation=0.0)
        draws = drawn(scenario, num_draws, np.random.default_rng(stream))
        errors, degrees = by_welch(draws)
        # By the t nearest to a verdict, on whichever side: Holm's first step decides whether an
        # experiment errs at all.
        p_values = special.stdtr(degrees, -np.abs(draws.estimates) / errors)
        least = p_values.min(axis=1)
        num_contrasts = rows - 1
        one_family = (least * 2 * num_contrasts <= LEVEL).mean()
        two_families = (least * num_contrasts <= LEVEL).mean()
        lines.append((seeds, rows, noise, float(one_family), float(two_families)))
    columns = ["seeds", "rows", "noise", "one_family", "two_families"]
    return pd.DataFrame(lines, columns=columns)


def correlations() -> pd.DataFrame:
    """Return the intraclass correlation by seed of each experiment with contrasts that ships.

    Columns: experiment, and those of `SeedCorrelation`.

    Raises:
        RecordError: a record is damaged or of another version.
    """
    lines = []
    for folder in sorted(shipped_experiments(), key=lambda folder: folder.name):
        frames = read_frames(folder)
        if not frames.contrasts:
            continue
        correlation = seed_correlation(frames)
        if correlation is not None:
            lines.append({"experiment": frames.experiment.name} | asdict(correlation))
    return pd.DataFrame(lines)


def main() -> None:
    """Write simulation.csv, families.csv and correlations.csv into results/statistics."""
    tables = {
        "simulation": simulated(scenarios()),
        "families": families(),
        "correlations": correlations(),
    }
    folder = SHIPPED / "statistics"
    folder.mkdir(exist_ok=True)
    for name, table in tables.items():
        table.round(4).to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
