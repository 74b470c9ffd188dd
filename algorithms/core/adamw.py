"""The local step of AdamW: Adam with bias correction and decoupled weight decay, as torch.optim.AdamW has it.

Source: Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2; g_i has no decay in it.

    m_i <- beta1 m_i + (1 - beta1) g_i;   v_i <- beta2 v_i + (1 - beta2) g_i^2
    p_i = eta lambda x_i + eta (m_i / (1 - beta1^t)) / (sqrt(v_i / (1 - beta2^t)) + eps)

t counts the steps that a tensor has done, which are fewer where it was frozen for a while.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.optim.adamw import adamw as torch_adamw

from algorithms.core.flat import FlatBuffers
from algorithms.core.local_step import Group, Span, fused_is_right

COUNTS = "tensor_steps"
"""What a state calls the steps that each tensor has done."""


class AdamW:
    """The moments "exp_avg" and "exp_avg_sq", of shape (local workers, d), are put into `held`."""

    def __init__(self, flat: FlatBuffers, held: dict[str, Tensor]) -> None:
        self.flat = flat
        self._moments = [held.setdefault(key, flat.new_buffer()) for key in ("exp_avg", "exp_avg_sq")]
        self._done = [0] * len(flat.tensors)
        """Steps that each tensor has done."""

    def buffers(self, groups: Sequence[Group]) -> list[Tensor]:
        return self._moments

    def spans(self, groups: Sequence[Group]) -> list[Span]:
        """The groups, cut where one tensor has done more steps than the next."""
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
        exp_avg, exp_avg_sq = buffers
        adamw_step_(span.group, span.num_done, x, g, exp_avg, exp_avg_sq, target, sign)

    def count(self) -> None:
        self._done = [done + (number not in self.flat.frozen) for number, done in enumerate(self._done)]

    def counts(self) -> dict[str, list[int]]:
        return {COUNTS: list(self._done)}

    def restore(self, counts: dict[str, list[int]]) -> None:
        self._done = list(counts[COUNTS])


def adamw_step_(
    group: Group,
    num_done: int,
    x: Tensor,
    g: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    target: Tensor | None,
    sign: int,
) -> None:
    """target <- target + sign p, the target being x if None, after `num_done` such steps; the moments move.

    All of shape (local workers, n). The decay is x's own, for another target too.
    Rows go one by one, as in `nesterov_step_`.
    """
    lr, decay, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
    if target is not None and decay:
        for own, parameters in zip(target, x, strict=True):
            own.add_(parameters, alpha=sign * lr * decay)
    fused, changed = fused_is_right(x), list((x if target is None else target).unbind())
    # A fill, not a copy: nobody waits for a GPU. The kernel that is not fused reads the number on the host.
    steps = torch.full((len(changed),), float(num_done), dtype=torch.float32, device=x.device if fused else "cpu")
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
