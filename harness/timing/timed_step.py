"""A step with every moment noted, and what it consists of: compute, codec, waiting for others and transfer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import mean
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from algorithms import Collectives, Purpose
from algorithms.core.topology import Mixing
from harness.records.timings import Collective, Method, Workload
from harness.timing.built_methods import Groups, Trainee, build_method
from harness.timing.trainees import Mark, RealTrainee, WaitingTrainee, now_on, seconds_at
from harness.timing.workloads import Layers

Interval = tuple[float, float]


@dataclass(frozen=True)
class Setting:
    """All that the turns of one worker share.

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

    def trainee(self) -> Trainee:
        """A new model, with the same parameters on every worker."""
        if self.trains:
            return RealTrainee(self.workload.name, self.layers, self.device, dist.get_rank())
        return WaitingTrainee(self.layers, self.workload)


class Turn:
    """A method that is ready to train, built anew with the trainee that it trains, and warmed up by some steps."""

    def __init__(self, setting: Setting, timed: Method, num_warmup_steps: int) -> None:
        self.setting, self.trainee = setting, setting.trainee()
        self.method = build_method(
            timed, setting.workload.name, self.trainee, setting.groups, setting.visible, setting.num_workers
        )
        for _ in range(num_warmup_steps):
            self.method.step()

    def timed_step(self) -> tuple[RankStep, list[Recorded]]:
        """Take a step; its times on this worker, and what it sent."""
        device, watch = self.setting.device, self.trainee.watch
        with recorded(lambda: watch.share_done, device) as seen:
            began = now_on(device)
            self.method.step()
            ended = now_on(device)
        while device.type == "cpu" and any(each.ended is None for each in seen):
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

    collective: Collective
    key: tuple[str, int]
    payload_bytes: int
    ready: float
    began: Mark
    ended: Mark | None = None


@contextmanager
def recorded(share_done: Callable[[], float], device: torch.device) -> Iterator[list[Recorded]]:
    """Inside, all-reduces of torch.distributed, all-gathers and exchanges with neighbours add to the list.

    Those that DDP does by itself, in C++, do not.
    """
    seen: list[Recorded] = []
    reduce, gather, exchange = dist.all_reduce, Collectives.all_gather, Collectives.exchange_with_neighbours

    def begun(collective: Collective, group: str, tensor: Tensor, num_messages: int = 1) -> Recorded:
        key = group, sum(other.key[0] == group for other in seen)
        num_bytes = num_messages * tensor.numel() * tensor.element_size()
        seen.append(Recorded(collective, key, num_bytes, share_done(), now_on(device)))
        return seen[-1]

    def end(here: Recorded) -> None:
        here.ended = now_on(device)

    def all_reduce(tensor: Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None, async_op: bool = False) -> Any:
        here = begun("all_reduce", str((group or dist.group.WORLD).group_name), tensor)  # type: ignore[union-attr]
        work = reduce(tensor, op, group, async_op)
        if not async_op:
            end(here)
        elif not tensor.is_cuda:
            work.get_future().add_done_callback(lambda _: end(here))
        return work

    def all_gather(self: Collectives, tensor: Tensor, purpose: Purpose) -> Tensor:
        here = begun("all_gather", "gathered", tensor)
        gathered = gather(self, tensor, purpose)
        if not tensor.is_cuda:
            end(here)
        return gathered

    def neighbours(self: Collectives, tensor: Tensor, mixing: Mixing, purpose: Purpose) -> dict[int, Tensor]:
        if not mixing.num_messages:
            return exchange(self, tensor, mixing, purpose)
        here = begun("exchange", "neighbours", tensor, mixing.num_messages)
        received = exchange(self, tensor, mixing, purpose)
        if not tensor.is_cuda:
            end(here)
        return received

    with (
        patch.object(dist, "all_reduce", all_reduce),
        patch.object(Collectives, "all_gather", all_gather),
        patch.object(Collectives, "exchange_with_neighbours", neighbours),
    ):
        yield seen


@dataclass(frozen=True)
class RankStep:
    """One worker's step, in seconds of its clock.

    Attributes:
        passes_began, last_gradient: of the forward and backward pass; the time between is compute.
        collectives: by a key that is the same on all workers, from when it was begun to when it was done.
        scheduled_seconds: what the passes take where they are waits; infinite where they are not.
    """

    began: float
    passes_began: float
    last_gradient: float
    ended: float
    collectives: dict[tuple[str, int], Interval]
    scheduled_seconds: float


@dataclass(frozen=True)
class Parts:
    """A step's parts in seconds; `total` is the slowest worker's, the others are means over workers."""

    total: float
    compute: float
    codec: float
    waiting: float
    transfer: float


def parts_of(workers: Sequence[RankStep], share_clock: bool) -> Parts:
    """Split a step.

    Communication is the time after the last gradient in which a collective is on its way; what else is not compute is
    codec, and so is what delays scheduled waits. A worker waits while a collective that it has begun is not yet begun
    by all; where workers share no clock nobody knows, and it is part of transfer. Where compute is scheduled all
    workers' is equal, so a worker that waits because another's codec took longer (one host's workers contend for its
    cores) has that counted as codec.
    """
    exposed = [_clipped(worker.collectives.values(), worker) for worker in workers]
    compute = [min(each.last_gradient - each.passes_began, each.scheduled_seconds) for each in workers]
    communication = [_length(intervals) for intervals in exposed]
    codec = [
        each.ended - each.began - own - sent for each, own, sent in zip(workers, compute, communication, strict=True)
    ]
    waiting = _waiting(workers) if share_clock else [0.0] * len(workers)
    for rank, worker in enumerate(workers):
        if worker.scheduled_seconds < float("inf"):
            shift = min(waiting[rank], max(codec) - codec[rank])
            waiting[rank] -= shift
            codec[rank] += shift
            communication[rank] -= shift
    return Parts(
        total=max(worker.ended - worker.began for worker in workers),
        compute=mean(compute),
        codec=mean(codec),
        waiting=mean(waiting),
        transfer=mean(communication) - mean(waiting),
    )


def _waiting(workers: Sequence[RankStep]) -> list[float]:
    last = {key: max(worker.collectives[key][0] for worker in workers) for key in workers[0].collectives}
    until = [
        [(began, min(ended, last[key])) for key, (began, ended) in worker.collectives.items()] for worker in workers
    ]
    return [_length(_clipped(own, worker)) for own, worker in zip(until, workers, strict=True)]


def _clipped(intervals: Iterable[Interval], worker: RankStep) -> list[Interval]:
    """The parts of the intervals between the worker's last gradient and its end."""
    clipped = [(max(lo, worker.last_gradient), min(hi, worker.ended)) for lo, hi in intervals]
    return [(lo, hi) for lo, hi in clipped if lo < hi]


def _length(intervals: Sequence[Interval]) -> float:
    """Length of the union."""
    total, reached = 0.0, float("-inf")
    for lo, hi in sorted(intervals):
        total += max(0.0, hi - max(lo, reached))
        reached = max(reached, hi)
    return total
