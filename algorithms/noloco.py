"""NoLoCo: DiLoCo without an all-reduce: at each meeting workers talk in pairs that are drawn anew.

Source: Kolehmainen et al., "NoLoCo: No-all-reduce low communication training method for large
models", arXiv 2506.10911, 2025; its release, gensyn-ai/noloco, `sparse_optimizer_c.py`.

    x_i <- x_i - p_i                       (inner step; phi_i is worker i's anchor)
    every H steps, with the mean over a pair, Delta_i being x_i - phi_i:
        m_i   <- mu m_i + alpha mean(Delta) + alpha (mean(phi) - phi_i)
        phi_i <- phi_i + m_i
        x_i   <- phi_i

The pair may be a group of any size G. What is left over where G does not divide n is a smaller
group. As Delta + phi = x, the first line is m_i <- mu m_i + alpha (mean(x) - phi_i), and x_i alone
is sent.

A meeting multiplies what workers differ by, by a factor that follows from the settings
(`spread_factor`): the root mean square over all draws of groups. For 8 workers in pairs it
is 0.82 with the paper's alpha = 0.7 and mu = 0.5. With DiLoCo's 0.7 and 0.9 it is 1.035: on that
average they drift apart without end. Above 1 there is a warning.

Deviations: the release sends phi_i and Delta_i, twice as much, for the same numbers; its inner
optimiser is local_step = "adamw". All workers must call a step together, though each waits for its
own group alone.
Cost: 32 d (G - 1) / H bits per step on average, one exchange with neighbours every H steps.
State: the momentum or the moments, phi_i and m_i.
"""

import math
from typing import Any, ClassVar

import numpy
import torch

from cser_bench.algorithms.core import (
    Count,
    DistributedOptimizer,
    Layout,
    Purpose,
    Replica,
    Stage,
)
from cser_bench.algorithms.core.by_traffic import nearest_count
from cser_bench.algorithms.core.settings import BelowOne, Positive
from cser_bench.algorithms.core.topology import Mixing
from cser_bench.algorithms.core.traffic import carried


def spread_factor(
    num_workers: int, group_size: int, outer_lr: float, outer_momentum: float
) -> float:
    """Return the factor by which a meeting multiplies the workers' spread, in the long run.

    No worker trains between two meetings.

    The spread is the root mean square of phi_i and m_i about their means over workers, over all
    workers and all draws of the groups. A meeting is m <- mu m - alpha P phi, phi <- phi + m, where
    P subtracts each group's mean, so that P^2 = P. Groups are drawn uniformly, so on vectors with
    mean 0 over workers E[P] is p times the identity. For n workers in k groups, p = (n - k) / (n -
    1) is the share of dimensions that P keeps. So E|phi|^2, E[phi m] and E|m|^2 after a meeting are
    linear in those before it, and the factor is the root of that matrix's spectral radius.
    """
    n = num_workers
    alpha = outer_lr
    mu = outer_momentum
    if n == 1:
        return 0.0
    p = (n - math.ceil(n / group_size)) / (n - 1)
    # Each row gives a moment after the meeting in terms of |phi|^2, phi m and |m|^2 before it.
    # m' = mu m - alpha P phi:   E|m'|^2 = alpha^2 p |phi|^2 - 2 mu alpha p (phi m) + mu^2 |m|^2
    after_m_squared = numpy.array([alpha**2 * p, -2 * mu * alpha * p, mu**2])
    # E[phi m'] = -alpha p |phi|^2 + mu (phi m)
    phi_times_after_m = numpy.array([-alpha * p, mu, 0.0])
    # phi' = phi + m':   E[phi' m'] = E[phi m'] + E|m'|^2
    after_product = phi_times_after_m + after_m_squared
    # E|phi'|^2 = |phi|^2 + 2 E[phi m'] + E|m'|^2
    after_phi_squared = (
        numpy.array([1.0, 0.0, 0.0]) + 2 * phi_times_after_m + after_m_squared
    )
    moments = numpy.stack([after_phi_squared, after_product, after_m_squared])
    return math.sqrt(numpy.abs(numpy.linalg.eigvals(moments)).max())


