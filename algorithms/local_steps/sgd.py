"""SGD with Nesterov momentum, and a variant whose weight decay enters the momentum alone."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.optimizer import Optimizer
from torch.optim.sgd import sgd as torch_sgd

from cser_bench.algorithms.core.local_step import (
    REQUIRED,
    Group,
    LocalStep,
    Span,
    fused_is_right,
)


class Nesterov(LocalStep):
    """SGD with Nesterov momentum: m_i <- beta m_i + g_i, p_i = eta (beta m_i + g_i).

    Weight decay is part of g_i. The buffer "momentum" is made when a group has momentum: a schedule
    may switch it on.
    """

    name = "sgd"
    numbers: ClassVar = {"lr": REQUIRED, "momentum": 0.0, "weight_decay": 0.0}
    made_later = ("momentum",)
    rule = "with Nesterov's momentum"
    words = "momentum {momentum:g}"

    @classmethod
    def in_torch(cls, parameters: Iterable[Parameter], **numbers: Any) -> Optimizer:
        return torch.optim.SGD(parameters, **numbers, nesterov=True, fused=True)

    def buffers(self, groups: Sequence[Group]) -> list[Tensor]:
        if "momentum" not in self.held:
            if not any(group["momentum"] for group in groups):
                return []
            self.held["momentum"] = self.flat.new_buffer()
        return [self.held["momentum"]]

    def spans(self, groups: Sequence[Group]) -> list[Span]:
        spans = []
        for part, group in zip(self.flat.parts, groups, strict=True):
            # A group may have no parameter of this dtype.
            if part.start < part.stop:
                spans.append(Span(part.start, part.stop, group))
        return spans

    def step_(
        self,
        span: Span,
        x: Tensor,
        g: Tensor,
        buffers: Sequence[Tensor],
        target: Tensor | None,
    ) -> None:
        lr = span.group["lr"]
        decay = span.group["weight_decay"]
        beta = span.group["momentum"]
        changed = x
        if target is not None:
            # The kernel subtracts, and its weight decay would be the target's, not x's own.
            changed = target
            lr = -lr
            if decay:
                for gradient, parameters in zip(g, x, strict=True):
                    gradient.add_(parameters, alpha=decay)
                decay = 0.0
        # A row each: torch steps a list of tensors, here the local workers' vectors.
        momenta: list[Tensor | None] = [None] * len(g)
        if buffers and beta:
            momenta = list(buffers[0].unbind())
        # m <- beta m + g;   x <- x - eta (beta m + g)
        torch_sgd(
            list(changed.unbind()),
            list(g.unbind()),
            momenta,
            foreach=False,
            fused=fused_is_right(x),
            weight_decay=decay,
            momentum=beta,
            lr=lr,
            dampening=0.0,
            nesterov=beta > 0,
            maximize=False,
        )


class DecayInMomentumOnly(Nesterov):
    """SGD whose weight decay enters the momentum, and not the direct term; from x alone.

    A group without momentum has its decay in the gradient.
    """

    def step_(
        self,
        span: Span,
        x: Tensor,
        g: Tensor,
        buffers: Sequence[Tensor],
        target: Tensor | None,
    ) -> None:
        lr = span.group["lr"]
        beta = span.group["momentum"]
        if not beta:
            return super().step_(span, x, g, buffers, target)
        for own_x, own_g, own_m in zip(x, g, buffers[0], strict=True):
            # Momentum first, whose decay takes x from before this step: m <- beta m + g + lambda x
            own_m.mul_(beta).add_(own_g).add_(own_x, alpha=span.group["weight_decay"])
            # x <- x - eta (g + beta m), without lambda x in the direct term
            own_x.add_(own_g, alpha=-lr)
            own_x.add_(own_m, alpha=-lr * beta)
