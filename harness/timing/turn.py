"""A turn of a method in a session: built around a worker's passes, warmed up, and its steps noted."""

# No "from __future__ import annotations": DDP looks at the hooks' annotations, which must be types.

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket, ProcessGroup  # type: ignore[attr-defined]
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState
from torch.optim import Optimizer

from algorithms import DistributedOptimizer, ProcessGroupCollectives
from algorithms.baselines.ddp import DDP, Hook, wrapped
from algorithms.core.topology import Mixing
from algorithms.core.traffic import Mark, mark
from algorithms.registry import baselines
from harness.records.timings import Method, Workload
from harness.timing.timed_step import RankStep, Recorded, recorded
from harness.timing.trainees import Trainee, real_trainee, waiting_trainee
from harness.timing.workloads import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, Gradients, problem_of, short_run
from harness.train.build import build_optimizer

NUM_WARMUP_STEPS = 3
"""DDP settles its buckets in the second step, and its PowerSGD hook compresses from the third on."""
BUCKET_BYTES = 25 << 20
"""DDP's default for all buckets but the first, which at the start is of 1 MB, and the last."""


@dataclass(frozen=True)
class Setting:
    """All that the turns of one worker share.

    Attributes:
        trains: whether the workload's model takes its passes; else they are waits of the workload's times.
        num_workers: of the session; where the groups are of one, it stands for so many that have neighbours.
        groups: process groups of the same workers, as many as DDP can need; None is the world. See `make_groups`.
        visible: DDP's all-reduces are done by their equal in Python, and bucket by bucket, so that they are seen one by
            one, as they are in no timed step.
    """

    workload: Workload
    gradients: Gradients
    trains: bool
    num_workers: int
    device: torch.device
    groups: Sequence[ProcessGroup | None]
    visible: bool = False

    def trainee(self) -> Trainee:
        """A new model, with the same parameters on every worker."""
        if self.trains:
            return real_trainee(self.workload.name, self.gradients, self.device, dist.get_rank())
        return waiting_trainee(self.gradients, self.workload)


def make_groups(num_parameters: int) -> tuple[list[ProcessGroup | None], list[ProcessGroup | None]]:
    """Make the groups of all workers together, and of worker 0 alone; all workers must call it."""
    num_buckets = math.ceil(4 * num_parameters / BUCKET_BYTES) + 2
    together: list[ProcessGroup | None] = [None, *(dist.new_group() for _ in range(num_buckets - 1))]
    return together, [dist.new_group([0])] * num_buckets


class Turn:
    """A method that is ready to train, built anew with the model that it trains, and warmed up.

    Its all-reduces may be done by DDP in C++, unseen, from the backward pass's end on or before.
    """

    def __init__(self, setting: Setting, method: Method) -> None:
        self.setting, self.method, self.trainee = setting, method, setting.trainee()
        module, baseline = self.trainee.module, baselines().get(method.algorithm)
        self.optimizer: Optimizer
        if baseline is None:
            self._model, self.optimizer, self._hides = module, _own(module, setting, method), False
        else:
            assert issubclass(baseline, DDP)
            self._model, self._hides = _in_ddp(baseline, module, setting, method)
            self.optimizer = torch.optim.SGD(
                module.parameters(), LEARNING_RATE, MOMENTUM, 0.0, WEIGHT_DECAY, nesterov=True, fused=True
            )
        for _ in range(NUM_WARMUP_STEPS):
            self.step()

    def step(self) -> None:
        """Zero gradients, take both passes and update."""
        self.optimizer.zero_grad()
        self.trainee.passes(self._model)
        self.optimizer.step()

    def go_to(self, period: int, synchronises: bool) -> None:
        """Let the next step be the last of the period of this number, which synchronises, or the one before it.

        Blocks are drawn by the step's number, so another period has others. Step 1 is left out, in which methods may
        send more than ever after.
        """
        if isinstance(self.optimizer, DistributedOptimizer):
            self.optimizer.num_steps = self.method.period * (period + 2) - (1 if synchronises else 2)

    def timed_step(self) -> tuple[RankStep, list[Recorded]]:
        """Take a step; its times on this worker, and what it sent."""
        device, trainee = self.setting.device, self.trainee
        with recorded(lambda: trainee.share_done, device) as seen:
            began = mark(device)
            self.step()
            ended = mark(device)
            if isinstance(self.optimizer, DistributedOptimizer):
                _ = self.optimizer.traffic  # What travels beside the steps that follow is seen to its end.
        while device.type == "cpu" and any(each.ended is None for each in seen):
            time.sleep(1e-3)  # DDP can go on before the end of its all-reduce is noted.
        intervals = {each.key: (each.began, each.ended) for each in seen if each.ended is not None}
        if self._hides or len(intervals) < len(seen):
            intervals = {("backward", 0): (trainee.last_gradient, trainee.returned)}

        def at(moment: Mark) -> float:
            """Seconds of the host's clock; on a GPU since the step began."""
            if isinstance(moment, float):
                return moment
            moment.synchronize()
            return float(began.elapsed_time(moment)) / 1e3  # type: ignore[union-attr]

        step = RankStep(
            began=at(began),
            passes_began=at(trainee.began),
            last_gradient=at(trainee.last_gradient),
            ended=at(ended),
            collectives={key: (at(start), at(end)) for key, (start, end) in intervals.items()},
            scheduled_seconds=trainee.scheduled_seconds,
        )
        return step, seen


def _own(module: nn.Module, setting: Setting, method: Method) -> DistributedOptimizer:
    """Build one of this project's methods."""
    group = setting.groups[0]
    collectives = _EqualFromTheStart(group, overlap=method.overlap)
    has_neighbours = "topology" in method.settings or method.algorithm == "noloco"
    if has_neighbours and collectives.world_size < setting.num_workers:
        collectives = _OneOfMany(group, setting.num_workers)
    problem = problem_of(setting.workload.name)
    config = short_run(problem, method.algorithm, method.settings, momentum=method.momentum)
    return build_optimizer(config, module, collectives, method.period)


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


def _in_ddp(baseline: type[DDP], module: nn.Module, setting: Setting, method: Method) -> tuple[nn.Module, bool]:
    """Wrap it in DDP as fast as that can be: buckets in the order of gradients, which are views of them.

    Also returns whether its all-reduces are hidden.
    """
    model = wrapped(module, setting.groups[0], fixed_buckets=False)
    state, hook = baseline.hook(setting.groups[0], method.settings)
    # Without a hook DDP does by itself what this one does.
    if hook is allreduce_hook and not setting.visible:
        return model, True
    if isinstance(state, PowerSGDState):
        hook = _by_bucket([baseline.hook(group, method.settings) for group in setting.groups])
    model.register_comm_hook(state, _one_by_one(hook) if setting.visible else hook)
    return model, False


def _one_by_one(hook: Hook) -> Hook:
    """The hook, whose last message of a bucket is through before the backward pass goes on."""

    def finish(state: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        result = hook(state, bucket)
        result.wait()
        return result

    return finish


def _by_bucket(hooks: Sequence[tuple[Any, Hook]]) -> Hook:
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
