"""SGD that accumulates gradients: several steps' gradients are summed, then sent at once and used in one step.

Source: textbook; what a practitioner does where the network is slow.

    a_i <- a_i + g_i
    every A steps:  x <- x - p of the gradient mean(a) / A;  a_i <- 0

Between, nothing moves: all A gradients are taken at the same x, so this is SGD with batches A times as large and a step
in A, at the learning rate of the A-th. Momentum, or AdamW's moments, are of that mean, and the same on all workers.
Weight decay enters with the mean, once. Gradients that are left over at the end, where A does not divide the number of
steps, are dropped.
Cost: 32 d / A bits per step on average, an all-reduce every A steps.
"""

from typing import Any, ClassVar

from algorithms.core import Count, DistributedOptimizer, Layout, Purpose, Stage


class SGDAccumulate(DistributedOptimizer):
    """Args: accumulation_steps: A, gradients that make one step; the rest as in `DistributedOptimizer`."""

    name = "sgd_accumulate"
    keeps_rounding = False
    formula = "32 d / A"
    no_compression: ClassVar = {"accumulation_steps": 1}
    workers_differ = False

    accumulation_steps: Count

    def _set_up(self) -> None:
        self.a = self.new_buffer("accumulated")

    @classmethod
    def _at_ratio(cls, ratio: int, layout: Layout | None) -> dict[str, Any]:
        return {"accumulation_steps": ratio}

    def stages(self) -> list[Stage]:
        return [Stage(Purpose.GRADIENT, every=self.accumulation_steps)]

    def _update(self, step: int) -> None:
        self.a.add_(self.flat.gradients)
        if step % self.accumulation_steps:
            return
        self.flat.gradients.copy_(self.a).div_(self.accumulation_steps)
        self.a.zero_()
        self.average_gradients_()
        self.local_step_()
