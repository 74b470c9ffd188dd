"""AdamW on the flat vectors."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.adamw import adamw as torch_adamw
from torch.optim.optimizer import Optimizer

from cser_bench.algorithms.core.flat import FlatBuffers
from cser_bench.algorithms.core.layout import Window
from cser_bench.algorithms.core.local_step import (
    REQUIRED,
    Group,
    LocalStep,
    Span,
    fused_is_right,
)

BUFFERS = ("exp_avg", "exp_avg_sq")
"""What a state calls the first and the second moment."""
COUNTS = "tensor_steps"
"""What a state calls the AdamW steps that each tensor has done."""


class AdamW(LocalStep):
    """Adam with bias correction and decoupled weight decay, as torch.optim.AdamW has it.

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2.

        m_i <- beta1 m_i + (1 - beta1) g_i;   v_i <- beta2 v_i + (1 - beta2) g_i^2
        p_i = eta lambda x_i + eta (m_i / (1 - beta1^t)) / (sqrt(v_i / (1 - beta2^t)) + eps)

    g_i has no decay in it. t counts the steps that a tensor has done, which are fewer where it was
    frozen for a while. The buffers are the moments "exp_avg" and "exp_avg_sq". For parameters in
    fp16, which holds neither eps nor the square of a gradient, they are in fp32, and so is the
    step.
    """

    name = "adamw"
    # As torch.optim has them, but for the weight decay, which is 0.01 there.
    numbers: ClassVar = {
        "lr": REQUIRED,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
    }
    moments: ClassVar[tuple[str, ...]] = BUFFERS
    rule = "with Adam's two moments"
    words = "AdamW with betas {betas}, eps {eps:g}"

    @classmethod
    def in_torch(
        cls, parameters: Iterable[Parameter], **numbers: Any
    ) -> Optimizer | None:
        return torch.optim.AdamW(parameters, **numbers, fused=True)

    def __init__(self, flat: FlatBuffers, held: dict[str, Tensor]) -> None:
        super().__init__(flat, held)
        dtype = flat.parameters.dtype
        # fp16 has no room for eps = 1e-8 or for g^2.
        if dtype == torch.float16:
            dtype = torch.float32
        self._moments = []
        for key in BUFFERS:
            moment = held.setdefault(key, flat.new_buffer(dtype))
            self._moments.append(moment)
        self._done = [0] * len(flat.tensors)
        """Steps that each tensor has done."""

    def buffers(self, groups: Sequence[Group]) -> list[Tensor]:
        return self._moments

    def stepped_whole(self, tensor: Window, group: Group) -> bool:
        """Return whether a tensor of the group cannot be stepped with others or in slices."""
        return False

    def spans(self, groups: Sequence[Group]) -> list[Span]:
        """Return the groups, cut where tensors have done other numbers of steps, or are whole."""
        spans: list[Span] = []
        for part, group in zip(self.flat.parts, groups, strict=True):
            # The span that the next tensor of this group may extend.
            last: Span | None = None
            for tensor, done in zip(self.flat.layout.tensors, self._done, strict=True):
                # Not in this group, or empty.
                if not (part.start <= tensor.offset < part.stop and tensor.numel):
                    continue
                whole = tensor if self.stepped_whole(tensor, group) else None
                stop = tensor.offset + tensor.numel
                # Two matrices are never joined: their windows begin at different places.
                if last is not None and (last.num_done, last.whole) == (done, whole):
                    last = replace(last, stop=stop)
                    spans[-1] = last
                else:
                    last = Span(tensor.offset, stop, group, done, whole)
                    spans.append(last)
        return spans

    def step_(
        self,
        span: Span,
        x: Tensor,
        g: Tensor,
        buffers: Sequence[Tensor],
        target: Tensor | None,
    ) -> None:
        exp_avg, exp_avg_sq = buffers  # m and v: (local workers, n)
        lr = span.group["lr"]
        decay = span.group["weight_decay"]
        beta1, beta2 = span.group["betas"]
        kept = x if target is None else target
        # A copy where parameters are fp16, `kept` itself elsewhere.
        changed = kept.to(exp_avg.dtype)
        if target is not None:
            # The kernel subtracts, and its weight decay would be the target's, not x's own.
            if decay:
                for row, parameters in zip(changed, x, strict=True):
                    row.add_(parameters, alpha=lr * decay)
                decay = 0.0
            lr = -lr
        fused = fused_is_right(changed)
        # t - 1 of each row: the kernel adds 1 before it corrects the bias. A fill, not a copy, so
        # the host does not wait for a GPU. The kernel that is not fused reads it on the host.
        steps = torch.full(
            (len(changed),),
            float(span.num_done),
            dtype=torch.float32,
            device=x.device if fused else torch.device("cpu"),
        )
        torch_adamw(
            list(changed.unbind()),
            list(g.to(exp_avg.dtype).unbind()),
            list(exp_avg.unbind()),
            list(exp_avg_sq.unbind()),
            [],
            list(steps.unbind()),
            foreach=False,
            fused=fused,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=lr,
            weight_decay=decay,
            eps=span.group["eps"],
            maximize=False,
        )
        if changed is not kept:
            kept.copy_(changed)

    def count(self) -> None:
        for number, tensor in enumerate(self.flat.tensors):
            self._done[number] += int(tensor.requires_grad)

    def counts(self) -> dict[str, list[int]]:
        return {COUNTS: list(self._done)}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._done = list(state[COUNTS])
