"""SGD with full averaging, the baseline, in every step or of several steps' gradients.

Source: textbook; Nesterov momentum as in PyTorch.

    x <- x - mean(p)

Gradients are averaged before the momentum, as DDP does. p is linear in g and all workers hold the
same x and m, so this is averaging p. With AdamW it is not: the moments are of the mean gradient and
the same on all workers, so the method is torch.optim.AdamW under DDP.
Cost: 32 d bits per step, one all-reduce.
State: the momentum or the moments.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from cser_bench.algorithms.core import (
    Count,
    DistributedOptimizer,
    Layout,
    Purpose,
    Replica,
    Stage,
)
from cser_bench.algorithms.core.by_traffic import nearest_count


class SGD(DistributedOptimizer):
    """SGD on the workers' mean gradient, which is sent in full: the baseline of all methods.

    Begin with it as it is: it has no settings of its own. With `local_step="adamw"` it is AdamW.
    """

    name = "sgd"
    family = "all sent"
    keeps_rounding = False
    formula = "32 d"
    no_compression: ClassVar[Mapping[str, Any] | None] = {}
    workers_differ = False
    state_is_common = True

    @classmethod
    def _at_traffic(
        cls, share: float, world_size: int, layout: Layout | None
    ) -> dict[str, Any]:
        if share < 1:
            raise ValueError(
                f"sgd sends everything, so its share of DDP's traffic is 1 and not {share:.3g}; take "
                "a method that compresses, or communication_dtype=torch.float16, which is half"
            )
        return {}

    def stages(self, replica: Replica) -> list[Stage]:
        return [Stage(Purpose.GRADIENT)]

    def _update(self, replica: Replica, step: int) -> None:
        replica.average_gradients_()
        replica.local_step_()


class SGDAccumulate(DistributedOptimizer):
    """SGD that accumulates gradients, what a practitioner does where the network is slow.

    Begin with `accumulation_steps=4`.

    `at_traffic`: accumulation_steps = 1 / share, as in fashion_mnist_long and study_resnet_bounds.

        a_i <- a_i + g_i
        every A steps:  x <- x - p of the gradient mean(a) / A;  a_i <- 0

    Between, nothing moves: all A gradients are taken at the same x, so this is SGD with batches A
    times as large and a step in A, at the learning rate of the A-th. Momentum, or AdamW's moments,
    are of that mean, and the same on all workers. Weight decay enters with the mean, once.
    Gradients that are left over at the end are dropped.
    Source: textbook.
    Cost: 32 d / A bits per step on average, an all-reduce every A steps.
    State: the momentum or the moments, and a_i.

    Args: accumulation_steps: A, gradients that make one step.
    """

    name = "sgd_accumulate"
    family = "bounds"
    keeps_rounding = False
    formula = "32 d / A"
    no_compression: ClassVar = {"accumulation_steps": 1}
    workers_differ = False

    accumulation_steps: Count

    def _set_up(self, replica: Replica) -> None:
        replica.new_buffer("accumulated")

    @classmethod
    def _at_traffic(
        cls, share: float, world_size: int, layout: Layout | None
    ) -> dict[str, Any]:
        return {"accumulation_steps": nearest_count(cls.name, 1.0, share)}

    def stages(self, replica: Replica) -> list[Stage]:
        return [Stage(Purpose.GRADIENT, every=self.accumulation_steps)]

    def _update(self, replica: Replica, step: int) -> None:
        # a_i <- a_i + g_i
        a = replica.buffers["accumulated"].add_(replica.flat.gradients)
        if step % self.accumulation_steps:
            return
        # g_i <- a_i / A;   a_i <- 0;   but g_i <- 0 of a frozen parameter, whose a_i stays.
        with replica.flat.frozen_aside(a):
            replica.flat.gradients.copy_(a).div_(self.accumulation_steps)
            a.zero_()
        replica.average_gradients_()
        replica.local_step_()
