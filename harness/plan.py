"""Expands a spec into runs with ids, checks every setting on a model without memory, and foretells bits and memory."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from harness import store
from harness.build import build_model, build_optimizer, num_steps_of
from harness.identity import run_id
from harness.spec import ModelSpec, RowSpec, RunConfig, ScheduleSpec, Spec, SpecError, explain
from harness.store import Experiment, Row, Tuning
from harness.tasks.task import configured_task, find_task
from harness.tuning import RULE, select_learning_rates


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


def make_plan(spec: Spec, results: Path, tuning: bool = False, given_as: str | None = None) -> Plan:
    """Expand `spec`, or its tuning experiment. Reads tuning records where the spec leaves learning rates to them.

    Args:
        given_as: the name or path that the spec was found by, for the commands that the report prints.

    Raises:
        SpecError: a setting that cannot be used, or learning rates that are not known yet.
    """
    if tuning and spec.tuning is None:
        raise SpecError(f"{spec.name} has no [tuning] section; give one, or learning rates in its rows")
    rates = _grid(spec) if tuning else _selected(spec, results)
    rows, runs, memory = [], [], {}
    for row_spec in spec.all_rows():
        for rate in rates[row_spec.row]:
            planned = _plan_row(spec, row_spec, rate, tuning)
            rows.append(planned[0])
            runs.extend(planned[1])
            memory[planned[0].row] = planned[2]
    return Plan(_experiment(spec, rows, rates, tuning, given_as or spec.name), runs, memory)


def _grid(spec: Spec) -> dict[str, list[float]]:
    assert spec.tuning is not None
    return {row.row: spec.tuning.grid for row in spec.all_rows()}


def _selected(spec: Spec, results: Path) -> dict[str, list[float]]:
    known = {row.row: row.learning_rate for row in spec.all_rows() if row.learning_rate is not None}
    wanted = [row.row for row in spec.all_rows() if row.row not in known]
    if wanted and spec.tuning is None:
        raise SpecError(f"row {wanted[0]!r} has no learning_rate; give it one, or the spec a [tuning] section")
    if wanted:
        _check_tuning(spec, results, wanted)
        known.update(select_learning_rates(results / tuning_name(spec), wanted))
    return {name: [rate] for name, rate in known.items()}


def _check_tuning(spec: Spec, results: Path, wanted: list[str]) -> None:
    """Raises SpecError where the tuning's records were made with other settings than the spec's."""
    path = results / tuning_name(spec) / "experiment.json"
    if not path.exists():
        return
    tuned = {row.row: row.runs for row in store.read_record(path, Experiment).rows if row.tunes in wanted}
    for row in spec.all_rows():
        for rate in spec.tuning.grid if spec.tuning and row.row in wanted else ():
            planned, _, _ = _plan_row(spec, row, rate, tuning=True)
            if tuned.get(planned.row, planned.runs) != planned.runs:
                raise SpecError(
                    f"the tuning records in {path.parent} were made with other settings of {planned.row} than the spec "
                    "has; run the tuning again (`python -m harness run EXPERIMENT --tuning`)"
                )


def tuning_name(spec: Spec) -> str:
    """Name of the spec's tuning experiment, and of its folder under results/."""
    return f"{spec.name}_tuning"


def _plan_row(spec: Spec, row: RowSpec, rate: float, tuning: bool) -> tuple[Row, list[PlannedRun], int]:
    name = f"{row.row}_lr{rate:g}" if tuning else row.row
    seeds = spec.tuning.seeds if tuning and spec.tuning else spec.statistics.seeds
    configs = [_config(spec, row, rate, seed, tuning) for seed in seeds]
    runs = [PlannedRun(run_id(config), name, seed, config) for seed, config in zip(seeds, configs, strict=True)]
    _, num_steps = num_steps_of(configs[0])
    checked = _check(_Hashable(configs[0]))
    planned = Row(
        row=name,
        label=row.label,
        algorithm=row.algorithm,
        ratio=row.ratio or float(f"{checked.ratio(num_steps):.4g}"),
        learning_rate=rate,
        tunes=row.row if tuning else None,
        settings=describe(row.settings, configs[0].momentum, row.warmup_epochs),
        formula=checked.formula,
        num_steps=num_steps,
        num_parameters=checked.num_parameters,
        expected_bits=checked.bits,
        runs={str(run.seed): run.run_id for run in runs},
    )
    return planned, runs, checked.memory_bytes


def _config(spec: Spec, row: RowSpec, rate: float, seed: int, tuning: bool) -> RunConfig:
    task = spec.task
    if tuning and spec.tuning:
        task = task.model_copy(update={"held_out": spec.tuning.held_out})
    training = spec.training
    schedule = spec.schedule
    if row.warmup_epochs is not None:
        schedule = schedule.model_copy(update={"warmup_epochs": row.warmup_epochs})
    same_seed = None if tuning else spec.statistics.same_seed
    try:
        return RunConfig(
            task=task,
            model=spec.model,
            num_workers=training.num_workers,
            batch_size=training.batch_size,
            num_epochs=training.num_epochs,
            algorithm=row.algorithm,
            settings=row.settings,
            learning_rate=rate,
            momentum=training.momentum if row.momentum is None else row.momentum,
            weight_decay=training.weight_decay,
            schedule=schedule,
            evaluation=spec.evaluation,
            partition=spec.partition,
            precision=training.precision,
            wire=training.wire,
            seed=seed if same_seed is None else same_seed,
            repeat=0 if same_seed is None else seed,
        )
    except ValidationError as error:
        raise SpecError(f"row {row.row}: {explain(error)}") from None


