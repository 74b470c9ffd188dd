"""The local step of SGD with Nesterov momentum: in one pass over the flat vectors, or on a slice of them beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd as torch_sgd

from algorithms.core.flat import FlatBuffers
from algorithms.core.layout import Window, Windows

VECTOR_BYTES = 128
"""Slices begin and end at multiples of this, counted from where their parameter group begins."""


@dataclass(frozen=True)
class LocalStep:
    """What a local step does, coordinate by coordinate, to vectors of shape (d,), or (num_workers, d) where stacked.

    Args:
        flat: the parameters and gradients.
        groups: with the numbers of each part.
        momentum: None where no group has any.
        target: what is changed, the parameters if None.
        sign: -1 to take the update off, +1 to add it.
        arithmetic_: `nesterov_step_` or another, of one group's vectors or a slice of them.
    """

    flat: FlatBuffers
    groups: Sequence[dict[str, Any]]
    momentum: Tensor | None
    target: Tensor | None
    sign: int
    arithmetic_: Callable[[dict[str, Any], Tensor, Tensor, Tensor | None, Tensor | None, int], None]

    def do_(self) -> None:
        """The step; what tensors without a gradient have stays as it is, and so does their momentum."""
        changed = [self.flat.parameters if self.target is None else self.target]
        changed += [] if self.momentum is None else [self.momentum]
        kept = [(vector, here, vector[here].clone()) for here in self.flat.idle_slices() for vector in changed]
        for part, group in zip(self.flat.parts, self.groups, strict=True):
            self.arithmetic_(group, *self._vectors(slice(part.start, part.stop)), self.sign)
        for vector, here, values in kept:
            vector[here] = values

    def after(self, support: Windows) -> Tensor:
        """`support.gather` of what is changed, as it will be after the step, to the bit; nothing is changed now."""
        parts = []
        for window in support.windows:
            near = self._slice_after(*window.span)
            parts.append(Window(0, window.shape, window.strides).view(near).reshape(-1))
        return torch.cat([*parts, self.flat.parameters.new_zeros(support.padding)])

    def _slice_after(self, start: int, stop: int) -> Tensor:
        # A kernel may round what its vectors do not cover in another way (a fused multiply-add is rounded once). So
        # slices are widened to where the whole group's vectors begin and end; what they hold beyond is not used.
        unit = VECTOR_BYTES // self.flat.parameters.element_size()
        pieces = []
        for part, group in zip(self.flat.parts, self.groups, strict=True):
            low, high = max(start, part.start), min(stop, part.stop)
            if low < high:
                first = low - (low - part.start) % unit
                last = min(high + (part.start - high) % unit, part.stop)
                x, g, m, target = self._vectors(slice(first, last), copied=True)
                changed = x if target is None else target
                before = changed.clone() if self.flat.idle else changed
                self.arithmetic_(group, x, g, m, target, self.sign)
                for idle in self.flat.idle_slices():
                    here = slice(max(idle.start - first, 0), max(idle.stop - first, 0))
                    changed[here] = before[here]
                pieces.append(changed[low - first : high - first])
        return torch.cat(pieces)

    def _vectors(self, here: slice, copied: bool = False) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """A part of x, g, m and the target, where there are these two."""

        def part(vector: Tensor) -> Tensor:
            return vector[..., here].clone() if copied else vector[..., here]

        m, target = (None if vector is None else part(vector) for vector in (self.momentum, self.target))
        return part(self.flat.parameters), part(self.flat.gradients), m, target


def nesterov_step_(
    group: dict[str, Any], x: Tensor, g: Tensor, m: Tensor | None, target: Tensor | None, sign: int
) -> None:
    """target <- target + sign eta u, with m <- beta m + g and then u = beta m + g; the target is x if None.

    All of one shape, (n,) or, with workers stacked, (num_workers, n). For another target than x the weight decay is
    first added to the gradients, since it is x's own. Rows go one by one: a kernel's rounding depends on where its
    vectors begin, and a worker's bits must not depend on its neighbours.
    """
    decay = group["weight_decay"]
    if target is not None and decay:
        for gradient, parameters in zip(rows_of(g), rows_of(x), strict=True):
            gradient.add_(parameters, alpha=decay)
    momenta: list[Tensor | None] = [*rows_of(m)] if m is not None and group["momentum"] else [None] * len(rows_of(g))
    torch_sgd(
        rows_of(x if target is None else target),
        rows_of(g),
        momenta,
        foreach=False,
        fused=_fused_is_right(x),
        weight_decay=decay if target is None else 0.0,
        momentum=group["momentum"],
        lr=-sign * group["lr"],
        dampening=0.0,
        nesterov=group["momentum"] > 0,
        maximize=False,
    )


def _fused_is_right(x: Tensor) -> bool:
    """On the CPU torch's fused kernel leaves whole vectors of 16-bit numbers unwritten."""
    return x.device.type == "cuda" or (x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64))


def rows_of(vector: Tensor) -> list[Tensor]:
    """The flat vectors of the workers that are stacked in a tensor of shape (num_workers, n); of shape (n,): itself."""
    return [vector] if vector.dim() == 1 else list(vector.unbind())
