"""NoLoCo: DiLoCo without an all-reduce: at each meeting workers talk in pairs that are drawn anew.

Source: Kolehmainen et al., "NoLoCo: No-all-reduce low communication training method for large models", arXiv
2506.10911, 2025; its release, gensyn-ai/noloco, `sparse_optimizer_c.py`.

    x_i <- x_i - p_i                       (inner step; phi_i is worker i's anchor, Delta_i = x_i - phi_i)
    every H steps, with the mean over a pair:
        m_i   <- mu m_i + alpha mean(Delta) + alpha (mean(phi) - phi_i)
        phi_i <- phi_i + m_i
        x_i   <- phi_i

The pair may be a group of any size G. What is left over where G does not divide n is a smaller group.
As Delta + phi = x, the first line is m_i <- mu m_i + alpha (mean(x) - phi_i), and x_i alone is sent.

Deviations: the release sends phi_i and Delta_i, twice as much, for the same numbers; its inner optimiser is
local_step = "adamw". All workers must call a step together, though each waits for its own group alone.
Cost: 32 d (G - 1) / H bits per step on average, one exchange with neighbours every H steps.
"""

from typing import ClassVar

import numpy

from cser_bench.algorithms.core import Count, DistributedOptimizer, Purpose, Stage
from cser_bench.algorithms.core.settings import BelowOne, Positive
from cser_bench.algorithms.core.topology import Mixing


class NoLoCo(DistributedOptimizer):
    """NoLoCo.

    Args:
        sync_interval: H, in steps.
        group_size: G, workers that meet; all of them if there are fewer.
        outer_lr, outer_momentum: alpha, above 0, which no schedule changes, and mu, in [0, 1).
    """

    name = "noloco"
    formula = "32 d / H"
    no_compression: ClassVar = {"sync_interval": 1, "group_size": 1_000_000, "outer_lr": 1.0, "outer_momentum": 0.0}
    tried_with: ClassVar = {"group_size": 2, "outer_lr": 0.7, "outer_momentum": 0.5}

    sync_interval: Count
    group_size: Count = 2
    outer_lr: Positive = 0.7
    outer_momentum: BelowOne = 0.5

    def _set_up(self) -> None:
        self.phi = self.new_buffer("anchor", like=self.flat.parameters)
        self.m = self.new_buffer("outer_momentum")

    def stages(self) -> list[Stage]:
        n, size = self.collectives.world_size, self.group_size
        return [Stage(Purpose.MODEL, every=self.sync_interval, neighbours=min(size, n) - 1, equalises=size >= n)]

    def meeting(self, step: int) -> Mixing:
        """Returns who talks to whom at this step, the same on all workers."""
        n, size = self.collectives.world_size, self.group_size
        order = numpy.argsort(self.draw(step, Purpose.MODEL).integers(n), kind="stable").tolist()
        groups = [sorted(order[first : first + size]) for first in range(0, n, size)]
        own = {rank: group for group in groups for rank in group}
        return Mixing(tuple(tuple((j, 1 / len(own[i])) for j in own[i] if j != i) for i in range(n)))

    def _update(self, step: int) -> None:
        self.local_step_()
        if step % self.sync_interval == 0:
            x = self.flat.parameters
            _, pull = self.sending.mix_dense(x, self.meeting(step), Purpose.MODEL)
            x.add_(pull)
            # A frozen parameter is averaged as others are, and takes no outer step.
            with self.flat.frozen_aside(x, self.phi, self.m):
                # Each product is rounded before it is added, so that no bit depends on where a kernel's vectors begin.
                self.m.mul_(self.outer_momentum).add_((x - self.phi).mul_(self.outer_lr))
                self.phi.add_(self.m)
                x.copy_(self.phi)
