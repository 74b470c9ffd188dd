"""A worker without others that does everything that one of several does."""

from __future__ import annotations

from torch import Tensor

from cser_bench.algorithms import Collectives
from cser_bench.algorithms.core.collectives import Add
from cser_bench.algorithms.core.topology import Mixing


class OneOfMany(Collectives):
    """One worker of a group whose others do not exist: their messages are as its own.

    Args:
        shares_memory: whether the others' messages are views of its own, which takes no time. Else
            they take room, as they do where they are received.
    """

    def __init__(self, rank: int, world_size: int, shares_memory: bool) -> None:
        super().__init__(rank, world_size)
        self._shares_memory = shares_memory

    # Messages keep their values: what is asked here is the time and the memory that a step takes.
    def _sum_(self, tensor: Tensor) -> None:
        pass

    def _gather(self, tensor: Tensor) -> Tensor:
        # (1, ...) to (world_size, ...): all rows are the same memory until they are cloned.
        gathered = tensor.expand(self.world_size, *tensor.shape[1:])
        return gathered if self._shares_memory else gathered.clone()

    def _broadcast_(self, tensor: Tensor) -> None:
        pass

    def _reduce_blocks(self, blocks: Tensor, add: Add) -> tuple[Tensor, Tensor]:
        # Rounded up, as the first shares are where blocks do not divide.
        num_blocks_of_share = -(-blocks.shape[1] // self.world_size)
        # A share from each worker: (world_size, blocks of a share, bytes).
        received = blocks[:, :num_blocks_of_share].repeat(self.world_size, 1, 1)
        _, rest = add(received)
        return blocks[0].clone(), rest

    def _exchange(self, tensor: Tensor, mixing: Mixing) -> dict[int, Tensor]:
        senders = mixing.senders[self.rank]
        if self._shares_memory:
            return dict.fromkeys(senders, tensor[0])
        return {sender: tensor[0].clone() for sender in senders}
