"""Local SGD: workers step alone and average their models now and then; Local Adam and DES-LOC:
their moments too.

Source: Stich, "Local SGD converges fast and communicates little", ICLR 2019; CSER with C2 = zero
and C1 = identity. With averaged moments: Iacob et al., "DES-LOC: Desynced low communication
adaptive optimizers for training foundation models", ICLR 2026 (arXiv 2505.22549); with K_u = K_v =
H that is its Local Adam.

    x_i <- x_i - p_i every H steps:    x_i <- mean(x) every K_u steps:  m_i <- mean(m)
    (AdamW's first moment, if asked for; else it is local and never averaged) every K_v steps:  v_i
    <- mean(v)       (its second)

With H the number of all steps this is a single final average. SGD's momentum is local and never
averaged. DES-LOC recommends K_u = 3 H and K_v = 6 H. It averages at the beginning of a step what
here is averaged at the end of the one before, and it clips gradients, which is the user's to do.
Cost: 32 d (1 / H + 1 / K_u + 1 / K_v) bits per step on average, an all-reduce of d for each
    average.
"""

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from cser_bench.algorithms.core import Count, DistributedOptimizer, Purpose, Stage


class LocalSGD(DistributedOptimizer):
    """Local SGD.

    Args:
        sync_interval: H, steps between two averages. first_moment_interval, second_moment_interval:
        K_u and K_v, for `local_step = "adamw"`; None for never.
    """

    name = "local_sgd"
    formula = "32 d / H"
    no_compression: ClassVar = {"sync_interval": 1}

    sync_interval: Count
    first_moment_interval: Count | None = None
    second_moment_interval: Count | None = None

    def _set_up(self) -> None:
        intervals = (self.first_moment_interval, self.second_moment_interval)
        is_short = (
            self.communication_dtype is not None or self.flat.parameters.dtype == torch.float16
        )
        if any(intervals) and (self.local_step != "adamw" or is_short):
            first = "first" if self.first_moment_interval else "second"
            raise ValueError(
                f"{self.name}: {first}_moment_interval is for local_step = 'adamw' without a "
                "communication_dtype or parameters in fp16, in whose few bits second moments "
                "would be lost; leave it out"
            )
        moments = self.local.buffers(self.param_groups)
        self.averaged = [(self.flat.parameters, self.sync_interval)]
        self.averaged += [
            (moment, k) for moment, k in zip(moments, intervals, strict=False) if k is not None
        ]

    def stages(self) -> list[Stage]:
        model, *moments = (Stage(Purpose.MODEL, every=interval) for _, interval in self.averaged)
        return [model, *(replace(moment, equalises=False) for moment in moments)]

    def _update(self, step: int) -> None:
        self.local_step_()
        for vector, interval in self.averaged:
            if step % interval == 0:
                self.average_(vector)

    def average_(self, vector: Tensor) -> None:
        """vector <- mean(vector); where messages are rounded, each worker keeps what that took from
        its own."""
        if self.communication_dtype is None:
            self.average_in_place_(vector, Purpose.MODEL)
        else:
            own, mean = self.average(vector, Purpose.MODEL)
            vector.sub_(own).add_(mean)
