"""Records a step's collectives where all methods' pass: what was sent, how far the backward pass was, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor

from algorithms import Collectives, Purpose
from algorithms.core.topology import Mixing
from harness.records.timings import Collective
from harness.speed.clock import Mark, Now


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
