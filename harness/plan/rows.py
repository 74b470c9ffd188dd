"""One row of a plan.

Its settings are checked, its runs have their ids, and what each of them will send is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from cser_bench.algorithms.core.local_step import local_step_named
from cser_bench.algorithms.core.settings import is_interval
from cser_bench.harness.measures.steps import LOAD_TOLERANCE
from cser_bench.harness.plan.footprint import Footprint, footprint_of
from cser_bench.harness.records.experiment import ChosenBy, Row
from cser_bench.harness.spec.errors import SpecError, explain
from cser_bench.harness.spec.rows import CellSpec, RowSpec
from cser_bench.harness.spec.run import (
    LOCAL_NUMBERS,
    PlannedRun,
    RunConfig,
    TrainingSpec,
    run_id,
)
from cser_bench.harness.spec.spec import Spec
from cser_bench.harness.spec.values import CommunicationDtype, Strict
from cser_bench.harness.train.method import method_of


@dataclass(frozen=True)
class PlannedRow:
    """A row of the plan with its runs, and what each of these sends and holds."""

    row: Row
    runs: list[PlannedRun]
    footprint: Footprint


@dataclass(frozen=True)
class RowOrigin:
    """Where a planned row comes from, as its record says it; `Row` has what each field means."""

    repeats: str | None = None
    chosen_by: ChosenBy = "held_out"
    held_back: bool = False
    tunes: str | None = None
    candidate: int | None = None


class TooShortError(SpecError):
    """A run is too short for its row to say anything."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(
            f"row {name}: {why}; raise num_epochs or lower what it compresses by"
        )
        self.why = why


def plan_row(
    spec: Spec,
    row: RowSpec,
    seeds: list[int],
    name: str | None = None,
    num_epochs: int | None = None,
    origin: RowOrigin = RowOrigin(),
) -> PlannedRow:
    """Return a row with settings and a rate at these seeds.

    Args:
        name: the planned row's, where it is not the row itself.
        origin: a row that tunes another is as long as the tuning says.

    Raises SpecError: a setting that cannot be used; TooShortError.
    """
    name = name or row.row
    is_trial = origin.tunes is not None
    configs = [config_of(spec, row, seed, num_epochs, is_trial) for seed in seeds]
    try:
        # Seeds change nothing of it, so the first config speaks for all.
        footprint = footprint_of(configs[0])
    except SpecError as error:
        raise SpecError(f"row {name}: {error}") from None
    why = why_too_short(row, footprint)
    if why is not None:
        raise TooShortError(name, why)
    _check_ratio_group(name, row, footprint, configs[0].wire)
    runs = [
        PlannedRun(run_id(config), name, seed, config)
        for seed, config in zip(seeds, configs, strict=True)
    ]
    return PlannedRow(_recorded(row, runs, footprint, origin), runs, footprint)


def _recorded(
    row: RowSpec, runs: list[PlannedRun], footprint: Footprint, origin: RowOrigin
) -> Row:
    """Return what the record says of a row: what a report needs without spec, config or class."""
    config = runs[0].config
    return Row(
        row=runs[0].row,
        label=row.label,
        ratio=row.ratio_group or float(f"{footprint.traffic_reduction:.4g}"),
        wire=row.wire,
        num_workers=row.num_workers,
        warmup_epochs=row.warmup_epochs,
        partition=_table_of(row.partition),
        runs={str(run.seed): run.run_id for run in runs},
        base=origin.repeats,
        rule=origin.chosen_by,
        held_back=origin.held_back,
        tunes=origin.tunes,
        candidate=origin.candidate,
        algorithm=config.algorithm,
        settings=config.settings.table,
        learning_rate=config.learning_rate,
        local_step=config.local_step,
        momentum=config.momentum,
        nesterov=method_of(config).nesterov,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        num_epochs=config.num_epochs,
        restart=_table_of(config.restart),
        formula=footprint.formula,
        num_steps=footprint.num_steps,
        num_parameters=footprint.num_parameters,
        expected_bits=footprint.bits,
        final_exchange=footprint.final_exchange,
        models_sent=footprint.models_sent,
        link_models=footprint.link_models,
        peak_models=footprint.peak_models,
        spectral_gap=footprint.spectral_gap,
    )


def _table_of(part: Strict | None) -> dict[str, Any] | None:
    return None if part is None else part.model_dump(mode="json")


