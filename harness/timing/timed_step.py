"""What a step consists of: which collectives are seen in it, and how much is compute, codec,
waiting and transfer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from cser_bench.algorithms import ProcessGroupCollectives
from cser_bench.algorithms.core.topology import Mixing
from cser_bench.algorithms.core.traffic import Mark, mark
from cser_bench.harness.records.timings import Collective

Interval = tuple[float, float]


@dataclass
class Recorded:
    """One collective of this worker, by its group and number in that, as other workers know it too.

    `ready` is the share of the backward pass that was done when it began; `ended` is None for one
    that the host does not see end (on a GPU, where it did not wait for it).
    """

    collective: Collective
    key: tuple[str, int]
    payload_bytes: int
    ready: float
    began: Mark
    ended: Mark | None = None


@contextmanager
def recorded(share_done: Callable[[], float], device: torch.device) -> Iterator[list[Recorded]]:
    """Inside, all-reduces of torch.distributed and what methods of this project send add to the
    list.

    All-reduces that DDP does by itself, in C++, do not.
    """
    seen: list[Recorded] = []
    reduce = dist.all_reduce

    def begun(
        collective: Collective, group: Any, tensor: Tensor, num_messages: int = 1
    ) -> Recorded:
        name = str((group or dist.group.WORLD).group_name)  # type: ignore[union-attr]
        key = name, sum(other.key[0] == name for other in seen)
        num_bytes = num_messages * tensor.numel() * tensor.element_size()
        seen.append(Recorded(collective, key, num_bytes, share_done(), mark(device)))
        return seen[-1]

    def end(here: Recorded, _: object = None) -> None:
        here.ended = mark(device)

    def all_reduce(
        tensor: Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None, async_op: bool = False
    ) -> Any:
        here = begun("all_reduce", group, tensor)
        work = reduce(tensor, op, group, async_op)
        if not async_op:
            end(here)
        elif not tensor.is_cuda:
            work.get_future().add_done_callback(partial(end, here))
        return work

    def seen_whole(collective: Collective, name: str) -> Callable[..., Any]:
        original = getattr(ProcessGroupCollectives, name)

        def send(self: ProcessGroupCollectives, tensor: Tensor, *others: Any) -> Any:
            [num_messages] = [each.num_messages for each in others if isinstance(each, Mixing)] or [
                1
            ]
            if not num_messages:
                return original(self, tensor, *others)
            here = begun(collective, self.group, tensor, num_messages)
            result = original(self, tensor, *others)
            end(here)
            return result

        return send

    with (
        patch.object(dist, "all_reduce", all_reduce),
        patch.multiple(
            ProcessGroupCollectives,
            _reduce_blocks=seen_whole("two_stages", "_reduce_blocks"),
            all_gather=seen_whole("all_gather", "all_gather"),
            exchange_with_neighbours=seen_whole("exchange", "exchange_with_neighbours"),
        ),
    ):
        yield seen


@dataclass(frozen=True)
class RankStep:
    """One worker's step, in seconds of its clock.

    Compute is from `passes_began` to `last_gradient`. Collectives are from when they were begun to
    when they were done, by keys that are the same on all workers. `scheduled_seconds` is infinite
    where passes are no waits.
    """

    began: float
    passes_began: float
    last_gradient: float
    ended: float
    collectives: dict[tuple[str, int], Interval]
    scheduled_seconds: float


@dataclass(frozen=True)
class Parts:
    """A step's parts in seconds; `total` is the slowest worker's, the others are means over
    workers."""

    total: float
    compute: float
    codec: float
    waiting: float
    transfer: float


def parts_of(workers: Sequence[RankStep], share_clock: bool) -> Parts:
    """Split a step.

    Communication is the time after the last gradient in which a collective is on its way; what else
    is not compute is codec, and so is what delays scheduled waits. A worker waits while a
    collective that it has begun is not yet begun by all; where workers share no clock nobody knows,
    and it is part of transfer. Where compute is scheduled all workers' is equal, so a worker that
    waits because another's codec took longer (one host's workers contend for its cores) has that
    counted as codec.
    """
    compute = [
        min(each.last_gradient - each.passes_began, each.scheduled_seconds) for each in workers
    ]
    sending = [_exposed(each.collectives.values(), each) for each in workers]
    codec = [
        each.ended - each.began - own - sent
        for each, own, sent in zip(workers, compute, sending, strict=True)
    ]
    waiting = [0.0] * len(workers)
    if share_clock:
        last = {
            key: max(worker.collectives[key][0] for worker in workers)
            for key in workers[0].collectives
        }
        until = [
            [(lo, min(hi, last[key])) for key, (lo, hi) in worker.collectives.items()]
            for worker in workers
        ]
        waiting = [_exposed(own, worker) for own, worker in zip(until, workers, strict=True)]
    for rank, worker in enumerate(workers):
        if worker.scheduled_seconds < float("inf"):
            shift = min(waiting[rank], max(codec) - codec[rank])
            waiting[rank] -= shift
            codec[rank] += shift
            sending[rank] -= shift
    return Parts(
        total=max(worker.ended - worker.began for worker in workers),
        compute=mean(compute),
        codec=mean(codec),
        waiting=mean(waiting),
        transfer=mean(sending) - mean(waiting),
    )


def _exposed(intervals: Iterable[Interval], worker: RankStep) -> float:
    """Length of the intervals' union between the worker's last gradient and its end."""
    total, reached = 0.0, worker.last_gradient
    for lo, hi in sorted(intervals):
        until = min(hi, worker.ended)
        total += max(0.0, until - max(lo, reached))
        reached = max(reached, until)
    return total