@dataclass(frozen=True)
class _Checked:
    formula: str
    num_parameters: int
    bits: int
    memory_bytes: int

    def ratio(self, num_steps: int) -> float:
        """d / (numbers sent per step), a number being 32 bits."""
        return 32 * self.num_parameters * num_steps / self.bits if self.bits else float("inf")


class _Hashable:
    """A config as a key of the cache: equal but for learning rates and seeds, equal in all that is checked."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        same = {"learning_rate": 1.0, "schedule": ScheduleSpec(kind="constant"), "seed": 0, "repeat": 0}
        self.key = run_id(config.model_copy(update=same))

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashable) and other.key == self.key


@cache
def _check(hashable: _Hashable) -> _Checked:
    config = hashable.config
    configured_task(config.task)
    _, num_steps = num_steps_of(config)
    tensors = _tensors_without_memory(config.model.model_dump_json(), config.task.name)
    model = nn.ParameterList(nn.Parameter(tensor) for tensor in tensors)
    optimizer = build_optimizer(config, model, None, num_steps)
    layout = optimizer.flat.layout
    element = optimizer.flat.parameters.element_size()
    return _Checked(
        formula=optimizer.formula.replace("32 ", f"{optimizer.float_bits} "),
        num_parameters=layout.numel,
        bits=optimizer.expected_traffic(num_steps).training_bits,
        memory_bytes=(2 + optimizer.memory_in_parameters()) * layout.numel * element,
    )


@cache
def _tensors_without_memory(model: str, task: str) -> list[Tensor]:
    """The model's parameters on the meta device, built once for all the rows that it is checked with."""
    spec = ModelSpec.model_validate_json(model)
    return [each.detach() for each in build_model(spec, find_task(task), 0, torch.device("meta")).parameters()]


def describe(settings: dict[str, Any], momentum: float, warmup_epochs: float | None = None) -> str:
    """A row's settings in words, for tables; `warmup_epochs` where it has its own."""
    parts = []
    for key, value in settings.items():
        if isinstance(value, dict):
            options = ", ".join(f"{k} {v}" for k, v in value.items() if k != "kind")
            value = f"{value.get('kind')} ({options})" if options else value.get("kind")
        if key != "explicit_error":
            parts.append(f"{key.replace('_', ' ')}: {value}")
    parts.append(f"momentum {momentum:g}")
    if warmup_epochs is not None:
        parts.append(f"warm-up {warmup_epochs:g} epochs")
    return "; ".join(parts)


def _experiment(spec: Spec, rows: list[Row], rates: dict[str, list[float]], tuning: bool, given_as: str) -> Experiment:
    training = spec.training
    tuned = None
    if spec.tuning and not tuning:
        tuned = Tuning(
            experiment=tuning_name(spec),
            rule=RULE,
            grid=spec.tuning.grid,
            seeds=spec.tuning.seeds,
            selected={row.row: rates[row.row][0] for row in spec.all_rows() if row.learning_rate is None},
        )
    tuning_seeds = spec.tuning.seeds if spec.tuning else []
    argument = shlex.quote(given_as) + (" --tuning" if tuning else "")
    return Experiment(
        version=store.VERSION,
        name=tuning_name(spec) if tuning else spec.name,
        title=f"{spec.title}: tuning" if tuning else spec.title,
        kind=spec.kind,
        task=spec.task.name,
        model=spec.model.name,
        baseline=None if tuning else spec.statistics.baseline,
        margin=None if tuning else spec.statistics.margin,
        confidence=spec.statistics.confidence,
        seeds=tuning_seeds if tuning else spec.statistics.seeds,
        rows=rows,
        tuning=tuned,
        settings={
            "task": spec.task.name
            + (f", {spec.tuning.held_out} training samples held out" if tuning and spec.tuning else ""),
            "model": f"{spec.model.name} {spec.model.options}, {rows[0].num_parameters:,} parameters",
            "workers": str(training.num_workers),
            "batch": f"{training.batch_size} samples per worker and step",
            "epochs": str(training.num_epochs),
            "momentum": f"Nesterov {training.momentum:g}, local to each worker, unless a row says otherwise",
            "weight decay": f"{training.weight_decay:g} on all parameters",
            "schedule": _schedule(spec.schedule),
            "batch norm": f"{spec.evaluation.batch_norm}: {_BATCH_NORM[spec.evaluation.batch_norm]}",
            "evaluation": f"{spec.evaluation.per_epoch} per epoch, on the workers' average, every sample once",
            "precision": f"{training.precision}, on the wire {training.wire}",
            "data": _PARTITION[spec.partition.kind].format(spec.partition),
        },
        commands=[f"python -m harness run {argument}", f"python -m harness report {argument}"],
    )


def _schedule(schedule: ScheduleSpec) -> str:
    kind: str = schedule.kind
    if kind == "milestones":
        kind = f"times {schedule.factor:g} at epochs {', '.join(f'{epoch:g}' for epoch in schedule.milestones)}"
    return f"{kind}, linear warm-up over {schedule.warmup_epochs:g} epochs"


_BATCH_NORM = {
    "average": "the average model is scored with the workers' mean of the running statistics",
    "local": "as released: every worker scores all samples with its own running statistics, and scores are averaged",
    "recalibrate": "the average model's statistics are estimated anew on training batches",
}

_PARTITION = {
    "reshuffled": "shuffled anew each epoch and dealt out to the workers",
    "contiguous": "fixed contiguous shards",
    "dirichlet": "fixed shards with classes by Dirichlet({0.alpha:g})",
    "class_shards": "fixed shards of {0.shards_per_worker} stretches of the samples sorted by class",
}
