"""A method built around a trainee, so that it takes one whole training step; and what DDP needs for that."""

# No "from __future__ import annotations": DDP looks at the hooks' annotations, which must be types.

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState
from torch.optim import Optimizer

from algorithms import ProcessGroupCollectives
from algorithms.baselines.ddp import DDP, Hook, wrapped
from algorithms.core.topology import Mixing
from algorithms.registry import baselines
from harness.records.timings import Method
from harness.timing.methods import BUCKET_MEGABYTES
from harness.timing.trainees import RealTrainee, WaitingTrainee
from harness.timing.workloads import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, problem_of, short_run
from harness.train.build import build_optimizer

BUCKET_CAP: int | None = None
"""DDP's own cap, see `harness.timing.methods.BUCKET_MEGABYTES`; another number would go for the first bucket too."""
Trainee = RealTrainee | WaitingTrainee


@dataclass(frozen=True)
class Groups:
    """Process groups of a session; `buckets` are as many as DDP can need; None is the world."""

    main: dist.ProcessGroup | None
    buckets: list[dist.ProcessGroup | None]


def make_groups(num_bytes: int) -> tuple[Groups, Groups]:
    """Make the groups of all workers together, and of worker 0 alone; all workers must call it.

    Args:
        num_bytes: of the parameters.
    """
    # DDP closes a bucket when it is full, but the first, which at the start is small, and the last.
    num_buckets = math.ceil(num_bytes / (BUCKET_MEGABYTES << 20)) + 2
    together = Groups(None, [dist.new_group() for _ in range(num_buckets)])
    alone = dist.new_group([0])
    return together, Groups(alone, [alone] * num_buckets)


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
    timed: Method, workload: str, trainee: Trainee, groups: Groups, visible: bool, num_workers: int
) -> BuiltMethod:
    """Build it.

    Args:
        visible: do what DDP does in C++ by its equal in Python, so that it is seen, and bucket by bucket.
        num_workers: of the session; where the group is of one, it stands for so many that have neighbours.
    """
    baseline = baselines().get(timed.algorithm)
    if baseline is not None:
        assert issubclass(baseline, DDP)
        return _ddp(baseline, timed, trainee, groups, visible)
    collectives = _EqualFromTheStart(groups.main, overlap=timed.overlap)
    if "topology" in timed.settings and collectives.world_size < num_workers:
        collectives = _OneOfMany(groups.main, num_workers)
    config = short_run(problem_of(workload), timed.algorithm, timed.settings, momentum=timed.momentum)
    optimizer = build_optimizer(config, trainee.module, collectives, timed.period)

    def step() -> None:
        optimizer.zero_grad()
        trainee.passes()
        optimizer.step()

    def go_to(period: int, synchronises: bool) -> None:
        optimizer.num_steps = timed.period * (period + 2) - (1 if synchronises else 2)

    return BuiltMethod(optimizer, step, go_to, hides_collectives=False)


class _EqualFromTheStart(ProcessGroupCollectives):
    """All workers are built with the same parameters, so nobody need send them; on a slow network that takes long."""

    def _broadcast_(self, tensor: Tensor) -> None:
        pass


class _OneOfMany(_EqualFromTheStart):
    """A worker that is alone, as one of so many who all send what it does: to see what it sends to its neighbours."""

    def __init__(self, group: dist.ProcessGroup | None, num_workers: int) -> None:
        super().__init__(group)
        self.world_size = num_workers

    def _gather(self, tensor: Tensor) -> Tensor:
        return tensor.expand(self.world_size, *tensor.shape[1:])

    def _exchange(self, tensor: Tensor, mixing: Mixing) -> dict[int, Tensor]:
        return dict.fromkeys(mixing.senders[self.rank], tensor[0])


def _ddp(baseline: type[DDP], timed: Method, trainee: Trainee, groups: Groups, visible: bool) -> BuiltMethod:
    """Build DDP as fast as it can be: buckets in the order of gradients, which are views of them, and fused SGD."""
    model = wrapped(trainee.module, groups.main, fixed_buckets=False, bucket_cap_mb=BUCKET_CAP)
    state, hook = baseline.hook(groups.main, timed.settings)
    # Without a hook DDP does by itself what this one does.
    hides = hook is allreduce_hook and not visible
    if not hides:
        if isinstance(state, PowerSGDState):
            hook = by_bucket([baseline.hook(group, timed.settings) for group in groups.buckets])
        model.register_comm_hook(state, one_by_one(hook) if visible else hook)
    optimizer = torch.optim.SGD(
        trainee.module.parameters(), LEARNING_RATE, MOMENTUM, 0.0, WEIGHT_DECAY, nesterov=True, fused=True
    )

    def step() -> None:
        optimizer.zero_grad()
        trainee.passes(model)
        optimizer.step()

    return BuiltMethod(optimizer, step, lambda period, synchronises: None, hides)


def one_by_one(hook: Hook) -> Hook:
    """The hook, whose last message of a bucket is through before the backward pass goes on."""

    def finish(state: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        result = hook(state, bucket)
        result.wait()
        return result

    return finish


def by_bucket(hooks: Sequence[tuple[Any, Hook]]) -> Hook:
    """The hook of a bucket's number, with its state, which may have a process group of its own.

    PowerSGD's second and third all-reduces are begun by whichever thread finds the one before done; on one group of
    gloo's, those of two buckets could have another order on another worker.
    """

    def communicate(_: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        state, hook = hooks[bucket.index()]
        if isinstance(state, PowerSGDState) and not bucket.is_last() and state.iter < state.start_powerSGD_iter:
            state.iter += 1  # The hook counts only where it sees the last bucket.
        return hook(state, bucket)

    return communicate
