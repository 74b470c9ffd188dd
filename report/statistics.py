"""Statistics: means, differences of rows, scores by rate, and verdicts on declared contrasts.

Scipy does the sums. One rule holds for all experiments; docs/statistics.md explains it and says why it
was chosen. Each row has a variance of its own, with degrees of freedom after Welch and Satterthwaite.
Runs are not paired by seed. Nothing is tested first to choose a test. All one-sided tests of an
experiment's contrasts share its level, by Holm's procedure. One method is called better than another
only where that also holds with one learning rate for both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from cser_bench.harness.measures.declared import begun_in_words
from cser_bench.harness.records.experiment import Choice, Contrast
from cser_bench.report.declared import are_without_verdict, begun_when_declared
from cser_bench.report.frame import Frames, trials_elsewhere

COVERAGE = 0.95
"""Coverage of all two-sided intervals."""

LESS = "loses less than the margin"
MORE = "loses more than the margin"
BETTER = "better"
WORSE = "worse"
EQUAL = "equal within the margin"
BETTER_BY_MARGIN = "better by more than the margin"
WORSE_BY_MARGIN = "worse by more than the margin"
OTHER_RATE = "not shown at equal rate"
NOT_RUN = "not run at equal rate"
UNDECIDED = "undecided"
"""Verdict on a margin: neither more nor less is shown."""
NO_DIFFERENCE = "no difference seen"
DIVERGED = "diverged"
NO_RUNS = "not enough runs"
TOO_LATE = "no verdict, declared after its runs"

VERDICTS = (
    BETTER,
    WORSE,
    BETTER_BY_MARGIN,
    WORSE_BY_MARGIN,
    LESS,
    MORE,
    EQUAL,
    OTHER_RATE,
    NOT_RUN,
    UNDECIDED,
    NO_DIFFERENCE,
    DIVERGED,
    NO_RUNS,
    TOO_LATE,
)
"""In the order in which a report lists them."""


@dataclass(frozen=True)
class Difference:
    """Mean of a row minus mean of another, in shares.

    The error and its degrees of freedom are NaN where a row has fewer than two runs.
    """

    estimate: float
    standard_error: float
    degrees: float

    def p_above(self, bound: float) -> float:
        """Return the one-sided p of "the difference is at most `bound`"."""
        return self._tail(self.estimate - bound)

    def p_below(self, bound: float) -> float:
        """Return the one-sided p of "the difference is at least `bound`"."""
        return self._tail(bound - self.estimate)

    def interval(self, coverage: float = COVERAGE) -> tuple[float, float]:
        """Return the ends of the two-sided t interval."""
        quantile = float(special.stdtrit(self.degrees, (1 + coverage) / 2))
        half = quantile * self.standard_error
        return self.estimate - half, self.estimate + half

    def _tail(self, distance: float) -> float:
        if self.standard_error == 0:
            # All scores of a row are the same: there is no t, and the estimate is taken as known.
            if distance > 0:
                return 0.0
            return 1.0
        return float(special.stdtr(self.degrees, -distance / self.standard_error))


@dataclass(frozen=True)
class SeedCorrelation:
    """Intraclass correlation of scores by seed, and its interval of 95 %."""

    num_seeds: int
    num_rows: int
    value: float
    low: float
    high: float


_ROW = [
    "row",
    "label",
    "algorithm",
    "ratio",
    "learning_rate",
    "momentum",
    "num_steps",
    "models_sent",
    "link_models",
]

UNKNOWN = Difference(math.nan, math.nan, math.nan)
"""The difference of rows without runs."""


def summary_frame(frames: Frames) -> pd.DataFrame:
    """Return one line for each row with a finished run.

    Columns: row, num_runs, mean, deviation, low, high (two-sided 95 % t interval).
    """
    lines = []
    for row in frames.rows["row"]:
        scores = _done_scores(frames, row)
        num_runs = len(scores)
        if num_runs == 0:
            continue
        mean = _mean(scores)
        deviation = math.nan
        if num_runs > 1:
            deviation = float(scores.std(ddof=1))
        # With one run the deviation is NaN, and so is the interval, whatever the quantile.
        degrees = max(num_runs - 1, 1)
        # mean -+ t s / sqrt(n), with the t of n - 1 degrees that leaves 2.5 % on each side.
        quantile = float(special.stdtrit(degrees, (1 + COVERAGE) / 2))
        half = quantile * deviation / math.sqrt(num_runs)
        lines.append((row, num_runs, mean, deviation, mean - half, mean + half))
    columns = ["row", "num_runs", "mean", "deviation", "low", "high"]
    return pd.DataFrame(lines, columns=columns)


def _done_scores(frames: Frames, row: str) -> np.ndarray:
    """Return the scores of a row's finished runs, (runs,)."""
    return frames.done(row).to_numpy(dtype=float)