class NoLoCo(DistributedOptimizer):
    """NoLoCo.

    Begin with `sync_interval=4`.

    `at_traffic`: pairs every H steps, as in resnet_methods and gpt_text_methods.

    Args:
        sync_interval: H, in steps.
        group_size: G, workers that meet; all of them if there are fewer.
        outer_lr: alpha, above 0, which no schedule changes.
        outer_momentum: mu, in [0, 1); where it or alpha is high workers drift apart, of which there
            is a warning.
    """

    name = "noloco"
    family = "neighbours"
    formula = "32 d / H"
    no_compression: ClassVar = {
        "sync_interval": 1,
        "group_size": 1_000_000,
        "outer_lr": 1.0,
        "outer_momentum": 0.0,
    }
    tried_with: ClassVar = {"group_size": 2, "outer_lr": 0.7, "outer_momentum": 0.5}

    sync_interval: Count
    group_size: Count = 2
    outer_lr: Positive = 0.7
    outer_momentum: BelowOne = 0.5

    @classmethod
    def _at_traffic(
        cls, share: float, world_size: int, layout: Layout | None
    ) -> dict[str, Any]:
        # A message to one other, which a link carries once.
        at_every_step = 1 / carried(world_size, 1.0)
        return {"sync_interval": nearest_count(cls.name, at_every_step, share)}

    def _set_up(self, replica: Replica) -> None:
        replica.new_buffer("anchor", like=replica.flat.parameters)
        replica.new_buffer("outer_momentum")
        factor = spread_factor(
            self.collectives.world_size,
            self.group_size,
            self.outer_lr,
            self.outer_momentum,
        )
        if factor > 1:
            self.caution = (
                f"with outer_lr = {self.outer_lr:g} and outer_momentum = {self.outer_momentum:g} "
                f"the spread of {self.collectives.world_size} workers in groups of "
                f"{self.group_size} grows {factor:.3f} times a meeting without end, as a root mean "
                "square over draws of groups, of which a run sees one; lower "
                "outer_momentum (the paper has 0.5) or outer_lr (0.7)"
            )

    def stages(self, replica: Replica) -> list[Stage]:
        n = self.collectives.world_size
        stage = Stage(
            Purpose.MODEL,
            every=self.sync_interval,
            neighbours=min(self.group_size, n) - 1,
            equalises=self.group_size >= n,
        )
        return [stage]

    def meeting(self, replica: Replica, step: int) -> Mixing:
        """Return the groups of this step as a mixing, equal on all workers."""
        n = self.collectives.world_size
        drawn = replica.draw(step, Purpose.MODEL).integers(n)
        # Ranks in an order that is drawn: each stretch of G of them is a group.
        order = numpy.argsort(drawn, kind="stable").tolist()
        neighbours: list[tuple[tuple[int, float], ...]] = [()] * n
        for first in range(0, n, self.group_size):
            group = sorted(order[first : first + self.group_size])
            weight = 1 / len(group)
            for rank in group:
                neighbours[rank] = tuple(
                    (other, weight) for other in group if other != rank
                )
        return Mixing(tuple(neighbours))

    def _update(self, replica: Replica, step: int) -> None:
        replica.local_step_()
        if step % self.sync_interval == 0:
            self._meet(replica, step)

    def _meet(self, replica: Replica, step: int) -> None:
        x = replica.flat.parameters
        phi = replica.buffers["anchor"]
        m = replica.buffers["outer_momentum"]
        _, pull = replica.sending.mix_dense(
            x, self.meeting(replica, step), Purpose.MODEL
        )
        # x_i <- mean(x) over its group
        x.add_(pull)
        # A frozen parameter is averaged as others are, and takes no outer step.
        with replica.flat.frozen_aside(x, phi, m):
            # Each product is rounded before it is added, so that no bit depends on where a
            # kernel's vectors begin.
            # m_i <- mu m_i + alpha (mean(x) - phi_i)
            apart = torch.sub(x, phi, out=pull)
            m.mul_(self.outer_momentum).add_(apart.mul_(self.outer_lr))
            # phi_i <- phi_i + m_i;   x_i <- phi_i
            phi.add_(m)
            x.copy_(phi)
