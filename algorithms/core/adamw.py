"""The local step of AdamW: Adam with bias correction and decoupled weight decay, as torch.optim.AdamW has it.

Source: Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2; g_i has no decay in it.

    m_i <- beta1 m_i + (1 - beta1) g_i;   v_i <- beta2 v_i + (1 - beta2) g_i^2
    p_i = eta lambda x_i + eta (m_i / (1 - beta1^t)) / (sqrt(v_i / (1 - beta2^t)) + eps)

t counts the steps that a tensor has done, which are fewer where it was without a gradient now and then.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.optim.adamw import adamw as torch_adamw

from algorithms.core.flat import FlatBuffers
from algorithms.core.local_step import Group, Span, fused_is_right, rows_of

COUNTS = "tensor_steps"
"""What a state calls the steps that each tensor has done."""


class AdamW:
    """The moments "exp_avg" and "exp_avg_sq", of shape (d,) or (num_workers, d), are put into `held`."""

    def __init__(self, flat: FlatBuffers, held: dict[str, Tensor]) -> None:
        self.flat = flat
        self._moments = [held.setdefault(key, flat.new_buffer()) for key in ("exp_avg", "exp_avg_sq")]
        self._num_steps = 0
        self._missed: dict[int, int] = {}
        """Of tensors that were idle, how many steps they have not done."""

    def buffers(self, groups: Sequence[Group]) -> list[Tensor]:
        return self._moments

    def spans(self, groups: Sequence[Group]) -> list[Span]:
        """The groups, cut where one tensor has done more steps than the next."""
        spans = []
        for part, group in zip(self.flat.parts, groups, strict=True):
            for (first, num_done), (end, _) in pairwise([*self._cuts(), (self.flat.layout.numel, 0)]):
                start, stop = max(first, part.start), min(end, part.stop)
                if start < stop:
                    spans.append(Span(start, stop, group, num_done))
        return spans

    def _cuts(self) -> list[tuple[int, int]]:
        """Where tensors begin that have done another number of steps than those before, and that number."""
        if not self._missed:
            return [(0, self._num_steps)]
        done = self.counts()[COUNTS]
        starts = enumerate(tensor.offset for tensor in self.flat.layout.tensors)
        return [(start, done[number]) for number, start in starts if number == 0 or done[number] != done[number - 1]]

    def step_(
        self, span: Span, x: Tensor, g: Tensor, buffers: Sequence[Tensor], target: Tensor | None, sign: int
    ) -> None:
        exp_avg, exp_avg_sq = buffers
        adamw_step_(span.group, span.num_done, x, g, exp_avg, exp_avg_sq, target, sign)

    def count(self) -> None:
        self._num_steps += 1
        for number in self.flat.idle:
            self._missed[number] = self._missed.get(number, 0) + 1

    def counts(self) -> dict[str, list[int]]:
        numbers = range(len(self.flat.tensors))
        return {COUNTS: [self._num_steps - self._missed.get(number, 0) for number in numbers]}

    def restore(self, counts: dict[str, list[int]]) -> None:
        done = counts[COUNTS]
        self._num_steps = max(done)
        self._missed = {number: self._num_steps - each for number, each in enumerate(done) if each < self._num_steps}


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

    All of one shape, (n,) or, with workers stacked, (num_workers, n). The decay is x's own, for another target too.
    Rows go one by one, as in `nesterov_step_`.
    """
    lr, decay, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
    if target is not None and decay:
        for own, parameters in zip(rows_of(target), rows_of(x), strict=True):
            own.add_(parameters, alpha=sign * lr * decay)
    fused, changed = fused_is_right(x), rows_of(x if target is None else target)
    # A fill, not a copy: nobody waits for a GPU. The kernel that is not fused reads the number on the host.
    steps = torch.full((len(changed),), float(num_done), dtype=torch.float32, device=x.device if fused else "cpu")
    torch_adamw(
        changed,
        rows_of(g),
        rows_of(exp_avg),
        rows_of(exp_avg_sq),
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
