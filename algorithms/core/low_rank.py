"""Tensors of two or more axes as matrices, and where the factors of their low-rank approximations
lie in messages."""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from cser_bench.algorithms.core.layout import Layout, Window, Windows

Side = Literal["rows", "columns"]


@dataclass(frozen=True)
class Matrix:
    """Tensor `number` of a layout seen as (first axis, rest), which P Q^T of this rank stands for.

    Q has its rows in the order of the tensor's axes. In memory the columns may have another
    (channels last); then Q's rows change places, which are few numbers, and not the columns.
    """

    number: int
    window: Window
    rank: int

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.window.shape[0], math.prod(self.window.shape[1:])

    def of(self, vector: Tensor) -> Tensor:
        """The matrix as it lies in a vector of shape (d,): a view of this shape."""
        return vector[self.window.offset : self.window.offset + self.window.numel].view(self.shape)

    @cached_property
    def _axes(self) -> list[int]:
        """The axes of a column, the slowest in memory first."""
        return sorted(
            range(len(self.window.shape) - 1), key=lambda axis: -self.window.strides[axis + 1]
        )

    def as_in_memory(self, q: Tensor) -> Tensor:
        """Q, of shape (columns, rank), with its rows in the order that the columns have in
        memory."""
        return q.view(*self.window.shape[1:], self.rank).permute(*self._axes, -1).reshape(q.shape)

    def as_in_tensor(self, q: Tensor) -> Tensor:
        """The inverse of `as_in_memory`."""
        shape = [self.window.shape[axis + 1] for axis in self._axes]
        places = [self._axes.index(axis) for axis in range(len(shape))]
        return q.view(*shape, self.rank).permute(*places, -1).reshape(q.shape)


@dataclass(frozen=True)
class LowRank:
    """A layout seen at a rank: its matrices, those of one shape side by side, and two messages.

    The first message holds every P, and then the tensors that are no matrices; the second every Q.
    A matrix' own rank is at most its smaller side.
    """

    layout: Layout
    rank: int

    @cached_property
    def matrices(self) -> tuple[Matrix, ...]:
        found = [
            Matrix(number, window, min(self.rank, window.shape[0], math.prod(window.shape[1:])))
            for number, window in enumerate(self.layout.tensors)
            if len(window.shape) > 1 and window.numel
        ]
        return tuple(sorted(found, key=lambda each: each.shape))

    @cached_property
    def rest(self) -> Windows:
        """The tensors that are no matrices."""
        taken = {each.number for each in self.matrices}
        return Windows(
            tuple(each for number, each in enumerate(self.layout.tensors) if number not in taken)
        )

    @cached_property
    def first_numel(self) -> int:
        """Numbers of the first message."""
        return sum(each.shape[0] * each.rank for each in self.matrices) + self.rest.payload_numel

    @cached_property
    def second_numel(self) -> int:
        """Numbers of the second message."""
        return sum(each.shape[1] * each.rank for each in self.matrices)

    @property
    def sent_numel(self) -> int:
        """Numbers of both."""
        return self.first_numel + self.second_numel

    def _batches(self, message: Tensor, side: Side) -> list[Tensor]:
        """Views of a message's factors, of shape (matrices of one shape, rows or columns, rank)."""
        groups = [list(group) for _, group in groupby(self.matrices, lambda each: each.shape)]
        shapes = [
            (len(group), group[0].shape[side == "columns"], group[0].rank) for group in groups
        ]
        sizes = list(map(math.prod, shapes))
        parts = message[: sum(sizes)].split(sizes)  # type: ignore[no-untyped-call]
        return (
            [part.view(shape) for part, shape in zip(parts, shapes, strict=True)] if shapes else []
        )

    def factors(self, message: Tensor, side: Side) -> list[Tensor]:
        """Every P ("rows") of a first message or Q ("columns") of a second one: views, in the order
        of the matrices."""
        return [factor for batch in self._batches(message, side) for factor in batch]

    def others_of(self, first: Tensor) -> Tensor:
        """The tensors that are no matrices in a first message, as `rest` gathers them."""
        return first[self.first_numel - self.rest.payload_numel :]

    def orthonormalise_(self, first: Tensor) -> None:
        """Give every P in a first message of shape (first_numel,) orthonormal columns with the same
        span or more.

        By Householder's reflections: they are right for columns of any size, also 0, which Gram and
        Schmidt's are not.
        """
        for batch in self._batches(first, "rows"):
            wide = batch if batch.dtype in (torch.float32, torch.float64) else batch.float()
            batch.copy_(torch.linalg.qr(wide).Q)

    def normalise_(self, second: Tensor) -> None:
        """Give the columns of every Q in a second message of shape (second_numel,) the length 1,
        but for those of 0.

        A square Q becomes the identity: its span is to be everything, and a gradient that was not
        may have narrowed it.
        """
        for batch in self._batches(second, "columns"):
            if batch.shape[1] == batch.shape[2]:
                batch.copy_(torch.eye(batch.shape[1], device=batch.device))
            else:
                lengths = torch.linalg.vector_norm(batch, dim=1, keepdim=True)
                batch.div_(lengths.clamp_(min=torch.finfo(batch.dtype).tiny))
