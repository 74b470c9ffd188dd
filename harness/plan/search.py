"""The search for a row's settings and learning rate.

All trials of a row run at the first seed (at all seeds where there are no finalists). While the
best lies at an end of its rates, the next rate beyond is tried too, within the bounds. The best few
then run at the other seeds. The highest mean accuracy on validation samples wins; of equals the
smaller rate. A trial with a diverged run cannot win.

A search is a function of its rules and of the outcomes so far, which records give, and goes the
same way each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, NamedTuple

from cser_bench.harness.spec.rows import RowSpec
from cser_bench.harness.spec.tuning import TuningSpec


class Trial(NamedTuple):
    """A table of settings, by its number from 0, at a learning rate."""

    candidate: int
    learning_rate: float


class TrialOutcome(NamedTuple):
    """How a tuning run ended; both numbers are None where it diverged."""

    accuracy: float | None
    """Score on validation samples."""
    train_loss: float | None


Outcomes = Callable[[Trial, int], TrialOutcome | None]
"""By trial and tuning seed; None where the run has no result yet."""


@dataclass(frozen=True)
class SearchState:
    """Where a search stands.

    `wanted`: the seeds of each trial that is to be run, as far as can be said yet. The choices are
    None before the search is complete, and where every trial diverged.
    """

    wanted: dict[Trial, list[int]]
    missing: list[tuple[Trial, int]]
    by_accuracy: Trial | None = None
    by_training_loss: Trial | None = None

    def at_end(self, trial: Trial) -> bool:
        """Say whether the trial's rate is the smallest or largest tried with its settings."""
        rates = [
            other.learning_rate
            for other in self.wanted
            if other.candidate == trial.candidate
        ]
        return trial.learning_rate in (min(rates), max(rates))


def search(tuning: TuningSpec, row: RowSpec, outcomes: Outcomes) -> SearchState:
    """Say where the row's search stands."""
    rates_by_candidate = [
        list(row.learning_rates or tuning.grid) for _ in row.settings_to_try
    ]
    # Every trial at one seed first, where only finalists see the others.
    screening = tuning.seeds if tuning.finalists is None else tuning.seeds[:1]
    tried_at: dict[Trial, list[int]] = {}
    finalists: set[Trial] = set()

    # Each round adds what the results so far ask for; without new results it adds nothing.
    while True:
        for candidate, rates in enumerate(rates_by_candidate):
            for rate in rates:
                tried_at.setdefault(Trial(candidate, rate), screening)
        missing = _missing(tried_at, outcomes)
        if missing:
            return SearchState(_in_order(tried_at), missing)
        ranking = _ranking(tried_at, screening, outcomes)
        if _extend_beyond_best(rates_by_candidate, ranking, tuning):
            continue
        for trial in _best(ranking, tuning.finalists, outcomes, tuning.seeds):
            finalists.add(trial)
            tried_at[trial] = tuning.seeds
        missing = _missing(tried_at, outcomes)
        if missing:
            return SearchState(_in_order(tried_at), missing)
        # The other seeds may have put another trial first, with an end of its own to go beyond.
        chosen = _ranking(finalists, tuning.seeds, outcomes)[:1]
        if chosen and _extend_beyond_best(rates_by_candidate, chosen, tuning):
            continue
        finished = [
            trial
            for trial, seeds in tried_at.items()
            if not _diverged(trial, seeds, outcomes)
        ]
        # At the seeds that every trial has; only finalists have the others.
        by_loss = _ranking(finished, screening, outcomes, "train_loss")
        return SearchState(
            wanted=_in_order(tried_at),
            missing=[],
            by_accuracy=next(iter(chosen), None),
            by_training_loss=next(iter(by_loss), None),
        )


def _missing(
    tried_at: dict[Trial, list[int]], outcomes: Outcomes
) -> list[tuple[Trial, int]]:
    """Return the runs without a result."""
    missing = []
    for trial, seeds in tried_at.items():
        missing += [(trial, seed) for seed in seeds if outcomes(trial, seed) is None]
    return missing


