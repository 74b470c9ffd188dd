"""The local step of SGD with Nesterov momentum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.optim.sgd import sgd as torch_sgd

from algorithms.core.flat import FlatBuffers
from algorithms.core.local_step import Group, Span, fused_is_right


def nesterov_step_(group: Group, x: Tensor, g: Tensor, m: Tensor | None, target: Tensor | None, sign: int) -> None:
    """target <- target + sign eta u, with m <- beta m + g and then u = beta m + g; the target is x if None.

    All of shape (local workers, n). For another target than x the weight decay is
    first added to the gradients, since it is x's own. Rows go one by one: a kernel's rounding depends on where its
    vectors begin, and a worker's bits must not depend on its neighbours.
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


@dataclass(frozen=True)
class Nesterov:
    """m_i <- beta m_i + g_i, p_i = eta (beta m_i + g_i); weight decay is part of g_i. Its buffer is "momentum".

    Args:
        flat: the parameters and gradients.
        held: where the buffer is kept once it is made, when a group has momentum: a schedule may switch it on.
        arithmetic_: of a method whose update is another one.
    """

    flat: FlatBuffers
    held: dict[str, Tensor]
    arithmetic_: Callable[[Group, Tensor, Tensor, Tensor | None, Tensor | None, int], None] = nesterov_step_

    def buffers(self, groups: Sequence[Group]) -> list[Tensor]:
        if "momentum" not in self.held:
            if not any(group["momentum"] for group in groups):
                return []
            self.held["momentum"] = self.flat.new_buffer()
        return [self.held["momentum"]]

    def spans(self, groups: Sequence[Group]) -> list[Span]:
        return [Span(part.start, part.stop, group) for part, group in zip(self.flat.parts, groups, strict=True)]

    def step_(
        self, span: Span, x: Tensor, g: Tensor, buffers: Sequence[Tensor], target: Tensor | None, sign: int
    ) -> None:
        self.arithmetic_(span.group, x, g, buffers[0] if buffers else None, target, sign)

    def count(self) -> None:
        """Nothing here depends on how many steps there were."""

    def counts(self) -> dict[str, list[int]]:
        return {}

    def restore(self, counts: dict[str, list[int]]) -> None:
        assert not counts
