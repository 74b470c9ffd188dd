"""`Consensus`: for a while the parameters are the workers' average, and then each worker's own."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cser_bench.algorithms.core.collectives import Collectives
from cser_bench.algorithms.core.flat import unexpanded
from cser_bench.algorithms.core.traffic import Purpose


class Consensus:
    """Averages parameters inside a context, and refuses what would take them for a worker's own."""

    def __init__(self) -> None:
        self._is_inside = False

    def refuse_inside(self, call: str) -> None:
        """Raise RuntimeError, naming the call, while the parameters are averages."""
        if self._is_inside:
            raise RuntimeError(
                f"{call} inside consensus(), where parameters are averages for a while; call it "
                "outside"
            )

    @contextmanager
    def average(
        self,
        parameters: Sequence[Tensor],
        others: Iterable[Tensor],
        collectives: Collectives,
    ) -> Iterator[None]:
        """Make the parameters and other floating-point tensors the workers' averages inside.

        All workers must enter. Afterwards all of them, integers too, are what they were.

        Args:
            parameters: of each dtype, of shape (local workers, d).
        """
        # Contexts may be nested: the outer one goes on when the inner one ends.
        was_inside = self._is_inside
        self._is_inside = True
        try:
            with _averaged(parameters, others, collectives):
                yield
        finally:
            self._is_inside = was_inside


def averaged_beside(
    parameters: Iterable[Tensor], model: nn.Module | None, averages: Iterable[nn.Module]
) -> list[Tensor]:
    """Return the other tensors that are averaged: a model's buffers, and moving averages of it."""
    others: list[Tensor] = []
    for module in averages:
        others += [*module.parameters(), *module.buffers()]
    if model is not None:
        others += model.buffers()
    # Each tensor once: a model and its averages may share some, and may hold the optimiser's.
    held = set(map(id, parameters))
    unique = {id(tensor): tensor for tensor in others if id(tensor) not in held}
    return list(unique.values())


@contextmanager
def _averaged(
    parameters: Sequence[Tensor], others: Iterable[Tensor], collectives: Collectives
) -> Iterator[None]:
    floats = []
    # Not averaged, but a script may change them inside: `update_bn` counts batches.
    counts = []
    for tensor in others:
        written = unexpanded(tensor.detach())
        if tensor.is_floating_point():
            floats.append(
                written.unsqueeze(0)
            )  # (1, *shape), as collectives want a row each
        else:
            counts.append(written)
    restored = [*parameters, *floats, *counts]
    before = [tensor.clone() for tensor in restored]
    try:
        with torch.no_grad():
            for vector in parameters:
                mean = vector.contiguous()
                collectives.all_reduce_mean_(mean, Purpose.EVALUATION)
                vector.copy_(mean)
            for tensor in floats:
                tensor.copy_(_mean_of(tensor, collectives))
        yield
    finally:
        with torch.no_grad():
            for tensor, values in zip(restored, before, strict=True):
                tensor.copy_(values)


def _mean_of(tensor: Tensor, collectives: Collectives) -> Tensor:
    """Return the workers' mean of a tensor, whose sum over workers may be out of range."""
    # fp16 is added in fp32, which has room for the sum, and a division would take bits from its
    # smallest numbers. bfloat16 has the range of fp32, and needs the division.
    if tensor.dtype == torch.float16:
        mean = tensor.contiguous()
        collectives.all_reduce_mean_(mean, Purpose.EVALUATION)
        return mean
    # A mask may hold the most negative number there is, whose sum over workers would be infinite.
    # So it is divided first, by a power of two, 2^ceil(log2 n), which changes no other bit.
    scale = 2.0 ** (collectives.world_size - 1).bit_length()
    mean = tensor / scale
    collectives.all_reduce_mean_(mean, Purpose.EVALUATION)
    return mean.mul_(scale)
