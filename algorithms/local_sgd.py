"""Local SGD, Local Adam and DES-LOC: workers step alone and average their models now and then.

Source: Stich, "Local SGD converges fast and communicates little", ICLR 2019; CSER with C2 = zero
and C1 = identity. With averaged moments: Iacob et al., "DES-LOC: Desynced low communication
adaptive optimizers for training foundation models", ICLR 2026 (arXiv 2505.22549); with K_u = K_v =
H that is its Local Adam.

    x_i <- x_i - p_i
    every H steps:    x_i <- mean(x)
    every K_u steps:  m_i <- mean(m)       (AdamW's first moment, if asked for; else it is local)
    every K_v steps:  v_i <- mean(v)       (its second)

With H the number of all steps this is a single final average. SGD's momentum is local and never
averaged. DES-LOC recommends K_u = 3 H and K_v = 6 H. It averages at the beginning of a step what
here is averaged at the end of the one before, and it clips gradients, which is the user's to do.
Cost: 32 d (1 / H + 1 / K_u + 1 / K_v) bits per step on average, an all-reduce of d for each
average.
State: the momentum or the moments.
"""

from typing import ClassVar

import torch
from torch import Tensor

from cser_bench.algorithms.core import (
    Count,
    DistributedOptimizer,
    Purpose,
    Replica,
    Stage,
)
from cser_bench.algorithms.core.local_step import local_steps


class LocalSGD(DistributedOptimizer):
    """Local SGD.

    Begin with `sync_interval=4`.

    `at_traffic`: H = 1 / share, as in table_cnn, resnet_regime and gpt_text.

    Args:
        sync_interval: H, steps between two averages.
        first_moment_interval: K_u, for `local_step = "adamw"`; None for never.
        second_moment_interval: K_v, likewise.
    """

    name = "local_sgd"
    family = "local steps"
    formula = "32 d / H"
    no_compression: ClassVar = {"sync_interval": 1}

    sync_interval: Count
    first_moment_interval: Count | None = None
    second_moment_interval: Count | None = None

    def _set_up(self, replica: Replica) -> None:
        is_16_bit = (
            replica.communication_dtype is not None or replica.dtype == torch.float16
        )
        has_moments = bool(replica.local.moments) and not is_16_bit
        if any(self._moment_intervals()) and not has_moments:
            which = "first" if self.first_moment_interval else "second"
            having = [
                repr(name) for name, step in local_steps().items() if step.moments
            ]
            raise ValueError(
                f"{self.name}: {which}_moment_interval is for local_step = {' or '.join(having)} without a "
                "communication_dtype or parameters in fp16, in whose few bits second moments "
                "would be lost; leave it out"
            )

    def _moment_intervals(self) -> tuple[int | None, int | None]:
        return self.first_moment_interval, self.second_moment_interval

    def stages(self, replica: Replica) -> list[Stage]:
        stages = [Stage(Purpose.MODEL, every=self.sync_interval)]
        for interval in self._moment_intervals():
            if interval is not None:
                stages.append(Stage(Purpose.MODEL, every=interval, equalises=False))
        return stages

    def _update(self, replica: Replica, step: int) -> None:
        # x_i <- x_i - p_i
        replica.local_step_()
        if step % self.sync_interval == 0:
            # x_i <- mean(x)
            self.average_(replica, replica.flat.parameters)
        # AdamW has two, each with an interval of its own; SGD's one has none.
        moments = replica.local.buffers(self.param_groups)
        for moment, interval in zip(moments, self._moment_intervals(), strict=False):
            if interval is not None and step % interval == 0:
                self.average_(replica, moment)

    def average_(self, replica: Replica, vector: Tensor) -> None:
        """Do vector <- mean(vector); each worker keeps what rounding took from its own."""
        if replica.communication_dtype is None:
            replica.average_in_place_(vector, Purpose.MODEL)
        else:
            own, mean = replica.average(vector, Purpose.MODEL)
            # x_i <- mean + (x_i - own), as a rounded message is not all that the worker had.
            vector.sub_(own).add_(mean)
