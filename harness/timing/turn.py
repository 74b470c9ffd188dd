"""A turn of a method in a session: built around a worker's passes, warmed up, its steps noted."""

# No "from __future__ import annotations": DDP looks at the hooks' annotations, which must be types.

import math
import time
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket, ProcessGroup  # type: ignore[attr-defined]
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState
from torch.optim import Optimizer

from cser_bench.algorithms import (
    Collectives,
    DistributedOptimizer,
    ProcessGroupCollectives,
)
from cser_bench.algorithms.baselines.ddp import DDP, wrapped
from cser_bench.algorithms.core.local_step import local_step_named
from cser_bench.algorithms.core.stages import EarlyMessage
from cser_bench.algorithms.core.topology import rounds_of
from cser_bench.algorithms.core.traffic import Mark, mark
from cser_bench.algorithms.registry import baselines
from cser_bench.harness.errors import UsageError
from cser_bench.harness.measures.steps import BUCKET_BYTES
from cser_bench.harness.plan.one_of_many import OneOfMany
from cser_bench.harness.records.timings import Message, TimedMethod
from cser_bench.harness.timing.timed_step import (
    ObservedGroup,
    Observer,
    RankStep,
    Recorded,
)
from cser_bench.harness.timing.workloads import (
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    Trainee,
    short_run,
)
from cser_bench.harness.train.build import build_optimizer
from cser_bench.harness.train.passes import seconds_to_idle

NUM_WARMUP_STEPS = 3
"""DDP settles its buckets in the second step, and its PowerSGD hook compresses from the third
on."""
NUM_DRAWS = 1000
"""Steps over which an overlapped method's early messages are averaged."""
NUM_KEPT_DRAWS = 50
"""A record holds each of the first so many of them."""
NUM_CODEC_STEPS = 3
Groups = Sequence[ProcessGroup | None]
"""Process groups of the same workers, as many as DDP can need; None is the world."""


def make_groups(num_parameters: int) -> tuple[Groups, Groups]:
    """Make the groups of all workers together, and of worker 0 alone; all workers must call it."""
    # Two more, as the first and the last bucket are smaller than the others.
    num_buckets = math.ceil(4 * num_parameters / BUCKET_BYTES) + 2
    together = [None, *(dist.new_group() for _ in range(num_buckets - 1))]
    # One will do: there is no other worker on which messages could have another order.
    alone = [dist.new_group([0])] * num_buckets
    return together, alone


class Turn:
    """A method that is ready to train, built anew around a new trainee, and warmed up.

    Its all-reduces may be done by DDP in C++, unseen, from the backward pass's end on or before.

    Args:
        num_workers: of the session; a group of one stands for one of them.
        visible: DDP's all-reduces are done by their equal in Python, and bucket by bucket, so that
            they are seen one by one, as they are in no timed step.
    """

    def __init__(
        self,
        trainee: Trainee,
        method: TimedMethod,
        num_workers: int,
        groups: Groups,
        visible: bool = False,
    ) -> None:
        self.trainee = trainee
        self.method = method
        self.num_workers = num_workers
        self._observer = Observer(lambda: trainee.share_done, trainee.device)
        self._model = trainee.module
        self._hides = False
        self.optimizer: Optimizer
        baseline = baselines().get(method.algorithm)
        if baseline is None:
            self.optimizer = _own(
                trainee, method, num_workers, groups[0], self._observer
            )
        else:
            assert issubclass(baseline, DDP)
            self._model, self._hides = _in_ddp(
                baseline, trainee.module, method, groups, self._observer, visible
            )
            self.optimizer = _torchs(trainee.module, method)
        for _ in range(NUM_WARMUP_STEPS):
            self.step()

    def close(self) -> None:
        """Give back the method's own process group, where it has one.

        All workers of the turn must call it.
        """
        collectives = getattr(self.optimizer, "collectives", None)
        if isinstance(collectives, ProcessGroupCollectives):
            collectives.close()

    def step(self) -> None:
        """Zero gradients, take both passes and update."""
        self.optimizer.zero_grad()
        self.trainee.passes(self._model)
        self.optimizer.step()

    def go_to(self, period: int, synchronises: bool) -> None:
        """Let the next step be the last of the period of this number, or the one before it.

        The last one synchronises. Another period has other blocks. Step 1 is left out, in which
        methods may send more than ever after.
        """
        if isinstance(self.optimizer, DistributedOptimizer):
            # Past the first period, in which step 1 lies; steps count from 1.
            step = self.method.period * (period + 2)
            if not synchronises:
                step -= 1
            self.optimizer.num_steps = step - 1

    def timed_step(self) -> tuple[RankStep, list[Recorded]]:
        """Take a step; return its times on this worker, and what it sent."""
        trainee = self.trainee
        device = trainee.device
        # On a CPU marks are seconds, on a GPU events, which are read below.
        with self._observer.recording() as seen:
            began = mark(device)
            self.step()
            ended = mark(device)
            if isinstance(self.optimizer, DistributedOptimizer):
                # Asking for it, what travels beside the steps that follow is seen to its end.
                _ = self.optimizer.traffic
        while device.type == "cpu" and any(
            collective.ended is None for collective in seen
        ):
            time.sleep(1e-3)  # DDP can go on before the end of its all-reduce is noted.
        intervals = {
            collective.key: (collective.began, collective.ended)
            for collective in seen
            if collective.ended is not None
        }
        # Not every end was seen. DDP's backward pass waits for its all-reduces before it returns, so
        # what follows the last gradient counts as theirs.
        if self._hides or len(intervals) < len(seen):
            intervals = {("backward", 0): (trainee.last_gradient, trainee.returned)}

        def at(moment: Mark) -> float:
            """Read seconds of the host's clock; on a GPU since the step began."""
            if isinstance(moment, float):
                return moment
            moment.synchronize()
            return float(began.elapsed_time(moment)) / 1e3  # type: ignore[union-attr]

        step = RankStep(
            began=at(began),
            passes_began=at(trainee.began),
            last_gradient=at(trainee.last_gradient),
            ended=at(ended),
            collectives={
                key: (at(start), at(end)) for key, (start, end) in intervals.items()
            },
            scheduled_seconds=trainee.scheduled_seconds,
        )
        return step, seen


