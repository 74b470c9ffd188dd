"""Expands a spec into runs with ids, every setting checked, with their expected bits and memory."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.plan import tuning_records
from harness.plan.describe import describe, fixed_settings, stepping_of
from harness.plan.foresee import Foreseen, check_scoring, check_task_and_model, foresee
from harness.plan.tuning import SearchState, Trial, TrialOutcome, neighbouring_rates, rules, search
from harness.plan.tuning_records import tuning_folder, tuning_name
from harness.records import store
from harness.records.experiment import Choice, Contrast, Experiment, Row, Tuning
from harness.records.metrics import metric_of
from harness.rows import RowSpec
from harness.spec import RunConfig, Spec, SpecError, explain, run_id
from harness.spec_file import find_spec, load_spec


@dataclass(frozen=True)
class PlannedRun:
    """One run to do: a row of the table at one seed."""

    run_id: str
    row: str
    seed: int
    config: RunConfig


@dataclass(frozen=True)
class Plan:
    """All runs of an experiment, and what the report needs to know of it."""

    experiment: Experiment
    runs: list[PlannedRun]
    memory_bytes: dict[str, int]
    """Per worker and row: parameters, gradients and the optimiser's state; activations are not in it."""
    checkpoint_bytes: dict[str, int]
    """Per worker and row: what one generation of a checkpoint takes on the disk."""
    mixing: dict[str, str] = field(default_factory=dict)
    """By row, of those whose workers talk to their neighbours alone: what that sends and brings, a sentence each."""
    left_out: list[str] = field(default_factory=list)
    """Rows that would be there at other lengths, and why they are not, a sentence each."""


@dataclass(frozen=True)
class _Planned:
    """A row of the plan with its runs."""

    row: Row
    runs: list[PlannedRun]
    foreseen: Foreseen


def plan_experiment(name_or_path: str, results: Path, tuning: bool = False) -> Plan:
    """The plan of a shipped experiment by its name, or of a TOML file, or of its tuning.

    Raises:
        SpecError: as `make_plan`, with the file's name, or there is no such file.
        RecordError: a record of the tuning is damaged.
    """
    path = find_spec(name_or_path)
    spec = load_spec(path)
    try:
        return make_plan(spec, results, tuning, name_or_path)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None


def make_plan(spec: Spec, results: Path, tuning: bool = False, given_as: str | None = None) -> Plan:
    """Expand `spec`, or its tuning experiment as far as the records of it say what comes next.

    Args:
        given_as: the name or path that the spec was found by, for the commands that the report prints.

    Raises:
        SpecError: a setting that cannot be used, or learning rates that are not known yet.
        RecordError: a record of the tuning is damaged.
    """
    check_task_and_model(spec.task, spec.model)
    check_scoring(spec.task, spec.evaluation, spec.statistics.metric)
    if tuning:
        _check_own_tuning(spec)
        folder = results / tuning_name(spec)
        rows = [planned for row in _open_rows(spec) for planned in _trials(spec, row, folder)]
        return _plan(_experiment(spec, rows, given_as, {}, tuning), rows, [])
    chosen = _choices(spec, results, given_as)
    shorter, left_out = _other_lengths(spec, chosen)
    rows = [*_main_rows(spec, chosen), *_restarted_rows(spec, chosen), *_other_rates(spec, chosen), *shorter]
    return _plan(_experiment(spec, rows, given_as, chosen, tuning), rows, left_out)


def _check_own_tuning(spec: Spec) -> None:
    if spec.tuning is None:
        raise SpecError(f"{spec.name} has no [tuning] section; give one, or learning rates in its rows")
    if spec.tuning.records:
        raise SpecError(
            f"{spec.name} takes its choices from the tuning of {spec.tuning.records}; run that instead "
            f"(`python -m harness run {spec.tuning.records} --tuning`)"
        )
    if not _open_rows(spec):
        raise SpecError(
            f"all rows of {spec.name} have a learning_rate, so there is nothing to tune; remove one, or run "
            "it without --tuning"
        )


@dataclass(frozen=True)
class _Chosen:
    """What the tuning found for a row."""

    row: RowSpec
    found: SearchState
    trial: Trial
    by_training_loss: Trial | None


def _open_rows(spec: Spec) -> list[RowSpec]:
    """Those that leave their learning rate to the tuning."""
    return [row for row in spec.all_rows() if row.learning_rate is None]


