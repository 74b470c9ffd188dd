"""Statistics: means, differences of rows, scores by rate, the declared contrasts; scipy and
statsmodels do the sums.

One rule for all, chosen by `simulation.py` and told in docs/statistics.md. Each row has a variance
of its own, with degrees of freedom after Welch and Satterthwaite. Runs are not paired by seed.
Nothing is tested first to choose a test. All one-sided tests of an experiment's contrasts share its
level, by Holm's procedure. One method is called better than another only where that also holds with
one learning rate for both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from cser_bench.harness.records.declared import in_words
from cser_bench.harness.records.experiment import Contrast
from cser_bench.report.declared import are_without_verdict, seen_when_declared
from cser_bench.report.frame import Frames

COVERAGE = 0.95
"""Of all two-sided intervals."""

LESS, MORE = "loses less than the margin", "loses more than the margin"
BETTER, WORSE, EQUAL = "better", "worse", "equal within the margin"
BEYOND, BELOW = "better by more than the margin", "worse by more than the margin"
"""Of two methods that were asked to be equal, and are shown to be further apart."""
NOT_TOLD, DIVERGED, NO_RUNS = "not told apart", "diverged", "not enough runs"
OTHER_RATE, NOT_RUN = "not shown at equal rate", "not run at equal rate"
"""Of a difference between the best rates of two methods, which might be the rates'."""
TOO_LATE = "no verdict, declared after its runs"
VERDICTS = (
    *(
        BETTER,
        WORSE,
        BEYOND,
        BELOW,
        LESS,
        MORE,
        EQUAL,
        OTHER_RATE,
        NOT_RUN,
        NOT_TOLD,
        DIVERGED,
        NO_RUNS,
    ),
    TOO_LATE,
)
"""In the order in which a report tells them."""


@dataclass(frozen=True)
class Difference:
    """Mean of a row minus mean of another, in shares. NaN: too few runs for an error."""

    estimate: float
    standard_error: float
    degrees: float

    def p_above(self, bound: float) -> float:
        """One-sided p of "the difference is at most `bound`"."""
        return self._tail(self.estimate - bound)

    def p_below(self, bound: float) -> float:
        """One-sided p of "the difference is at least `bound`"."""
        return self._tail(bound - self.estimate)

    def interval(self, coverage: float = COVERAGE) -> tuple[float, float]:
        """Two-sided."""
        half = float(special.stdtrit(self.degrees, (1 + coverage) / 2)) * self.standard_error
        return self.estimate - half, self.estimate + half

    def _tail(self, distance: float) -> float:
        if self.standard_error == 0:
            return 0.0 if distance > 0 else 1.0
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
"""Of rows without runs."""


def summary_frame(frames: Frames) -> pd.DataFrame:
    """One line a row with a finished run: row, num_runs, mean, deviation, low, high (two-sided 95 %
    t interval)."""
    lines = []
    for row in frames.rows["row"]:
        scores = frames.done(row).to_numpy(dtype=float)
        if not len(scores):
            continue
        # One rounding at the end, so that the order of the seeds does not matter.
        mean = math.fsum(scores) / len(scores)
        deviation = float(scores.std(ddof=1)) if len(scores) > 1 else math.nan
        half = (
            float(special.stdtrit(max(len(scores) - 1, 1), (1 + COVERAGE) / 2))
            * deviation
            / math.sqrt(len(scores))
        )
        lines.append((row, len(scores), mean, deviation, mean - half, mean + half))
    return pd.DataFrame(lines, columns=["row", "num_runs", "mean", "deviation", "low", "high"])


def difference(frames: Frames, row: str, reference: str) -> Difference | None:
    """Row minus reference, unpaired, each with its own variance; None where one has no finished
    run."""
    mine, theirs = (
        frames.done(row).to_numpy(dtype=float),
        frames.done(reference).to_numpy(dtype=float),
    )
    if not len(mine) or not len(theirs):
        return None
    estimate = math.fsum(mine) / len(mine) - math.fsum(theirs) / len(theirs)
    if min(len(mine), len(theirs)) < 2:
        return Difference(estimate, math.nan, math.nan)
    part, other = (float(scores.var(ddof=1)) / len(scores) for scores in (mine, theirs))
    if part + other == 0:
        return Difference(estimate, 0.0, math.inf)
    return Difference(
        estimate,
        math.sqrt(part + other),
        satterthwaite(part, len(mine) - 1, other, len(theirs) - 1),
    )