def _mean(scores: np.ndarray) -> float:
    # One rounding at the end, so that the order of the seeds does not matter.
    return math.fsum(scores) / len(scores)


def difference(frames: Frames, row: str, reference: str) -> Difference | None:
    """Return row minus reference, unpaired, each with its own variance.

    None where one of them has no finished run.
    """
    row_scores = _done_scores(frames, row)
    reference_scores = _done_scores(frames, reference)
    if len(row_scores) == 0 or len(reference_scores) == 0:
        return None
    return unpaired(row_scores, reference_scores)


def unpaired(row_scores: np.ndarray, reference_scores: np.ndarray) -> Difference:
    """Return the difference of the means of two samples, each of one score or more."""
    num_runs = len(row_scores)
    num_references = len(reference_scores)
    estimate = _mean(row_scores) - _mean(reference_scores)
    if num_runs < 2 or num_references < 2:
        return Difference(estimate, math.nan, math.nan)
    # The variance of each mean, s^2 / n; they add, as the samples are independent.
    row_part = float(row_scores.var(ddof=1)) / num_runs
    reference_part = float(reference_scores.var(ddof=1)) / num_references
    if row_part + reference_part == 0:
        # Satterthwaite's degrees would be 0 / 0; with infinite ones the interval is the estimate,
        # not NaN.
        return Difference(estimate, 0.0, math.inf)
    degrees = satterthwaite(row_part, num_runs - 1, reference_part, num_references - 1)
    return Difference(estimate, math.sqrt(row_part + reference_part), degrees)


def satterthwaite(part: Any, degrees: Any, other: Any, other_degrees: Any) -> Any:
    """Return the degrees of freedom of the sum of two squared errors, numbers or arrays.

    Satterthwaite, Biometrics Bull. 2, 1946; Welch, Biometrika 34, 1947.
    """
    # (a + b)^2 / (a^2 / m + b^2 / n), of squared errors a and b with m and n degrees.
    spread = part**2 / degrees + other**2 / other_degrees
    return (part + other) ** 2 / spread


def seed_correlation(frames: Frames) -> SeedCorrelation | None:
    """Return how scores of the rows that contrasts name go together at the same seed.

    None with fewer than two seeds or two rows. It is ICC(C,1) of McGraw and Wong (Psychol. Methods
    1, 1996): two-way, by the seeds that all these rows have. Its interval takes their variances to
    be alike.
    """
    names = set()
    for contrast in frames.contrasts:
        names.add(contrast.row)
        names.add(contrast.reference)
    # Sorted, as a set of texts has another order in each process, and sums then differ in the last
    # bits.
    by_row = {row: frames.done(row) for row in sorted(names)}
    scores = pd.DataFrame(by_row).dropna()
    num_seeds, num_rows = scores.shape
    if num_seeds < 2 or num_rows < 2:
        return None
    # (seeds, rows). Without each row's mean only what seeds have in common, and noise, are left.
    centred = scores - scores.mean()
    # (seeds,): what a seed adds to all rows alike.
    seed_means = centred.mean(axis=1)
    seed_degrees = num_seeds - 1
    # One degree went into each row's mean, and one into each seed's.
    residual_degrees = (num_seeds - 1) * (num_rows - 1)
    residuals = centred.sub(seed_means, axis=0)
    # Mean squares of the two-way analysis of variance, between seeds and of what is left.
    between = num_rows * float((seed_means**2).sum()) / seed_degrees
    within = float((residuals**2).to_numpy().sum()) / residual_degrees
    # All rows differ alike at every seed: the ratio below would have no denominator.
    if within == 0:
        return None
    # The ratio of mean squares is F-distributed up to a factor, so its interval is
    # ratio / F(a, b) to ratio * F(b, a), of a and b degrees between and within.
    ratio = between / within
    tail = (1 + COVERAGE) / 2
    lowest = ratio / float(special.fdtri(seed_degrees, residual_degrees, tail))
    highest = ratio * float(special.fdtri(residual_degrees, seed_degrees, tail))
    return SeedCorrelation(
        num_seeds,
        num_rows,
        value=_intraclass(ratio, num_rows),
        low=_intraclass(lowest, num_rows),
        high=_intraclass(highest, num_rows),
    )


