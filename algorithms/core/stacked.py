"""All workers at one end: a row each of the same tensors, so that one operation steps them all."""

from __future__ import annotations

from torch import Tensor

from algorithms.core.collectives import Collectives, sum_in_rank_order
from algorithms.core.topology import Mixing


class StackedCollectives(Collectives):
    """A group whose workers are the rows of one process's tensors; traffic and bits are as each of them alone.

    Every tensor that takes part in a collective has a row for each worker, and parameters that an optimiser is made
    with have a first axis of as many. Results equal those of processes but for the order in which a backend adds.
    """

    def __init__(self, world_size: int) -> None:
        super().__init__(0, world_size)

    @property
    def own_ranks(self) -> range:
        """The workers at this end: all."""
        return range(self.world_size)

    def _sum_(self, tensor: Tensor) -> None:
        assert len(tensor) == self.world_size, "a row for each worker"
        tensor.copy_(sum_in_rank_order(tensor.unbind()))

    def _gather(self, tensor: Tensor) -> Tensor:
        return tensor

    def _broadcast_(self, tensor: Tensor) -> None:
        tensor.copy_(tensor[0].clone())

    def _exchange(self, tensor: Tensor, mixing: Mixing) -> dict[int, Tensor]:
        return dict(enumerate(tensor.unbind()))