def _choices(spec: Spec, results: Path, given_as: str | None) -> dict[str, _Chosen]:
    """By row, for those that leave it to the tuning. `given_as`: what the spec was found by."""
    open_rows = _open_rows(spec)
    if open_rows and spec.tuning is None:
        raise SpecError(f"row {open_rows[0].row!r} has no learning_rate; give it one, or the spec a [tuning] section")
    folder = tuning_folder(spec, results)
    borrowed = spec.tuning.records if spec.tuning else None
    command = f"python -m harness run {borrowed or given_as or spec.name} --tuning"
    return {row.row: _choose(spec, row, folder, command) for row in open_rows}


def _choose(spec: Spec, row: RowSpec, folder: Path, command: str) -> _Chosen:
    found = _search(spec, row, folder)
    if found.missing:
        trial, seed = found.missing[0]
        missing = run_id(_config(spec, _settled(row, trial), seed, tuning=True))
        raise tuning_records.incomplete(folder, row.row, _trial_name(row, trial), seed, missing, command)
    if found.by_accuracy is None:
        raise SpecError(f"row {row.row!r} diverged at every learning rate of the grid in {folder}; widen the grid")
    return _Chosen(row, found, found.by_accuracy, found.by_training_loss)


def _search(spec: Spec, row: RowSpec, folder: Path) -> SearchState:
    @cache
    def outcomes(trial: Trial, seed: int) -> TrialOutcome | None:
        run = run_id(_config(spec, _settled(row, trial), seed, tuning=True))
        return tuning_records.outcome(folder, run, metric_of(spec.statistics.metric))

    assert spec.tuning is not None
    return search(spec.tuning, row, outcomes)


def _settled(row: RowSpec, trial: Trial) -> RowSpec:
    """The row with the trial's settings and rate."""
    settings, rate = row.tables[trial.candidate], trial.learning_rate
    return row.model_copy(update={"settings": settings, "learning_rate": rate, "candidates": []})


def _trial_name(row: RowSpec, trial: Trial) -> str:
    candidate = f"_c{trial.candidate}" if row.candidates else ""
    return f"{row.row}{candidate}_lr{trial.learning_rate:g}"


def _trials(spec: Spec, row: RowSpec, folder: Path) -> Iterator[_Planned]:
    """The tuning's rows for one of the experiment's."""
    for trial, seeds in _search(spec, row, folder).wanted.items():
        candidate = trial.candidate if row.candidates else None
        own = {"row": _trial_name(row, trial), "tunes": row.row, "candidate": candidate}
        yield _plan_row(spec, _settled(row, trial), seeds, own, tuning=True)


def _main_rows(spec: Spec, chosen: dict[str, _Chosen]) -> Iterator[_Planned]:
    """The rows themselves, then those of the other rule's choices where these differ."""
    for row in _settled_rows(spec, chosen):
        own = spec.statistics.baseline_seeds if row.row == spec.statistics.baseline else []
        yield _plan_row(spec, row, own or spec.statistics.seeds, {"row": row.row})
    if spec.tuning is None or not spec.tuning.both_rules:
        return
    seeds = spec.tuning.both_rules_seeds or spec.statistics.seeds
    for name, choice in chosen.items():
        if choice.by_training_loss not in (None, choice.trial):
            own = {"row": f"{name}~loss", "base": name, "rule": "training_loss"}
            yield _plan_row(spec, _settled(choice.row, choice.by_training_loss), seeds, own)


def _restarted_rows(spec: Spec, chosen: dict[str, _Chosen]) -> Iterator[_Planned]:
    """Rows once more, whose workers lose a part of their state."""
    settled = {row.row: row for row in _settled_rows(spec, chosen)}
    for restart in spec.restarts:
        row = settled[restart.row].restarted(restart)
        yield _plan_row(spec, row, spec.statistics.seeds, {"row": row.row})


def _other_rates(spec: Spec, chosen: dict[str, _Chosen]) -> Iterator[_Planned]:
    """The rows at the main ratio, and those without one, at the rates below and above theirs."""
    if spec.sensitivity is None:
        return
    for row in _settled_rows(spec, chosen):
        if row.ratio in (None, 1, spec.statistics.main_ratio):
            assert row.learning_rate is not None, "a settled row has one"
            for rate in neighbouring_rates(row.learning_rate):
                other = row.model_copy(update={"learning_rate": rate})
                own = {"row": f"{row.row}^{rate:g}", "base": row.row, "rule": "sensitivity"}
                yield _plan_row(spec, other, spec.sensitivity.seeds, own)


