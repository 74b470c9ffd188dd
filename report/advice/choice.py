"""What to use in a job: the fastest method that is safe, the fastest worth a trial, and its cost."""

import math
from dataclasses import dataclass

import pandas as pd
from scipy import special

from cser_bench.report.advice.predictions import CURVE, DEFINED, ELSEWHERE, MEASURED, UNKNOWN
from cser_bench.report.advice.runs import Line
from cser_bench.report.statistics import LESS, MORE

WORTH = 1.05
"""A method is recommended over another where its step is so many times as fast, or more."""

LEVEL = 0.05
"""Of the one-sided test that a trial ends with."""

POWER = 0.8
"""Chance of that test to show what holds."""

FEWEST_SEEDS = 2
"""Of a trial: a deviation takes two runs."""

MOST_SEEDS = 20
"""Of a trial whose cost is told; of one that would take more it is said so."""

SAFE = "safe"
TRIAL = "trial"
DOUBTFUL = "doubtful"
LOSES = "loses"
NOT_KNOWN = "not known"


@dataclass(frozen=True)
class Choice:
    """What to use in a job.

    Attributes:
        base: the faster line of DDP.
        safe: the fastest line whose loss is shown to be less than the margin, DDP included.
        trial: a faster line that is expected to lose less, which is not shown; None where none is.
    """

    base: Line
    safe: Line
    trial: Line | None


@dataclass(frozen=True)
class Trial:
    """What it takes to find out whether a method loses less than the margin.

    Attributes:
        num_seeds: runs of the method, and as many of DDP.
        hours: of all these runs, one after another.
        first_hours: of one run of each.
        first_shows: the loss that these two show, in scores.
        jobs: after which the time is won back over the method that is safe.
    """

    num_seeds: int
    hours: float
    first_hours: float
    first_shows: float
    jobs: int


def with_standing(lines: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Return the lines with the column standing: what is known of each method's loss.

    SAFE: shown to be less than the margin, by a report's verdict where it judged it, else as its 95 %
    interval ends before the margin. TRIAL: expected to be less, and not shown. DOUBTFUL: expected
    to be more, and not shown. LOSES: shown to be more where it was run, in the same way.
    NOT_KNOWN: nothing is expected.
    """
    standings = []
    for line in lines.to_dict("records"):
        standings.append(_standing(line, margin))
    return lines.assign(standing=standings)


def _standing(line: Line, margin: float) -> str:
    if line["basis"] == UNKNOWN:
        return NOT_KNOWN
    if line["basis"] == DEFINED:
        return SAFE
    is_judged_less = line["verdict"] in (None, LESS)
    # The end of the interval counts; a comparison with NaN is false, and shows nothing.
    is_within = -line["low"] <= margin
    if line["basis"] in (MEASURED, CURVE) and is_judged_less and is_within:
        return SAFE
    # A curve shows of no run that it loses.
    is_beyond = line["basis"] != CURVE and line["verdict"] is None and -line["high"] > margin
    if line["verdict"] == MORE or is_beyond:
        return LOSES
    if -line["estimate"] <= margin:
        return TRIAL
    return DOUBTFUL


def choose(lines: pd.DataFrame) -> Choice:
    """Return what to use, of lines with their standing."""
    base = dict(lines[lines["basis"] == DEFINED].nsmallest(1, "seconds").iloc[0])
    safe = _fastest(lines[lines["standing"] == SAFE])
    # What is hardly faster is not worth a change of method.
    if base["seconds"] < WORTH * safe["seconds"]:
        safe = base
    is_faster = WORTH * lines["seconds"] < safe["seconds"]
    candidates = lines[is_faster & (lines["standing"] == TRIAL)]
    trial = None if candidates.empty else _fastest(candidates)
    return Choice(base, safe, trial)


def _fastest(lines: pd.DataFrame) -> Line:
    """Return the fastest line; of those about as fast, the one that may lose least.

    That is by the worse end of the interval, which counts only what is known of this very job.
    """
    near = lines[lines["seconds"] <= WORTH * lines["seconds"].min()]
    near = near.assign(is_elsewhere=near["basis"] == ELSEWHERE)
    ordered = near.sort_values(
        ["is_elsewhere", "low", "models_sent"],
        ascending=[True, False, False],
    )
    return dict(ordered.iloc[0])


def trial_of(
    choice: Choice,
    margin: float,
    num_steps: int,
) -> Trial | None:
    """Return what a trial of a choice's method costs, beside runs of DDP.

    None where there is no such method, or how much seeds differ is unknown.

    The seeds are those that a one-sided test of the margin takes, if seeds spread as they did on the
    nearest network and the method loses what is expected, but no gain.
    """
    line = choice.trial
    # A deviation that is unknown is NaN, of which a comparison is false.
    if line is None or not line["deviation"] > 0:
        return None
    deviation = line["deviation"]
    hours = line["seconds"] * num_steps / 3600
    base_hours = choice.base["seconds"] * num_steps / 3600
    safe_hours = choice.safe["seconds"] * num_steps / 3600
    quantiles = float(special.ndtri(1 - LEVEL) + special.ndtri(POWER))
    # A gain that is expected is not relied on.
    room = margin - max(-line["estimate"], 0.0)
    # More seeds than that are not counted: close to the margin they grow without bound.
    num_seeds = MOST_SEEDS + 1
    if room > quantiles * deviation / math.sqrt(num_seeds):
        # Without the factor of 2 of two samples: the deviation is that of a difference of two runs.
        num_seeds = max(math.ceil((quantiles * deviation / room) ** 2), FEWEST_SEEDS)
    all_hours = num_seeds * (hours + base_hours)
    return Trial(
        num_seeds=num_seeds,
        hours=all_hours,
        first_hours=hours + base_hours,
        first_shows=quantiles * deviation,
        # The difference is never 0: `choose` takes for a trial what is faster by more than `WORTH`.
        jobs=math.ceil(all_hours / (safe_hours - hours)),
    )
