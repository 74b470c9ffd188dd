"""A step with every moment noted: a method's turn on one worker, and what each of its steps sends, and when."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from algorithms import Collectives, Purpose
from algorithms.core.topology import Mixing
from harness.records.timings import Collective, Workload
from harness.timing.build import BuiltMethod, build_method
from harness.timing.ddp_buckets import Groups
from harness.timing.methods import TimedMethod
from harness.timing.parts import RankStep
from harness.timing.passes import (
    Mark,
    Now,
    RealTrainee,
    TimedTrainee,
    WaitingTrainee,
    clock_name,
    now_on,
    seconds_at,
)
from harness.timing.workloads import Layers


@dataclass(frozen=True)
class TurnContext:
    """What all turns of one worker share.

    Attributes:
        trains: whether the workload's model takes its passes; else they are waits of the workload's times.
        num_workers: of the session; where the groups are of one, it stands for so many that have neighbours.
        visible: DDP's all-reduces are seen one by one, as they are in no timed step.
    """

    workload: Workload
    layers: Layers
    trains: bool
    num_workers: int
    device: torch.device
    groups: Groups
    visible: bool = False

    def trainee(self) -> TimedTrainee:
        """A new model, with the same parameters on every worker."""
        now = now_on(self.device)
        if self.trains:
            return RealTrainee(self.workload.name, self.layers, self.device, dist.get_rank(), now)
        return WaitingTrainee(self.layers, self.workload, 1.0, now)

    def turn(self, timed: TimedMethod) -> Turn:
        """A new model and a new optimiser of the method."""
        trainee = self.trainee()
        method = build_method(timed, self.workload.name, trainee, self.groups, self.visible, self.num_workers)
        return Turn(trainee, method, self.layers, self.device)


@dataclass(frozen=True)
class Turn:
    """A method that is ready to train, and what it trains."""

    trainee: TimedTrainee
    method: BuiltMethod
    layers: Layers
    device: torch.device

    def warm_up(self, num_steps: int) -> None:
        """Steps that nobody times; those of a waiting trainee do not wait."""
        self.trainee.waits = False
        for _ in range(num_steps):
            self.method.step()
        self.trainee.waits = True

    def timed_step(self) -> tuple[RankStep, list[Recorded]]:
        """Take a step; its times on this worker, and what it sent."""
        now, watch = now_on(self.device), self.trainee.watch
        with recorded(lambda: watch.share_done, now) as seen:
            began = now()
            self.method.step()
            ended = now()
        while self.device.type == "cpu" and any(each.ended is None for each in seen):
            time.sleep(1e-3)  # DDP can go on before the end of its all-reduce is noted.
        intervals = {each.key: (each.began, each.ended) for each in seen if each.ended is not None}
        if self.method.hides_collectives or len(intervals) < len(seen):
            intervals = {("backward", 0): (watch.last_gradient, watch.returned)}

        def at(mark: Mark) -> float:
            return seconds_at(mark, began)

        step = RankStep(
            began=at(began),
            passes_began=at(watch.began),
            last_gradient=at(watch.last_gradient),
            ended=at(ended),
            collectives={key: (at(start), at(end)) for key, (start, end) in intervals.items()},
            scheduled_seconds=self.trainee.scheduled_seconds,
            clock=clock_name(self.device),
        )
        return step, seen


@dataclass
class Recorded:
    """One all-reduce or all-gather of this worker, or one exchange with its neighbours.

    Attributes:
        key: group and number in it, by which workers know it from others.
        ready: share of the backward pass that was done when it began.
        ended: None for one that the host does not see end (on a GPU, where it did not wait for it).
    """

    key: tuple[str, int]
    payload_bytes: int
    ready: float
    began: Mark
    ended: Mark | None = None
    collective: Collective = "all_reduce"


@contextmanager
def recorded(share_done: Callable[[], float], now: Now) -> Iterator[list[Recorded]]:
    """Inside, all-reduces of torch.distributed, all-gathers and exchanges with neighbours add to the list.

    Those that DDP does by itself, in C++, do not.
    """
    original, original_exchange = dist.all_reduce, Collectives.exchange_with_neighbours
    original_gather = Collectives.all_gather
    seen: list[Recorded] = []

    def all_reduce(tensor: Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None, async_op: bool = False) -> Any:
        name = str((group or dist.group.WORLD).group_name)  # type: ignore[union-attr]
        number = sum(other.key[0] == name for other in seen)
        here = Recorded((name, number), tensor.numel() * tensor.element_size(), share_done(), now())
        seen.append(here)
        work = original(tensor, op, group, async_op)
        if not async_op:
            here.ended = now()
        elif not tensor.is_cuda:
            work.get_future().add_done_callback(lambda _: setattr(here, "ended", now()))
        return work

    def exchange(self: Collectives, tensor: Tensor, mixing: Mixing, purpose: Purpose) -> dict[int, Tensor]:
        if not mixing.num_messages:
            return original_exchange(self, tensor, mixing, purpose)
        number = sum(other.collective == "exchange" for other in seen)
        size = mixing.num_messages * tensor.numel() * tensor.element_size()
        here = Recorded(("neighbours", number), size, share_done(), now(), collective="exchange")
        seen.append(here)
        received = original_exchange(self, tensor, mixing, purpose)
        if not tensor.is_cuda:
            here.ended = now()
        return received

    def all_gather(self: Collectives, tensor: Tensor, purpose: Purpose) -> Tensor:
        number = sum(other.collective == "all_gather" for other in seen)
        size = tensor.numel() * tensor.element_size()
        here = Recorded(("gathered", number), size, share_done(), now(), collective="all_gather")
        seen.append(here)
        gathered = original_gather(self, tensor, purpose)
        if not tensor.is_cuda:
            here.ended = now()
        return gathered

    dist.all_reduce, Collectives.exchange_with_neighbours = all_reduce, exchange  # type: ignore[method-assign]
    Collectives.all_gather = all_gather  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        dist.all_reduce = original
        Collectives.exchange_with_neighbours = original_exchange  # type: ignore[method-assign]
        Collectives.all_gather = original_gather  # type: ignore[method-assign]
