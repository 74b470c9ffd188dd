"""An experiment's tuning: where its records lie, which trials it wants next, and what it chose for each row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness.plan.rows import PlannedRow, config_of, plan_row
from harness.plan.search import SearchState, Trial, TrialOutcome, search
from harness.records.experiment import Choice, Tuning, read_experiment
from harness.records.metrics import metric_of, score_in
from harness.records.packs import read_result
from harness.rows import RowSpec
from harness.spec import Spec, SpecError, run_id

SHIPPED = Path(__file__).parents[1] / "shipped"
"""Records that come with the program: in a checkout its results folder, in an installation the tunings of it."""


@dataclass(frozen=True)
class Chosen:
    """What the tuning found for a row. `trial` has the best score, `by_training_loss` the least training loss."""

    row: RowSpec
    found: SearchState
    trial: Trial

    @property
    def by_training_loss(self) -> Trial | None:
        return self.found.by_training_loss

    def choice(self, trial: Trial) -> Choice:
        """The record of one of the two."""
        return Choice(
            learning_rate=trial.learning_rate,
            candidate=trial.candidate,
            settings=self.row.tables[trial.candidate],
            num_trials=len(self.found.wanted),
            at_end=self.found.at_end(trial),
        )


def tuning_name(spec: Spec) -> str:
    """Name of the spec's tuning experiment, and of its folder under results/."""
    return f"{(spec.tuning and spec.tuning.records) or spec.name}_tuning"


def tuning_folder(spec: Spec, results: Path) -> Path:
    """The folder of the tuning's records: under `results`, or where none was begun there, those that ship."""
    own, shipped = results / tuning_name(spec), SHIPPED / tuning_name(spec)
    has_own = (own / "experiment.json").exists()
    return shipped if not has_own and (shipped / "experiment.json").exists() else own


def open_rows(spec: Spec) -> list[RowSpec]:
    """The rows that leave their learning rate to the tuning."""
    return [row for row in spec.all_rows() if row.learning_rate is None]


def settled(row: RowSpec, trial: Trial) -> RowSpec:
    """The row with the trial's settings and rate."""
    settings, rate = row.tables[trial.candidate], trial.learning_rate
    return row.model_copy(update={"settings": settings, "learning_rate": rate, "candidates": []})


def trial_rows(spec: Spec, results: Path) -> Iterator[PlannedRow]:
    """The rows of the spec's tuning experiment, as far as its records say what comes next.

    Raises:
        SpecError: there is nothing to tune, or the tuning is another experiment's.
        RecordError: a record of the tuning is damaged.
    """
    if spec.tuning is None:
        raise SpecError(f"{spec.name} has no [tuning] section; give one, or learning rates in its rows")
    if spec.tuning.records:
        raise SpecError(
            f"{spec.name} takes its choices from the tuning of {spec.tuning.records}; run that instead "
            f"(`python -m harness run {spec.tuning.records} --tuning`), or give it a [tuning] with a grid of its own"
        )
    if not open_rows(spec):
        raise SpecError(
            f"all rows of {spec.name} have a learning_rate, so there is nothing to tune; remove one, or run "
            "it without --tuning"
        )
    for row in open_rows(spec):
        for trial, seeds in _search(spec, row, results / tuning_name(spec)).wanted.items():
            candidate = trial.candidate if row.candidates else None
            name = _trial_name(row, trial)
            yield plan_row(spec, settled(row, trial), seeds, name, tuning=True, tunes=row.row, candidate=candidate)


def choices(spec: Spec, results: Path, command: str) -> dict[str, Chosen]:
    """What the tuning chose, by row, for those that leave it to that. `command` makes the tuning.

    Raises:
        SpecError: there is no tuning, or it is not done, or was made with other settings.
        RecordError: a record of the tuning is damaged.
    """
    rows = open_rows(spec)
    if rows and spec.tuning is None:
        raise SpecError(f"row {rows[0].row!r} has no learning_rate; give it one, or the spec a [tuning] section")
    folder = tuning_folder(spec, results)
    return {row.row: _choose(spec, row, folder, command) for row in rows}


def tuning_record(spec: Spec, chosen: dict[str, Chosen]) -> Tuning | None:
    """Where the rows' settings and rates came from, for experiment.json."""
    if spec.tuning is None:
        return None
    return Tuning(
        experiment=tuning_name(spec),
        grid=spec.tuning.grid,
        seeds=spec.tuning.seeds,
        selected={name: each.trial.learning_rate for name, each in chosen.items()},
        choices={name: each.choice(each.trial) for name, each in chosen.items()},
        choices_by_training_loss={
            name: each.choice(each.by_training_loss) for name, each in chosen.items() if each.by_training_loss
        },
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


def _choose(spec: Spec, row: RowSpec, folder: Path, command: str) -> Chosen:
    found = _search(spec, row, folder)
    if found.missing:
        trial, seed = found.missing[0]
        why = _why_missing(folder, row.row, _trial_name(row, trial), seed, _run_id(spec, row, trial, seed))
        raise SpecError(f"{why}; run the tuning first (`{command}`)")
    if found.by_accuracy is None:
        raise SpecError(f"row {row.row!r} diverged at every learning rate of the grid in {folder}; widen the grid")
    return Chosen(row, found, found.by_accuracy)


def _why_missing(folder: Path, row: str, trial: str, seed: int, run_id: str) -> str:
    """Why a trial's run at a seed is missing: no tuning, another one, one with other settings, or one not done."""
    if not (folder / "experiment.json").exists():
        missing = folder / "experiment.json"
        return f"learning rates are left to the tuning, but {missing} is missing: there is no tuning yet"
    rows = [each for each in read_experiment(folder).rows if each.tunes == row]
    if not rows:
        return f"{folder} holds no tuning of row {row!r}"
    recorded = {each.row: each.runs.get(str(seed), run_id) for each in rows}
    if recorded.get(trial, run_id) != run_id:
        return (
            f"the tuning records in {folder} were made with other settings of {trial} than the spec has (if they are "
            "another experiment's, give the spec a [tuning] of its own)"
        )
    return f"the tuning in {folder} is not complete (run {run_id} of {trial} is missing)"