def _intraclass(ratio: float, num_rows: int) -> float:
    """Return the correlation whose mean squares, between and within seeds, have this ratio."""
    # (MSB - MSW) / (MSB + (rows - 1) MSW), of mean squares between and within, over MSW.
    return (ratio - 1) / (ratio + num_rows - 1)


def against_baseline(frames: Frames) -> pd.DataFrame:
    """Return every row's difference to the baseline of its own size and length.

    An interval goes with it and no word of verdict. Columns: row, reference, estimate,
    standard_error, degrees, low, high (two-sided 95 %), low_one_sided and high_one_sided (each a
    bound of 95 % alone).
    """
    # A row at another size or length is compared with the baseline that was run there too.
    references = rows_by_place(frames, frames.experiment.baseline)
    rows = frames.rows
    lines = []
    for row, size, steps in zip(
        rows["row"], rows["num_parameters"], rows["num_steps"], strict=True
    ):
        reference = references.get((size, steps))
        if reference is None or reference == row:
            continue
        contrast = difference(frames, row, reference)
        if contrast is None:
            continue
        numbers = (contrast.estimate, contrast.standard_error, contrast.degrees)
        # The ends of a two-sided interval of 90 % are one-sided bounds of 95 %.
        one_sided = contrast.interval(2 * COVERAGE - 1)
        lines.append((row, reference, *numbers, *contrast.interval(), *one_sided))
    columns = [
        "row",
        "reference",
        "estimate",
        "standard_error",
        "degrees",
        "low",
        "high",
        "low_one_sided",
        "high_one_sided",
    ]
    return pd.DataFrame(lines, columns=columns)


def rows_by_place(frames: Frames, name: str | None) -> dict[tuple[int, int], str]:
    """Return a row and those that repeat it at another size or length, by parameters and steps."""
    rows = frames.rows
    # `base` names the row that another one repeats; it is None of a row of its own.
    is_repeat = (rows["row"] == name) | (rows["base"] == name)
    # Rows of the rule "sensitivity" also name a base, but run it at another rate: they are not the
    # same row at another place.
    repeats = rows[is_repeat & (rows["rule"] == "held_out")]
    places: dict[tuple[int, int], str] = {}
    for row, size, steps in zip(
        repeats["row"], repeats["num_parameters"], repeats["num_steps"], strict=True
    ):
        # A row comes before its repetitions, one of which may be at its own size and length.
        places.setdefault((int(size), int(steps)), str(row))
    return places


def rows_by_length(frames: Frames, name: str | None) -> dict[int, str]:
    """Return a row and its repetitions at another length and the same size, by number of steps."""
    places = rows_by_place(frames, name)
    own_size = None
    for (size, _), row in places.items():
        if row == name:
            own_size = size
    return {steps: row for (size, steps), row in places.items() if size == own_size}


def accuracy_frame(frames: Frames) -> pd.DataFrame:
    """Return all rows with their mean and their difference to the baseline, in the plan's order.

    Columns: those of `Frames.rows` without its settings; num_planned, num_diverged, num_runs, mean,
    deviation, low, high; difference, standard_error, degrees, difference_low, difference_high;
    is_bound, is_own (a row of its own, at the experiment's length and the settings that were chosen
    for it).
    """
    by_row = frames.runs["row"]
    has_diverged = frames.runs["status"] == "diverged"
    # Index: row. A sum of booleans counts the true ones.
    counts = pd.DataFrame(
        {
            "num_planned": has_diverged.groupby(by_row).size(),
            "num_diverged": has_diverged.groupby(by_row).sum(),
        }
    )
    names = {
        "estimate": "difference",
        "low": "difference_low",
        "high": "difference_high",
    }
    against = against_baseline(frames).drop(columns="reference")
    against = against.rename(columns=names)
    rows = frames.rows[[*_ROW, "base", "rule"]]
    # From the left, so that rows keep the plan's order, and those without runs stay with NaN.
    for table in (counts, summary_frame(frames), against):
        rows = rows.merge(table, on="row", how="left")
    rows["num_runs"] = rows["num_runs"].fillna(0).astype(int)
    # The baseline, and no communication: what methods lie between, whatever their size and length.
    bounds = {frames.experiment.baseline, frames.experiment.floor} - {None}
    rows["is_bound"] = rows["row"].isin(bounds) | rows["base"].isin(bounds)
    rows["is_own"] = rows["base"].isna() & (rows["rule"] == "held_out")
    return rows


