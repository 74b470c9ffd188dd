"""Flat buffers: parameters, gradients and state in one vector each, with `p.data` and `p.grad` as views.

Where all workers are stacked in one process, each is a tensor of shape (num_workers, d), a row a worker.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.nn import Parameter
from torch.utils.dlpack import from_dlpack

from algorithms.core.layout import Layout, Window

_version = operator.attrgetter("_version")
"""How often a tensor was changed in place, as autograd counts it."""


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
        ValueError: there is no parameter, or one that cannot lie there; the message says which and why.
    """

    def __init__(self, groups: Sequence[Sequence[Parameter]], stacked: bool = False) -> None:
        tensors = [parameter for group in groups for parameter in group]
        _check(tensors)
        first = tensors[0]
        self._stacked = stacked
        self.layout = Layout.of([tensor[0] for tensor in tensors] if stacked else tensors)
        self._shape = (len(first), self.layout.numel) if stacked else (self.layout.numel,)
        self.parameters = self.new_buffer(first)
        self.parts = self._parts(groups, len(first) if stacked else 1)
        self.tensors = tensors
        self.idle: tuple[int, ...] = ()
        """During a step, tensors that this worker has no gradient of: it leaves them and their momentum as they are."""
        with torch.no_grad():
            for parameter, window in zip(tensors, self.layout.tensors, strict=True):
                view = _own_view(self.parameters, window)
                view.copy_(parameter)
                parameter.data = view
        # After the loop, which has freed the parameters' own memory.
        self.gradients = self.new_buffer()
        self._homes = _addresses(tensors)
        self._view_gradients()

    @staticmethod
    def _parts(groups: Sequence[Sequence[Parameter]], num_rows: int) -> list[Part]:
        parts, start = [], 0
        for group in groups:
            stop = start + sum(parameter.numel() // num_rows for parameter in group)
            parts.append(Part(start, stop))
            start = stop
        return parts

    def _view_gradients(self) -> None:
        self._gradient_views = [_own_view(self.gradients, window) for window in self.layout.tensors]
        self._gradient_homes = _addresses(self._gradient_views)
        self._attach()
        self._seen = self._gradient_views[0]._version
        """Version of every gradient view when gradients were cleared or used last."""

    def new_buffer(self, like: Tensor | None = None) -> Tensor:
        """A vector of zeros, of shape (d,), or one a worker."""
        like = self.parameters if like is None else like
        return torch.zeros(self._shape, dtype=like.dtype, device=like.device)

    def zero_gradients(self) -> None:
        self.gradients.zero_()
        if not self._attached():
            self._attach()
        self._level_versions(list(map(_version, self._gradient_views)))

    def moved(self) -> bool:
        """Whether someone moved a parameter or a gradient elsewhere: `model.to(...)`, `p.data = ...`."""
        return _addresses(self.tensors) != self._homes or _addresses(self._gradient_views) != self._gradient_homes

    @torch.no_grad()
    def adopt(self, buffers: Iterable[Tensor]) -> None:
        """Take back what was moved, with the values and strides that it has now.

        Args:
            buffers: vectors of shape (d,) whose coordinates must stay beside the parameters'.

        Raises:
            RuntimeError: a parameter has another type, device or shape now.
        """
        home = list(zip(self.tensors, self._homes, self.layout.tensors, strict=True))
        for number, (parameter, _, window) in enumerate(home):
            self._check_adoptable(number, parameter, window)
        gradients = [None if parameter.grad is None else _dense(parameter.grad).clone() for parameter in self.tensors]
        windows = []
        for parameter, address, window in home:
            if parameter.data_ptr() != address:
                window = self._take_back(parameter, window, buffers)
            windows.append(window)
        self.layout = Layout(tuple(windows))
        self._homes = _addresses(self.tensors)
        for window, gradient in zip(windows, gradients, strict=True):
            window.view(self.gradients).copy_(torch.zeros(()) if gradient is None else gradient)
        self._view_gradients()

    def _take_back(self, parameter: Parameter, old: Window, buffers: Iterable[Tensor]) -> Window:
        (as_if_new,) = Layout.of([parameter[0] if self._stacked else parameter]).tensors
        window = Window(old.offset, old.shape, as_if_new.strides)
        if window != old:
            for buffer in buffers:
                window.view(buffer).copy_(old.view(buffer).clone())
        view = _own_view(self.parameters, window)
        view.copy_(parameter)
        parameter.data = view
        return window

    def _check_adoptable(self, number: int, parameter: Parameter, window: Window) -> None:
        held, shape = self.parameters, (*self._shape[:-1], *window.shape)
        if (parameter.dtype, parameter.device, tuple(parameter.shape)) != (held.dtype, held.device, shape):
            raise RuntimeError(
                f"parameter {number} is {parameter.dtype} of shape {tuple(parameter.shape)} on {parameter.device} now, "
                f"and was {held.dtype} of shape {shape} on {held.device} when the optimiser was made; convert or move "
                "the model first, then make the optimiser"
            )

    def collect_gradients(self) -> None:
        """Make the flat vector hold the gradients, also where someone replaced `p.grad` or set it to None.

        A tensor that no backward pass reached since gradients were cleared is idle, and its gradient is -0.0.
        """
        versions = list(map(_version, self._gradient_views))
        # In place, autograd adds once to each. So they stay equal, but for tensors that were left out.
        if versions[0] != self._seen and versions.count(versions[0]) == len(versions) and self._attached():
            self._seen, self.idle = versions[0], ()
        else:
            self._collect_one_by_one(versions)

    def _collect_one_by_one(self, versions: list[int]) -> None:
        idle, doubtful = [], []
        for number, (parameter, view) in enumerate(zip(self.tensors, self._gradient_views, strict=True)):
            if parameter.grad is None:
                idle.append(number)
            elif parameter.grad is view and (versions[number] < max(versions) or versions[number] == self._seen):
                doubtful.append(number)
            self.collect_gradient(number)
        # Rows of stacked workers share a gradient; tensors without memory have none.
        is_known = not self._stacked and not self.gradients.is_meta and not isinstance(self.gradients, FakeTensor)
        if doubtful and is_known:
            # Someone may have changed some gradients and not others, so what counts is whether there is any.
            some = torch.stack([self._gradient_views[number].any() for number in doubtful]).tolist()
            idle += [number for number, has_some in zip(doubtful, some, strict=True) if not has_some]
        self.idle = tuple(sorted(idle)) if is_known else ()
        for number in self.idle:
            self.layout.tensors[number].view(self.gradients).fill_(-0.0)
        self._level_versions(list(map(_version, self._gradient_views)))

    def _level_versions(self, versions: list[int]) -> None:
        """What changes from now on is new."""
        self._seen = versions[0]
        if versions.count(self._seen) == len(versions):
            return
        self._seen = max(versions)
        for view in self._gradient_views:
            while view._version < self._seen:
                torch.autograd.graph.increment_version(view)

    def collect_gradient(self, number: int) -> None:
        """The same for tensor `number` alone."""
        parameter, view = self.tensors[number], self._gradient_views[number]
        if parameter.grad is None:
            view.zero_()
        elif parameter.grad is not view:
            torch.add(_dense(parameter.grad), 0.0, out=view)  # in one pass: -0.0 means that there is none
        parameter.grad = view

    def keep_idle_everywhere(self, means: Sequence[Tensor] | None = None) -> None:
        """After gradients were averaged: idle is what every worker was idle in, and what others trained is not.

        A sum is -0.0 only where every worker's share is, and what autograd adds to a zero gradient never is.

        Args:
            means: what was averaged of each idle tensor, by default its gradient.
        """
        if self.idle:
            if means is None:
                means = [self.layout.tensors[number].view(self.gradients) for number in self.idle]
            everywhere = torch.stack([((mean == 0) & mean.signbit()).all() for mean in means]).tolist()
            self.idle = tuple(number for number, every in zip(self.idle, everywhere, strict=True) if every)

    def keep_idle_where_frozen(self) -> None:
        """Gradients that are missing count as zero from now on; what is frozen stays as it is."""
        self.idle = tuple(number for number in self.idle if not self.tensors[number].requires_grad)

    def idle_slices(self) -> list[slice]:
        """Where idle tensors lie."""
        windows = [self.layout.tensors[number] for number in self.idle]
        return [slice(window.offset, window.offset + window.numel) for window in windows]

    def holds(self, number: int) -> bool:
        """Whether tensor `number` still lies here: an optimiser that is made later moves it into its own vector."""
        return _addresses([self.tensors[number]]) == [self._homes[number]]

    def _attached(self) -> bool:
        return all(map(operator.is_, map(operator.attrgetter("grad"), self.tensors), self._gradient_views))

    def _attach(self) -> None:
        for parameter, view in zip(self.tensors, self._gradient_views, strict=True):
            parameter.grad = view


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    """Where they lie; a tensor of torch's fake mode has no address, and nobody moves it."""
    if isinstance(tensors[0], FakeTensor):
        return [0] * len(tensors)
    return list(map(Tensor.data_ptr, tensors))


def _own_view(flat: Tensor, window: Window) -> Tensor:
    """The window as a tensor with a storage of its own in the same memory: who saves it does not save its neighbours.

    It has a version counter of its own, too. A plain view where that cannot be had: stacked, on a meta device, in
    torch's fake mode.
    """
    if flat.dim() > 1 or type(flat) is not Tensor or flat.device.type not in ("cpu", "cuda"):
        return window.view(flat)
    if not window.numel:
        return flat.new_empty(window.shape)
    piece: Tensor = from_dlpack(flat[window.offset : window.offset + window.numel])
    return piece.as_strided(window.shape, window.strides)


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


def _check(tensors: Sequence[Parameter]) -> None:
    if not tensors:
        raise ValueError("there is no parameter to train: every group is empty")
    first, addresses = tensors[0], dict[int, int]()
    for number, parameter in enumerate(tensors):
        if not parameter.requires_grad:
            raise ValueError(f"parameter {number} does not require a gradient; give only those that do")
        if not parameter.is_floating_point():
            raise ValueError(f"parameter {number} is {parameter.dtype}; an optimiser takes real floating-point numbers")
        if (parameter.dtype, parameter.device) != (first.dtype, first.device):
            raise ValueError(
                f"parameter {number} is {parameter.dtype} on {parameter.device}, parameter 0 is {first.dtype} on "
                f"{first.device}; an optimiser takes parameters of one type on one device"
            )
        if parameter.numel() and not parameter.is_meta and not isinstance(parameter, FakeTensor):
            other = addresses.setdefault(parameter.data_ptr(), number)
            if other != number:
                raise ValueError(
                    f"parameters {other} and {number} share memory, which they could not do any more; make them one "
                    "Parameter that both modules hold"
                )
