"""`Collectives`: the only way in which workers talk. It counts every bit and every call."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, Self

import torch
from torch import Tensor

from cser_bench.algorithms.core.overlap import EarlyMeans
from cser_bench.algorithms.core.topology import Mixing
from cser_bench.algorithms.core.traffic import Elapsed, Mark, Purpose, Traffic, mark

Add = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From all workers' messages of some blocks to the message that goes to all in their place, and to
what stays here."""

Kind = Literal["all_reduce", "two_stages", "all_gather", "exchange"]
"""Kind of a collective on the network; two stages are an all-to-all, then an all-gather of its
results."""

Observer = Callable[[Kind, str, int], AbstractContextManager[object]]
"""Context in which a collective runs, made from its kind, its group's name and the bytes that this
worker contributes."""


class CollectiveError(RuntimeError):
    """A collective did not take place.

    A worker died, was late, or asked for something else than the others.
    """


class Collectives:
    """One end of the group: one worker, or all of them.

    The first axis of every tensor is over the local workers: a process sends tensors of shape
    (1, ...). This class computes for a group whose workers are all local; a subclass that reaches
    other processes overrides `_sum_`, `_gather` and the like.

    Payload is counted as what this worker contributes: for an all-reduce the message's own size,
    whatever the fabric makes of it; for an all-gather the message that it sends; for neighbours
    that message once for each of them.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self.traffic = Traffic()
        self.account = ""
        self.elapsed = Elapsed()
        """Seconds spent in collectives, waiting for others included, by `account`; without those
        that overlapped with other work."""
        self.early: EarlyMeans | None = None
        """Means that are begun during the backward pass, where the group is asked to overlap."""
        self.twin: Collectives = self
        """The end of the separate group that early means travel by."""
        self.observer: Observer | None = None
        """Set by code that times steps; shared by copies of this end and by its twin."""

    @property
    def group_name(self) -> str:
        """Name of the group, equal on all its workers."""
        return ""

    @property
    def own_ranks(self) -> range:
        """The workers at this end: this one."""
        return range(self.rank, self.rank + 1)

    def without_overlap(self) -> Self:
        """Return a copy of this end that sends nothing early, and counts in the same place."""
        # Shallow: `traffic` and `elapsed` are shared.
        other = copy.copy(self)
        other.early = None
        return other

    def new_key(self) -> str:
        """Return a key for `first_to_say`: equal on all workers that have asked equally often."""
        return ""

    def first_to_say(self, key: str, words: str) -> str:
        """Return the words of the first worker to call this with this key.

        It waits for nobody, and sends no message.
        """
        return words  # all workers are at this end, or this one is alone

    def all_reduce_sum_(self, tensor: Tensor, purpose: Purpose) -> None:
        """Replace `tensor` (dense, any dtype that adds) by its sum over workers, in place."""
        with self._counted(tensor, purpose):
            self._observed_sum_(tensor)

    def all_reduce_mean_(self, tensor: Tensor, purpose: Purpose) -> Tensor | None:
        """Replace `tensor` (dense, floating) by its mean over workers, in place.

        Numbers of 16 bits are added in 32, and the mean is rounded once: where all are equal it is
        what they are, and it is finite where they are.

        Returns:
            For numbers of 16 bits n times what rounding added to the mean, in 32 bits and of the
            tensor's shape: on this worker's share, elsewhere 0. Where each adds it to what it sent,
            the mean of that is what all received.
        """
        with self._counted(tensor, purpose):
            # With overlap this mean may have begun during the backward pass.
            if self.early is not None:
                was_begun, rest = self.early.finish_(tensor, purpose)
                if was_begun:
                    return rest
            return self._mean_(tensor)

    def all_reduce_blocks(
        self, blocks: Tensor, add: Add, purpose: Purpose
    ) -> tuple[Tensor, Tensor]:
        """Reduce messages in shares: each worker gets its share of all, and sends what `add` makes.

        This is an all-to-all, then an all-gather. Between single workers a link carries as much as
        for an all-reduce, so it is counted as one. Where several workers share a link, the link
        carries each one's all-to-all.

        Args:
            blocks: messages in blocks that can be added one without the other, uint8 of shape
                (local workers, number of blocks, bytes).
            add: from the blocks of this end's share, of shape (world_size, their number, bytes),
                makes those that go to all, of shape (their number, bytes).

        Returns:
            The blocks that went to all, of shape (number of blocks, bytes), and what else `add`
            returned.
        """
        with self._counted(blocks, purpose), self._observed("two_stages", blocks):
            return self._reduce_blocks(blocks, add)

    def all_gather(self, tensor: Tensor, purpose: Purpose) -> Tensor:
        """Return all workers' tensors, of shape (world_size, *tensor.shape[1:]). Read only."""
        counted = self._counted(tensor, purpose, is_gather=True)
        with counted, self._observed("all_gather", tensor):
            return self._gather(tensor)

    def broadcast_(self, tensor: Tensor, purpose: Purpose) -> None:
        """Replace `tensor` by worker 0's, in place."""
        with self._counted(tensor, purpose):
            self._broadcast_(tensor)

    def exchange_with_neighbours(
        self, tensor: Tensor, mixing: Mixing, purpose: Purpose
    ) -> dict[int, Tensor]:
        """Send `tensor`, dense and of one shape and dtype on all workers, to this worker's neighbours.

        All workers must call it together, whatever their neighbours. One collective is counted, with
        the message's bits once for each neighbour; nothing if no worker has any.

        Returns:
            The messages that workers at this end take, by the sender's rank, each of shape
            `tensor.shape[1:]`. Read only: stacked ones are views of `tensor`.
        """
        assert mixing.num_workers == self.world_size, "a mixing of another group"
        if not mixing.num_messages:
            return {}
        counted = self._counted(tensor, purpose, to_neighbours=mixing.num_messages)
        with counted, self._observed("exchange", tensor, mixing.num_messages):
            return self._exchange(tensor, mixing)

    @contextmanager
    def _counted(
        self,
        tensor: Tensor,
        purpose: Purpose,
        is_gather: bool = False,
        to_neighbours: int = 0,
    ) -> Iterator[None]:
        """Count a collective with this message, once it has taken place, and its time."""
        started = self._mark(tensor)
        # The bits of one worker: each row of stacked workers is one worker's message.
        num_here = len(self.own_ranks)
        bits = 8 * tensor.element_size() * tensor.numel() // num_here
        yield  # if it raises, nothing took place, and nothing is counted
        # A message to neighbours is sent once to each; others are one message.
        straight = bits * to_neighbours
        gathered = 0
        if is_gather:
            gathered = bits
        self.traffic.add(
            purpose,
            bits=straight or bits,
            collectives=1,
            gathered_bits=gathered,
            neighbour_bits=straight,
        )
        ended = self._mark(tensor)
        self.elapsed.add(self.account, started, ended)

    def _observed(
        self, kind: Kind, tensor: Tensor, num_messages: int = 1
    ) -> AbstractContextManager[object]:
        """Tell the observer of a collective with so many messages of this size."""
        if self.observer is None:
            return nullcontext()
        num_here = len(self.own_ranks)
        num_bytes = num_messages * tensor.element_size() * tensor.numel() // num_here
        return self.observer(kind, self.group_name, num_bytes)

    def _mark(self, tensor: Tensor) -> Mark:
        """Now, where this tensor's collectives take place."""
        return mark(tensor.device)

    def _mean_(self, tensor: Tensor) -> Tensor | None:
        # 16-bit numbers are added in 32 bits, which torch's all-reduce does not do.
        if self.world_size > 1 and tensor.element_size() < 4:
            with self._observed("two_stages", tensor):
                return self._short_mean_(tensor)
        self._observed_sum_(tensor)
        # A single worker keeps its numbers, without a pass over them.
        if self.world_size > 1:
            tensor.div_(self.world_size)
        return None

    def _observed_sum_(self, tensor: Tensor) -> None:
        with self._observed("all_reduce", tensor):
            self._sum_(tensor)

    def _short_mean_(self, tensor: Tensor) -> Tensor:
        """Return the mean of 16-bit numbers, added in 32 bits.

        All ends must add in the order of ranks.
        """
        mean = mean_in_rank_order(self._gather(tensor))  # float32, tensor.shape[1:]
        tensor.copy_(mean)  # rounded to 16 bits
        rest = torch.zeros_like(tensor, dtype=torch.float32)
        # n times what rounding added to the mean, as the mean is a sum over n.
        added = (tensor[0].float() - mean).mul_(self.world_size).view(-1)
        # Each coordinate's rest falls to one worker, so that together they keep it once.
        size = math.ceil(mean.numel() / self.world_size)
        for row, rank in zip(rest.view(len(rest), -1), self.own_ranks, strict=True):
            share = slice(rank * size, (rank + 1) * size)
            row[share] = added[share]
        return rest

    def _reduce_blocks(self, blocks: Tensor, add: Add) -> tuple[Tensor, Tensor]:
        return add(blocks)

    def _sum_(self, tensor: Tensor) -> None:
        assert len(tensor) == self.world_size, "a row for each worker"
        if len(tensor) > 1:
            tensor.copy_(sum_in_rank_order(tensor.unbind()))

    def _gather(self, tensor: Tensor) -> Tensor:
        return tensor

    def _broadcast_(self, tensor: Tensor) -> None:
        tensor[1:] = tensor[0]

    def _exchange(self, tensor: Tensor, mixing: Mixing) -> dict[int, Tensor]:
        return dict(enumerate(tensor.unbind()))