def _torchs(module: nn.Module, method: TimedMethod) -> Optimizer:
    """Build what updates the parameters where DDP averages gradients."""
    local_step = local_step_named(method.local_step)
    numbers = {"lr": LEARNING_RATE, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}
    read = {key: value for key, value in numbers.items() if key in local_step.numbers}
    optimizer = local_step.in_torch(module.parameters(), **read)
    if optimizer is None:
        raise UsageError(
            f"{method.name} cannot be timed with local_step = {method.local_step!r}, which no "
            "optimiser of torch's has; leave the method out"
        )
    return optimizer


def _own(
    trainee: Trainee,
    method: TimedMethod,
    num_workers: int,
    group: ProcessGroup | None,
    observer: Observer,
) -> DistributedOptimizer:
    """Build one of this project's methods."""
    collectives: Collectives
    # NoLoCo's workers meet in pairs, which no setting says.
    has_neighbours = "topology" in method.settings or method.algorithm == "noloco"
    if has_neighbours and dist.get_world_size(group) < num_workers:
        # Alone it would have no neighbours, and so send nothing.
        collectives = OneOfMany(0, num_workers, shares_memory=True)
        collectives.observer = observer
    else:
        collectives = _EqualFromTheStart(group, method.overlap, observer)
    config = short_run(
        trainee.problem,
        method.algorithm,
        method.settings,
        momentum=method.momentum,
        local_step=method.local_step,
        method_source=method.method_source,
    )
    # An interval of "end" is then the period, as in `period_of`.
    return build_optimizer(config, trainee.module, collectives, method.period)


class _EqualFromTheStart(ProcessGroupCollectives):
    """A group whose workers are built with the same parameters, so that nobody need send them.

    On a slow network that takes long.
    """

    def _broadcast_(self, tensor: Tensor) -> None:
        pass