def satterthwaite(part: Any, degrees: Any, other: Any, other_degrees: Any) -> Any:
    """Degrees of freedom of the sum of two squared errors (Satterthwaite 1946; Welch 1947); numbers
    or arrays."""
    return (part + other) ** 2 / (part**2 / degrees + other**2 / other_degrees)


def seed_correlation(frames: Frames) -> SeedCorrelation | None:
    """How scores of the rows that contrasts name go together at the same seed; None with fewer than
    two of either.

    It is ICC(C,1) of McGraw and Wong (Psychol. Methods 1, 1996): two-way, by the seeds that all
    these rows have. Its interval takes their variances to be alike.
    """
    named = {name for contrast in frames.contrasts for name in (contrast.row, contrast.reference)}
    scores = pd.DataFrame({row: frames.done(row) for row in sorted(named)}).dropna()
    num_seeds, num_rows = scores.shape
    if min(num_seeds, num_rows) < 2:
        return None
    apart = scores - scores.mean()
    means = apart.mean(axis=1)
    between = num_rows * float((means**2).sum()) / (num_seeds - 1)
    within = float((apart.sub(means, axis=0) ** 2).to_numpy().sum()) / (
        (num_seeds - 1) * (num_rows - 1)
    )
    if within == 0:
        return None
    ratio, tail = between / within, (1 + COVERAGE) / 2
    first, second = num_seeds - 1, (num_seeds - 1) * (num_rows - 1)
    ratios = (
        ratio,
        ratio / special.fdtri(first, second, tail),
        ratio * special.fdtri(second, first, tail),
    )
    values = [float((each - 1) / (each + num_rows - 1)) for each in ratios]
    return SeedCorrelation(num_seeds, num_rows, *values)


def against_baseline(frames: Frames) -> pd.DataFrame:
    """Every row's difference to the baseline of its own size and length, with its interval and no
    word of verdict.

    Columns: row, reference, estimate, standard_error, degrees, low, high (two-sided 95 %),
    low_one_sided and high_one_sided (each a bound of 95 % alone).
    """
    references = rows_by_place(frames, frames.experiment.baseline)
    lines = []
    for row, *place in frames.rows[["row", "num_parameters", "num_steps"]].itertuples(index=False):
        reference = references.get(tuple(place))
        found = difference(frames, row, reference) if reference not in (None, row) else None
        if reference is not None and found is not None:
            ends = (*found.interval(), *found.interval(2 * COVERAGE - 1))
            lines.append(
                (row, reference, found.estimate, found.standard_error, found.degrees, *ends)
            )
    columns = ["row", "reference", "estimate", "standard_error", "degrees", "low", "high"]
    return pd.DataFrame(lines, columns=[*columns, "low_one_sided", "high_one_sided"])


def rows_by_place(frames: Frames, name: str | None) -> dict[tuple[int, int], str]:
    """A row and those that repeat it at another size or length, by parameters and steps."""
    rows = frames.rows
    mine = rows[((rows["row"] == name) | (rows["base"] == name)) & (rows["rule"] == "held_out")]
    places = zip(mine["num_parameters"], mine["num_steps"], strict=True)
    return {
        (int(size), int(steps)): str(row)
        for row, (size, steps) in zip(mine["row"], places, strict=True)
    }


def rows_by_length(frames: Frames, name: str | None) -> dict[int, str]:
    """A row and those that repeat it at another length, by number of steps; none of another
    size."""
    places = rows_by_place(frames, name)
    own = next((size for (size, _), row in places.items() if row == name), None)
    return {steps: row for (size, steps), row in places.items() if size == own}


