"""Local SGD: workers step alone and average their models now and then; Local Adam and DES-LOC: their moments too.

Source: Stich, "Local SGD converges fast and communicates little", ICLR 2019; CSER with C2 = zero and C1 = identity.
With averaged moments: Iacob et al., "DES-LOC: Desynced low communication adaptive optimizers for training foundation
models", ICLR 2026 (arXiv 2505.22549); with K_u = K_v = H that is its Local Adam.

    x_i <- x_i - p_i
    every H steps:    x_i <- mean(x)
    every K_u steps:  m_i <- mean(m)       (AdamW's first moment, if asked for; else it is local and never averaged)
    every K_v steps:  v_i <- mean(v)       (its second)

With H the number of all steps this is a single final average. SGD's momentum is local and never averaged.
DES-LOC recommends K_u = 3 H and K_v = 6 H. It averages at the beginning of a step what here is averaged at the end of
the one before, and it clips gradients, which is the user's to do.
Cost: 32 d (1 / H + 1 / K_u + 1 / K_v) bits per step on average, an all-reduce of d for each average.
"""

from typing import Any, ClassVar, Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from algorithms.core import Common, DistributedOptimizer, Layout, Purpose, Stage, require_interval


class LocalSGD(DistributedOptimizer):
    """Local SGD.

    Args:
        sync_interval: H, steps between two averages.
        first_moment_interval, second_moment_interval: K_u and K_v, for `local_step = "adamw"`; None for never.
        common: see `DistributedOptimizer`.
    """

    name = "local_sgd"
    formula = "32 d / H"
    no_compression: ClassVar = {"sync_interval": 1}

    def __init__(
        self,
        params: ParamsT,
        *,
        sync_interval: int,
        first_moment_interval: int | None = None,
        second_moment_interval: int | None = None,
        **common: Unpack[Common],
    ) -> None:
        moments = {"first_moment_interval": first_moment_interval, "second_moment_interval": second_moment_interval}
        given = {key: interval for key, interval in moments.items() if interval is not None}
        for key, interval in {"sync_interval": sync_interval, **given}.items():
            require_interval(self.name, key, interval)
        super().__init__(params, **common)
        if given and (self.local_step != "adamw" or self.communication_dtype is not None):
            raise ValueError(
                f"{self.name}: {next(iter(given))} is for local_step = 'adamw' without a communication_dtype, in whose "
                "few bits second moments would be lost; leave it out"
            )
        self.sync_interval = sync_interval
        buffers = self.local.buffers(self.param_groups)
        self.averaged = [(self.flat.parameters, sync_interval)]
        self.averaged += [(buffer, k) for buffer, k in zip(buffers, moments.values(), strict=False) if k is not None]

    @classmethod
    def _at_ratio(cls, ratio: int, layout: Layout | None) -> dict[str, Any]:
        return {"sync_interval": ratio}

    def stages(self) -> list[Stage]:
        return [Stage(Purpose.MODEL, every=interval) for _, interval in self.averaged]

    def _agree_after(self, num_steps: int) -> bool:
        exact = num_steps == 0 or self.communication_dtype is None
        return exact and num_steps % self.sync_interval == 0

    def _update(self, step: int) -> None:
        self.local_step_()
        for vector, interval in self.averaged:
            if step % interval == 0:
                self.average_(vector)

    def average_(self, vector: Tensor) -> None:
        """vector <- mean(vector); where messages are rounded, each worker keeps what that took from its own."""
        if self.communication_dtype is None:
            self.average_in_place_(vector, Purpose.MODEL)
        else:
            own, mean = self.average(vector, Purpose.MODEL)
            vector.sub_(own).add_(mean)
