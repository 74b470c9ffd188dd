"""All workers at one end: a row each of the same tensors, so that one operation steps them all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from algorithms.core.collectives import Collectives, sum_in_rank_order
from algorithms.core.topology import Mixing


class StackedCollectives(Collectives):
    """A group whose workers are the rows of one process's tensors; traffic and bits are as each of them alone.

    Every tensor that takes part in a collective has a first axis of `world_size` rows, and parameters that an optimiser
    is made with have it too. Results equal those of processes but for the order in which
    a backend adds.
    """

    def __init__(self, world_size: int) -> None:
        super().__init__(0, world_size)

    @property
    def own_ranks(self) -> range:
        """The workers at this end: all."""
        return range(self.world_size)

    def packed(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(tensors))

    def common(self, tensor: Tensor) -> Tensor:
        return tensor[0]

    def _sum_(self, tensor: Tensor) -> None:
        tensor.copy_(sum_in_rank_order(tensor.unbind()))

    def _gather(self, tensor: Tensor) -> Tensor:
        return tensor

    def _broadcast_(self, tensor: Tensor) -> None:
        tensor.copy_(tensor[0].clone())

    def _exchange(self, tensor: Tensor, mixing: Mixing) -> dict[int, Tensor]:
        return dict(enumerate(tensor.unbind()))


def own_vectors(vector: Tensor) -> list[Tensor]:
    """Each worker's part of a tensor of shape (n,) or, with workers stacked, (num_workers, n).

    Of stacked workers they are copies, which begin in memory as a single worker's vector does: where a matrix begins
    elsewhere, its product with a vector is rounded in another way.
    """
    return [vector] if vector.dim() == 1 else [row.clone() for row in vector.unbind()]
