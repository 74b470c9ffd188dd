"""SGD with full averaging, the baseline.

Source: textbook; Nesterov momentum as in PyTorch.

    x <- x - mean(p)

Gradients are averaged before the momentum, as DDP does. p is linear in g and all workers hold the same x and m, so this
is averaging p. With AdamW it is not: the moments are of the mean gradient and the same on all workers, so the method is
torch.optim.AdamW under DDP.
Cost: 32 d bits per step, one all-reduce.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from algorithms.core import DistributedOptimizer, Layout, Purpose, Stage


class SGD(DistributedOptimizer):
    name = "sgd"
    keeps_rounding = False
    formula = "32 d"
    no_compression: ClassVar[Mapping[str, Any] | None] = {}
    workers_differ = False
    state_is_common = True

    @classmethod
    def _at_ratio(cls, ratio: int, layout: Layout | None) -> dict[str, Any]:
        if ratio > 1:
            raise ValueError(f"sgd sends everything, so its ratio is 1 and not {ratio}; take a method that compresses")
        return {}

    def stages(self) -> list[Stage]:
        return [Stage(Purpose.GRADIENT)]

    def _update(self, step: int) -> None:
        self.average_gradients_()
        self.local_step_()
