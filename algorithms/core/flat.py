"""Flat buffers: parameters, gradients and state in one tensor each, with `p.data` and `p.grad` as views.

Each is of shape (local workers, d), a row a worker: a process has one row, stacked workers have all.
"""

import operator
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.nn import Parameter
from torch.utils.dlpack import from_dlpack

from algorithms.core.layout import Layout, Window


class GroupsOfOneType(list[dict[str, Any]]):
    """An optimiser's parameter groups, for another one that takes only what has type `dtype` of each."""

    def __init__(self, groups: Iterable[dict[str, Any]], dtype: torch.dtype) -> None:
        super().__init__(groups)
        self.dtype = dtype


def types_of(groups: Sequence[Mapping[str, Any]]) -> list[torch.dtype]:
    """Returns the types of the groups' parameters, first that of the most numbers.

    Raises:
        ValueError: there is no parameter, or they are on several devices.
    """
    tensors = [parameter for group in groups for parameter in group["params"]]
    if not tensors:
        raise ValueError("there is no parameter to train: every group is empty")
    numels = Counter[torch.dtype]()
    for number, parameter in enumerate(tensors):
        numels[parameter.dtype] += parameter.numel()
        if parameter.device != tensors[0].device:
            raise ValueError(
                f"parameter {number} is on {parameter.device}, parameter 0 on {tensors[0].device}; an optimiser takes "
                "parameters on one device"
            )
    return [dtype for dtype, _ in numels.most_common()]


