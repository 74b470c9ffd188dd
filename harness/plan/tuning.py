"""An experiment's tuning: what its records say comes next, and what they chose.

`choose` is all that a plan asks: it looks at the records once, and gives every row its settings and
rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cser_bench.harness.measures.metrics import metric_of, score_in
from cser_bench.harness.places import SHIPPED_TUNINGS
from cser_bench.harness.plan.corners import between_corners
from cser_bench.harness.plan.rows import PlannedRow, RowOrigin, config_of, plan_row
from cser_bench.harness.plan.search import SearchState, Trial, TrialOutcome, search
from cser_bench.harness.records.experiment import Choice, Tuning
from cser_bench.harness.records.packs import read_result
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.rows import RowSpec
from cser_bench.harness.spec.run import run_id
from cser_bench.harness.spec.spec import Spec


class NotTunedError(SpecError):
    """The tuning lacks a run of a row."""


@dataclass(frozen=True)
class Chosen:
    """The rows of an experiment with the settings and rates that its tuning chose.

    Attributes:
        rows: all of them, by name; one that is not tuned yet has no learning rate.
        by_training_loss: rows for which the least training loss, the paper's rule, chooses another
            trial; with that trial.
        record: where settings and rates came from, for experiment.json.
        left_out: a sentence on each row that is not tuned yet.
    """

    rows: dict[str, RowSpec]
    by_training_loss: dict[str, RowSpec]
    record: Tuning | None
    left_out: list[str]


def choose(spec: Spec, results: Path, given_as: str) -> Chosen:
    """Read what the spec's tuning chose.

    Args:
        given_as: the name or path that the spec was found by, to say which tuning is not done.

    Raises NotTunedError: it lacks a run. SpecError: there is no tuning, or it chose nothing.
    """
    to_tune = spec.rows_to_tune()
    if to_tune and spec.tuning is None:
        raise SpecError(
            f"row {to_tune[0].row!r} has no learning_rate; give it one, or the spec a [tuning] "
            "section"
        )
    # A spec may take its choices from another one's tuning.
    tuned_by = (spec.tuning and spec.tuning.records) or given_as
    searches, left_out = _finished_searches(
        spec, results, f"python -m harness run {tuned_by} --tuning"
    )
    rows = {row.row: row for row in spec.all_rows()}
    chosen = {}
    by_training_loss = {}
    for name, state in searches.items():
        if state.by_accuracy is not None:
            chosen[name] = settled(rows[name], state.by_accuracy)
        other = state.by_training_loss
        # The same choice by both rules is one row, not two.
        if other is not None and other != state.by_accuracy:
            # By both rules the row has its own name with the first choice; the plan names the
            # other.
            by_training_loss[name] = settled(rows[name], other)
    # Later ones win: a row as it is written, as its own trials chose, as its corners have it.
    return Chosen(
        rows=rows | chosen | between_corners(spec, chosen),
        by_training_loss=by_training_loss,
        record=_record(spec, searches),
        left_out=left_out,
    )


def trial_rows(spec: Spec, results: Path) -> Iterator[PlannedRow]:
    """Return the rows of the tuning, as far as its records say what comes next.

    Raises SpecError: there is nothing to tune.
    """
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
        state = _search(spec, row, results / tuning_name(spec))
        for trial, seeds in state.wanted.items():
            candidate = trial.candidate if row.candidates else None
            yield plan_row(
                spec,
                settled(row, trial),
                seeds,
                _trial_name(row, trial),
                origin=RowOrigin(tunes=row.row, candidate=candidate),
            )


def tuning_name(spec: Spec) -> str:
    """Return the name of the spec's tuning experiment, and of its folder under results/."""
    # A spec may share another's trials: the folder then has that one's name.
    return f"{(spec.tuning and spec.tuning.records) or spec.name}_tuning"


def tuning_folder(spec: Spec, results: Path) -> Path:
    """Return the folder of the tuning's records.

    It lies under `results`; where no tuning was begun there, it is that of the records that ship.
    """
    ours = results / tuning_name(spec)
    shipped = SHIPPED_TUNINGS / tuning_name(spec)
    if (ours / "experiment.json").exists() or not (
        shipped / "experiment.json"
    ).exists():
        return ours
    return shipped