def accuracy_frame(frames: Frames) -> pd.DataFrame:
    """All rows with their mean and their difference to the baseline of their length, in the order
    of the plan.

    Columns: those of `Frames.rows` without its settings; num_planned, num_diverged, num_runs, mean,
    deviation, low, high; difference, standard_error, degrees, difference_low, difference_high;
    is_bound, is_own (a row of its own, at the experiment's length and the settings that were chosen
    for it).
    """
    status = frames.runs.groupby("row")["status"]
    counts = pd.DataFrame(
        {
            "num_planned": status.size(),
            "num_diverged": status.agg(lambda of: (of == "diverged").sum()),
        }
    )
    names = {"estimate": "difference", "low": "difference_low", "high": "difference_high"}
    against = against_baseline(frames).rename(columns=names).drop(columns="reference")
    found = frames.rows[[*_ROW, "base", "rule"]]
    for others in (counts, summary_frame(frames), against):
        found = found.merge(others, on="row", how="left")
    found["num_runs"] = found["num_runs"].fillna(0).astype(int)
    bounds = {frames.experiment.baseline, frames.experiment.floor} - {None}
    found["is_bound"] = found["row"].isin(bounds) | found["base"].isin(bounds)
    found["is_own"] = found["base"].isna() & (found["rule"] == "held_out")
    return found


def rates_frame(frames: Frames) -> pd.DataFrame:
    """Scores at full length by row and learning rate: row, label, learning_rate, is_chosen, score,
    num_runs, kind.

    `kind` "test": rows that the experiment ran at neighbouring rates, over the seeds that these
    have. "held out": runs of the tuning, where that ran as long as the experiment, with the table
    of settings that was chosen.
    """
    rows, tuning, lines = frames.rows, frames.tuning, []
    for base, group in rows[rows["rule"] == "sensitivity"].groupby("base", sort=False):
        seeds = frames.runs.loc[frames.runs["row"].isin(group["row"]), "seed"]
        for row in (*group["row"], base):
            scores = frames.done(row)
            scores = scores[scores.index.isin(seeds)]
            lines.append(
                (
                    base,
                    frames.by_row.loc[row, "learning_rate"],
                    row == base,
                    scores.mean(),
                    len(scores),
                    "test",
                )
            )
    choices = frames.experiment.tuning.choices if frames.experiment.tuning else {}
    for (row, rate), trials in tuning[tuning["num_epochs"] == rows["num_epochs"].max()].groupby(
        ["row", "learning_rate"]
    ):
        if (choice := choices.get(row)) is not None and row in frames.by_row.index:
            mine = trials.loc[trials["candidate"].fillna(0) == choice.candidate, "score"]
            is_chosen = math.isclose(rate, choice.learning_rate)
            lines += (
                [(row, rate, is_chosen, mine.mean(), len(mine), "held out")] if len(mine) else []
            )
    found = pd.DataFrame(
        lines, columns=["row", "learning_rate", "is_chosen", "score", "num_runs", "kind"]
    )
    found.insert(1, "label", found["row"].map(frames.by_row["label"]))
    return found.sort_values(["kind", "row", "learning_rate"], kind="stable", ignore_index=True)


def at_equal_rate(frames: Frames, rates: pd.DataFrame, row: str, reference: str) -> float:
    """Row minus reference with one learning rate for both: the nearest to zero of those at each
    one's chosen rate.

    Zero where their signs differ; NaN where neither rate was run at full length by both.
    """
    chosen = {float(frames.row(name)["learning_rate"]) for name in (row, reference)}
    if len(chosen) == 1:
        return float(frames.done(row).mean() - frames.done(reference).mean())
    found = rates.pivot_table("score", ["kind", "learning_rate"], "row").reindex(
        columns=[row, reference]
    )
    found = found[found.index.get_level_values("learning_rate").isin(chosen)]
    apart = (found[row] - found[reference]).dropna().tolist()
    if min(apart, default=0.0) < 0 < max(apart, default=0.0):
        return 0.0
    return min(apart, key=abs, default=math.nan)


