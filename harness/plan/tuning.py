"""An experiment's tuning: the search for each row's settings and learning rate, its records, and
what it chose.

All trials of a row run at the first seed (at all seeds where there are no finalists). While the
best lies at an end of its rates, the next rate beyond is tried too, within the bounds. The best few
then run at the other seeds. The highest mean accuracy on held-out samples wins; of equals the
smaller rate. A trial with a diverged run cannot win.

A search is a function of its rules and of the outcomes so far, which records give, and goes the
same way each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Literal, NamedTuple

from cser_bench.harness.measures.metrics import metric_of, score_in
from cser_bench.harness.places import SHIPPED_TUNINGS
from cser_bench.harness.plan.rows import PlannedRow, config_of, plan_row
from cser_bench.harness.records.experiment import Choice, Tuning
from cser_bench.harness.records.packs import read_result
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.rows import RowSpec
from cser_bench.harness.spec.run import run_id
from cser_bench.harness.spec.spec import Spec, TuningSpec


class Trial(NamedTuple):
    """A table of settings, by its number from 0, at a learning rate."""

    candidate: int
    learning_rate: float


class TrialOutcome(NamedTuple):
    """How a tuning run ended: accuracy on held-out samples and training loss, None where it
    diverged."""

    accuracy: float | None
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
        return [
            (trial, seed)
            for trial, seeds in tried_at.items()
            for seed in seeds
            if outcomes(trial, seed) is None
        ]

    while True:
        for candidate, own in enumerate(rates):
            for rate in own:
                tried_at.setdefault(Trial(candidate, rate), screening)
        if missing():
            break
        ranking = _ranking(tried_at, screening, outcomes)
        best = ranking[0] if ranking else None
        followed = rates if best is None else [rates[best.candidate]]
        if any([_extend(each, best and best.learning_rate, tuning) for each in followed]):
            continue
        for trial in _best(ranking, tuning.finalists, outcomes, tuning.seeds):
            finalists.add(trial)
            tried_at[trial] = tuning.seeds
        if missing():
            break
        chosen = _ranking(finalists, tuning.seeds, outcomes)[:1]
        if not any(
            [_extend(rates[trial.candidate], trial.learning_rate, tuning) for trial in chosen]
        ):
            finished = [
                trial for trial, seeds in tried_at.items() if not _diverged(trial, seeds, outcomes)
            ]
            by_loss = _ranking(finished, screening, outcomes, "train_loss")
            return SearchState(
                _in_order(tried_at), [], next(iter(chosen), None), next(iter(by_loss), None)
            )
    return SearchState(_in_order(tried_at), missing())


def _in_order(tried_at: dict[Trial, list[int]]) -> dict[Trial, list[int]]:
    """As they were begun with, and what the search added after it, each table of settings for
    itself."""
    return dict(sorted(tried_at.items(), key=lambda item: item[0].candidate))


def _ranking(
    trials: Iterable[Trial],
    seeds: Sequence[int],
    outcomes: Outcomes,
    number: Literal["accuracy", "train_loss"] = "accuracy",
) -> list[Trial]:
    """From the best mean of a number over these seeds to the worst, without the trials that
    diverged at one."""
    sign, means = -1 if number == "accuracy" else 1, dict[Trial, float]()
    for trial in trials:
        found = [getattr(outcomes(trial, seed), number, None) for seed in seeds]
        known = [each for each in found if each is not None]
        if len(known) == len(found):
            means[trial] = sign * fmean(known)
    return sorted(means, key=lambda trial: (means[trial], trial.learning_rate, trial.candidate))


def _best(
    ranking: list[Trial], count: int | None, outcomes: Outcomes, seeds: list[int]
) -> list[Trial]:
    """The first `count` of the ranking; one that diverged at another seed has been tried, but takes
    no place."""
    best, places = [], len(ranking) if count is None else count
    for trial in ranking:
        if places == 0:
            break
        best.append(trial)
        places -= not _diverged(trial, seeds, outcomes)
    return best


def _diverged(trial: Trial, seeds: Sequence[int], outcomes: Outcomes) -> bool:
    return any(outcome.accuracy is None for seed in seeds if (outcome := outcomes(trial, seed)))


def _extend(rates: list[float], best: float | None, tuning: TuningSpec) -> bool:
    """Add the rate beyond the best (None: all diverged), where that is the last and may be; whether
    one was added."""
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
    """What follows a geometric row of rates; of three or more the last two steps are repeated:
    0.01, 0.03, 0.1, 0.3."""
    before, last = rates[-2:]
    rate = before * last / rates[-3] if len(rates) > 2 else last * last / before
    return float(f"{rate:.6g}")


def neighbouring_rates(rate: float) -> tuple[float, float]:
    """The rates below and above in the row 1, 3, 10, 30, ...; of one that is not in it a third and
    three times."""
    leading = f"{rate:e}"[0]
    below, above = (
        rate * (0.3 if leading == "1" else 1 / 3),
        rate * (10 / 3 if leading == "3" else 3),
    )
    return float(f"{below:.6g}"), float(f"{above:.6g}")


def tuning_name(spec: Spec) -> str:
    """Name of the spec's tuning experiment, and of its folder under results/."""
    return f"{(spec.tuning and spec.tuning.records) or spec.name}_tuning"


def tuning_folder(spec: Spec, results: Path) -> Path:
    """The folder of the tuning's records: under `results`, or where none was begun there, those
    that ship."""
    own, shipped = results / tuning_name(spec), SHIPPED_TUNINGS / tuning_name(spec)
    has_own = (own / "experiment.json").exists()
    return shipped if not has_own and (shipped / "experiment.json").exists() else own