def _check_ratio_group(
    name: str, row: RowSpec, footprint: Footprint, wire: CommunicationDtype
) -> None:
    """Raise SpecError where a row sends far more or less than the ratio that its spec gives it."""
    if row.ratio_group is None or not footprint.bits:
        return
    reduction = footprint.traffic_reduction
    # Where numbers of 16 bits are sent, the group may count numbers or bits.
    meant = (reduction, reduction / 2) if wire == "fp16" else (reduction,)
    # A run that ends between two exchanges sends one less, of as few as there may be.
    most = (1 + LOAD_TOLERANCE) * (1 + 1 / max(1.0, footprint.models_in_training))
    if not any(1 / most <= row.ratio_group / each <= most for each in meant):
        raise SpecError(
            f"row {name}: ratio = {row.ratio_group:g}, and by its settings it sends {reduction:.4g} times less "
            "than everything; correct one of them, or leave ratio out"
        )


def why_too_short(row: RowSpec, footprint: Footprint) -> str | None:
    """Say why a run of so few steps says nothing of the row.

    None where it does.
    """
    for key, value in row.settings.root.items():
        if not is_interval(key) or not isinstance(value, int):
            continue
        if value > footprint.num_steps:
            return f"its {key} of {value:,} is more than the run's {footprint.num_steps:,} steps"
    if footprint.averages_models and footprint.models_in_training < 1:
        return (
            f"it sends {footprint.models_in_training:.2g} of a model in the run's "
            f"{footprint.num_steps:,} steps"
        )
    return None


def config_of(
    spec: Spec,
    row: RowSpec,
    seed: int,
    num_epochs: int | None = None,
    tuning: bool = False,
) -> RunConfig:
    """Return the run of a row with settings and a rate at a seed.

    It is as long as the experiment's runs if no length is given.
    """
    task = spec.task
    schedule = spec.schedule
    same_seed = spec.statistics.same_seed
    cell = row.cell or CellSpec(cell="own")
    if tuning and spec.tuning:
        task = task.model_copy(update={"held_out": spec.tuning.held_out})
        num_epochs = spec.tuning.num_epochs
        # Trials at several seeds, also where the runs that are reported share one.
        same_seed = None
    if row.warmup_epochs is not None:
        schedule = schedule.model_copy(
            # Both, since a schedule adds them up.
            update={"warmup_epochs": row.warmup_epochs, "warmup_share": 0.0}
        )
    fields = {
        **dict(spec.training),
        **_local_step(spec.training, row),
        "task": task,
        "model": spec.model.model_copy(
            update={"options": spec.model.options | cell.model_options}
        ),
        "num_epochs": num_epochs or spec.training.num_epochs,
        "num_workers": row.num_workers or spec.training.num_workers,
        "num_steps": row.num_steps or cell.num_steps or spec.training.num_steps,
        "wire": row.wire or spec.training.wire,
        "algorithm": row.algorithm,
        "settings": row.settings,
        "learning_rate": row.learning_rate,
        "schedule": schedule,
        "evaluation": spec.evaluation,
        "partition": row.partition or spec.partition,
        "restart": row.restart,
        "method_source": spec.outside.get(row.algorithm),
        # Runs that share a seed would be one run: `repeat` tells their ids apart.
        "seed": seed if same_seed is None else same_seed,
        "repeat": 0 if same_seed is None else seed,
    }
    try:
        return RunConfig(**fields)
    except ValidationError as error:
        raise SpecError(f"row {row.row}: {explain(error)}") from None


def _local_step(training: TrainingSpec, row: RowSpec) -> dict[str, Any]:
    """Return the local step of a row's workers, and its numbers."""
    local_step = row.local_step or training.local_step
    try:
        read = local_step_named(local_step).numbers
    except ValueError as error:
        raise SpecError(f"row {row.row}: {error}") from None
    # A number that the local step does not read has a fixed value, so that it decides no run's id.
    numbers = dict(LOCAL_NUMBERS)
    for key in numbers:
        given = getattr(row, key)
        if given is not None and key not in read:
            raise SpecError(
                f"row {row.row}: its local step is {local_step}, which has no {key}; leave {key} "
                "out"
            )
        if key in read:
            numbers[key] = getattr(training, key) if given is None else given
    return {"local_step": local_step, **numbers}
