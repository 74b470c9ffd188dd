"""Local SGD: workers step alone and average their models now and then.

Source: Stich, "Local SGD converges fast and communicates little", ICLR 2019; CSER with C2 = zero and C1 = identity.

    x_i <- x_i - p_i
    every H steps:  x_i <- mean(x)

With H the number of all steps this is a single final average. Momentum, or AdamW's moments, are local and
never averaged.
Cost: 32 d / H bits per step on average, an all-reduce every H steps.
"""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

from torch.optim.optimizer import ParamsT

from algorithms.core import Common, DistributedOptimizer, Layout, Purpose, Stage, require_interval


class LocalSGD(DistributedOptimizer):
    """Args: sync_interval: H, steps between two averages; the rest as in `DistributedOptimizer`."""

    name = "local_sgd"
    formula = "32 d / H"
    no_compression: ClassVar = {"sync_interval": 1}

    def __init__(self, params: ParamsT, *, sync_interval: int, **common: Unpack[Common]) -> None:
        require_interval(self.name, "sync_interval", sync_interval)
        super().__init__(params, **common)
        self.sync_interval = sync_interval

    @classmethod
    def _at_ratio(cls, ratio: int, layout: Layout | None) -> dict[str, Any]:
        return {"sync_interval": ratio}

    def stages(self) -> list[Stage]:
        return [Stage(Purpose.MODEL, every=self.sync_interval)]

    def _update(self, step: int) -> None:
        self.local_step_()
        if step % self.sync_interval == 0:
            x = self.flat.parameters
            if self.communication_dtype is None:
                self.average_in_place_(x, Purpose.MODEL)
            else:
                own, mean = self.average(x, Purpose.MODEL)
                x.sub_(own).add_(mean)
