"""Tensors of two or more axes as matrices, and where their low-rank factors lie in messages."""

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

    `stream` numbers its draws: it counts the layout's tensors that are not empty.

    Q has its rows in the order of the tensor's axes. In memory the columns may have another
    (channels last); then Q's rows change places, which are few numbers, and not the columns.
    """

    number: int
    stream: int
    window: Window
    rank: int

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, *rest = self.window.shape
        return rows, math.prod(rest)

    def of(self, vector: Tensor) -> Tensor:
        """Return the matrix as it lies in a vector of shape (d,): a view of this shape."""
        # A tensor is dense, so in memory it is one stretch, whatever its strides.
        start = self.window.offset
        stop = start + self.window.numel
        return vector[start:stop].view(self.shape)

    @cached_property
    def _axes(self) -> list[int]:
        """The axes of a column, the slowest in memory first."""
        strides = self.window.strides[1:]
        axes = range(len(strides))
        return sorted(axes, key=lambda axis: -strides[axis])

    def as_in_memory(self, q: Tensor) -> Tensor:
        """Return Q, of shape (columns, rank), with rows in the order of the columns in memory."""
        by_axis = q.view(*self.window.shape[1:], self.rank)  # (axes of a column, rank)
        in_memory = by_axis.permute(*self._axes, -1)  # slowest axis first, rank last
        return in_memory.reshape(q.shape)

    def as_in_tensor(self, q: Tensor) -> Tensor:
        """Return the inverse of `as_in_memory`."""
        shape = [self.window.shape[axis + 1] for axis in self._axes]
        # The inverse permutation: where in memory each axis of the tensor is.
        places = [self._axes.index(axis) for axis in range(len(shape))]
        by_axis = q.view(*shape, self.rank)
        in_tensor = by_axis.permute(*places, -1)
        return in_tensor.reshape(q.shape)


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
        matrices = []
        stream = 0
        for number, window in enumerate(self.layout.tensors):
            # An empty tensor must not shift the draws of those behind it.
            if not window.numel:
                continue
            # Biases and norms have one axis, and are sent whole.
            if len(window.shape) > 1:
                rows, *rest = window.shape
                rank = min(self.rank, rows, math.prod(rest))
                matrices.append(Matrix(number, stream, window, rank))
            stream += 1
        # So that those of one shape are side by side in a message, and can be one batch.
        matrices.sort(key=lambda matrix: matrix.shape)
        return tuple(matrices)

    @cached_property
    def rest(self) -> Windows:
        """The tensors that are no matrices."""
        taken = {matrix.number for matrix in self.matrices}
        others = []
        for number, window in enumerate(self.layout.tensors):
            if number not in taken:
                others.append(window)
        return Windows(tuple(others))

    @cached_property
    def first_numel(self) -> int:
        """Numbers of the first message."""
        lefts = sum(matrix.shape[0] * matrix.rank for matrix in self.matrices)
        return lefts + self.rest.payload_numel

    @cached_property
    def second_numel(self) -> int:
        """Numbers of the second message."""
        return sum(matrix.shape[1] * matrix.rank for matrix in self.matrices)

    @property
    def sent_numel(self) -> int:
        """Numbers of both."""
        return self.first_numel + self.second_numel

    def _batches(self, message: Tensor, side: Side) -> list[Tensor]:
        """Return views of a message's factors, those of matrices of one shape in a batch.

        A batch is of shape (matrices, rows or columns, rank).
        """
        batches = []
        start = 0  # where the next batch begins in the message
        # Matrices are sorted by shape, as groupby needs it.
        by_shape = groupby(self.matrices, lambda matrix: matrix.shape)
        for (rows, columns), group in by_shape:
            matrices = list(group)
            length = rows if side == "rows" else columns
            # Matrices of one shape have one rank: at most their smaller side.
            rank = matrices[0].rank
            shape = (len(matrices), length, rank)
            stop = start + math.prod(shape)
            batch = message[start:stop].view(shape)
            batches.append(batch)
            start = stop
        return batches

    def factors(self, message: Tensor, side: Side) -> list[Tensor]:
        """Every P ("rows") of a first message or Q ("columns") of a second one.

        Views, in the order of the matrices.
        """
        factors: list[Tensor] = []
        for batch in self._batches(message, side):
            factors.extend(batch)
        return factors

    def others_of(self, first: Tensor) -> Tensor:
        """Return the tensors that are no matrices in a first message, as `rest` gathers them."""
        # They stand behind every P.
        start = self.first_numel - self.rest.payload_numel
        return first[start:]

    def orthonormalise_(self, first: Tensor) -> None:
        """Give every P in a first message orthonormal columns with the same span or more.

        The message is of shape (first_numel,).

        By Householder's reflections: they are right for columns of any size, also 0, which Gram and
        Schmidt's are not.
        """
        for batch in self._batches(first, "rows"):  # (matrices, rows, rank)
            wide = batch
            # torch has no QR in 16 bits.
            if batch.dtype not in (torch.float32, torch.float64):
                wide = batch.float()
            batch.copy_(torch.linalg.qr(wide).Q)

    def normalise_(self, second: Tensor) -> None:
        """Give the columns of every Q in a second message the length 1, but for those of 0.

        The message is of shape (second_numel,).

        A square Q becomes the identity: its span is to be everything, and a gradient that was not
        may have narrowed it.
        """
        for batch in self._batches(second, "columns"):
            _, rows, columns = batch.shape
            if rows == columns:
                identity = torch.eye(rows, device=batch.device)
                batch.copy_(identity)
            else:
                lengths = torch.linalg.vector_norm(
                    batch, dim=1, keepdim=True
                )  # (matrices, 1, rank)
                # A column of zeros stays so, by any positive divisor.
                smallest = torch.finfo(batch.dtype).tiny
                batch.div_(lengths.clamp_(min=smallest))
