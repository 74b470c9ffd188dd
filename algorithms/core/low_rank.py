"""Tensors of two or more axes as matrices, and where the factors of their low-rank approximations lie in messages."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

from algorithms.core.layout import Layout, Window, Windows


@dataclass(frozen=True)
class Matrix:
    """Tensor `number` of a layout seen as (first axis, rest), which P Q^T of this rank stands for.

    Q has its rows in the order of the tensor's axes. In memory the columns may have another (channels last); then Q's
    rows change places, which are few numbers, and not the columns.
    """

    number: int
    window: Window
    rank: int

    @cached_property
    def rows(self) -> int:
        return self.window.shape[0]

    @cached_property
    def columns(self) -> int:
        return math.prod(self.window.shape[1:])

    def of(self, vector: Tensor) -> Tensor:
        """The matrix as it lies in a vector of shape (d,): a view of shape (rows, columns)."""
        return vector[self.window.offset : self.window.offset + self.window.numel].view(self.rows, self.columns)

    @cached_property
    def _axes(self) -> list[int]:
        """The axes of a column, the slowest in memory first."""
        return sorted(range(len(self.window.shape) - 1), key=lambda axis: -self.window.strides[axis + 1])

    def as_in_memory(self, q: Tensor) -> Tensor:
        """Q, of shape (columns, rank), with its rows in the order that the columns have in memory."""
        return q.view(*self.window.shape[1:], self.rank).permute(*self._axes, -1).reshape(q.shape)

    def as_in_tensor(self, q: Tensor) -> Tensor:
        """The inverse of `as_in_memory`."""
        shape = [self.window.shape[axis + 1] for axis in self._axes]
        places = [self._axes.index(axis) for axis in range(len(shape))]
        return q.view(*shape, self.rank).permute(*places, -1).reshape(q.shape)


@dataclass(frozen=True)
class LowRank:
    """A layout seen at a rank: its matrices, those of one shape side by side, and two messages.

    The first message holds every P, and then the tensors that are no matrices; the second every Q. A matrix' own rank
    is at most its smaller side.
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
        return tuple(sorted(found, key=_shape))

    @cached_property
    def others(self) -> tuple[int, ...]:
        """Numbers of the tensors that are no matrices."""
        taken = {each.number for each in self.matrices}
        return tuple(number for number in range(len(self.layout.tensors)) if number not in taken)

    @cached_property
    def rest(self) -> Windows:
        """The tensors that are no matrices."""
        return Windows(tuple(self.layout.tensors[number] for number in self.others))

    @cached_property
    def first_parts(self) -> dict[int, slice]:
        """The part of the first message that each tensor has, by the tensor's number."""
        sizes = {each.number: each.rows * each.rank for each in self.matrices}
        return _side_by_side(sizes | {number: self.layout.tensors[number].numel for number in self.others})

    @cached_property
    def second_parts(self) -> dict[int, slice]:
        """The part of the second message that each matrix has, by its tensor's number."""
        return _side_by_side({each.number: each.columns * each.rank for each in self.matrices})

    @cached_property
    def first_numel(self) -> int:
        """Numbers of the first message."""
        return sum(part.stop - part.start for part in self.first_parts.values())

    @cached_property
    def second_numel(self) -> int:
        """Numbers of the second message."""
        return sum(part.stop - part.start for part in self.second_parts.values())

    @property
    def numel(self) -> int:
        """Numbers of both messages."""
        return self.first_numel + self.second_numel

    def left(self, each: Matrix, first: Tensor) -> Tensor:
        """Its P in a first message: a view of shape (rows, rank)."""
        return first[self.first_parts[each.number]].view(each.rows, each.rank)

    def right(self, each: Matrix, second: Tensor) -> Tensor:
        """Its Q in a second message: a view of shape (columns, rank)."""
        return second[self.second_parts[each.number]].view(each.columns, each.rank)

    def others_of(self, first: Tensor) -> Tensor:
        """The tensors that are no matrices in a first message, as `rest` gathers them."""
        return first[self.first_numel - self.rest.payload_numel :]

    def orthonormalise_(self, first: Tensor) -> None:
        """Give every P in a first message of shape (first_numel,) orthonormal columns with the same span or more.

        By Householder's reflections: they are right for columns of any size, also 0, which Gram and Schmidt's are not.
        """
        for group in self._groups():
            start, stop = self.first_parts[group[0].number].start, self.first_parts[group[-1].number].stop
            batch = first[start:stop].view(len(group), group[0].rows, group[0].rank)
            wide = batch if batch.dtype in (torch.float32, torch.float64) else batch.float()
            batch.copy_(torch.linalg.qr(wide).Q)

    def normalise_(self, second: Tensor) -> None:
        """Give the columns of every Q in a second message of shape (second_numel,) the length 1, but for those of 0.

        A square Q becomes the identity: its span is to be everything, and a gradient that was not may have narrowed it.
        """
        for group in self._groups():
            start, stop = self.second_parts[group[0].number].start, self.second_parts[group[-1].number].stop
            batch = second[start:stop].view(len(group), group[0].columns, group[0].rank)
            if group[0].columns == group[0].rank:
                batch.copy_(torch.eye(group[0].rank, device=batch.device))
            else:
                lengths = torch.linalg.vector_norm(batch, dim=1, keepdim=True)
                batch.div_(lengths.clamp_(min=torch.finfo(batch.dtype).tiny))

    def _groups(self) -> Iterator[list[Matrix]]:
        """The matrices of one shape."""
        return (list(group) for _, group in groupby(self.matrices, _shape))


def greatest_rank(layout: Layout, numel: int) -> int:
    """The greatest rank whose messages have at most so many numbers together; 0 if there is none."""
    sides = [min(each.rows, each.columns) for each in LowRank(layout, 1).matrices]
    ranks = range(1, max(sides, default=1) + 1)
    return bisect_right(ranks, numel, key=lambda rank: LowRank(layout, rank).numel)


def _shape(matrix: Matrix) -> tuple[int, int]:
    return matrix.rows, matrix.columns


def _side_by_side(sizes: dict[int, int]) -> dict[int, slice]:
    slices, start = {}, 0
    for number, size in sizes.items():
        slices[number] = slice(start, start + size)
        start += size
    return slices
