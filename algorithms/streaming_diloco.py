"""Streaming DiLoCo: fragments take the outer step in turn, some steps after they were sent, and are merged.

Source: Douillard et al., "Streaming DiLoCo with overlapping communication", arXiv 2501.18512, 2025.

    x_i <- x_i - p_i                           (inner step; x is the same on all workers, x_i what the worker trains)
    every H / F steps, of the next fragment, all in turn:
        Delta <- mean(x - x_i)                 (sent now, to be used tau steps later)
    tau steps after that, of the same fragment:
        v     <- mu v + Delta
        x     <- x - eta (Delta + mu v)        (outer step: SGD with Nesterov momentum, as in PyTorch)
        x_i   <- alpha x_i + (1 - alpha) x     (what was trained meanwhile is kept in part)

Without lateness, tau = 0 and alpha = 0, this is `diloco`, in fragments as there. Momentum, or AdamW's moments, are
local and are kept. The source's inner optimiser is local_step = "adamw", by default it is SGD.

Deviations: fragments are equal shares of the flat vector, where it takes layers; numbers have 32 or 16 bits, where it
sends 4, and what rounding takes is sent the next time. A message is waited for when it is sent, and its result put by:
training is as the source's, the clock is not.
Cost: 32 d / H bits per step on average, an all-reduce of d / F every H / F steps.
"""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

import torch
from torch.optim.optimizer import ParamsT

from algorithms.core import Common, Layout, Purpose
from algorithms.diloco import DiLoCo


class StreamingDiLoCo(DiLoCo):
    """Streaming DiLoCo.

    Args:
        sync_interval, num_fragments, outer_lr, outer_momentum: H, F, eta and mu, as in `DiLoCo`.
        delay: tau, in steps, from 0 up and below H.
        merge: alpha, in [0, 1], the share of a worker's own parameters that it keeps.
        common: see `DistributedOptimizer`.
    """

    name = "streaming_diloco"
    no_compression: ClassVar = {
        "sync_interval": 1,
        "outer_lr": 1.0,
        "outer_momentum": 0.0,
        "delay": 0,
        "merge": 0.0,
    }
    tried_with: ClassVar = {"outer_lr": 0.7, "outer_momentum": 0.9, "delay": 1, "merge": 0.5}

    def __init__(
        self,
        params: ParamsT,
        *,
        sync_interval: int,
        num_fragments: int = 1,
        delay: int = 1,
        outer_lr: float = 0.7,
        outer_momentum: float = 0.9,
        merge: float = 0.5,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            sync_interval=sync_interval,
            num_fragments=num_fragments,
            outer_lr=outer_lr,
            outer_momentum=outer_momentum,
            **common,
        )
        if type(delay) is not int or not 0 <= delay < sync_interval:
            raise ValueError(f"{self.name}: delay must be an integer from 0 up and below sync_interval, not {delay!r}")
        if isinstance(merge, bool) or not isinstance(merge, int | float) or not 0 <= merge <= 1:
            raise ValueError(f"{self.name}: merge must lie in [0, 1], not {merge!r}")
        self.delay, self.merge = delay, merge
        self.delta = self.new_buffer("delayed")
        self.e = None if self.communication_dtype is None else self.new_buffer("error")

    @classmethod
    def _at_ratio(cls, ratio: int, layout: Layout | None) -> dict[str, Any]:
        return {"sync_interval": ratio, "delay": min(1, ratio - 1)}

    def _agree_after(self, num_steps: int) -> bool:
        whole = self.num_fragments == 1 and self.merge == 0 and num_steps > self.delay
        return num_steps == 0 or (whole and (num_steps - self.delay) % self.sync_interval == 0)

    def _update(self, step: int) -> None:
        self.local_step_()
        if step % self.fragment_interval == 0:
            here = self.fragment(step)
            delta = self.x[..., here] - self.flat.parameters[..., here]
            if self.e is None:
                self.average_in_place_(delta, Purpose.MODEL)
                self.delta[..., here] = delta
            else:  # what rounding takes is sent the next time
                own, self.delta[..., here] = self.average(delta.add_(self.e[..., here]), Purpose.MODEL)
                torch.sub(delta, own, out=self.e[..., here])
        sent = step - self.delay
        if sent > 0 and sent % self.fragment_interval == 0:
            self._arrive(self.fragment(sent))

    def _arrive(self, here: slice) -> None:
        """Takes the outer step of a fragment and merges it."""
        local, x, delta = (each[..., here] for each in (self.flat.parameters, self.x, self.delta))
        # Each product is rounded before it is added, so that no bit depends on where a kernel's vectors begin.
        x.sub_(delta * self.outer_lr)
        if self.v is not None:
            v = self.v[..., here].mul_(self.outer_momentum).add_(delta)
            x.sub_(v * (self.outer_lr * self.outer_momentum))
        local.mul_(self.merge).add_(x * (1 - self.merge))