_RATES = ["row", "learning_rate", "is_chosen", "score", "num_runs", "kind"]
"""Columns of `rates_frame`, without the label."""


@lru_cache(maxsize=8)
def rates_frame(frames: Frames) -> pd.DataFrame:
    """Return scores at full length by row and learning rate.

    Columns: row, label, learning_rate, is_chosen, score, num_runs, kind. `kind` "test": rows that
    the experiment ran at neighbouring rates, over the seeds that these have. "held out": runs of
    the tuning, where that ran as long as the experiment, with the table of settings that was
    chosen.
    """
    lines = [*_rates_tested(frames), *_rates_held_out(frames)]
    rates = pd.DataFrame(lines, columns=_RATES)
    rates.insert(1, "label", rates["row"].map(frames.by_row["label"]))
    return rates.sort_values(
        ["kind", "row", "learning_rate"], kind="stable", ignore_index=True
    )


def _rates_tested(frames: Frames) -> list[tuple[Any, ...]]:
    """Return lines of `rates_frame` of rows that were run at neighbouring rates, a line a rate."""
    neighbours = frames.rows[frames.rows["rule"] == "sensitivity"]
    lines = []
    for base, group in neighbours.groupby("base", sort=False):
        # The base has more seeds than its neighbours; means over the same seeds compare rates.
        is_neighbour = frames.runs["row"].isin(group["row"])
        seeds = frames.runs.loc[is_neighbour, "seed"]
        for row in (*group["row"], base):
            rate = frames.by_row.loc[row, "learning_rate"]
            scores = frames.done(row)
            scores = scores[scores.index.isin(seeds)]
            lines.append((base, rate, row == base, scores.mean(), len(scores), "test"))
    return lines


def _rates_held_out(frames: Frames) -> list[tuple[Any, ...]]:
    """Return lines of `rates_frame` of trials as long as the experiment, a line a row and rate."""
    if frames.experiment.tuning is None:
        return []
    choices = frames.experiment.tuning.choices
    lines = []
    for name, trials in frames.tuning.groupby("row"):
        row = str(name)
        choice = choices.get(row)
        # A search may have tuned rows that the experiment then did not run.
        if choice is not None and row in frames.by_row.index:
            lines += _rates_of_trials(frames, row, trials, choice)
    return lines


def _rates_of_trials(
    frames: Frames, row: str, trials: pd.DataFrame, choice: Choice
) -> list[tuple[Any, ...]]:
    """Return lines of `rates_frame` of one row's trials with the settings that were chosen."""
    # Rates of shorter trials need not be the best at full length.
    is_full = trials["num_epochs"] == frames.rows["num_epochs"].max()
    # A row that was searched over rates alone has no candidates, and its choice says 0.
    is_candidate = trials["candidate"].fillna(0) == choice.candidate
    lines = []
    for rate, of_rate in trials[is_full & is_candidate].groupby("learning_rate"):
        is_chosen = math.isclose(rate, choice.learning_rate)
        scores = of_rate["score"]
        lines.append((row, rate, is_chosen, scores.mean(), len(scores), "held out"))
    return lines


def _rates_for_contrasts(frames: Frames) -> pd.DataFrame:
    """Return `rates_frame` with trials of compared rows that another experiment tuned."""
    rates = rates_frame(frames)
    compared = {
        name
        for contrast in frames.contrasts
        if contrast.kind != "non-inferiority"
        for name in (contrast.row, contrast.reference)
    }
    lines: list[tuple[Any, ...]] = []
    for row in sorted(compared - set(rates["row"])):
        trials, choice = trials_elsewhere(frames, row)
        if choice is not None:
            lines += _rates_of_trials(frames, row, trials, choice)
    elsewhere = pd.DataFrame(lines, columns=_RATES)
    return pd.concat([rates, elsewhere], ignore_index=True)


