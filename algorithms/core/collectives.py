"""`Collectives`: the only way in which workers talk. It counts every bit and every call."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from algorithms.core.early_sums import EarlySums
from algorithms.core.traffic import Purpose, Traffic


class CollectiveError(RuntimeError):
    """A collective did not take place: a worker died, was late, or asked for something else than the others."""


class Collectives(ABC):
    """One worker's end of the group.

    Sums are always taken in the order of ranks, so that every kind of group gives the same bits.
    Payload is counted as what this worker contributes: for an all-reduce the message's own size, whatever the fabric
    makes of it; for an all-gather the message that it sends.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self.traffic = Traffic()
        self.seconds = 0.0
        """Wall-clock time spent in collectives, waiting for others included; not what went on beside other work."""
        self.early: EarlySums | None = None
        """Sums that are begun during the backward pass, where the group is asked to overlap."""

    @property
    def own_ranks(self) -> range:
        """The workers at this end: this one."""
        return range(self.rank, self.rank + 1)

    def packed(self, tensors: Sequence[Tensor]) -> Tensor:
        """The tensors of `own_ranks` in the form that collectives take: the one there is."""
        (tensor,) = tensors
        return tensor

    def common(self, tensor: Tensor) -> Tensor:
        """Any one worker's tensor, of a packed one that is the same for all."""
        return tensor

    def all_reduce_sum_(self, tensor: Tensor, purpose: Purpose) -> None:
        """Replace `tensor` (dense, any dtype that adds) by its sum over workers, in place."""
        started = time.perf_counter()
        if self.early is None or not self.early.finish_(tensor, purpose):
            self._sum_(tensor)
        self._count(tensor, purpose, started)

    def all_reduce_mean_(self, tensor: Tensor, purpose: Purpose) -> None:
        """Replace `tensor` (dense, floating) by its mean over workers, in place."""
        self.all_reduce_sum_(tensor, purpose)
        if self.world_size > 1:
            tensor.div_(self.world_size)

    def all_gather(self, tensor: Tensor, purpose: Purpose) -> Tensor:
        """All workers' tensors, of shape (world_size, *tensor.shape). Read only: threads share it."""
        started = time.perf_counter()
        gathered = self._gather(tensor)
        self._count(tensor, purpose, started, is_gather=True)
        return gathered

    def broadcast_(self, tensor: Tensor, purpose: Purpose) -> None:
        """Replace `tensor` by worker 0's, in place."""
        started = time.perf_counter()
        self._broadcast_(tensor)
        self._count(tensor, purpose, started)

    def _count(self, tensor: Tensor, purpose: Purpose, started: float, is_gather: bool = False) -> None:
        bits = 8 * tensor.element_size() * tensor.numel() // len(self.own_ranks)
        self.traffic.add(purpose, bits, gathered_bits=bits if is_gather else 0)
        self.seconds += time.perf_counter() - started

    @abstractmethod
    def _sum_(self, tensor: Tensor) -> None: ...

    @abstractmethod
    def _gather(self, tensor: Tensor) -> Tensor: ...

    @abstractmethod
    def _broadcast_(self, tensor: Tensor) -> None: ...


def sum_in_rank_order(rows: Sequence[Tensor]) -> Tensor:
    """A new tensor: rows[0] + rows[1] + ..., one addition at a time, so that the bits depend on nothing else."""
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total


class SoloCollectives(Collectives):
    """A group of one."""

    def __init__(self) -> None:
        super().__init__(0, 1)

    def _sum_(self, tensor: Tensor) -> None:
        pass

    def _gather(self, tensor: Tensor) -> Tensor:
        return torch.stack([tensor])

    def _broadcast_(self, tensor: Tensor) -> None:
        pass