def _settled_rows(spec: Spec, chosen: dict[str, _Chosen]) -> list[RowSpec]:
    return [_settled(row, chosen[row.row].trial) if row.row in chosen else row for row in spec.all_rows()]


def _other_lengths(spec: Spec, chosen: dict[str, _Chosen]) -> tuple[list[_Planned], list[str]]:
    """All rows at the other lengths, and why some are left out there."""
    planned, left_out = [], []
    for num_epochs in spec.lengths.num_epochs if spec.lengths else []:
        assert spec.lengths is not None
        for row in _settled_rows(spec, chosen):
            name = f"{row.row}@{num_epochs}"
            why = why_too_short(row, _foreseen(name, _config(spec, row, spec.lengths.seeds[0], num_epochs)))
            if why:
                left_out.append(f"{name} is left out: {why}")
            else:
                own = {"row": name, "base": row.row}
                planned.append(_plan_row(spec, row, spec.lengths.seeds, own, num_epochs))
    return planned, left_out


def _plan_row(
    spec: Spec, row: RowSpec, seeds: list[int], own: dict[str, Any], num_epochs: int | None = None, tuning: bool = False
) -> _Planned:
    """A settled row at these seeds; `own`: its name, and what else tells it from others of the same method."""
    name = own["row"]
    configs = [_config(spec, row, seed, num_epochs, tuning) for seed in seeds]
    runs = [PlannedRun(run_id(config), name, seed, config) for seed, config in zip(seeds, configs, strict=True)]
    foreseen = _foreseen(name, configs[0])
    why = why_too_short(row, foreseen)
    if why:
        raise SpecError(f"row {name}: {why}; raise num_epochs or lower what it compresses by")
    planned = Row(
        **own,
        label=row.label,
        algorithm=row.algorithm,
        ratio=row.ratio or float(f"{foreseen.ratio:.4g}"),
        learning_rate=configs[0].learning_rate,
        settings=describe(row.algorithm, row.settings, stepping_of(spec, row), row.warmup_epochs, row.restart),
        formula=foreseen.formula,
        num_steps=foreseen.num_steps,
        num_parameters=foreseen.num_parameters,
        expected_bits=foreseen.bits,
        runs={str(run.seed): run.run_id for run in runs},
        final_exchange=foreseen.final_exchange,
        models_sent=foreseen.models_sent,
        link_models=foreseen.link_models,
        spectral_gap=foreseen.spectral_gap,
    )
    return _Planned(planned, runs, foreseen)


def _foreseen(row: str, config: RunConfig) -> Foreseen:
    try:
        return foresee(config)
    except SpecError as error:
        raise SpecError(f"row {row}: {error}") from None


def why_too_short(row: RowSpec, foreseen: Foreseen) -> str | None:
    """Why a run of so few steps says nothing of the row, in words; None where it does."""
    for key, value in row.settings.items():
        if key.endswith(("_interval", "_steps")) and value != "end" and value > foreseen.num_steps:
            return f"its {key} of {value:,} is more than the run's {foreseen.num_steps:,} steps"
    if foreseen.averages_models and foreseen.models_in_training < 1:
        return f"it sends {foreseen.models_in_training:.2g} of a model in the run's {foreseen.num_steps:,} steps"
    return None


def _config(spec: Spec, row: RowSpec, seed: int, num_epochs: int | None = None, tuning: bool = False) -> RunConfig:
    task, training, schedule = spec.task, spec.training, spec.schedule
    if tuning and spec.tuning:
        task = task.model_copy(update={"held_out": spec.tuning.held_out})
        num_epochs = spec.tuning.num_epochs
    if row.warmup_epochs is not None:
        schedule = schedule.model_copy(update={"warmup_epochs": row.warmup_epochs, "warmup_share": 0.0})
    same_seed = None if tuning else spec.statistics.same_seed
    assert row.learning_rate is not None, "a settled row has one"
    try:
        return RunConfig(
            task=task,
            model=spec.model,
            num_workers=training.num_workers,
            batch_size=training.batch_size,
            num_epochs=num_epochs or training.num_epochs,
            algorithm=row.algorithm,
            settings=row.settings,
            learning_rate=row.learning_rate,
            **asdict(stepping_of(spec, row)),
            weight_decay=training.weight_decay,
            schedule=schedule,
            evaluation=spec.evaluation,
            partition=spec.partition,
            precision=training.precision,
            wire=training.wire,
            label_smoothing=training.label_smoothing,
            seed=seed if same_seed is None else same_seed,
            repeat=0 if same_seed is None else seed,
            restart=row.restart,
        )
    except ValidationError as error:
        raise SpecError(f"row {row.row}: {explain(error)}") from None


