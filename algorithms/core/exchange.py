"""How vectors are sent: to all workers, in part (PSync of Xie 2020), or to neighbours."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cser_bench.algorithms.core.collectives import (
    Collectives,
    share_of,
    sum_in_rank_order,
)
from cser_bench.algorithms.core.compressors import (
    Compressor,
    Draw,
    Encoded,
    Gathered,
    Reduced,
    SharedSupport,
    rounded,
)
from cser_bench.algorithms.core.finite import FiniteWatch
from cser_bench.algorithms.core.layout import Layout, Support, whole
from cser_bench.algorithms.core.topology import Mixing
from cser_bench.algorithms.core.traffic import Elapsed, Purpose, Traffic


@dataclass(frozen=True)
class Exchanged:
    """What was sent to all, on the coordinates it was sent for.

    `own` is each worker's C(v), `mean` the average of it over all workers; both of shape (local
    workers, support.payload_numel).
    """

    support: Support
    own: Tensor
    mean: Tensor


@dataclass(frozen=True)
class Mixed:
    """What was sent to neighbours, on the coordinates it was sent for.

    `own` is this worker's C(v_i), and `pull` is sum_j w_ij (C(v_j) - C(v_i)), so that own + pull is
    its row of W C(v); both of shape (local workers, support.payload_numel).
    """

    support: Support
    own: Tensor
    pull: Tensor


@dataclass(frozen=True)
class Sending:
    """Sends vectors of shape (local workers, d) between the workers of `collectives`.

    Dense messages are rounded to `communication_dtype`. The vectors themselves are not changed.
    """

    collectives: Collectives
    communication_dtype: torch.dtype | None = None
    """None for the vector's own type."""
    watch: FiniteWatch | None = None
    """Says so where what is sent is not finite."""

    def average(self, payload: Tensor, purpose: Purpose) -> tuple[Tensor, Tensor]:
        """Average `payload`, of any length; return what was sent of it, and the workers' mean.

        Where messages are rounded, so is their mean. The worker that reduced a coordinate counts
        that second rounding error as part of what it sent. So the mean is exactly the mean of what
        was sent, and a method that keeps the rest loses nothing.
        """
        self.look_at(payload)
        message, own = self._rounded(payload)
        # The mean takes the message's place, and the payload must stay.
        if message is payload:
            message = message.clone()
        # A draw may keep nothing. It is the same on all workers, so none waits for this one.
        if payload.numel():
            rest = self.collectives.all_reduce_mean_(message, purpose)
            # Where messages are the payload itself, so is `own`, and it must stay.
            if self.communication_dtype is not None and rest is not None:
                own.add_(rest)
        return own, message.to(payload.dtype)

    def message(self, payload: Tensor) -> Tensor:
        """Return `payload` rounded to the dtype of messages, or itself if messages are not rounded.

        A finite number beyond the dtype's range becomes the largest number of its sign; the
        difference counts as rounding. Infinities and NaN stay.
        """
        if self.communication_dtype is None:
            return payload
        return rounded(payload, self.communication_dtype)

    def _rounded(self, payload: Tensor) -> tuple[Tensor, Tensor]:
        """Return `payload` as a message, and the message back in the dtype of `payload`."""
        message = self.message(payload)
        return message, message.to(payload.dtype)

    def look_at(self, message: Tensor) -> None:
        """Report rows of a message that are not finite, before it is sent."""
        if self.watch is not None:
            self.watch.look_at(message)

    def exchange(
        self,
        vector: Tensor,
        compressor: Compressor,
        layout: Layout,
        draw: Draw,
        purpose: Purpose,
    ) -> Exchanged:
        """Send C(vector) to all workers and average it."""
        collectives = self.collectives
        if isinstance(compressor, SharedSupport):
            support = compressor.support(layout, draw)
            # The support is equal on all workers, so the kept numbers can be added as they are.
            own, mean = self.average(support.gather(vector), purpose)
            return Exchanged(support, own, mean)
        self.look_at(vector)
        if isinstance(compressor, Reduced):
            return self._exchange_in_shares(vector, compressor, draw, purpose)
        assert isinstance(compressor, Gathered)
        gathered = collectives.all_gather(
            self._encoded(vector, compressor, draw), purpose
        )
        rows = []  # C(v_i) of each local worker
        # In 32 bits at least: a sum of finite fp16 numbers may lie beyond fp16.
        wide = torch.promote_types(vector.dtype, torch.float32)
        # (d,), equal on all workers
        mean = vector.new_zeros(layout.numel, dtype=wide)
        # In the order of ranks on every worker, so that the sums' bits are the same.
        for rank, message in enumerate(gathered):
            decoded = compressor.decode(message, layout.numel, vector.dtype)
            mean += decoded
            if rank in collectives.own_ranks:
                rows.append(decoded)
        mean = mean.div_(collectives.world_size).to(vector.dtype)
        return Exchanged(whole(layout.numel), torch.stack(rows), mean.expand_as(vector))

    def begin_exchange(
        self,
        vector: Tensor,
        compressor: Compressor,
        layout: Layout,
        draw: Draw,
        purpose: Purpose,
    ) -> Callable[[], Exchanged]:
        """Begin `exchange`, and return a function that waits for its result.

        If the group overlaps, it runs in a thread of its own, during the computation that follows.
        Until the function has returned, `vector` must not be changed, and with overlap what was sent
        is not counted.
        """
        if self.collectives.early is None:
            sent = self.exchange(vector, compressor, layout, draw, purpose)
            return lambda: sent
        self.look_at(vector)
        # The other thread counts in a ledger of its own, since this one goes on counting.
        end = copy.copy(self.collectives.twin)
        end.traffic = Traffic()
        end.elapsed = Elapsed()
        supports: list[Support] = []

        def send() -> tuple[Tensor, Tensor]:
            # Not watched: the vector was looked at before, by the thread that steps.
            aside = replace(self, collectives=end, watch=None)
            sent = aside.exchange(vector, compressor, layout, draw, purpose)
            # Through a list, since `beside` returns tensors only, each of which it tells its stream.
            supports.append(sent.support)
            return sent.own, sent.mean

        waiting = self.collectives.early.beside(send, vector)

        def wait() -> Exchanged:
            own, mean = waiting()
            # Only now, and by the thread that reads the ledger, is it counted.
            self.collectives.traffic.add_entry(purpose, end.traffic[purpose])
            return Exchanged(supports[0], own, mean)

        return wait

    def _exchange_in_shares(
        self, vector: Tensor, compressor: Reduced, draw: Draw, purpose: Purpose
    ) -> Exchanged:
        """Do an all-reduce whose messages are compressed in both of its stages.

        A worker decodes its share of all messages, adds it in 32 bits, and encodes the mean.

        Source: Wang et al., "ZeRO++: Extremely efficient collective communication for giant model
        training", 2023, section 3.3, and Tang et al., "1-bit Adam", ICML 2021, whose error of the
        second stage is here part of the worker's own.
        """
        collectives = self.collectives
        numel = vector.shape[-1]
        size = compressor.block_size
        num_workers = collectives.world_size
        # (local workers, blocks, bytes)
        blocks = compressor.encode(vector, draw, collectives.rank)

        # The coordinates of the blocks that fall to these ranks.
        def coordinates(ranks: range) -> slice:
            share = share_of(ranks, blocks.shape[-2], num_workers)
            # The last block is filled up, beyond the vector's end.
            start = min(share.start * size, numel)
            stop = min(share.stop * size, numel)
            return slice(start, stop)

        here = coordinates(collectives.own_ranks)
        count = here.stop - here.start
        # 32 bits at least, so that the sum of all shares is not rounded to 16.
        dtype = torch.promote_types(vector.dtype, torch.float32)

        def add(received: Tensor) -> tuple[Tensor, Tensor]:
            # Divided before they are added, so that the sum of finite numbers is finite.
            # (workers, count)
            shares = compressor.decode(received, count, dtype).div_(num_workers)
            exact = sum_in_rank_order(shares.unbind())  # the mean, (count,)
            message = compressor.encode(exact, draw, collectives.rank)
            received_back = compressor.decode(message, count, dtype)
            # n times what the second rounding added to the mean.
            return message, received_back.sub_(exact).mul_(num_workers)

        # `rest` is of the coordinates `here` alone.
        reduced, rest = collectives.all_reduce_blocks(blocks, add, purpose)
        own = compressor.decode(blocks, numel, vector.dtype)
        # The worker that added a share counts the mean's rounding error as sent, n times, as the
        # mean divides by n. Then the mean of `own` is the mean that all received.
        for row, rank in zip(own, collectives.own_ranks, strict=True):
            share = coordinates(range(rank, rank + 1))
            start = share.start - here.start
            stop = share.stop - here.start
            row[share] += rest[start:stop]
        mean = compressor.decode(reduced, numel, vector.dtype)
        return Exchanged(whole(numel), own, mean.expand_as(vector))

    def _encoded(self, vector: Tensor, compressor: Encoded, draw: Draw) -> Tensor:
        """Return the messages of the workers at this end, a row each."""
        messages = []
        # By rank, since what is drawn in encoding is each worker's own, also where rows are stacked.
        for rank, row in zip(self.collectives.own_ranks, vector, strict=True):
            messages.append(compressor.encode(row, draw, rank))
        return torch.stack(messages)

    def mix(
        self,
        vector: Tensor,
        compressor: Compressor,
        mixing: Mixing,
        layout: Layout,
        draw: Draw,
        purpose: Purpose,
    ) -> Mixed:
        """Send C(vector) to the neighbours and mix in what they send."""
        if isinstance(compressor, SharedSupport):
            support = compressor.support(layout, draw)
            payload = support.gather(vector)
            own, pull = self.mix_dense(payload, mixing, purpose)
            return Mixed(support, own, pull)
        assert isinstance(compressor, Encoded)
        self.look_at(vector)

        def decode(message: Tensor) -> Tensor:
            return compressor.decode(message, layout.numel, vector.dtype)

        encoded = self._encoded(vector, compressor, draw)
        received = self.collectives.exchange_with_neighbours(encoded, mixing, purpose)
        # Decoded as the neighbours do it, so that both sides take the same C(v_i).
        own = torch.stack([decode(message) for message in encoded])
        pull = self._pull(own, mixing, lambda sender: decode(received[sender]))
        return Mixed(whole(layout.numel), own, pull)

    def mix_dense(
        self, payload: Tensor, mixing: Mixing, purpose: Purpose
    ) -> tuple[Tensor, Tensor]:
        """Return what of `payload`, of any length, was sent, and its pull, as in `Mixed`."""
        self.look_at(payload)
        message, own = self._rounded(payload)
        # As in `average`: no worker sends where the draw keeps nothing.
        if not payload.numel():
            return own, torch.zeros_like(own)
        received = self.collectives.exchange_with_neighbours(message, mixing, purpose)
        return own, self._pull(
            own, mixing, lambda sender: received[sender].to(own.dtype)
        )

    def _pull(
        self, own: Tensor, mixing: Mixing, sent_by: Callable[[int], Tensor]
    ) -> Tensor:
        """Return, as a new tensor, sum_j w_ij (m_j - m_i) for each worker i here, j in rank order.

        Differences are summed, and not w_ij m_j: rounded weights need not sum to 1, and over many
        steps the excess would let the parameters grow. Product and sum are operations of their own,
        since a fused one would round differently between kernels.
        """
        pull = torch.zeros_like(own)
        rows = own.unbind()
        own_ranks = self.collectives.own_ranks
        for rank, mine, total in zip(own_ranks, rows, pull, strict=True):
            for sender, weight in mixing.neighbours[rank]:
                # A local worker's message is decoded already.
                is_here = sender in own_ranks
                theirs = rows[sender - own_ranks.start] if is_here else sent_by(sender)
                total.add_((theirs - mine).mul_(weight))
        return pull
