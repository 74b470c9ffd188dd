"""The search for a row's settings and learning rate: which trials it wants, given those that are done, and its choice.

All trials of a row run at the first seed (at all seeds where there are no finalists). While the best lies at an end of
its rates, the next rate beyond is tried too, within the bounds. The best few then run at the other seeds. The highest
mean accuracy on held-out samples wins; of equals the smaller rate. A trial with a diverged run cannot win.

A search is a function of its rules and of the outcomes so far, which records give, and goes the same way each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, NamedTuple

from harness.rows import RowSpec
from harness.spec import TuningSpec


class Trial(NamedTuple):
    """A table of settings, by its number from 0, at a learning rate."""

    candidate: int
    learning_rate: float


@dataclass(frozen=True)
class TrialOutcome:
    """How a tuning run ended: accuracy on held-out samples and training loss, None where it diverged."""

    accuracy: float | None
    train_loss: float | None


Outcomes = Callable[[Trial, int], TrialOutcome | None]
"""By trial and tuning seed; None where the run has no result yet."""


@dataclass(frozen=True)
class SearchState:
    """Where a search stands.

    `wanted`: the seeds of each trial that is to be run, as far as can be said yet. The choices are None before the
    search is complete, and where every trial diverged.
    """

    wanted: dict[Trial, list[int]]
    missing: list[tuple[Trial, int]]
    by_accuracy: Trial | None = None
    by_training_loss: Trial | None = None

    def at_end(self, trial: Trial) -> bool:
        """Whether the trial's rate is the smallest or largest tried with its settings."""
        rates = [each.learning_rate for each in self.wanted if each.candidate == trial.candidate]
        return trial.learning_rate in (min(rates), max(rates))


def search(tuning: TuningSpec, row: RowSpec, outcomes: Outcomes) -> SearchState:
    """Where the row's search stands."""
    rates = [list(row.learning_rates or tuning.grid) for _ in row.tables]
    screening = tuning.seeds if tuning.finalists is None else tuning.seeds[:1]
    tried_at: dict[Trial, list[int]] = {}
    finalists: set[Trial] = set()

    def missing() -> list[tuple[Trial, int]]:
        return [(trial, seed) for trial, seeds in tried_at.items() for seed in seeds if outcomes(trial, seed) is None]

    while True:
        for candidate, own in enumerate(rates):
            for rate in own:
                tried_at.setdefault(Trial(candidate, rate), screening)
        if missing():
            break
        ranking = _ranking(list(tried_at), screening, outcomes)
        if any([_extend(rates[trial.candidate], trial.learning_rate, tuning) for trial in ranking[:1]]):
            continue
        if not ranking and any([_extend(own, None, tuning) for own in rates]):
            continue
        for trial in _best(ranking, tuning.finalists, outcomes, tuning.seeds):
            finalists.add(trial)
            tried_at[trial] = tuning.seeds
        if missing():
            break
        best = _ranking(list(finalists), tuning.seeds, outcomes)[:1]
        if not any([_extend(rates[trial.candidate], trial.learning_rate, tuning) for trial in best]):
            by_loss = _least_loss(tried_at, screening, outcomes)
            return SearchState(_in_order(tried_at), [], best[0] if best else None, by_loss)
    return SearchState(_in_order(tried_at), missing())


def _in_order(tried_at: dict[Trial, list[int]]) -> dict[Trial, list[int]]:
    """As they were begun with, and what the search added after it, each table of settings for itself."""
    return dict(sorted(tried_at.items(), key=lambda item: item[0].candidate))


def _ranking(trials: Sequence[Trial], seeds: Sequence[int], outcomes: Outcomes) -> list[Trial]:
    """From the best mean accuracy over these seeds to the worst, without those that diverged at one."""
    means = _means(trials, seeds, outcomes, "accuracy")
    return sorted(means, key=lambda trial: (-means[trial], trial.learning_rate, trial.candidate))


def _means(
    trials: Iterable[Trial], seeds: Sequence[int], outcomes: Outcomes, number: Literal["accuracy", "train_loss"]
) -> dict[Trial, float]:
    """A number's mean over these seeds, of the trials that have it at all of them."""
    means = {}
    for trial in trials:
        found = [getattr(outcomes(trial, seed), number, None) for seed in seeds]
        known = [each for each in found if each is not None]
        if len(known) == len(found):
            means[trial] = fmean(known)
    return means


def _best(ranking: list[Trial], count: int | None, outcomes: Outcomes, seeds: list[int]) -> list[Trial]:
    """The first `count` of the ranking; one that diverged at another seed has been tried, but takes no place."""
    best, places = [], len(ranking) if count is None else count
    for trial in ranking:
        if places == 0:
            break
        best.append(trial)
        places -= not _diverged(trial, seeds, outcomes)
    return best


def _diverged(trial: Trial, seeds: Sequence[int], outcomes: Outcomes) -> bool:
    return any(outcome.accuracy is None for seed in seeds if (outcome := outcomes(trial, seed)))


def _least_loss(tried_at: dict[Trial, list[int]], screening: Sequence[int], outcomes: Outcomes) -> Trial | None:
    finished = [trial for trial, seeds in tried_at.items() if not _diverged(trial, seeds, outcomes)]
    means = _means(finished, screening, outcomes, "train_loss")
    return min(means, key=lambda trial: (means[trial], trial.learning_rate, trial.candidate), default=None)


def _extend(rates: list[float], best: float | None, tuning: TuningSpec) -> bool:
    """Add the rate beyond the best one, where that is the last and the bound allows it; whether one was added.

    Args:
        best: None where all diverged, so that a smaller one is wanted.
    """
    if len(rates) < 2:  # one has no neighbour to take a step from
        return False
    if best == max(rates) and tuning.highest is not None:
        beyond = next_rate(sorted(rates))
    elif best in (None, min(rates)) and tuning.lowest is not None:
        beyond = next_rate(sorted(rates, reverse=True))
    else:
        return False
    if not (tuning.lowest or 0) <= beyond <= (tuning.highest or beyond):
        return False
    rates.append(beyond)
    return True


def next_rate(rates: list[float]) -> float:
    """What follows a geometric row of rates; of three or more the last two steps are repeated: 0.01, 0.03, 0.1, 0.3."""
    before, last = rates[-2:]
    rate = before * last / rates[-3] if len(rates) > 2 else last * last / before
    return float(f"{rate:.6g}")


def neighbouring_rates(rate: float) -> tuple[float, float]:
    """The rates below and above in the row 1, 3, 10, 30, ...; of one that is not in it a third and three times."""
    leading = f"{rate:e}"[0]
    below, above = rate * (0.3 if leading == "1" else 1 / 3), rate * (10 / 3 if leading == "3" else 3)
    return float(f"{below:.6g}"), float(f"{above:.6g}")
