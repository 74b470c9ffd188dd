"""Builds a method around a trainee: what takes one whole training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState
from torch.optim import Optimizer

from algorithms import ProcessGroupCollectives
from algorithms.baselines.ddp import DDP, wrapped
from algorithms.core.topology import Mixing
from algorithms.registry import baselines
from harness.timing.ddp_buckets import Groups, by_bucket, held_back, one_by_one
from harness.timing.methods import TimedMethod
from harness.timing.passes import TimedTrainee
from harness.timing.workloads import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, run_config
from harness.train.build import build_optimizer

BUCKET_CAP: int | None = None
"""DDP's own, see `harness.timing.methods.BUCKET_MEGABYTES`; another number would go for the first bucket too."""


@dataclass(frozen=True)
class BuiltMethod:
    """A method that is ready to train.

    Attributes:
        step: zeroes gradients, takes both passes and updates.
        go_to: lets the next step be the last of the period of this number, which synchronises, or the one before it.
            Blocks are drawn by the step's number, so another period has others. Step 1 is left out, in which methods
            may send more than ever after.
        hides_collectives: its all-reduces are done by DDP in C++, unseen, from the backward pass's end on or before.
    """

    optimizer: Optimizer
    step: Callable[[], object]
    go_to: Callable[[int, bool], None]
    hides_collectives: bool


def build_method(
    timed: TimedMethod, workload: str, trainee: TimedTrainee, groups: Groups, visible: bool, num_workers: int
) -> BuiltMethod:
    """Build it.

    Args:
        visible: do what DDP does in C++ by its equal in Python, so that it is seen, and bucket by bucket.
        num_workers: of the session; where the group is of one, it stands for so many that have neighbours.
    """
    baseline = baselines().get(timed.algorithm)
    if baseline is None:
        return _own(timed, workload, trainee, groups.main, num_workers)
    assert issubclass(baseline, DDP)
    return _ddp(baseline, timed, trainee, groups, visible)


class _EqualFromTheStart(ProcessGroupCollectives):
    """All workers are built with the same parameters, so nobody need send them; on a slow network that takes long."""

    def _broadcast_(self, tensor: Tensor) -> None:
        pass


class _OneOfMany(_EqualFromTheStart):
    """A worker that is alone, as one of so many who all send what it does: to see what it sends to its neighbours."""

    def __init__(self, group: ProcessGroup | None, num_workers: int) -> None:
        super().__init__(group)
        self.world_size = num_workers

    def _gather(self, tensor: Tensor) -> Tensor:
        return tensor.expand(self.world_size, *tensor.shape[1:])

    def _exchange(self, tensor: Tensor, mixing: Mixing) -> dict[int, Tensor]:
        return dict.fromkeys(mixing.senders[self.rank], tensor[0])


def _own(
    timed: TimedMethod, workload: str, trainee: TimedTrainee, group: ProcessGroup | None, num_workers: int
) -> BuiltMethod:
    collectives = _EqualFromTheStart(group, overlap=timed.overlap)
    if timed.topology and collectives.world_size < num_workers:
        collectives = _OneOfMany(group, num_workers)
    config = run_config(workload, timed.algorithm, dict(timed.settings), timed.momentum)
    optimizer = build_optimizer(config, trainee.module, collectives, timed.num_steps)

    def step() -> None:
        optimizer.zero_grad()
        trainee.passes()
        optimizer.step()

    def go_to(period: int, synchronises: bool) -> None:
        optimizer.num_steps = timed.period * (period + 2) - (1 if synchronises else 2)

    return BuiltMethod(optimizer, step, go_to, hides_collectives=False)


def _ddp(baseline: type[DDP], timed: TimedMethod, trainee: TimedTrainee, groups: Groups, visible: bool) -> BuiltMethod:
    """As fast as DDP can be: buckets in the order of gradients, which are views of them, and torch's fused SGD."""
    model = wrapped(trainee.module, groups.main, fixed_buckets=False, bucket_cap_mb=BUCKET_CAP)
    state, hook = baseline.hook(groups.main, timed.settings)
    # Without a hook DDP does by itself what this one does.
    hides = hook is allreduce_hook and timed.overlap and not visible
    if not hides:
        if isinstance(state, PowerSGDState):
            hook = by_bucket([baseline.hook(group, timed.settings) for group in groups.buckets])
        hook = one_by_one(hook) if visible else hook
        model.register_comm_hook(state, hook if timed.overlap else held_back(hook))
    optimizer = torch.optim.SGD(
        trainee.module.parameters(), LEARNING_RATE, MOMENTUM, 0.0, WEIGHT_DECAY, nesterov=True, fused=True
    )

    def step() -> None:
        optimizer.zero_grad()
        trainee.passes(model)
        optimizer.step()

    return BuiltMethod(optimizer, step, lambda period, synchronises: None, hides)
