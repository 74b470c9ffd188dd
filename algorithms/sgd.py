"""SGD with full averaging, the baseline.

Source: textbook; Nesterov momentum as in PyTorch.

    x <- x - mean(p)

p is linear in g and all workers hold the same x and m, so averaging the gradient is averaging p.
Cost: 32 d bits per step, one all-reduce.
"""

from __future__ import annotations

from typing import ClassVar

from algorithms.core.optimizer import DistributedOptimizer
from algorithms.core.stages import Stage
from algorithms.core.traffic import Purpose


class SGD(DistributedOptimizer):
    name = "sgd"
    formula = "32 d"
    no_compression: ClassVar = {}
    workers_differ = False
    state_is_common = True

    def stages(self) -> list[Stage]:
        return [Stage(Purpose.GRADIENT)]

    def _update(self, step: int) -> None:
        self.average_gradients_()
        self.local_step_()