def _tuning(spec: Spec, chosen: dict[str, _Chosen]) -> Tuning | None:
    """Where the rows' settings and rates came from."""
    if spec.tuning is None:
        return None
    by_loss = {name: choice.by_training_loss for name, choice in chosen.items()}
    return Tuning(
        experiment=tuning_name(spec),
        rule=rules(spec.tuning, metric_of(spec.statistics.metric).score_label),
        grid=spec.tuning.grid,
        seeds=spec.tuning.seeds,
        selected={name: choice.trial.learning_rate for name, choice in chosen.items()},
        choices={name: _choice(spec, choice, choice.trial) for name, choice in chosen.items()},
        choices_by_training_loss={
            name: _choice(spec, chosen[name], trial) for name, trial in by_loss.items() if trial is not None
        },
    )


def _choice(spec: Spec, chosen: _Chosen, trial: Trial) -> Choice:
    row, found = chosen.row, chosen.found
    return Choice(
        learning_rate=trial.learning_rate,
        candidate=trial.candidate,
        settings=describe(row.algorithm, row.tables[trial.candidate], stepping_of(spec, row), row.warmup_epochs),
        num_trials=len(found.wanted),
        at_end=found.at_end(trial),
    )


def _plan(experiment: Experiment, rows: list[_Planned], left_out: list[str]) -> Plan:
    memory = {planned.row.row: planned.foreseen.memory_bytes for planned in rows}
    checkpoints = {planned.row.row: planned.foreseen.checkpoint_bytes for planned in rows}
    mixing = {planned.row.row: text for planned in rows if (text := _mixing(planned.foreseen))}
    return Plan(experiment, [run for planned in rows for run in planned.runs], memory, checkpoints, mixing, left_out)


def _mixing(foreseen: Foreseen) -> str | None:
    """How near the workers come, and what that takes, of a topology."""
    if foreseen.spectral_gap is None:
        return None
    per_step = "" if foreseen.num_rounds == 1 else f" over {foreseen.num_rounds} steps"
    bits = f"{foreseen.neighbour_bits:,} bits in all from one worker to its neighbours"
    return f"spectral gap {foreseen.spectral_gap:.3g}{per_step}; {bits}"


def _experiment(
    spec: Spec, rows: list[_Planned], given_as: str | None, chosen: dict[str, _Chosen], tuning: bool
) -> Experiment:
    statistics = spec.statistics
    argument = shlex.quote(given_as or spec.name) + (" --tuning" if tuning else "")
    return Experiment(
        version=store.VERSION,
        name=tuning_name(spec) if tuning else spec.name,
        title=f"{spec.title}: tuning" if tuning else spec.title,
        kind=spec.kind,
        task=spec.task.name,
        model=spec.model.name,
        baseline=None if tuning else statistics.baseline,
        margin=None if tuning else statistics.margin,
        confidence=statistics.confidence,
        seeds=spec.tuning.seeds if tuning and spec.tuning else statistics.seeds,
        rows=[planned.row for planned in rows],
        tuning=None if tuning else _tuning(spec, chosen),
        settings=fixed_settings(spec, rows[0].row.num_parameters, tuning),
        commands=[f"python -m harness run {argument}", f"python -m harness report {argument}"],
        floor=None if tuning else statistics.floor,
        margin_reason=None if tuning else statistics.margin_reason,
        main_ratio=None if tuning else statistics.main_ratio,
        metric=None if statistics.metric == "accuracy" else statistics.metric,
        declared=None if tuning else statistics.declared,
        contrasts=None if tuning or not spec.contrasts else _contrasts(spec),
    )


def _contrasts(spec: Spec) -> list[Contrast]:
    return [
        Contrast(**contrast.model_dump(exclude={"margin"}), margin=contrast.margin or spec.statistics.margin)
        for contrast in spec.contrasts
    ]
