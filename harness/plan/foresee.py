"""What a run will send and hold, from its settings alone: the optimiser is made on a model without memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from harness.spec import EvaluationSpec, ModelSpec, RunConfig, ScheduleSpec, SpecError, TaskSpec, run_id
from harness.tasks.task import configured_task, find_task
from harness.train.build import build_model, build_optimizer, num_steps_of


@dataclass(frozen=True)
class Foreseen:
    """Of one worker, in a whole run. `gathered_bits` of the payload bits go by all-gathers."""

    formula: str
    num_parameters: int
    num_steps: int
    num_workers: int
    bits: int
    gathered_bits: int
    memory_bytes: int
    checkpoint_bytes: int
    """Of one generation: the model's state and the optimiser's."""
    averages_models: bool
    """Whether what comes of the run is the workers' average, and not each worker's own model."""
    final_exchange: bool
    """Whether that average is still to be taken when the run is over."""

    @property
    def ratio(self) -> float:
        """d / (numbers sent per step), a number being 32 bits."""
        return self.num_steps / (self.bits / self._model_bits) if self.bits else float("inf")

    @property
    def models_in_training(self) -> float:
        return self.bits / self._model_bits

    @property
    def models_sent(self) -> float:
        """In models of 32 d bits, the final exchange included."""
        return self.models_in_training + self.final_exchange

    @property
    def link_models(self) -> float:
        """What one worker's link carries for that: of a ring all-reduce 2 (n-1)/n times the payload, else n-1 times."""
        n = self.num_workers
        gathered = self.gathered_bits / self._model_bits
        return 2 * (n - 1) / n * (self.models_sent - gathered) + (n - 1) * gathered

    @property
    def _model_bits(self) -> int:
        return 32 * self.num_parameters


def check_task_and_model(task: TaskSpec, model: ModelSpec) -> None:
    """What all rows have in common. Raises SpecError where there is no such task or model, or none with its options."""
    configured_task(task)
    _model_without_memory(model.model_dump_json(), task.name)


def foresee(config: RunConfig) -> Foreseen:
    """Check the settings and count.

    Raises:
        SpecError: a setting that cannot be used.
    """
    same = {"learning_rate": 1.0, "schedule": ScheduleSpec(kind="constant"), "seed": 0, "repeat": 0}
    key = run_id(config.model_copy(update=same))
    if key not in _KNOWN:
        _KNOWN[key] = _foresee(config)
    return _KNOWN[key]


_KNOWN: dict[str, Foreseen] = {}
"""By the id of a run without its learning rate, schedule and seeds, which change nothing here."""


def _foresee(config: RunConfig) -> Foreseen:
    configured_task(config.task)
    per_epoch, num_steps = num_steps_of(config)
    _check_evaluation(config.evaluation, per_epoch, num_steps)
    empty = _model_without_memory(config.model.model_dump_json(), config.task.name)
    model = nn.ParameterList(nn.Parameter(each.detach()) for each in empty.parameters())
    optimizer = build_optimizer(config, model, None, num_steps)
    layout = optimizer.flat.layout
    element = optimizer.flat.parameters.element_size()
    traffic = optimizer.expected_traffic(num_steps)
    return Foreseen(
        formula=optimizer.formula.replace("32 ", f"{optimizer.float_bits} "),
        num_parameters=layout.numel,
        num_steps=num_steps,
        num_workers=config.num_workers,
        bits=traffic.training_bits,
        gathered_bits=sum(entry.gathered_bits for entry in traffic.training().values()),
        memory_bytes=round((2 + optimizer.memory_in_parameters()) * layout.numel) * element,
        checkpoint_bytes=_bytes_of([*empty.state_dict().values(), *optimizer.state_dict()["flat"].values()]),
        averages_models=optimizer.averages_models,
        final_exchange=optimizer.averages_models and not optimizer.agree_after(num_steps),
    )


def _check_evaluation(evaluation: EvaluationSpec, per_epoch: int, num_steps: int) -> None:
    """More scores than steps would silently be fewer."""
    if evaluation.num_scores is not None and evaluation.num_scores > num_steps:
        raise SpecError(f"evaluation.num_scores = {evaluation.num_scores} is more than the run's {num_steps} steps")
    if evaluation.num_scores is None and evaluation.per_epoch > per_epoch:
        raise SpecError(f"evaluation.per_epoch = {evaluation.per_epoch} is more than the {per_epoch} steps of an epoch")


def _bytes_of(state: Iterable[object]) -> int:
    return sum(each.numel() * each.element_size() for each in state if isinstance(each, Tensor))


@cache
def _model_without_memory(model: str, task: str) -> nn.Module:
    """The model on the meta device, built once for all the rows that it is checked with, which leave it as it is."""
    return build_model(ModelSpec.model_validate_json(model), find_task(task), 0, torch.device("meta"))
