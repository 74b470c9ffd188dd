"""CHOCO-SGD: workers send compressed changes to estimates of themselves, and mix the estimates.

Source: Koloskova et al., "Decentralized stochastic optimization and gossip algorithms with
compressed communication", ICML 2019, the memory-efficient form of CHOCO-SGD; its release,
epfml/ChocoSGD.

    x_i <- x_i - p_i
    q_i = C(x_i - xhat_i), which goes to the neighbours
    xhat_i <- xhat_i + q_i;   s_i <- s_i + sum_j w_ij q_j
    x_i <- x_i + gamma (s_i - xhat_i)

xhat_i is what the neighbours know of x_i, and s_i = sum_j w_ij xhat_j what worker i needs of
theirs, so the weights must be the same in each step. The release does the last line before the
second, with the old xhat and s, so that a message has until the next step to arrive. xhat begins at
x_0, which all workers have, as in the release for convex problems; in that for deep networks it
begins at 0. Momentum, or AdamW's moments, are local. Weight decay enters p_i. C takes the flat
vector, where the release compresses tensor by tensor, and the learning rate is as given, where the
release scales it with the number of neighbours.
Cost: 32 d / R bits per step for each neighbour and a sparsifier of ratio R, one exchange.
State: the momentum or the moments, xhat_i and s_i.
"""

from typing import Any, ClassVar

import numpy

from cser_bench.algorithms.compressors.block import BlockSparsifier
from cser_bench.algorithms.core import (
    Compressor,
    DistributedOptimizer,
    Identity,
    Layout,
    Purpose,
    Replica,
    Stage,
)
from cser_bench.algorithms.core.by_traffic import nearest_count
from cser_bench.algorithms.core.compressors import Scaled
from cser_bench.algorithms.core.settings import ConsensusStep
from cser_bench.algorithms.core.topology import Mixing, Topology, mixing_at, rounds_of
from cser_bench.algorithms.core.traffic import carried
from cser_bench.algorithms.core.warn import warn_script


def largest_gamma(mixing: Mixing, omega: float) -> float:
    """Return the gamma below which estimates follow their workers, 2 / ((1 + 2 omega) lambda).

    lambda is the norm of 1 - W, and omega the variance of an unbiased compressor, which is used as
    C / (1 + omega). With v = x - xhat along the eigenvector of lambda and no other step

        xhat <- xhat + (v + noise) / (1 + omega);   x <- x - gamma lambda xhat

    where the noise has the variance omega v^2. The second moments of (v, xhat) do not grow up to
    this gamma. It is a worst case: mean and variance of other eigenvectors are smaller.
    """
    apart = numpy.eye(mixing.num_workers) - mixing.matrix
    norm = float(numpy.linalg.norm(apart, 2))
    # One worker has nobody to move apart from.
    return 2 / ((1 + 2 * omega) * norm) if norm else 1.0


class ChocoSGD(DistributedOptimizer):
    """CHOCO-SGD.

    Begin with `**ChocoSGD.at_traffic(1 / 4, world_size=8)`.

    `at_traffic`: blocks on a ring. No record has this form: fashion_mnist_long has top-k.

    Args:
        topology: which workers are neighbours; any but "one_peer", which changes with the step.
        compressor: C, any.
        gamma: the consensus step, in (0, 1]; the more is left out, the smaller it must be.
    """

    name = "choco_sgd"
    family = "neighbours"
    formula = "32 d / R neighbours"
    no_compression: ClassVar = {
        "topology": "complete",
        "compressor": Identity(),
        "gamma": 1.0,
    }
    tried_with: ClassVar = {"topology": "ring", "gamma": 0.3}

    topology: Topology
    compressor: Compressor
    gamma: ConsensusStep

    def _set_up(self, replica: Replica) -> None:
        if self.topology == "one_peer":
            raise ValueError(
                f"{self.name}: its sum over the neighbours' estimates needs the same neighbours in "
                f"each step, and the topology {self.topology} changes them; take ring, exponential "
                "or complete"
            )
        replica.new_buffer("estimate", like=replica.flat.parameters)
        replica.new_buffer("mixed_estimates", like=replica.flat.parameters)
        compressor = replica.fitted(self.compressor)
        # A compressor that needs no scaling leaves out less than there was.
        if isinstance(compressor, Scaled):
            (mixing,) = self.rounds
            largest = largest_gamma(mixing, compressor.omega)
            if self.gamma > largest:
                warn_script(
                    f"{self.name}: with {self.compressor} workers may move apart at gamma "
                    f"{self.gamma:g}; take {largest:.2g} or less, or more bits"
                )

    @classmethod
    def _at_traffic(
        cls, share: float, world_size: int, layout: Layout | None
    ) -> dict[str, Any]:
        """Return settings for a ring.

        gamma times the compressor's ratio times the ring's largest eigenvalue of 1 - W, 4/3, must
        stay below 2, or numbers that wait long to be sent swing apart; here it is 4/3.
        """
        [mixing] = rounds_of("ring", world_size)
        # A link carries a message to each neighbour once.
        whole_models = mixing.num_messages / carried(world_size, 1.0)
        ratio = nearest_count(cls.name, whole_models, share)
        return {
            "topology": "ring",
            "compressor": BlockSparsifier(ratio),
            "gamma": min(1.0, 1 / ratio),
        }

    def stages(self, replica: Replica) -> list[Stage]:
        (mixing,) = self.rounds
        is_exact = self.gamma == 1 and isinstance(
            replica.fitted(self.compressor), Identity
        )
        stage = Stage(
            Purpose.MODEL,
            self.compressor,
            neighbours=mixing.num_messages,
            equalises=mixing.averages and is_exact,
        )
        return [stage]

    def _update(self, replica: Replica, step: int) -> None:
        replica.local_step_()
        self._tell_neighbours(replica, step)
        self._mix_estimates(replica)

    def _tell_neighbours(self, replica: Replica, step: int) -> None:
        xhat = replica.buffers["estimate"]
        # x_i - xhat_i, of shape (local workers, d)
        difference = replica.flat.parameters - xhat
        mixing = mixing_at(self.rounds, step)
        sent = replica.mix(difference, self.compressor, mixing, step, Purpose.MODEL)
        # xhat_i <- xhat_i + q_i
        sent.support.add_(xhat, sent.own)
        # `pull` is sum_j w_ij (q_j - q_i) and weights add up to 1, so s_i <- s_i + sum_j w_ij q_j.
        sent.support.add_(replica.buffers["mixed_estimates"], sent.pull.add_(sent.own))

    def _mix_estimates(self, replica: Replica) -> None:
        # x_i <- x_i + gamma (s_i - xhat_i)
        apart = replica.buffers["mixed_estimates"] - replica.buffers["estimate"]
        # In two operations: a fused one is rounded as its kernel likes, and so not alike for
        # stacked workers.
        replica.flat.parameters.add_(apart.mul_(self.gamma))
