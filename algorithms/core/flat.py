"""Flat buffers: parameters, gradients and state in one tensor each; `p.data`, `p.grad` are views.

Each has shape (local workers, d), a row for each worker: a process has one row, stacked workers
have all.
"""

import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.nn import Parameter
from torch.utils.dlpack import from_dlpack

from cser_bench.algorithms.core.layout import Layout, Window


class FlatBuffers:
    """The parameters of one type, of all groups in order, in one tensor; gradients in another.

    Args:
        stacked: parameters have a first axis, over workers, and so have the buffers.
    """

    def __init__(
        self, groups: Sequence[Sequence[Parameter]], stacked: bool = False
    ) -> None:
        tensors = [parameter for group in groups for parameter in group]
        first = tensors[0]
        self._stacked = stacked
        num_workers = 1
        if stacked:
            num_workers = len(first)
        self.parts: list[slice] = []
        """The slice of the flat vector that each parameter group has."""
        stop = 0
        for group in groups:
            start = stop
            # Stacked parameters hold every worker's numbers, and a row has those of one.
            group_numel = sum(parameter.numel() for parameter in group)
            stop += group_numel // num_workers
            self.parts.append(slice(start, stop))
        # In the order of the groups, which is that of coordinates: buffers, messages and saved
        # states all count on it.
        self.tensors = tensors
        self._shape = (num_workers, stop)
        # One tensor, so that a step, a message or a saved state takes no loop over parameters.
        self.parameters = torch.zeros(
            self._shape, dtype=first.dtype, device=first.device
        )
        self._move_in(self._new_layout())
        # Only now that the parameters' own memory is free, so that the peak is lower.
        self.gradients = self.new_buffer()
        self._view_gradients()

    def _new_layout(self) -> Layout:
        # One layout for all rows, so that a coordinate means the same number in each.
        if self._stacked:
            return Layout.of([tensor[0] for tensor in self.tensors])
        return Layout.of(self.tensors)

    @torch.no_grad()
    def _move_in(self, layout: Layout) -> None:
        # From here on p.data is a view: who writes the parameter writes the vector.
        for parameter, window in zip(self.tensors, layout.tensors, strict=True):
            view = self._view(self.parameters, window)
            view.copy_(parameter)
            parameter.data = view
        self.layout = layout
        # These addresses tell whether a script has moved a parameter out of the vector.
        self._homes = _addresses(self.tensors)

    def _view(self, flat: Tensor, window: Window) -> Tensor:
        """Return the part of a flat tensor that belongs to a parameter, shaped like it."""
        # A stacked parameter has a part in every row, and so its neighbours lie within its span.
        if self._stacked:
            return window.view(flat)
        return _own_view(flat[0], window)

    def _view_gradients(self) -> None:
        # Made once: their identity tells whether p.grad is still in the vector.
        self._gradient_views: list[Tensor] = []
        for window in self.layout.tensors:
            view = self._view(self.gradients, window)
            self._gradient_views.append(view)
        # A view can be moved elsewhere, too: model.to() sets p.grad.data.
        self._gradient_homes = _addresses(self._gradient_views)
        self._attach()

    def new_buffer(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return zeros of shape (local workers, d), by default of the parameters' type."""
        return torch.zeros_like(self.parameters, dtype=dtype)

    def bit_sums(self, vector: Tensor) -> Tensor:
        """Return sums of the numbers' bits read as integers, of shape (local workers, tensors)."""
        # Integer sums do not depend on the order, and differ if a single number does. Sums of
        # floats would do neither.
        bits = integers(vector)
        parts = [window.view(bits) for window in self.layout.tensors]
        return torch.stack(
            [part.reshape(len(part), -1).sum(1) for part in parts], dim=1
        )

    def zero_gradients(self) -> None:
        self.gradients.zero_()
        # A script may have set p.grad to None meanwhile.
        if not self._attached():
            self._attach()

    def moved(self) -> bool:
        """Return whether a parameter or gradient was moved, as by `model.to(...)`."""
        if _addresses(self.tensors) != self._homes:
            return True
        return _addresses(self._gradient_views) != self._gradient_homes

    @torch.no_grad()
    def adopt(self, buffers: Iterable[Tensor]) -> None:
        """Move parameters and gradients back into the vectors, with their present values and strides.

        Args:
            buffers: tensors of shape (local workers, d) whose coordinates must stay aligned with the
                parameters'.

        Raises:
            RuntimeError: a parameter has another type, device or shape now.
        """
        held = self.parameters
        lead = self._shape[:1] if self._stacked else ()
        # Check all before moving any, so that an error changes nothing.
        for number, window in enumerate(self.layout.tensors):
            parameter = self.tensors[number]
            shape = tuple(parameter.shape)
            expected_shape = (*lead, *window.shape)
            is_alike = parameter.dtype == held.dtype and parameter.device == held.device
            if not is_alike or shape != expected_shape:
                raise RuntimeError(
                    f"parameter {number} is {parameter.dtype} of shape {shape} on "
                    f"{parameter.device} now, and was {held.dtype} of shape {expected_shape} on "
                    f"{held.device} when the optimiser was made; convert or move the model first, "
                    "then make the optimiser"
                )
        gradients: list[Tensor | None] = []
        for parameter in self.tensors:
            gradient = parameter.grad
            if gradient is not None:
                # A clone, as it may be a view of the vector that is written below.
                gradient = dense(gradient).clone()
            gradients.append(gradient)
        layout = self._new_layout()
        held_with = list(buffers)
        for old, new in zip(self.layout.tensors, layout.tensors, strict=True):
            # Shapes are as they were, so only strides can differ: a tensor keeps its part of the
            # vector, and within it the state goes where the numbers now are.
            if new != old:
                for buffer in held_with:
                    values = old.view(buffer).clone()
                    new.view(buffer).copy_(values)
        self._move_in(layout)
        for window, gradient in zip(layout.tensors, gradients, strict=True):
            view = self._view(self.gradients, window)
            if gradient is None:
                view.zero_()
            else:
                view.copy_(gradient)
        self._view_gradients()

    @property
    def frozen(self) -> list[int]:
        """Numbers of the tensors that require no gradient, which a step leaves as they are."""
        # The usual case, which every step asks for, without a Python loop.
        requires_grad = map(operator.attrgetter("requires_grad"), self.tensors)
        if all(requires_grad):
            return []
        return [
            number
            for number, tensor in enumerate(self.tensors)
            if not tensor.requires_grad
        ]

    def collect_gradients(self) -> None:
        """Make the flat tensor hold the gradients, even if `p.grad` was replaced or set to None.

        A missing gradient counts as zero, and so does a frozen tensor's.
        """
        # Usually autograd has added to the views in place, and nothing is to do.
        if not self._attached():
            for number in range(len(self.tensors)):
                self.collect_gradient(number)
        # A tensor frozen after its backward pass has a gradient that must not be sent.
        for here in self.frozen_slices():
            self.gradients[:, here] = 0.0

    def collect_gradient(self, number: int) -> None:
        """Collect the gradient of tensor `number`; see `collect_gradients`."""
        parameter = self.tensors[number]
        view = self._gradient_views[number]
        # Without p.grad the view still holds what an earlier step left there.
        if parameter.grad is None:
            view.zero_()
        elif parameter.grad is not view:
            view.copy_(dense(parameter.grad))
        # So that the next backward pass adds to the vector in place.
        parameter.grad = view

    def frozen_slices(self) -> list[slice]:
        """Return the slices of the flat vector that are frozen, adjacent ones as one."""
        slices: list[slice] = []
        for number in self.frozen:
            window = self.layout.tensors[number]
            start = window.offset
            stop = start + window.numel
            if slices and slices[-1].stop == start:
                start = slices.pop().start
            slices.append(slice(start, stop))
        return slices

    @contextmanager
    def frozen_aside(self, *vectors: Tensor) -> Iterator[None]:
        """Return a context in which these (local workers, d) vectors are 0 on frozen tensors.

        On leaving, their old values are put back. So a frozen tensor takes no room in a sparse
        message, and neither what is received nor momentum changes it.
        """
        aside = []
        for here in self.frozen_slices():
            for vector in vectors:
                values = vector[:, here].clone()
                aside.append((vector, here, values))
        for vector, here, _ in aside:
            vector[:, here] = 0.0
        try:
            yield
        finally:
            # After a failed collective too, so that nothing of a frozen tensor is lost.
            for vector, here, values in aside:
                vector[:, here] = values

    def holds(self, number: int) -> bool:
        """Return whether tensor `number` is still in this vector; a later optimiser takes it over."""
        tensor = self.tensors[number]
        return _addresses([tensor]) == [self._homes[number]]

    def _attached(self) -> bool:
        # By identity: where p.grad was None, autograd has made a tensor of its own.
        gradients = map(operator.attrgetter("grad"), self.tensors)
        return all(map(operator.is_, gradients, self._gradient_views))

    def _attach(self) -> None:
        for parameter, view in zip(self.tensors, self._gradient_views, strict=True):
            parameter.grad = view


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    """Return the tensors' addresses; those of torch's fake mode have none, and are never moved."""
    if isinstance(tensors[0], FakeTensor):
        return [0] * len(tensors)
    return list(map(Tensor.data_ptr, tensors))


def _own_view(row: Tensor, window: Window) -> Tensor:
    """Return the window as a tensor that shares the row's memory, with a storage of its own.

    A view of the whole storage would make `torch.save` of one parameter write all of them. On a
    meta device or in torch's fake mode there is no such tensor, and a plain view is returned.
    """
    if type(row) is not Tensor or row.device.type not in ("cpu", "cuda"):
        return window.view(row)
    # An empty tensor has no memory that could be shared.
    if not window.numel:
        return row.new_empty(window.shape)
    stop = window.offset + window.numel
    # A slice shares the vector's storage; what comes through DLPack has one of its own.
    piece: Tensor = from_dlpack(row[window.offset : stop])
    return piece.as_strided(window.shape, window.strides)


def integers(tensor: Tensor) -> Tensor:
    """Return a floating-point tensor's bits as integers of its size."""
    return tensor.view(
        {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    )


def dense(gradient: Tensor) -> Tensor:
    """Return a sparse gradient as a dense tensor, and any other unchanged."""
    if gradient.is_sparse:
        return gradient.to_dense()
    return gradient


def unexpanded(tensor: Tensor) -> Tensor:
    """Return a view of a tensor that has each number once, so that an expanded one can be written."""
    for axis, stride in enumerate(tensor.stride()):
        # Along an axis of stride 0 all numbers are one and the same.
        if stride == 0:
            tensor = tensor[(slice(None),) * axis + (slice(1),)]
    return tensor
