"""What a run will send and hold, from its settings alone: the optimiser is made on a model without
memory.

The most memory that a step takes is found by taking it there, where allocations are counted.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cser_bench.algorithms import DistributedOptimizer, StackedCollectives
from cser_bench.algorithms.baselines.ddp import DDP
from cser_bench.algorithms.core.topology import spectral_gap
from cser_bench.algorithms.registry import methods
from cser_bench.harness.plan.one_of_many import OneOfMany
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.run import ModelSpec, RunConfig, ScheduleSpec
from cser_bench.harness.tasks.task import find_task
from cser_bench.harness.train.build import build_model, build_optimizer, num_steps_of
from cser_bench.harness.train.restarts import check_restart, planned_traffic


@dataclass(frozen=True)
class Footprint:
    """What one worker sends and holds in a whole run; `gathered_bits` of its payload bits go by
    all-gathers."""

    formula: str
    num_parameters: int
    num_steps: int
    num_workers: int
    bits: int
    gathered_bits: int
    neighbour_bits: int
    """Sent straight to neighbours."""
    peak_models: float
    """The most that a step holds, in models; see `peak_models`."""
    checkpoint_bytes: int
    """Of one generation: the model's state and the optimiser's."""
    averages_models: bool
    """Whether what comes of the run is the workers' average, and not each worker's own model."""
    final_exchange: bool
    """Whether that average is still to be taken when the run is over."""
    spectral_gap: float | None
    """Of the topology, where workers talk to their neighbours alone."""
    num_rounds: int
    """Steps after which such a topology begins anew, to which the gap then belongs."""
    caution: str | None
    """What will go wrong with these settings, in a sentence."""

    @property
    def expected_ratio(self) -> float:
        """d / (numbers sent per step), a number being 32 bits, by the closed form of the bits.

        A row's `ratio` is this unless its spec says another; a compressor's is of one message.
        """
        return self.num_steps / self.models_in_training if self.bits else math.inf

    @property
    def models_in_training(self) -> float:
        """In models of 32 d bits, as the next two."""
        return self.bits / (32 * self.num_parameters)

    @property
    def models_sent(self) -> float:
        """The final exchange included."""
        return self.models_in_training + self.final_exchange

    @property
    def link_models(self) -> float:
        """What one worker's link carries for that.

        Of a ring all-reduce 2 (n-1)/n times the payload, of an all-gather n-1 times; what goes to
        neighbours once.
        """
        n, model = self.num_workers, 32 * self.num_parameters
        gathered, to_neighbours = self.gathered_bits / model, self.neighbour_bits / model
        return (
            2 * (n - 1) / n * (self.models_sent - gathered - to_neighbours)
            + (n - 1) * gathered
            + to_neighbours
        )


def footprint_of(config: RunConfig) -> Footprint:
    """Check the settings, and count; rates and seeds change nothing here. Raises SpecError: a
    setting is of no use."""
    same: dict[str, Any] = {"seed": 0, "repeat": 0}
    if not getattr(methods().get(config.algorithm), "traffic_follows_rate", False):
        same |= {"learning_rate": 1.0, "schedule": ScheduleSpec(kind="constant")}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", f"{config.algorithm}: ")  # the footprint says it
        return _footprint(config.model_copy(update=same).model_dump_json())


@cache
def _footprint(config_json: str) -> Footprint:
    config = RunConfig.model_validate_json(config_json)
    _, num_steps = num_steps_of(config)
    per_epoch = num_steps // config.num_schedule_epochs
    evaluation = config.evaluation  # More scores than steps would silently be fewer.
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
    empty = model_without_memory(config.model.model_dump_json(), config.task.name)
    # All workers stacked, since what a worker sends to neighbours depends on how many there are.
    expanded = (
        each.detach().expand(config.num_workers, *each.shape) for each in empty.parameters()
    )
    stacked = [nn.Parameter(tensor) for tensor in expanded]
    optimizer = build_optimizer(
        config, empty, StackedCollectives(config.num_workers), num_steps, stacked
    )
    if config.restart is not None:
        check_restart(config.restart, optimizer, num_steps, config.num_workers)
    has_tail = config.restart is not None and config.restart.everything_sent
    traffic, rounds = planned_traffic(config, optimizer, num_steps), optimizer.rounds
    return Footprint(
        formula=optimizer.formula.replace("32 ", f"{optimizer.replicas[0].float_bits} "),
        num_parameters=optimizer.flat.layout.numel,
        num_steps=num_steps,
        num_workers=config.num_workers,
        bits=traffic.training_bits,
        gathered_bits=sum(entry.gathered_bits for entry in traffic.training().values()),
        neighbour_bits=sum(entry.neighbour_bits for entry in traffic.training().values()),
        peak_models=peak_models(config, empty, num_steps),
        checkpoint_bytes=_bytes_of(empty.state_dict().values())
        + _worker_bytes(optimizer, config.num_workers),
        averages_models=optimizer.averages_models,
        final_exchange=optimizer.averages_models
        and not (has_tail or optimizer.agree_after(num_steps)),
        spectral_gap=spectral_gap(rounds) if rounds else None,
        num_rounds=len(rounds) or 1,
        caution=optimizer.caution,
    )


def _worker_bytes(optimizer: DistributedOptimizer, num_workers: int) -> int:
    """Of the state that one worker saves, where all of them are stacked."""
    stacked = optimizer.flat.parameters.shape
    state = [
        each
        for each in optimizer.state_dict()["param_groups"][0]["flat"].values()
        if isinstance(each, Tensor)
    ]
    in_hook = optimizer.hook_numel if isinstance(optimizer, DDP) else 0
    return _bytes_of(each[0] if each.shape == stacked else each for each in state) + 4 * in_hook


def _bytes_of(state: Iterable[object]) -> int:
    return sum(each.numel() * each.element_size() for each in state if isinstance(each, Tensor))


def num_parameters_of(model: ModelSpec, task: str) -> int:
    """Numbers that a model is trained in."""
    empty = model_without_memory(model.model_dump_json(), task)
    return sum(each.numel() for each in empty.parameters())


@cache
def model_without_memory(model: str, task: str) -> nn.Module:
    """The model on the meta device, built once for all the rows that it is checked with, which
    leave it as it is."""
    return build_model(
        ModelSpec.model_validate_json(model), find_task(task), 0, torch.device("meta")
    )


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that operations inside allocate: those that are there now, and the most so
    far."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = {_key(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        result = function(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor) and (key := _key(each)) not in given | self._known.keys():
                storage = each.untyped_storage()
                self._known[key] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, key)
        self.most = max(self.most, self.now)
        return result

    def _free(self, key: int) -> None:
        self.now -= self._known.pop(key)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@torch.no_grad()
def peak_models(config: RunConfig, model: nn.Module, num_steps: int) -> float:
    """The most numbers that a worker holds in a step that synchronises, activations left out, in
    models.

    Parameters, gradients and state, and what the step allocates for a while, messages among it.

    Args:
        model: on the meta device.
    """
    optimizer = build_optimizer(
        config, model, OneOfMany(0, config.num_workers, shares_memory=False), num_steps
    )
    if isinstance(optimizer, DDP):  # its buckets are part of what it holds
        return 2 + optimizer.memory_in_parameters()
    # On a real device it is fused, and takes no room.
    (replica,) = optimizer.replicas
    replica.local.step_ = lambda *_: None  # type: ignore[method-assign]
    held = optimizer.flat.parameters.element_size() * optimizer.flat.layout.numel
    with Allocations() as allocations:
        for step in _steps_apart(optimizer, num_steps):
            optimizer._update(replica, step)
            optimizer.num_steps = step
    return float(2 + optimizer.memory_in_parameters() + allocations.most / held)


def _steps_apart(optimizer: DistributedOptimizer, num_steps: int) -> list[int]:
    """The first step, one in which all that is sent at intervals is sent, and that in which what is
    late arrives."""
    stages = optimizer.stages(optimizer.replicas[0])
    together = min(math.lcm(*(stage.every for stage in stages)), num_steps)
    return sorted({1, together, together + getattr(optimizer, "delay", 0)})