def settled(row: RowSpec, trial: Trial) -> RowSpec:
    """Return the row with the trial's settings and rate."""
    return row.model_copy(
        update={
            "settings": row.settings_to_try[trial.candidate],
            "learning_rate": trial.learning_rate,
            "candidates": [],
        }
    )


def _finished_searches(
    spec: Spec, results: Path, command: str
) -> tuple[dict[str, SearchState], list[str]]:
    """Return the finished search of each row that is tuned, and a sentence on each that is not yet.

    In a grid that is tuned in corners, a row that neither a contrast nor the baseline needs may be
    tuned later: it is left out with a sentence. Any other row without its trials raises
    NotTunedError.

    Args:
        command: what the error tells the user to run.
    """
    folder = tuning_folder(spec, results)
    asked = {spec.statistics.baseline}
    for contrast in spec.contrasts:
        asked |= {contrast.row, contrast.reference}
    # "local-8@large" is the row local-8 in one cell of the grid; corners are tuned for all of it.
    needed = {name.partition("@")[0] for name in asked}
    searches: dict[str, SearchState] = {}
    left_out: dict[str, str] = {}
    for row in spec.rows_to_tune():
        try:
            searches[row.row] = _finished_search(spec, row, folder, command)
        except NotTunedError as error:
            if row.repeated_row is None or row.repeated_row in needed:
                raise
            # All corners of a row lack the same thing: one sentence is enough.
            left_out.setdefault(
                row.repeated_row, f"{row.repeated_row} is left out: {error}"
            )
    return searches, list(left_out.values())


def _finished_search(
    spec: Spec, row: RowSpec, folder: Path, command: str
) -> SearchState:
    state = _search(spec, row, folder)
    if state.missing:
        trial, seed = state.missing[0]
        run = _run_id(spec, row, trial, seed)
        raise NotTunedError(
            f"row {row.row!r} has no learning_rate, and the tuning in {folder} no run {run} of "
            f"{_trial_name(row, trial)} to choose by: it is not done, or was made with other "
            f"settings than the spec has; run the tuning first (`{command}`), or give the spec a "
            "[tuning] of its own"
        )
    if state.by_accuracy is None:
        raise SpecError(
            f"row {row.row!r} diverged at every learning rate of the grid in {folder}; widen the "
            "grid"
        )
    return state


def _search(spec: Spec, row: RowSpec, folder: Path) -> SearchState:
    metric = metric_of(spec.statistics.metric)

    # The search asks for the same outcomes in each of its rounds.
    @cache
    def outcomes(trial: Trial, seed: int) -> TrialOutcome | None:
        result = read_result(folder / _run_id(spec, row, trial, seed))
        if result is None:
            return None
        return TrialOutcome(score_in(result, metric), result.train_loss)

    assert spec.tuning is not None, "rows are tuned"
    return search(spec.tuning, row, outcomes)


def _run_id(spec: Spec, row: RowSpec, trial: Trial, seed: int) -> str:
    return run_id(config_of(spec, settled(row, trial), seed, tuning=True))


def _trial_name(row: RowSpec, trial: Trial) -> str:
    candidate = f"_c{trial.candidate}" if row.candidates else ""
    return f"{row.row}{candidate}_lr{trial.learning_rate:g}"


def _record(spec: Spec, searches: Mapping[str, SearchState]) -> Tuning | None:
    """Return where the rows' settings and rates came from.

    None where there is no tuning.
    """
    if spec.tuning is None:
        return None
    rows = {row.row: row for row in spec.all_rows()}
    choices: dict[str, Choice] = {}
    choices_by_training_loss: dict[str, Choice] = {}
    for name, state in searches.items():
        if state.by_accuracy is not None:
            choices[name] = _choice(rows[name], state, state.by_accuracy)
        if state.by_training_loss is not None:
            choices_by_training_loss[name] = _choice(
                rows[name], state, state.by_training_loss
            )
    return Tuning(
        experiment=tuning_name(spec),
        grid=spec.tuning.grid,
        seeds=spec.tuning.seeds,
        selected={name: choice.learning_rate for name, choice in choices.items()},
        choices=choices,
        choices_by_training_loss=choices_by_training_loss,
    )


def _choice(row: RowSpec, state: SearchState, trial: Trial) -> Choice:
    return Choice(
        learning_rate=trial.learning_rate,
        candidate=trial.candidate,
        settings=row.settings_to_try[trial.candidate].table,
        num_trials=len(state.wanted),
        at_end=state.at_end(trial),
    )