def at_equal_rate(
    frames: Frames, rates: pd.DataFrame, row: str, reference: str
) -> float:
    """Return row minus reference with one learning rate for both.

    The difference is taken at the row's chosen rate and at the reference's, where both were run at
    full length, and the one nearer to zero is returned. It is 0 where their signs differ, and NaN
    where both were run at neither rate.
    """
    rate = float(frames.row(row)["learning_rate"])
    reference_rate = float(frames.row(reference)["learning_rate"])
    if rate == reference_rate:
        mean = frames.done(row).mean()
        return float(mean - frames.done(reference).mean())
    # By kind, so that no score of test samples is set against one of held-out samples.
    # Index: (kind, learning_rate). Columns: the two rows.
    scores = rates.pivot_table("score", ["kind", "learning_rate"], "row")
    scores = scores.reindex(columns=[row, reference])
    rates_run = scores.index.get_level_values("learning_rate")
    scores = scores[rates_run.isin([rate, reference_rate])]
    # NaN where one of them was not run at that rate.
    apart = scores[row] - scores[reference]
    differences: list[float] = apart.dropna().tolist()
    if not differences:
        return math.nan
    # Each row wins at one of the rates, so which is better is the rate's doing.
    if min(differences) < 0 < max(differences):
        return 0.0
    return min(differences, key=abs)


@lru_cache(maxsize=8)
def contrasts_frame(frames: Frames) -> pd.DataFrame:
    """Return the declared contrasts and their verdicts, in the order of their declaration.

    Columns: row, reference, kind, question, margin, estimate, standard_error, degrees, low, high
    (two-sided 95 %, of this contrast alone), at_equal_rate, claim, p, p_holm, verdict, declared.
    `claim` is the one of a contrast's one-sided tests (`claims_of`) with the least `p`, and
    `p_holm` is that p adjusted for all tests of the experiment. A contrast without its runs, or
    with one that diverged, enters with a p of 1. Questions of exponents, which were declared with the
    contrasts and are no longer evaluated, enter with the p that they had, or with 1. A claim that one
    method is better also needs `at_equal_rate` to have the sign of `estimate`. A contrast that was
    declared too late for a verdict has no test and no p. `declared`: how many of its runs had begun by
    then, in words.

    Worked out once for frames, which stay as they were read: figures and pages ask again.
    """
    # A line a test, two or three a contrast, all of which share the level.
    family = _contrast_tests(frames)
    # Old questions are shown no more, yet Holm's steps go by the p of every test of the family.
    asked = frames.experiment.exponents or []
    old = [1.0 if exponent.p is None else exponent.p for exponent in asked]
    p_values = [*family["p"], *old]
    family["p_holm"] = holm(p_values)[: len(family)]
    # Only now is one test of each contrast kept: the others had to be in Holm's family too.
    by_p = family.sort_values("p", kind="stable")
    # Index: contrast. The estimates are numbered likewise, so that the two join by index.
    nearest = by_p.drop_duplicates("contrast").set_index("contrast")
    frame = _contrast_estimates(frames).join(nearest)
    level = 1 - frames.experiment.confidence
    frame["verdict"] = [_verdict(frames, line, level) for _, line in frame.iterrows()]
    too_late = are_without_verdict(frames)
    # After the others: without a test p is NaN, which `_verdict` would not take for undecided.
    frame.loc[too_late, "verdict"] = TOO_LATE
    frame["declared"] = [begun_in_words(begun) for begun in begun_when_declared(frames)]
    return frame


def _contrast_estimates(frames: Frames) -> pd.DataFrame:
    """Return the declared contrasts with their differences, without tests."""
    rates = _rates_for_contrasts(frames)
    lines = []
    for contrast in frames.contrasts:
        estimated = difference(frames, contrast.row, contrast.reference) or UNKNOWN
        # What loses less than a margin need not be better, so a rate in common is not asked for.
        equal_rate = math.nan
        if contrast.kind != "non-inferiority":
            equal_rate = at_equal_rate(frames, rates, contrast.row, contrast.reference)
        lines.append(
            (
                # In the order of Contrast.model_fields, which name these columns below.
                *contrast.model_dump().values(),
                estimated.estimate,
                estimated.standard_error,
                estimated.degrees,
                *estimated.interval(),
                equal_rate,
            )
        )
    columns = [
        *Contrast.model_fields,
        "estimate",
        "standard_error",
        "degrees",
        "low",
        "high",
        "at_equal_rate",
    ]
    return pd.DataFrame(lines, columns=columns)


