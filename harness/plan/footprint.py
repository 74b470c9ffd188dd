"""What a run will send and hold, from its settings alone.

The optimiser is made on a model without memory.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from cser_bench.algorithms import DistributedOptimizer, StackedCollectives
from cser_bench.algorithms.baselines.ddp import DDP
from cser_bench.algorithms.core.replicas import numel_of
from cser_bench.algorithms.core.topology import spectral_gap
from cser_bench.algorithms.core.traffic import carried
from cser_bench.harness.plan.memory import peak_models
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.run import ModelSpec, RunConfig, ScheduleSpec
from cser_bench.harness.tasks.task import find_task
from cser_bench.harness.train.build import build_model, build_optimizer
from cser_bench.harness.train.method import method_of
from cser_bench.harness.train.restarts import check_restart, planned_traffic
from cser_bench.harness.train.schedule import num_steps_of


@dataclass(frozen=True)
class Footprint:
    """What one worker sends and holds in a whole run.

    `gathered_bits` of its payload bits go by all-gathers.
    """

    formula: str
    num_parameters: int
    num_steps: int
    num_workers: int
    bits: int
    gathered_bits: int
    neighbour_bits: int
    """Bits sent straight to neighbours."""
    peak_models: float
    """The most memory that a step holds, in models; see `peak_models`."""
    checkpoint_bytes: int
    """Bytes of one checkpoint: the model's state and the optimiser's."""
    averages_models: bool
    """Whether the run's result is the workers' average, and not each worker's own model."""
    final_exchange: bool
    """Whether that average is still to be taken when the run is over."""
    spectral_gap: float | None
    """Spectral gap of the topology, over `num_rounds` steps; None if workers have no neighbours."""
    num_collectives: int
    """Collectives that a worker takes part in, in training."""
    num_rounds: int
    """Steps after which the topology repeats."""
    caution: str | None
    """What will go wrong with these settings, in a sentence."""

    @property
    def traffic_reduction(self) -> float:
        """How many times less a worker sends than without compression, by the closed form.

        It is d / (numbers sent per step), a number being 32 bits. A row's ratio group is this
        unless its spec says another; a compressor's ratio R is that of one message.
        """
        return self.num_steps / self.models_in_training if self.bits else math.inf

    @property
    def models_in_training(self) -> float:
        """What one worker sends in training, in models of 32 d bits, as the next two are."""
        return self.bits / (32 * self.num_parameters)

    @property
    def models_sent(self) -> float:
        """What one worker sends in a whole run, in models, the final exchange included."""
        return self.models_in_training + self.final_exchange

    @property
    def link_models(self) -> float:
        """What one worker's link carries for `models_sent`, in models."""
        model_bits = 32 * self.num_parameters
        gathered = self.gathered_bits / model_bits
        to_neighbours = self.neighbour_bits / model_bits
        # A link carries each kind of message another number of times; see `carried`.
        all_reduced = self.models_sent - gathered - to_neighbours
        return carried(self.num_workers, all_reduced, gathered, to_neighbours)


def footprint_of(config: RunConfig) -> Footprint:
    """Check a run's settings, and return what it sends and holds.

    Rates and seeds change nothing here.

    Raises SpecError: a setting is of no use.
    """
    update: dict[str, Any] = {"seed": 0, "repeat": 0}
    if not method_of(config).traffic_follows_rate:
        # Rows that differ in these alone then share one entry of the cache.
        update["learning_rate"] = 1.0
        update["schedule"] = ScheduleSpec(kind="constant")
    with warnings.catch_warnings():
        # The footprint's `caution` says it.
        warnings.filterwarnings("ignore", f"{config.algorithm}: ")
        # As JSON, since a config has tables, with which it is no key of a cache.
        return _footprint(config.model_copy(update=update).model_dump_json())


