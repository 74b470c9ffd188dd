"""The local step on the flat vectors, SGD's or AdamW's: in one pass over them, or on a slice of them beforehand."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw as torch_adamw
from torch.optim.sgd import sgd as torch_sgd

from algorithms.core.flat import FlatBuffers
from algorithms.core.layout import Window, Windows

VECTOR_BYTES = 128
"""Slices begin and end at multiples of this, counted from where their span begins."""
COUNTS = "tensor_steps"
"""What a state calls the AdamW steps that each tensor has done."""

Group = dict[str, Any]


@dataclass(frozen=True)
class Span:
    """A share of the flat vector that is stepped in one go, with the numbers of its parameter group.

    `num_done`: local steps that its tensors have done, where the local optimiser asks for that.
    `whole`: the matrix that it is, where it cannot be stepped in slices; its offset is 0.
    """

    start: int
    stop: int
    group: Group
    num_done: int = 0
    whole: Window | None = None


class LocalStep(ABC):
    """What a worker would do on its own: p_i, which is subtracted from x_i.

    Args:
        flat: the parameters and gradients.
        held: where buffers are kept beside the parameters, each worker's own; they are part of the state.
    """

    def __init__(self, flat: FlatBuffers, held: dict[str, Tensor]) -> None:
        self.flat, self.held = flat, held

    @abstractmethod
    def buffers(self, groups: Sequence[Group]) -> list[Tensor]:
        """Returns the buffers, each of shape (local workers, d); they are made when they are first needed."""

    @abstractmethod
    def spans(self, groups: Sequence[Group]) -> list[Span]:
        """Returns the flat vector, in order, in shares that may be stepped in one go."""

    @abstractmethod
    def step_(
        self, span: Span, x: Tensor, g: Tensor, buffers: Sequence[Tensor], target: Tensor | None, sign: int
    ) -> None:
        """target <- target + sign p, coordinate by coordinate; the target is x if None. g may be used up.

        All are of shape (local workers, n): a span's coordinates, or a slice of them. Rows go one by one: a kernel's
        rounding depends on where its vectors begin, and a worker's bits must not depend on its neighbours.
        """

    def count(self) -> None:  # noqa: B027 (SGD need not know)
        """Notes that a step is done, of all tensors but frozen ones."""

    def counts(self) -> dict[str, list[int]]:
        """Returns what the state must hold beside the buffers, by name."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Goes on from the counts of a state."""

    def apply_(self, groups: Sequence[Group], target: Tensor | None = None, sign: int = -1) -> None:
        """target <- target + sign p, the target being the parameters if None; frozen tensors and buffers stay."""
        flat, buffers = self.flat, self.buffers(groups)
        changed = [flat.parameters if target is None else target, *buffers]
        kept = [(vector, here, vector[:, here].clone()) for here in flat.frozen_slices() for vector in changed]
        for span in self.spans(groups):
            here = (slice(None), slice(span.start, span.stop))
            own = [buffer[here] for buffer in buffers]
            of_target = None if target is None else target[here]
            self.step_(span, flat.parameters[here], flat.gradients[here], own, of_target, sign)
        for vector, frozen, values in kept:
            vector[:, frozen] = values
        self.count()

    def after(self, groups: Sequence[Group], support: Windows, target: Tensor | None, sign: int) -> Tensor:
        """Returns `support.gather` of the target as `apply_` will leave it, to the bit; nothing is changed."""
        parts, num_rows = [], len(self.flat.parameters)
        for window in support.windows:
            near = self._slice_after(groups, slice(*window.span), target, sign)
            parts.append(Window(0, window.shape, window.strides).view(near).reshape(num_rows, -1))
        return torch.cat([*parts, self.flat.parameters.new_zeros(num_rows, support.padding)], dim=-1)

    def _slice_after(self, groups: Sequence[Group], wanted: slice, target: Tensor | None, sign: int) -> Tensor:
        # A kernel may round what its vectors do not cover in another way (a fused multiply-add is rounded once). So
        # slices are widened to where the whole span's vectors begin and end; what they hold beyond is not used.
        flat, buffers, pieces = self.flat, self.buffers(groups), []
        unit = VECTOR_BYTES // flat.parameters.element_size()
        for span in self.spans(groups):
            low, high = max(wanted.start, span.start), min(wanted.stop, span.stop)
            if low < high:
                first = low - (low - span.start) % unit
                last = min(high + (span.start - high) % unit, span.stop)
                if span.whole is not None:
                    first, last = span.start, span.stop
                x, g, *own = (vector[:, first:last].clone() for vector in (flat.parameters, flat.gradients, *buffers))
                changed = x if target is None else target[:, first:last].clone()
                before = changed.clone() if flat.frozen else changed
                self.step_(span, x, g, own, None if target is None else changed, sign)
                for frozen in flat.frozen_slices():
                    here = slice(max(frozen.start - first, 0), max(frozen.stop - first, 0))
                    changed[:, here] = before[:, here]
                pieces.append(changed[:, low - first : high - first])
        return torch.cat(pieces, dim=-1)


def fused_is_right(x: Tensor) -> bool:
    """Returns whether torch's fused kernel may be used: on the CPU it leaves vectors of 16-bit numbers unwritten."""
    return x.device.type == "cuda" or (x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64))


