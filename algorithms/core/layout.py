"""The layout of tensors in the flat vector, and supports: sets of its coordinates."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """A strided window of the flat vector: a block is one with stride 1.

    Flat vectors of several workers may be stacked, one a row; a window is then the same part of
    each row.
    """

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def block(cls, start: int, length: int) -> Window:
        """Return the window of `length` coordinates side by side."""
        return cls(start, (length,), (1,))

    @cached_property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def span(self) -> tuple[int, int]:
        """The first coordinate, and one more than the last.

        With strides there may be others between.
        """
        last = self.offset
        # The last coordinate has the largest index on every axis.
        for size, stride in zip(self.shape, self.strides, strict=True):
            last += (size - 1) * stride
        return self.offset, last + 1

    def view(self, flat: Tensor) -> Tensor:
        shape = (*flat.shape[:-1], *self.shape)  # (..., d) becomes (..., *shape)
        strides = (*flat.stride()[:-1], *self.strides)
        # As_strided counts from the storage's start, and `flat` may begin further on.
        offset = flat.storage_offset() + self.offset
        return flat.as_strided(shape, strides, offset)


@dataclass(frozen=True)
class Layout:
    """The tensors of a flat vector, in order, each dense and without gaps."""

    tensors: tuple[Window, ...]

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> Layout:
        """Return the layout of tensors put one after the other.

        Each keeps its strides: channels last stays so.
        """
        windows = []
        offset = 0
        for tensor in tensors:
            strides = tensor.stride()
            # Other strides may leave gaps, through which a tensor would reach into its neighbours.
            if not _is_dense(tensor):
                contiguous = torch.empty(tensor.shape, device="meta")
                strides = contiguous.stride()
            window = Window(offset, tuple(tensor.shape), tuple(strides))
            windows.append(window)
            offset += tensor.numel()
        return cls(tuple(windows))

    @classmethod
    def flat(cls, part: slice) -> Layout:
        """Return the layout of a part of a flat vector, taken as one tensor."""
        length = part.stop - part.start
        return cls((Window.block(0, length),))

    @cached_property
    def numel(self) -> int:
        """d, the number of coordinates."""
        return sum(window.numel for window in self.tensors)

    def touched(self, support: Windows) -> tuple[int, ...]:
        """Return the numbers of the tensors within the windows' spans, ascending."""
        starts = [tensor.offset for tensor in self.tensors]
        numbers: set[int] = set()
        for window in support.windows:
            start, stop = window.span
            first = bisect_right(starts, start) - 1  # the tensor that `start` lies in
            end = bisect_left(starts, stop)  # the first tensor beyond
            numbers.update(range(first, end))
        return tuple(sorted(numbers))


def _is_dense(tensor: Tensor) -> bool:
    if tensor.is_contiguous():
        return True
    # Channels last: images have four axes, volumes five.
    if tensor.dim() == 4:
        return tensor.is_contiguous(memory_format=torch.channels_last)
    if tensor.dim() == 5:
        return tensor.is_contiguous(memory_format=torch.channels_last_3d)
    return False


@dataclass(frozen=True)
class Windows:
    """A support made of disjoint windows, sent as one dense message.

    At its end are `padding` zeros.

    Flat vectors are of shape (..., d).
    """

    windows: tuple[Window, ...]
    padding: int = 0

    @property
    def payload_numel(self) -> int:
        """Numbers of its message."""
        numel = sum(window.numel for window in self.windows)
        return numel + self.padding

    def gather(self, flat: Tensor) -> Tensor:
        """Return a new dense tensor of shape (..., payload_numel).

        The coordinates of `flat` in order.
        """
        lead = flat.shape[:-1]  # the axis over local workers, if there is one
        parts = []
        for window in self.windows:
            view = window.view(flat)
            parts.append(view.reshape(*lead, window.numel))
        # Without any part there would be nothing to concatenate: zeros of no length stand for it.
        if self.padding or not parts:
            parts.append(flat.new_zeros(*lead, self.padding))
        return torch.cat(parts, dim=-1)

    def add_(self, flat: Tensor, values: Tensor, alpha: float = 1.0) -> None:
        """Do flat[support] += alpha * values, laid out as by `gather`."""
        for window, part in self._pairs(values):
            window.view(flat).add_(part, alpha=alpha)

    def copy_(self, flat: Tensor, values: Tensor) -> None:
        """Do flat[support] = values."""
        for window, part in self._pairs(values):
            window.view(flat).copy_(part)

    def is_apart(self, other: Windows | Indices) -> bool:
        """Return whether the two are seen to have no coordinate in common."""
        if not isinstance(other, Windows):
            return False
        windows = self.windows + other.windows
        # Spans that touch nowhere are enough. Interleaved strides may be apart too, and count as not.
        spans = sorted(window.span for window in windows)
        return all(before[1] <= after[0] for before, after in pairwise(spans))

    def _pairs(self, values: Tensor) -> Iterable[tuple[Window, Tensor]]:
        # `values` is laid out as by `gather`: window after window, then the padding.
        start = 0
        for window in self.windows:
            stop = start + window.numel
            part = values[..., start:stop]
            shape = (*values.shape[:-1], *window.shape)
            yield window, part.reshape(shape)
            start = stop


@dataclass(frozen=True)
class Indices:
    """A support given by distinct coordinates, an int64 tensor of shape (k,) on any device.

    See `Windows`.
    """

    index: Tensor

    @property
    def payload_numel(self) -> int:
        return self.index.numel()

    def gather(self, flat: Tensor) -> Tensor:
        return flat.index_select(-1, self._beside(flat))

    def add_(self, flat: Tensor, values: Tensor, alpha: float = 1.0) -> None:
        flat.index_add_(-1, self._beside(flat), values, alpha=alpha)

    def copy_(self, flat: Tensor, values: Tensor) -> None:
        flat.index_copy_(-1, self._beside(flat), values)

    def _beside(self, flat: Tensor) -> Tensor:
        """Return the coordinates on the vector's device.

        They are drawn on the CPU, and no one waits until a GPU has them.
        """
        if flat.device.type == "cuda" and self.index.device.type == "cpu":
            # From memory that is not pinned a copy would have the host wait.
            pinned = self.index.pin_memory()
            return pinned.to(flat.device, non_blocking=True)
        return self.index.to(flat.device)


Support = Windows | Indices
"""The coordinates that are sent, and how to read and change them in flat vectors."""


def whole(numel: int) -> Windows:
    """Return the support that is the whole vector."""
    everything = Window.block(0, numel)
    return Windows((everything,))