@cache
def _footprint(config_json: str) -> Footprint:
    """Return what `footprint_of` does, of a config in JSON.

    So rows that differ in rates and seeds alone share it.
    """
    config = RunConfig.model_validate_json(config_json)
    _, num_steps = num_steps_of(config)
    _check_scores(config, num_steps)
    empty = model_without_memory(config.model.model_dump_json(), config.task.name)
    # All workers stacked, since what a worker sends to neighbours depends on how many there are.
    # Each is (workers, *shape), without memory.
    stacked = [
        nn.Parameter(parameter.detach().expand(config.num_workers, *parameter.shape))
        for parameter in empty.parameters()
    ]
    collectives = StackedCollectives(config.num_workers)
    optimizer = build_optimizer(config, empty, collectives, num_steps, stacked)
    if config.restart is not None:
        check_restart(config.restart, optimizer, num_steps, config.num_workers)
    traffic = planned_traffic(config, optimizer, num_steps)
    entries = traffic.training().values()
    rounds = optimizer.rounds
    model_bytes = _bytes_of(empty.state_dict().values())
    # The optimiser has taken no step: all of this follows from its settings and the model's shapes.
    return Footprint(
        # Methods write it for numbers of 32 bits, and a run may send those of 16.
        formula=optimizer.formula.replace(
            "32 ", f"{optimizer.replicas[0].float_bits} "
        ),
        num_parameters=numel_of(optimizer.replicas),
        num_steps=num_steps,
        num_workers=config.num_workers,
        bits=traffic.training_bits,
        gathered_bits=sum(entry.gathered_bits for entry in entries),
        neighbour_bits=sum(entry.neighbour_bits for entry in entries),
        peak_models=peak_models(config, empty, num_steps),
        checkpoint_bytes=model_bytes + _worker_bytes(optimizer),
        averages_models=optimizer.averages_models,
        final_exchange=_has_final_exchange(config, optimizer, num_steps),
        spectral_gap=spectral_gap(rounds) if rounds else None,
        num_collectives=sum(entry.collectives for entry in entries),
        num_rounds=len(rounds) or 1,
        caution=optimizer.caution,
    )


def _has_final_exchange(
    config: RunConfig, optimizer: DistributedOptimizer, num_steps: int
) -> bool:
    if not optimizer.averages_models:
        return False
    if config.restart is not None and config.restart.everything_sent:
        return False
    return not optimizer.agree_after(num_steps)


def _check_scores(config: RunConfig, num_steps: int) -> None:
    """Raise SpecError for more scores than steps.

    Else there would silently be fewer.
    """
    evaluation = config.evaluation
    per_epoch = num_steps // config.num_schedule_epochs
    if evaluation.num_scores is not None and evaluation.num_scores > num_steps:
        raise SpecError(
            f"evaluation.num_scores = {evaluation.num_scores} is more than the run's {num_steps} "
            "steps"
        )
    if evaluation.num_scores is None and evaluation.per_epoch > per_epoch:
        raise SpecError(
            f"evaluation.per_epoch = {evaluation.per_epoch} is more than the {per_epoch} steps of "
            "an epoch"
        )


def _worker_bytes(optimizer: DistributedOptimizer) -> int:
    """Return the bytes of the state that one worker saves, where all of them are stacked."""
    stacked_shape = optimizer.flat.parameters.shape
    state = []
    for value in optimizer.state_dict()["param_groups"][0]["flat"].values():
        if isinstance(value, Tensor):
            # (workers, d): a row is one worker's. What has another shape each of them saves whole.
            state.append(value[0] if value.shape == stacked_shape else value)
    num_bytes = _bytes_of(state)
    if isinstance(optimizer, DDP):
        # A hook's state is DDP's, not the optimiser's: numbers of 32 bits.
        num_bytes += 4 * optimizer.hook_numel
    return num_bytes


def _bytes_of(tensors: Iterable[object]) -> int:
    return sum(
        tensor.numel() * tensor.element_size()
        for tensor in tensors
        if isinstance(tensor, Tensor)
    )


def num_parameters_of(model: ModelSpec, task: str) -> int:
    """Return how many numbers of a model are trained."""
    empty = model_without_memory(model.model_dump_json(), task)
    return sum(parameter.numel() for parameter in empty.parameters())


@cache
def model_without_memory(model: str, task: str) -> nn.Module:
    """Return the model on the meta device, built once for all rows that it is checked with.

    Those checks leave it as it is.
    """
    spec = ModelSpec.model_validate_json(model)
    return build_model(spec, find_task(task), seed=0, device=torch.device("meta"))