def share_of(ranks: range, count: int, world_size: int) -> slice:
    """Return the slice of `count` things in a row that falls to these ranks.

    The ranks' shares differ in size by 1 at most.
    """
    start = ranks.start * count // world_size
    stop = ranks.stop * count // world_size
    return slice(start, stop)


def sum_in_rank_order(rows: Sequence[Tensor]) -> Tensor:
    """Return rows[0] + rows[1] + ..., one addition at a time, so that the bits are reproducible."""
    # torch.sum would not do: its order depends on shapes, threads and devices.
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total


def mean_in_rank_order(rows: Tensor) -> Tensor:
    """Return the mean of rows of 16-bit numbers, in 32 bits."""
    total = sum_in_rank_order(rows.float().unbind())
    return total.div_(len(rows))


class SoloCollectives(Collectives):
    """A group of one."""

    def __init__(self) -> None:
        super().__init__(0, 1)


class StackedCollectives(Collectives):
    """A group whose workers are the rows of one process's tensors.

    Every tensor in a collective has a row for each worker, and so have the parameters that an
    optimiser is made with. Bits are counted for one worker. Results equal those of processes, up to
    the order in which a backend adds.
    """

    def __init__(self, world_size: int) -> None:
        super().__init__(0, world_size)

    @property
    def own_ranks(self) -> range:
        """The workers at this end: all."""
        return range(self.world_size)
