"""Settings in words, for tables and for the page on how an experiment was run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from algorithms.registry import methods
from harness.rows import LocalStep, RestartSpec, RowSpec
from harness.spec import ScheduleSpec, Spec, SpecError, TrainingSpec


@dataclass(frozen=True)
class Stepping:
    """By whose rule a row's workers step, and with which numbers; those of another rule are at their defaults."""

    local_step: LocalStep
    momentum: float
    betas: list[float]
    eps: float

    def __str__(self) -> str:
        if self.local_step == "sgd":
            return f"momentum {self.momentum:g}"
        return f"AdamW with betas {self.betas[0]:g} and {self.betas[1]:g}, eps {self.eps:g}"


def stepping_of(spec: Spec, row: RowSpec) -> Stepping:
    """What a row says of its local step, and where it says nothing [training].

    Raises:
        SpecError: it gives a number that its local step does not have.
    """
    training = spec.training
    local_step = row.local_step or training.local_step
    foreign = {"sgd": ("betas", "eps"), "adamw": ("momentum",)}[local_step]
    given = [key for key in foreign if getattr(row, key) is not None]
    if given:
        raise SpecError(f"row {row.row}: its local step is {local_step}, which has no {given[0]}; leave {given[0]} out")
    if local_step == "sgd":
        momentum = training.momentum if row.momentum is None else row.momentum
        return Stepping(local_step, momentum, [0.9, 0.999], 1e-8)
    return Stepping(local_step, 0.0, row.betas or training.betas, row.eps or training.eps)


def describe(
    algorithm: str,
    settings: dict[str, Any],
    stepping: Stepping,
    warmup_epochs: float | None = None,
    restart: RestartSpec | None = None,
) -> str:
    """A row's settings in words, for tables; `warmup_epochs` where it has its own."""
    parts = []
    for key, value in settings.items():
        if isinstance(value, dict):
            options = ", ".join(f"{k} {v}" for k, v in value.items() if k != "kind")
            value = f"{value.get('kind')} ({options})" if options else value.get("kind")
        if key != "explicit_error":
            parts.append(f"{key.replace('_', ' ')}: {value}")
    is_heavy_ball = stepping.momentum > 0 and not methods()[algorithm].nesterov
    parts.append(f"{stepping}{' (heavy ball with dampening)' * is_heavy_ball}")
    if warmup_epochs is not None:
        parts.append(f"warm-up {warmup_epochs:g} epochs")
    if restart is not None:
        parts.append(restart.words)
    return "; ".join(parts)


def fixed_settings(spec: Spec, num_parameters: int, tuning: bool) -> dict[str, str]:
    """What all rows of the experiment, or of its tuning, have in common."""
    training, evaluation = spec.training, spec.evaluation
    held_out, num_epochs = None, training.num_epochs
    if tuning and spec.tuning:
        held_out, num_epochs = spec.tuning.held_out, spec.tuning.num_epochs or num_epochs
    scores = (
        f"{evaluation.per_epoch} per epoch" if evaluation.num_scores is None else f"{evaluation.num_scores} per run"
    )
    return {
        "task": spec.task.name
        + (f", {spec.task.num_train} training samples used" if spec.task.num_train else "")
        + (f", {held_out} training samples held out" if held_out else ""),
        "model": f"{spec.model.name} {spec.model.options}, {num_parameters:,} parameters",
        "workers": str(training.num_workers),
        "batch": f"{training.batch_size} samples per worker and step",
        "epochs": str(num_epochs),
        **_local_step(training),
        "weight decay": f"{training.weight_decay:g} on all parameters",
        "schedule": _schedule(spec.schedule),
        "batch norm": f"{evaluation.batch_norm}: {_BATCH_NORM[evaluation.batch_norm]}",
        "evaluation": f"{scores}, on the workers' average, every sample once",
        "precision": f"{training.precision}, on the wire {training.wire}",
        "data": _PARTITION[spec.partition.kind].format(spec.partition),
    }


def _local_step(training: TrainingSpec) -> dict[str, str]:
    if training.local_step == "sgd":
        return {"momentum": f"Nesterov {training.momentum:g}, local to each worker, unless a row says otherwise"}
    stepping = Stepping(training.local_step, 0.0, training.betas, training.eps)
    return {"local step": f"{stepping}, moments local to each worker, unless a row says otherwise"}


def _schedule(schedule: ScheduleSpec) -> str:
    kind: str = schedule.kind
    if kind == "milestones":
        kind = f"times {schedule.factor:g} at epochs {', '.join(f'{epoch:g}' for epoch in schedule.milestones)}"
    parts = [f"{100 * schedule.warmup_share:g} % of the run"] if schedule.warmup_share else []
    if schedule.warmup_epochs or not parts:
        parts.insert(0, f"{schedule.warmup_epochs:g} epochs")
    return f"{kind}, linear warm-up over {' and '.join(parts)}"


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
