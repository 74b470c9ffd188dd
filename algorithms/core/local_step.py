"""`LocalStep`: what a worker does on its own, in one pass over the flat vectors or on a slice.

The rules themselves stand in `algorithms/local_steps`, a file each.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim.optimizer import Optimizer

from cser_bench.algorithms.core.discovery import by_name, classes_in
from cser_bench.algorithms.core.flat import FlatBuffers
from cser_bench.algorithms.core.layout import Window, Windows

REQUIRED = inspect.Parameter.empty
"""Default of a number or an argument that must be given."""
VECTOR_BYTES = 128
"""Slices begin and end at multiples of this, counted from where their span begins."""

Group = dict[str, Any]


@dataclass(frozen=True)
class Span:
    """A share of the flat vector that is stepped in one go, with its group's numbers.

    `num_done`: local steps that its tensors have done, where the local optimiser asks for that.
    `whole`: the matrix that it is, where it cannot be stepped in slices.
    """

    start: int
    stop: int
    group: Group
    num_done: int = 0
    whole: Window | None = None


class LocalStep(ABC):
    """What a worker would do on its own: p_i, which is subtracted from x_i.

    A class with a `name` in a file of `algorithms/local_steps` is a local step that scripts and
    specs can ask for. Variants that a method alone asks for have no name of their own.

    Args:
        flat: the parameters and gradients.
        held: where buffers are kept beside the parameters, each worker's own; they are part of the
            state.
    """

    name: ClassVar[str]
    """Value of `local_step` in scripts and specs."""
    numbers: ClassVar[Mapping[str, Any]]
    """Numbers of a parameter group that the step reads, and their defaults. Their names are among
    `group_numbers.RANGES`."""
    options: ClassVar[Mapping[str, bool]] = {}
    """Boolean options of a parameter group, and their defaults."""
    moments: ClassVar[tuple[str, ...]] = ()
    """Names of the buffers that may be averaged between workers, first and second moment."""
    made_later: ClassVar[tuple[str, ...]] = ()
    """Names of the buffers that are made when they are needed, so a saved state may lack them."""
    rule: ClassVar[str]
    """The step in three words, as the end of "they minimise, ..."."""
    words: ClassVar[str]
    """What a plan prints of a row with this step: a format string of the step's numbers."""

    @classmethod
    def groups(cls, model: nn.Module, parameters: Iterable[Parameter]) -> Iterable[Any]:
        """Return the model's parameters as an optimiser with this step takes them.

        Args:
            parameters: what is trained in place of the model's own, in the same order.
        """
        return parameters

    @classmethod
    def in_torch(
        cls, parameters: Iterable[Parameter], **numbers: Any
    ) -> Optimizer | None:
        """Return torch's fused optimiser of this rule, to time DDP with; None if torch has none."""
        return None

    def __init__(self, flat: FlatBuffers, held: dict[str, Tensor]) -> None:
        self.flat = flat
        self.held = held

    @abstractmethod
    def buffers(self, groups: Sequence[Group]) -> list[Tensor]:
        """Return the buffers, each of shape (local workers, d), made when they are first needed."""

    @abstractmethod
    def spans(self, groups: Sequence[Group]) -> list[Span]:
        """Return the flat vector, in order, in shares that may be stepped in one go."""

    @abstractmethod
    def step_(
        self,
        span: Span,
        x: Tensor,
        g: Tensor,
        buffers: Sequence[Tensor],
        target: Tensor | None,
    ) -> None:
        """Do x <- x - p, or target <- target + p where there is a target. g may be used up.

        All are of shape (local workers, n): a span's coordinates, or a slice of them. Rows go one
        by one: a kernel's rounding depends on where its vectors begin, and a worker's bits must not
        depend on its neighbours.
        """

    def count(self) -> None:  # noqa: B027 (SGD need not know)
        """Note that a step is done, of all tensors but frozen ones."""

    def counts(self) -> dict[str, list[int]]:
        """Return what the state must hold beside the buffers, by name."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from the counts of a state, with a buffer for each of `made_later` that it has."""
        for key in self.made_later:
            if key in state and key not in self.held:
                self.held[key] = self.flat.new_buffer()

    def apply_(self, groups: Sequence[Group], target: Tensor | None = None) -> None:
        """Do `step_` on the whole vectors; frozen tensors and their buffers stay."""
        flat = self.flat
        buffers = self.buffers(groups)
        changed = flat.parameters if target is None else target
        # Kernels step whole spans, frozen tensors included; these are put back afterwards.
        with flat.frozen_aside(changed, *buffers):
            for span in self.spans(groups):
                here = slice(span.start, span.stop)
                self.step_(
                    span,
                    flat.parameters[:, here],
                    flat.gradients[:, here],
                    [buffer[:, here] for buffer in buffers],
                    None if target is None else target[:, here],
                )
        self.count()

    def after(
        self, groups: Sequence[Group], support: Windows, target: Tensor | None = None
    ) -> Tensor:
        """Return `support.gather` of x or the target as `apply_` will leave it, to the bit.

        Nothing is changed. None of the tensors there may be frozen.
        """
        num_rows = len(self.flat.parameters)
        parts = []
        for window in support.windows:
            # Everything between a window's first and last coordinate is stepped, then picked from.
            # (local workers, span)
            near = self._slice_after(groups, *window.span, target)
            in_slice = replace(window, offset=0)
            parts.append(in_slice.view(near).reshape(num_rows, -1))
        parts.append(self.flat.parameters.new_zeros(num_rows, support.padding))
        return torch.cat(parts, dim=-1)

    def _slice_after(
        self, groups: Sequence[Group], start: int, stop: int, target: Tensor | None
    ) -> Tensor:
        flat = self.flat
        buffers = self.buffers(groups)
        unit = VECTOR_BYTES // flat.parameters.element_size()
        pieces = []
        for span in self.spans(groups):
            low = max(start, span.start)
            high = min(stop, span.stop)
            if low >= high:
                continue
            # A kernel may round what its vectors do not cover in another way (a fused multiply-add
            # is rounded once). So slices are widened to where the whole span's vectors begin and
            # end; what they hold beyond is not used.
            first = low - (low - span.start) % unit
            last = min(high + (span.start - high) % unit, span.stop)
            # Muon's step of a matrix depends on all of it.
            if span.whole is not None:
                first = span.start
                last = span.stop
            here = slice(first, last)
            # Copies, as `step_` writes: (local workers, last - first).
            x = flat.parameters[:, here].clone()
            g = flat.gradients[:, here].clone()
            own_buffers = [buffer[:, here].clone() for buffer in buffers]
            own_target = None if target is None else target[:, here].clone()
            self.step_(span, x, g, own_buffers, own_target)
            changed = x if own_target is None else own_target
            pieces.append(changed[:, low - first : high - first])
        return torch.cat(pieces, dim=-1)


def fused_is_right(x: Tensor) -> bool:
    """Return whether torch's fused kernel may be used.

    On the CPU it leaves vectors of 16-bit numbers unwritten.
    """
    if x.device.type == "cpu":
        return x.dtype in (torch.float32, torch.float64)
    return x.device.type == "cuda"


@cache
def local_steps() -> dict[str, type[LocalStep]]:
    """All local steps by the name that scripts and specs use, sorted."""
    # By the package's name, since it imports this module.
    classes = classes_in("cser_bench.algorithms.local_steps", LocalStep)  # type: ignore[type-abstract]
    return by_name([(step.name, step) for step in classes if "name" in vars(step)])


def local_step_named(name: str) -> type[LocalStep]:
    """Return a local step. Raise ValueError if there is none of this name."""
    steps = local_steps()
    if name not in steps:
        raise ValueError(f"local_step must be one of {', '.join(steps)}, not {name!r}")
    return steps[name]


def which_read(number: str) -> list[str]:
    """Return the names of the local steps that read a number of a group, such as "betas"."""
    return [name for name, step in local_steps().items() if number in step.numbers]