def _contrast_tests(frames: Frames) -> pd.DataFrame:
    """Return the one-sided tests of the contrasts that may have a verdict.

    Columns: contrast (its number), claim, p.
    """
    tests = []
    too_late = are_without_verdict(frames)
    for number, contrast in enumerate(frames.contrasts):
        if too_late[number]:
            continue
        estimated = difference(frames, contrast.row, contrast.reference) or UNKNOWN
        num_diverged = _num_diverged(frames, contrast.row, contrast.reference)
        is_unknown = math.isnan(estimated.standard_error) or num_diverged > 0
        for claim, p_of_claim in claims_of(contrast, estimated).items():
            # A test that cannot be made stays in the family: else a run that is lost would make
            # the other tests easier.
            p = p_of_claim
            if is_unknown:
                p = 1.0
            tests.append((number, claim, p))
    return pd.DataFrame(tests, columns=["contrast", "claim", "p"])


def claims_of(contrast: Contrast, estimated: Difference) -> dict[str, float]:
    """Return the one-sided tests of a contrast: p by the verdict that each would show.

    At most one of them can be shown. "Equal" needs two one-sided tests, both of which must hold
    (Schuirmann 1987): its p is the larger one.
    """
    # Scores are such that more is better, so "worse by the margin" is a difference below -margin.
    margin = contrast.margin
    not_worse = estimated.p_above(-margin)
    worse = estimated.p_below(-margin)
    if contrast.kind == "non-inferiority":
        return {LESS: not_worse, MORE: worse}
    if contrast.kind == "equivalence":
        not_better = estimated.p_below(margin)
        return {
            EQUAL: max(not_worse, not_better),
            BETTER_BY_MARGIN: estimated.p_above(margin),
            WORSE_BY_MARGIN: worse,
        }
    return {BETTER: estimated.p_above(0.0), WORSE: estimated.p_below(0.0)}


def _num_diverged(frames: Frames, row: str, reference: str) -> int:
    return frames.count(row, "diverged") + frames.count(reference, "diverged")


def _verdict(frames: Frames, line: pd.Series, level: float) -> str:
    """Return the verdict on a line of `contrasts_frame` whose p_holm is known."""
    # In this order: why there is no test, what it did not show, and what it showed.
    if _num_diverged(frames, line["row"], line["reference"]):
        return DIVERGED
    if math.isnan(line["standard_error"]):
        return NO_RUNS
    if line["p_holm"] > level:
        if line["kind"] == "superiority":
            return NO_DIFFERENCE
        return UNDECIDED
    claim = str(line["claim"])
    # These do not say which method is better, so they need no rate in common.
    if claim in (LESS, MORE, EQUAL):
        return claim
    if math.isnan(line["at_equal_rate"]):
        return NOT_RUN
    if line["estimate"] * line["at_equal_rate"] > 0:
        return claim
    # The difference between the best rates of two methods might be the rates'.
    return OTHER_RATE


def num_tests(frames: Frames) -> int:
    """Count the one-sided tests of the contrasts that may have a verdict."""
    number = 0
    for contrast, is_late in zip(
        frames.contrasts, are_without_verdict(frames), strict=True
    ):
        if not is_late:
            number += contrast.num_tests
    return number


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the p values adjusted by Holm's step-down procedure, in the order given.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Stat. 1979.
    """
    # statsmodels has it too, but collects garbage at each call, which is slow.
    given = np.asarray(p_values, dtype=float)
    # (tests,) each. The smallest p is multiplied by the number of tests m, the next by m - 1, ...
    order = np.argsort(given)
    multiples = len(given) - np.arange(len(given))
    # A test is rejected only where all with smaller p values are.
    stepped_down = np.maximum.accumulate(given[order] * multiples)
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(stepped_down, 1.0)
    return adjusted