class FlatBuffers:
    """Moves the parameters of all groups that have one type, in order, into one tensor, their gradients into another.

    Args:
        stacked: parameters have a first axis, over workers, and so have the buffers.

    Raises:
        ValueError: one of them cannot lie there; the message says which and why.
    """

    def __init__(self, groups: Sequence[Sequence[Parameter]], stacked: bool = False) -> None:
        tensors = [parameter for group in groups for parameter in group]
        _check(tensors)
        first = tensors[0]
        self._stacked = stacked
        self.layout = Layout.of([tensor[0] for tensor in tensors] if stacked else tensors)
        self._shape = (len(first) if stacked else 1, self.layout.numel)
        self.parameters = self.new_buffer(first)
        ends = [0, *accumulate(sum(each.numel() for each in group) // self._shape[0] for group in groups)]
        self.parts = [slice(start, stop) for start, stop in pairwise(ends)]
        """Each parameter group's share of the flat vector."""
        self.tensors = tensors
        self.frozen: tuple[int, ...] = ()
        """During a step, tensors that require no gradient: they and their state are left as they are."""
        with torch.no_grad():
            for parameter, window in zip(tensors, self.layout.tensors, strict=True):
                view = self._view(self.parameters, window)
                view.copy_(parameter)
                parameter.data = view
        # After the loop, which has freed the parameters' own memory.
        self.gradients = self.new_buffer()
        self._homes = _addresses(tensors)
        self._view_gradients()

    def _view(self, flat: Tensor, window: Window) -> Tensor:
        """The part of a flat tensor that belongs to a parameter, shaped like it."""
        return window.view(flat) if self._stacked else _own_view(flat[0], window)

    def _view_gradients(self) -> None:
        self._gradient_views = [self._view(self.gradients, window) for window in self.layout.tensors]
        self._gradient_homes = _addresses(self._gradient_views)
        self._attach()

    def new_buffer(self, like: Tensor | None = None) -> Tensor:
        """Zeros of shape (local workers, d)."""
        like = self.parameters if like is None else like
        return torch.zeros(self._shape, dtype=like.dtype, device=like.device)

    def zero_gradients(self) -> None:
        self.gradients.zero_()
        if not self._attached():
            self._attach()

    def moved(self) -> bool:
        """Returns whether someone moved a parameter or a gradient elsewhere: `model.to(...)`, `p.data = ...`."""
        return _addresses(self.tensors) != self._homes or _addresses(self._gradient_views) != self._gradient_homes

    @torch.no_grad()
    def adopt(self, buffers: Iterable[Tensor]) -> None:
        """Take back what was moved, with the values and strides that it has now.

        Args:
            buffers: tensors of shape (local workers, d) whose coordinates must stay beside the parameters'.

        Raises:
            RuntimeError: a parameter has another type, device or shape now.
        """
        home = list(zip(self.tensors, self._homes, self.layout.tensors, strict=True))
        for number, (parameter, _, window) in enumerate(home):
            self._check_adoptable(number, parameter, window)
        gradients = [None if parameter.grad is None else dense(parameter.grad).clone() for parameter in self.tensors]
        windows = []
        for parameter, address, window in home:
            if parameter.data_ptr() != address:
                window = self._take_back(parameter, window, buffers)
            windows.append(window)
        self.layout = Layout(tuple(windows))
        self._homes = _addresses(self.tensors)
        for window, gradient in zip(windows, gradients, strict=True):
            self._view(self.gradients, window).copy_(torch.zeros(()) if gradient is None else gradient)
        self._view_gradients()

    def _take_back(self, parameter: Parameter, old: Window, buffers: Iterable[Tensor]) -> Window:
        (as_if_new,) = Layout.of([parameter[0] if self._stacked else parameter]).tensors
        window = Window(old.offset, old.shape, as_if_new.strides)
        if window != old:
            for buffer in buffers:
                window.view(buffer).copy_(old.view(buffer).clone())
        view = self._view(self.parameters, window)
        view.copy_(parameter)
        parameter.data = view
        return window

    def _check_adoptable(self, number: int, parameter: Parameter, window: Window) -> None:
        held, shape = self.parameters, (*(self._shape[:1] if self._stacked else ()), *window.shape)
        if (parameter.dtype, parameter.device, tuple(parameter.shape)) != (held.dtype, held.device, shape):
            raise RuntimeError(
                f"parameter {number} is {parameter.dtype} of shape {tuple(parameter.shape)} on {parameter.device} now, "
                f"and was {held.dtype} of shape {shape} on {held.device} when the optimiser was made; convert or move "
                "the model first, then make the optimiser"
            )

    def note_frozen(self) -> None:
        """Note which tensors are frozen now; a step, and what is sent early for it, must begin with this."""
        self.frozen = tuple(number for number, each in enumerate(self.tensors) if not each.requires_grad)

    def collect_gradients(self) -> None:
        """Make the flat tensor hold the gradients, also where someone replaced `p.grad` or set it to None.

        A gradient that is missing is zero.
        """
        self.note_frozen()
        if not self._attached():
            for number in range(len(self.tensors)):
                self.collect_gradient(number)

    def collect_gradient(self, number: int) -> None:
        """The same for tensor `number` alone."""
        parameter, view = self.tensors[number], self._gradient_views[number]
        if parameter.grad is None:
            view.zero_()
        elif parameter.grad is not view:
            view.copy_(dense(parameter.grad))
        parameter.grad = view

    def frozen_slices(self) -> list[slice]:
        """Returns where frozen tensors lie."""
        windows = [self.layout.tensors[number] for number in self.frozen]
        return [slice(window.offset, window.offset + window.numel) for window in windows]

    def holds(self, number: int) -> bool:
        """Returns whether tensor `number` still lies here: a later optimiser moves it to its own vector."""
        return _addresses([self.tensors[number]]) == [self._homes[number]]

    def _attached(self) -> bool:
        return all(map(operator.is_, map(operator.attrgetter("grad"), self.tensors), self._gradient_views))

    def _attach(self) -> None:
        for parameter, view in zip(self.tensors, self._gradient_views, strict=True):
            parameter.grad = view


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    """Returns where they lie; a tensor of torch's fake mode has no address, and nobody moves it."""
    if isinstance(tensors[0], FakeTensor):
        return [0] * len(tensors)
    return list(map(Tensor.data_ptr, tensors))


def _own_view(row: Tensor, window: Window) -> Tensor:
    """The window as a tensor with a storage of its own in the same memory: who saves it does not save its neighbours.

    A plain view where that cannot be had: on a meta device, in torch's fake mode.
    """
    if type(row) is not Tensor or row.device.type not in ("cpu", "cuda"):
        return window.view(row)
    if not window.numel:
        return row.new_empty(window.shape)
    piece: Tensor = from_dlpack(row[window.offset : window.offset + window.numel])
    return piece.as_strided(window.shape, window.strides)


def dense(gradient: Tensor) -> Tensor:
    """Returns a gradient that is sparse as a dense tensor, and others as they are."""
    return gradient.to_dense() if gradient.is_sparse else gradient


def _check(tensors: Sequence[Parameter]) -> None:
    addresses = dict[int, int]()
    frozen = [number for number, each in enumerate(tensors) if not each.requires_grad]
    if frozen:
        warnings.warn(
            f"parameter {frozen[0]} does not require a gradient, nor do {len(frozen) - 1} more, yet they are sent; "
            "give only those that will be trained at some time",
            stacklevel=5,
        )
    for number, parameter in enumerate(tensors):
        if not parameter.is_floating_point():
            raise ValueError(f"parameter {number} is {parameter.dtype}; an optimiser takes real floating-point numbers")
        if parameter.numel() and not parameter.is_meta and not isinstance(parameter, FakeTensor):
            other = addresses.setdefault(parameter.data_ptr(), number)
            if other != number and tensors[other] is parameter:
                raise ValueError(f"parameters {other} and {number} are one and the same Parameter; give each once")
            if other != number:
                raise ValueError(
                    f"parameters {other} and {number} share memory, which they could not do any more; make them one "
                    "Parameter that both modules hold"
                )
