"""Flat buffers: parameters, gradients and state in one vector each, with `p.data` and `p.grad` as views.

Where all workers are stacked in one process, each is a tensor of shape (num_workers, d), a row a worker.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from algorithms.core.layout import Layout


@dataclass(frozen=True)
class Part:
    """One parameter group's share of the flat vector."""

    start: int
    stop: int


class FlatBuffers:
    """Moves the parameters of all groups, in order, into one vector of shape (d,), and their gradients into another.

    Args:
        stacked: parameters have a first axis, over workers, and so have the buffers.

    Raises:
        ValueError: a parameter does not require a gradient, or types or devices are mixed.
    """

    def __init__(self, groups: Sequence[Sequence[Parameter]], stacked: bool = False) -> None:
        tensors = [parameter for group in groups for parameter in group]
        first = tensors[0]
        for number, parameter in enumerate(tensors):
            if not parameter.requires_grad:
                raise ValueError(f"parameter {number} does not require a gradient; give only those that do")
            if (parameter.dtype, parameter.device) != (first.dtype, first.device):
                raise ValueError(
                    f"parameter {number} is {parameter.dtype} on {parameter.device}, parameter 0 is {first.dtype} on "
                    f"{first.device}; an optimiser takes parameters of one type on one device"
                )
        self.layout = Layout.of([tensor[0] for tensor in tensors] if stacked else tensors)
        self._shape = (len(first), self.layout.numel) if stacked else (self.layout.numel,)
        self.parameters = self.new_buffer(first)
        self.parts = self._parts(groups, len(first) if stacked else 1)
        self.tensors = tensors
        with torch.no_grad():
            for parameter, window in zip(tensors, self.layout.tensors, strict=True):
                view = window.view(self.parameters)
                view.copy_(parameter)
                parameter.data = view
        # After the loop, which has freed the parameters' own memory.
        self.gradients = self.new_buffer()
        self._gradient_views = [window.view(self.gradients) for window in self.layout.tensors]
        self._attach()

    @staticmethod
    def _parts(groups: Sequence[Sequence[Parameter]], num_rows: int) -> list[Part]:
        parts, start = [], 0
        for group in groups:
            stop = start + sum(parameter.numel() // num_rows for parameter in group)
            parts.append(Part(start, stop))
            start = stop
        return parts

    def new_buffer(self, like: Tensor | None = None) -> Tensor:
        """A vector of zeros, of shape (d,), or one a worker."""
        like = self.parameters if like is None else like
        return torch.zeros(self._shape, dtype=like.dtype, device=like.device)

    def zero_gradients(self) -> None:
        self.gradients.zero_()
        if not self._attached():
            self._attach()

    def collect_gradients(self) -> None:
        """Make the flat vector hold the gradients, also where someone replaced `p.grad` or set it to None."""
        if not self._attached():
            for number in range(len(self.tensors)):
                self.collect_gradient(number)

    def collect_gradient(self, number: int) -> None:
        """The same for tensor `number` alone."""
        parameter, view = self.tensors[number], self._gradient_views[number]
        if parameter.grad is None:
            view.zero_()
        elif parameter.grad is not view:
            view.copy_(parameter.grad)
        parameter.grad = view

    def holds(self, number: int) -> bool:
        """Whether tensor `number` still lies here: an optimiser that is made later moves it into its own vector."""
        return self.tensors[number].untyped_storage().data_ptr() == self.parameters.untyped_storage().data_ptr()

    def _attached(self) -> bool:
        return all(map(operator.is_, map(operator.attrgetter("grad"), self.tensors), self._gradient_views))

    def _attach(self) -> None:
        for parameter, view in zip(self.tensors, self._gradient_views, strict=True):
            parameter.grad = view