def _in_order(tried_at: dict[Trial, list[int]]) -> dict[Trial, list[int]]:
    """Return the trials table of settings by table of settings.

    Each table has the trials that it began with, and then those that the search added.
    """
    return dict(sorted(tried_at.items(), key=lambda item: item[0].candidate))


def _ranking(
    trials: Iterable[Trial],
    seeds: Sequence[int],
    outcomes: Outcomes,
    number: Literal["accuracy", "train_loss"] = "accuracy",
) -> list[Trial]:
    """Return the trials from the best mean of a number over these seeds to the worst.

    Trials that diverged at one of them are left out.
    """
    # A score is better where it is high, a loss where it is low.
    sign = -1 if number == "accuracy" else 1
    means: dict[Trial, float] = {}
    for trial in trials:
        values = [getattr(outcomes(trial, seed), number, None) for seed in seeds]
        finite = [value for value in values if value is not None]
        if len(finite) == len(values):
            means[trial] = sign * fmean(finite)
    # At equal means the smaller rate and the earlier table, so that the order never varies.
    return sorted(
        means, key=lambda trial: (means[trial], trial.learning_rate, trial.candidate)
    )


def _best(
    ranking: list[Trial], count: int | None, outcomes: Outcomes, seeds: list[int]
) -> list[Trial]:
    """Return the first `count` of the ranking.

    One that diverged at another seed has been tried, but takes no place.
    """
    places = len(ranking) if count is None else count
    best = []
    for trial in ranking:
        if places == 0:
            break
        best.append(trial)
        if not _diverged(trial, seeds, outcomes):
            places -= 1
    return best


def _diverged(trial: Trial, seeds: Sequence[int], outcomes: Outcomes) -> bool:
    so_far = [outcomes(trial, seed) for seed in seeds]
    return any(outcome is not None and outcome.accuracy is None for outcome in so_far)


def _extend_beyond_best(
    rates_by_candidate: list[list[float]], ranking: list[Trial], tuning: TuningSpec
) -> bool:
    """Go on beyond the best trial's rates, or beyond all where every trial diverged.

    Returns whether any rate was added.
    """
    if ranking:
        best = ranking[0]
        return _extend(rates_by_candidate[best.candidate], best.learning_rate, tuning)
    extended = [_extend(rates, None, tuning) for rates in rates_by_candidate]
    return any(extended)


def _extend(rates: list[float], best: float | None, tuning: TuningSpec) -> bool:
    """Add the rate beyond the best, where that is the last and may be added.

    The best is None where all diverged. Returns whether a rate was added.
    """
    if len(rates) < 2:  # one has no neighbour to take a step from
        return False
    if best == max(rates) and tuning.highest is not None:
        beyond = next_rate(sorted(rates))
    # Where all diverged the search goes down, as it is large rates that make runs diverge.
    elif best in (None, min(rates)) and tuning.lowest is not None:
        beyond = next_rate(sorted(rates, reverse=True))
    else:
        return False
    if not (tuning.lowest or 0) <= beyond <= (tuning.highest or beyond):
        return False
    rates.append(beyond)
    return True


def next_rate(rates: list[float]) -> float:
    """Return the next rate of a geometric row of rates.

    From three rates on, the factor before the last one is repeated: 0.01, 0.03, 0.1, then 0.3.
    """
    before, last = rates[-2:]
    rate = before * last / rates[-3] if len(rates) > 2 else last * last / before
    # To the digits that rows' names have: a rate's last bits would make another run of it.
    return float(f"{rate:.6g}")


def neighbouring_rates(rate: float) -> tuple[float, float]:
    """Return the rates below and above in the row 1, 3, 10, 30, ...

    For a rate that is not in the row, they are a third of it and three times it.
    """
    leading = f"{rate:e}"[0]
    below = rate * (0.3 if leading == "1" else 1 / 3)
    above = rate * (10 / 3 if leading == "3" else 3)
    return float(f"{below:.6g}"), float(f"{above:.6g}")