def contrasts_frame(frames: Frames) -> pd.DataFrame:
    """The declared contrasts and their verdicts, one line each, in the order of their declaration.

    Columns: row, reference, kind, question, margin, estimate, standard_error, degrees, low, high
    (two-sided 95 %, of this contrast alone), at_equal_rate, claim, p, p_holm, verdict, declared.
    `claim` is that of the contrast's one-sided tests with the least `p`, which `p_holm` adjusts for
    all tests of the experiment (`claims_of`). A contrast whose runs are not there, or of which a
    row has a run that diverged, counts with a p of 1 in each. What says that one method is better
    needs the same sign `at_equal_rate`. A contrast that was declared too late for a verdict has no
    test and no p. `declared`: how many of its runs had begun by then, in words.
    """
    rates, lines, tests = rates_frame(frames), [], []
    too_late = are_without_verdict(frames)
    for number, contrast in enumerate(frames.contrasts):
        known = difference(frames, contrast.row, contrast.reference) or UNKNOWN
        numbers = (known.estimate, known.standard_error, known.degrees, *known.interval())
        asks = contrast.kind != "non-inferiority"
        equal = at_equal_rate(frames, rates, contrast.row, contrast.reference) if asks else math.nan
        lines.append((*contrast.model_dump().values(), *numbers, equal))
        claims = {} if too_late[number] else claims_of(contrast, known)
        is_unknown = math.isnan(known.standard_error) or _num_diverged(
            frames, contrast.row, contrast.reference
        )
        tests += [(number, claim, 1.0 if is_unknown else p) for claim, p in claims.items()]
    columns = [
        *Contrast.model_fields,
        "estimate",
        "standard_error",
        "degrees",
        "low",
        "high",
        "at_equal_rate",
    ]
    family = pd.DataFrame(tests, columns=["contrast", "claim", "p"])
    family["p_holm"] = holm(family["p"].to_numpy(dtype=float))
    nearest = (
        family.sort_values("p", kind="stable").drop_duplicates("contrast").set_index("contrast")
    )
    frame = pd.DataFrame(lines, columns=columns).join(nearest)
    level = 1 - frames.experiment.confidence
    frame["verdict"] = [_verdict(frames, line, level) for _, line in frame.iterrows()]
    frame.loc[too_late, "verdict"] = TOO_LATE
    frame["declared"] = [in_words(seen) for seen in seen_when_declared(frames)]
    return frame


def claims_of(contrast: Contrast, found: Difference) -> dict[str, float]:
    """The one-sided tests of a contrast: p by the verdict that each would show, of which one can be
    shown at most.

    "Equal" needs two one-sided tests, both of which must hold (Schuirmann 1987): its p is the
    larger one.
    """
    margin = contrast.margin
    above, below = found.p_above(-margin), found.p_below(-margin)
    if contrast.kind == "non-inferiority":
        return {LESS: above, MORE: below}
    if contrast.kind == "equivalence":
        return {
            EQUAL: max(above, found.p_below(margin)),
            BEYOND: found.p_above(margin),
            BELOW: below,
        }
    return {BETTER: found.p_above(0.0), WORSE: found.p_below(0.0)}


def _num_diverged(frames: Frames, row: str, reference: str) -> int:
    return frames.count(row, "diverged") + frames.count(reference, "diverged")


def _verdict(frames: Frames, line: pd.Series, level: float) -> str:
    if _num_diverged(frames, line["row"], line["reference"]):
        return DIVERGED
    if math.isnan(line["standard_error"]):
        return NO_RUNS
    if line["p_holm"] > level:
        return NOT_TOLD
    claim = str(line["claim"])
    if claim in (LESS, MORE, EQUAL):
        return claim
    if math.isnan(line["at_equal_rate"]):
        return NOT_RUN
    return claim if line["estimate"] * line["at_equal_rate"] > 0 else OTHER_RATE


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """p values adjusted by Holm's step-down procedure, in the order given."""
    if not len(p_values):
        return np.array([], dtype=float)
    from statsmodels.stats.multitest import multipletests  # so only where contrasts are declared

    return np.asarray(multipletests(p_values, method="holm")[1], dtype=float)