class Nesterov(LocalStep):
    """SGD with Nesterov momentum: m_i <- beta m_i + g_i, p_i = eta (beta m_i + g_i); weight decay is part of g_i.

    The buffer "momentum" is made when a group has momentum: a schedule may switch it on.
    """

    def buffers(self, groups: Sequence[Group]) -> list[Tensor]:
        if "momentum" not in self.held:
            if not any(group["momentum"] for group in groups):
                return []
            self.held["momentum"] = self.flat.new_buffer()
        return [self.held["momentum"]]

    def spans(self, groups: Sequence[Group]) -> list[Span]:
        shares = zip(self.flat.parts, groups, strict=True)
        return [Span(part.start, part.stop, group) for part, group in shares if part.start < part.stop]

    def step_(
        self, span: Span, x: Tensor, g: Tensor, buffers: Sequence[Tensor], target: Tensor | None, sign: int
    ) -> None:
        nesterov_step_(span.group, x, g, buffers[0] if buffers else None, target, sign)


def nesterov_step_(group: Group, x: Tensor, g: Tensor, m: Tensor | None, target: Tensor | None, sign: int) -> None:
    """target <- target + sign eta u, with m <- beta m + g and then u = beta m + g; the target is x if None.

    All of shape (local workers, n). For another target than x the weight decay is first added to the gradients, since
    it is x's own.
    """
    decay = group["weight_decay"]
    if target is not None and decay:
        for gradient, parameters in zip(g, x, strict=True):
            gradient.add_(parameters, alpha=decay)
    momenta: list[Tensor | None] = [*m.unbind()] if m is not None and group["momentum"] else [None] * len(g)
    torch_sgd(
        list((x if target is None else target).unbind()),
        list(g.unbind()),
        momenta,
        foreach=False,
        fused=fused_is_right(x),
        weight_decay=decay if target is None else 0.0,
        momentum=group["momentum"],
        lr=-sign * group["lr"],
        dampening=0.0,
        nesterov=group["momentum"] > 0,
        maximize=False,
    )


class DecayInMomentumOnly(Nesterov):
    """From x alone: the weight decay enters the momentum, and the direct term has none."""

    def step_(
        self, span: Span, x: Tensor, g: Tensor, buffers: Sequence[Tensor], target: Tensor | None, sign: int
    ) -> None:
        group = span.group
        if not buffers:
            return super().step_(span, x, g, buffers, target, sign)
        for own_x, own_g, own_m in zip(x, g, buffers[0], strict=True):
            own_m.mul_(group["momentum"]).add_(own_g).add_(own_x, alpha=group["weight_decay"])
            own_x.add_(own_g, alpha=-group["lr"]).add_(own_m, alpha=-group["lr"] * group["momentum"])


class AdamW(LocalStep):
    """Adam with bias correction and decoupled weight decay, as torch.optim.AdamW has it; g_i has no decay in it.

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2.

        m_i <- beta1 m_i + (1 - beta1) g_i;   v_i <- beta2 v_i + (1 - beta2) g_i^2
        p_i = eta lambda x_i + eta (m_i / (1 - beta1^t)) / (sqrt(v_i / (1 - beta2^t)) + eps)

    t counts the steps that a tensor has done, which are fewer where it was frozen for a while. The buffers are the
    moments "exp_avg" and "exp_avg_sq".
    """

    def __init__(self, flat: FlatBuffers, held: dict[str, Tensor]) -> None:
        super().__init__(flat, held)
        self._moments = [held.setdefault(key, flat.new_buffer()) for key in ("exp_avg", "exp_avg_sq")]
        self._done = [0] * len(flat.tensors)
        """Steps that each tensor has done."""

    def buffers(self, groups: Sequence[Group]) -> list[Tensor]:
        return self._moments

    def spans(self, groups: Sequence[Group]) -> list[Span]:
        """Returns the groups, cut where one tensor has done more steps than the next."""
        tensors = list(zip(self.flat.layout.tensors, self._done, strict=True))
        spans = []
        for part, group in zip(self.flat.parts, groups, strict=True):
            inside = [(each, done) for each, done in tensors if part.start <= each.offset < part.stop and each.numel]
            for done, run in groupby(inside, key=lambda each: each[1]):
                windows = [window for window, _ in run]
                spans.append(Span(windows[0].offset, windows[-1].offset + windows[-1].numel, group, done))
        return spans

    def step_(
        self, span: Span, x: Tensor, g: Tensor, buffers: Sequence[Tensor], target: Tensor | None, sign: int
    ) -> None:
        group, (exp_avg, exp_avg_sq) = span.group, buffers
        lr, decay, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
        if target is not None and decay:  # x's own, though the target is another
            for own, parameters in zip(target, x, strict=True):
                own.add_(parameters, alpha=sign * lr * decay)
        fused, changed = fused_is_right(x), list((x if target is None else target).unbind())
        # A fill, not a copy: nobody waits for a GPU. The kernel that is not fused reads the number on the host.
        device = x.device if fused else torch.device("cpu")
        steps = torch.full((len(changed),), float(span.num_done), dtype=torch.float32, device=device)
        torch_adamw(
            changed,
            list(g.unbind()),
            list(exp_avg.unbind()),
            list(exp_avg_sq.unbind()),
            [],
            list(steps.unbind()),
            foreach=False,
            fused=fused,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=-sign * lr,
            weight_decay=decay if target is None else 0.0,
            eps=group["eps"],
            maximize=False,
        )

    def count(self) -> None:
        self._done = [done + (number not in self.flat.frozen) for number, done in enumerate(self._done)]

    def counts(self) -> dict[str, list[int]]:
        return {COUNTS: list(self._done)}

    def restore(self, state: dict[str, Any]) -> None:
        self._done = list(state[COUNTS])