def _in_ddp(
    baseline: type[DDP],
    module: nn.Module,
    method: TimedMethod,
    groups: Groups,
    observer: Observer,
    visible: bool,
) -> tuple[nn.Module, bool]:
    """Wrap the module in DDP as fast as that can be, buckets in the order of gradients.

    Returns:
        The model, and whether its all-reduces are hidden.

    PowerSGD's second and third all-reduces are begun by whichever thread finds the one before done;
    on one group of gloo's, those of two buckets could have another order on another worker. So each
    bucket has a group of its own.
    """
    # Buckets may be rebuilt in the second step, which is part of the warm-up.
    model = wrapped(module, groups[0], fixed_buckets=False)
    observed = [ObservedGroup(group, observer) for group in groups]
    # One state for all buckets; PowerSGD's hook gets one a bucket below.
    hooks = [baseline.hook(observed[0], method.settings)] * len(groups)
    # Without a hook DDP does by itself what this one does.
    if hooks[0][1] is allreduce_hook and not visible:
        return model, True
    if isinstance(hooks[0][0], PowerSGDState):
        hooks = [baseline.hook(group, method.settings) for group in observed]

    def communicate(_: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        state, hook = hooks[bucket.index()]
        if (
            isinstance(state, PowerSGDState)
            and not bucket.is_last()
            and state.iter < state.start_powerSGD_iter
        ):
            state.iter += 1  # The hook counts only where it sees the last bucket.
        result = hook(state, bucket)
        if visible:
            result.wait()
        return result

    model.register_comm_hook(None, communicate)
    return model, False


def described(turn: Turn, bare_seconds: float) -> TimedMethod:
    """Return the turn's method with its messages and the time of its codec.

    Args:
        bare_seconds: what the passes take by themselves.
    """
    # Noise may make a cheap method's step shorter than the bare passes.
    codec_seconds = max(0.0, _seconds(turn) - bare_seconds)
    found = {"messages": messages_of(turn), "codec_alone_seconds": codec_seconds}
    return turn.method.model_copy(update=found)


def messages_of(turn: Turn) -> list[Message]:
    """Say what a worker sends in a period.

    That is what it sends in every step, and what the synchronising step sends besides.
    """
    method = turn.method
    optimizer = turn.optimizer
    messages = _messages_once(turn)
    if "topology" in method.settings:
        # Those of worker 0; each other worker's neighbours are as many ranks further on.
        mixings = rounds_of(method.settings["topology"], turn.num_workers)
        rounds = tuple(mixing.receivers[0] for mixing in mixings)
        return [message.model_copy(update={"rounds": rounds}) for message in messages]
    if not method.overlap or not isinstance(optimizer, DistributedOptimizer):
        return messages
    steps = range(method.period, (NUM_DRAWS + 1) * method.period, method.period)
    draws = [
        early_begins(optimizer.early_messages(step), turn.trainee.gradients.done)
        for step in steps
    ]
    with_draws = []
    for message in messages:
        # By payload, as that is what both sides know; 1 is the backward pass's end.
        ready = [draw.get(8 * message.payload_bytes, 1.0) for draw in draws]
        begins = {"ready": mean(ready), "ready_draws": tuple(ready[:NUM_KEPT_DRAWS])}
        with_draws.append(message.model_copy(update=begins))
    return with_draws


def early_begins(
    messages: Sequence[EarlyMessage], done: Mapping[int, float]
) -> dict[int, float]:
    """Say when a step's early messages may begin, one after the other, by payload in bits.

    Args:
        done: by tensor the share of the backward pass that is over when its gradient is there.
    """
    begun = {}
    reached = 0.0
    # Gradients come from the last tensor to the first.
    for message in sorted(messages, key=lambda message: -message.tensors[0]):
        reached = max(reached, *(done[number] for number in message.tensors))
        begun[message.payload_bits] = reached
    return begun


def _messages_once(turn: Turn) -> list[Message]:
    """Note what a synchronising step sends, and how often each of that is sent.

    What ordinary steps send too is sent in each step, the rest once in a period.
    """
    period = turn.method.period
    in_each_step: list[int] = []
    if period > 1:
        turn.go_to(0, False)
        _, collectives = turn.timed_step()
        in_each_step = [collective.payload_bytes for collective in collectives]
    turn.go_to(0, True)
    _, collectives = turn.timed_step()
    messages = []
    for collective in collectives:
        num_bytes = collective.payload_bytes
        # PowerSGD reduces what is no matrix also where there is nothing.
        if not num_bytes:
            continue
        every = period
        if num_bytes in in_each_step:
            in_each_step.remove(num_bytes)
            every = 1
        message = Message(
            collective=collective.collective,
            payload_bytes=num_bytes,
            every=every,
            ready=collective.ready,
        )
        messages.append(message)
    return messages


def _seconds(turn: Turn) -> float:
    """Time a step: the mean over the period of its kinds' medians."""

    def seconds(synchronises: bool) -> float:
        taken = []
        for _ in range(NUM_CODEC_STEPS):
            turn.go_to(0, synchronises)
            taken.append(seconds_to_idle(turn.step, turn.trainee.device))
        return median(taken)

    num_ordinary = turn.method.period - 1
    ordinary_seconds = 0.0
    if num_ordinary:
        ordinary_seconds = num_ordinary * seconds(False)
    # (P - 1) ordinary steps and one that synchronises, over P.
    return (ordinary_seconds + seconds(True)) / turn.method.period


def bare_seconds(trainee: Trainee) -> float:
    """Time the passes alone.

    Gradients are added to what is there, as where a method has flat buffers.
    """
    for parameter in trainee.module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    taken = [
        seconds_to_idle(trainee.passes, trainee.device)
        for _ in range(1 + NUM_CODEC_STEPS)
    ]
    return median(taken[1:])  # the first one warms up
