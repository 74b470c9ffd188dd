"""A local step on the flat vectors: in one pass over them, or on a slice of them beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from algorithms.core.flat import FlatBuffers
from algorithms.core.layout import Window, Windows

VECTOR_BYTES = 128
"""Slices begin and end at multiples of this, counted from where their span begins."""

Group = dict[str, Any]


@dataclass(frozen=True)
class Span:
    """A share of the flat vector that is stepped in one go: of one parameter group, whose numbers it has.

    `num_done`: local steps that its tensors have done, where the local optimiser asks for that.
    """

    start: int
    stop: int
    group: Group
    num_done: int = 0


class LocalOptimizer(Protocol):
    """What a worker would do on its own: p_i is what it would subtract from its parameters x.

    It has buffers beside the parameters, each worker its own, which belong to the optimiser's state.
    """

    def buffers(self, groups: Sequence[Group]) -> list[Tensor]:
        """All of shape (local workers, d); made when they are first needed."""

    def spans(self, groups: Sequence[Group]) -> list[Span]:
        """The flat vector, in order, in shares that may be stepped in one go."""

    def step_(
        self, span: Span, x: Tensor, g: Tensor, buffers: Sequence[Tensor], target: Tensor | None, sign: int
    ) -> None:
        """target <- target + sign p, coordinate by coordinate; the target is x if None. g may be used up.

        All of shape (local workers, n): a span's coordinates, or a slice of them.
        """

    def count(self) -> None:
        """A step is done, of all tensors but frozen ones."""

    def counts(self) -> dict[str, list[int]]:
        """What the state must hold beside the buffers, by name."""

    def restore(self, counts: dict[str, list[int]]) -> None:
        """Go on from there."""


@dataclass(frozen=True)
class LocalStep:
    """What a local step does to tensors of shape (local workers, d).

    Args:
        flat: the parameters and gradients.
        groups: with the numbers of each part.
        local: whose step it is.
        target: what is changed, the parameters if None.
        sign: -1 to take the update off, +1 to add it.
    """

    flat: FlatBuffers
    groups: Sequence[Group]
    local: LocalOptimizer
    target: Tensor | None
    sign: int

    def do_(self) -> None:
        """The step; frozen tensors stay as they are, and so do their buffers."""
        buffers = self.local.buffers(self.groups)
        changed = [self.flat.parameters if self.target is None else self.target, *buffers]
        kept = [(vector, here, vector[:, here].clone()) for here in self.flat.frozen_slices() for vector in changed]
        for span in self.local.spans(self.groups):
            here = (slice(None), slice(span.start, span.stop))
            target = None if self.target is None else self.target[here]
            own = [buffer[here] for buffer in buffers]
            self.local.step_(span, self.flat.parameters[here], self.flat.gradients[here], own, target, self.sign)
        for vector, frozen, values in kept:
            vector[:, frozen] = values
        self.local.count()

    def after(self, support: Windows) -> Tensor:
        """`support.gather` of what is changed, as it will be after the step, to the bit; nothing is changed now."""
        parts, num_rows = [], len(self.flat.parameters)
        for window in support.windows:
            near = self._slice_after(*window.span)
            parts.append(Window(0, window.shape, window.strides).view(near).reshape(num_rows, -1))
        return torch.cat([*parts, self.flat.parameters.new_zeros(num_rows, support.padding)], dim=-1)

    def _slice_after(self, start: int, stop: int) -> Tensor:
        # A kernel may round what its vectors do not cover in another way (a fused multiply-add is rounded once). So
        # slices are widened to where the whole span's vectors begin and end; what they hold beyond is not used.
        unit = VECTOR_BYTES // self.flat.parameters.element_size()
        buffers, pieces = self.local.buffers(self.groups), []
        for span in self.local.spans(self.groups):
            low, high = max(start, span.start), min(stop, span.stop)
            if low < high:
                first = low - (low - span.start) % unit
                last = min(high + (span.start - high) % unit, span.stop)
                x, g, *own = (
                    vector[:, first:last].clone() for vector in (self.flat.parameters, self.flat.gradients, *buffers)
                )
                target = None if self.target is None else self.target[:, first:last].clone()
                changed = x if target is None else target
                before = changed.clone() if self.flat.frozen else changed
                self.local.step_(span, x, g, own, target, self.sign)
                for frozen in self.flat.frozen_slices():
                    here = slice(max(frozen.start - first, 0), max(frozen.stop - first, 0))
                    changed[:, here] = before[:, here]
                pieces.append(changed[:, low - first : high - first])
        return torch.cat(pieces, dim=-1)


def fused_is_right(x: Tensor) -> bool:
    """On the CPU torch's fused kernel leaves whole vectors of 16-bit numbers unwritten."""
    return x.device.type == "cuda" or (x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64))