def settled(row: RowSpec, trial: Trial) -> RowSpec:
    """The row with the trial's settings and rate."""
    settings, rate = row.tables[trial.candidate], trial.learning_rate
    return row.model_copy(update={"settings": settings, "learning_rate": rate, "candidates": []})


def trial_rows(spec: Spec, results: Path) -> Iterator[PlannedRow]:
    """The rows of the tuning, as far as its records say what comes next. Raises SpecError: there is
    nothing to tune."""
    if spec.tuning is None:
        raise SpecError(
            f"{spec.name} has no [tuning] section; give one, or learning rates in its rows"
        )
    if spec.tuning.records:
        raise SpecError(
            f"{spec.name} takes its choices from the tuning of {spec.tuning.records}; run that "
            f"instead (`python -m harness run {spec.tuning.records} --tuning`), or give it a "
            "[tuning] with a grid of its own"
        )
    if not spec.rows_to_tune():
        raise SpecError(
            f"all rows of {spec.name} have a learning_rate, so there is nothing to tune; remove "
            "one, or run it without --tuning"
        )
    for row in spec.rows_to_tune():
        for trial, seeds in _search(spec, row, results / tuning_name(spec)).wanted.items():
            candidate = trial.candidate if row.candidates else None
            name = _trial_name(row, trial)
            yield plan_row(
                spec,
                settled(row, trial),
                seeds,
                name,
                tuning=True,
                tunes=row.row,
                candidate=candidate,
            )


class NotTunedError(SpecError):
    """The tuning lacks a run of a row."""


def choices(spec: Spec, results: Path, command: str, left_out: list[str]) -> dict[str, SearchState]:
    """The finished search of each row that is tuned.

    Where rows are tuned in corners, those that no contrast names may follow later: to `left_out`
    goes a sentence on each that is not tuned yet. Raises NotTunedError elsewhere; `command` makes
    the tuning.
    """
    rows = spec.rows_to_tune()
    if rows and spec.tuning is None:
        raise SpecError(
            f"row {rows[0].row!r} has no learning_rate; give it one, or the spec a [tuning] section"
        )
    folder = tuning_folder(spec, results)
    needed = {
        spec.statistics.baseline,
        *(name for each in spec.contrasts for name in (each.row, each.reference)),
    }
    needed = {name.partition("@")[0] for name in needed}
    searches, not_tuned = dict[str, SearchState](), dict[str, str]()
    for row in rows:
        try:
            searches[row.row] = _finished_search(spec, row, folder, command)
        except NotTunedError as error:
            if row.base is None or row.base in needed:
                raise
            not_tuned.setdefault(row.base, f"{row.base} is left out: {error}")
    left_out.extend(not_tuned.values())
    return searches


def tuning_record(spec: Spec, searches: dict[str, SearchState]) -> Tuning | None:
    """Where the rows' settings and rates came from, for experiment.json."""
    if spec.tuning is None:
        return None
    rows = {row.row: row for row in spec.all_rows()}

    def chosen(rule: Literal["by_accuracy", "by_training_loss"]) -> dict[str, Choice]:
        return {
            name: Choice(
                learning_rate=trial.learning_rate,
                candidate=trial.candidate,
                settings=rows[name].tables[trial.candidate],
                num_trials=len(found.wanted),
                at_end=found.at_end(trial),
            )
            for name, found in searches.items()
            if (trial := getattr(found, rule))
        }

    by_accuracy = chosen("by_accuracy")
    return Tuning(
        experiment=tuning_name(spec),
        grid=spec.tuning.grid,
        seeds=spec.tuning.seeds,
        selected={name: choice.learning_rate for name, choice in by_accuracy.items()},
        choices=by_accuracy,
        choices_by_training_loss=chosen("by_training_loss"),
    )


def _search(spec: Spec, row: RowSpec, folder: Path) -> SearchState:
    metric = metric_of(spec.statistics.metric)

    @cache
    def outcomes(trial: Trial, seed: int) -> TrialOutcome | None:
        result = read_result(folder / _run_id(spec, row, trial, seed))
        return None if result is None else TrialOutcome(score_in(result, metric), result.train_loss)

    assert spec.tuning is not None
    return search(spec.tuning, row, outcomes)


def _run_id(spec: Spec, row: RowSpec, trial: Trial, seed: int) -> str:
    return run_id(config_of(spec, settled(row, trial), seed, tuning=True))


def _trial_name(row: RowSpec, trial: Trial) -> str:
    candidate = f"_c{trial.candidate}" if row.candidates else ""
    return f"{row.row}{candidate}_lr{trial.learning_rate:g}"


def _finished_search(spec: Spec, row: RowSpec, folder: Path, command: str) -> SearchState:
    found = _search(spec, row, folder)
    if found.missing:
        trial, seed = found.missing[0]
        run, name = _run_id(spec, row, trial, seed), _trial_name(row, trial)
        raise NotTunedError(
            f"row {row.row!r} has no learning_rate, and the tuning in {folder} no run {run} of "
            f"{name} to choose by: it is not done, or was made with other settings than the spec "
            f"has; run the tuning first (`{command}`), or give the spec a [tuning] of its own"
        )
    if found.by_accuracy is None:
        raise SpecError(
            f"row {row.row!r} diverged at every learning rate of the grid in {folder}; widen the "
            "grid"
        )
    return found
