"""CHOCO-SGD: workers send compressed differences to estimates of themselves, and mix the estimates.

Source: Koloskova et al., "Decentralized stochastic optimization and gossip algorithms with
compressed communication", ICML 2019, the memory-efficient form of CHOCO-SGD; its release,
epfml/ChocoSGD.

    x_i <- x_i - p_i
    q_i = C(x_i - xhat_i), which goes to the neighbours
    xhat_i <- xhat_i + q_i;   s_i <- s_i + sum_j w_ij q_j
    x_i <- x_i + gamma (s_i - xhat_i)

xhat_i is what the neighbours know of x_i, and s_i = sum_j w_ij xhat_j what worker i needs of
theirs, so the weights must be the same in each step. As released (a switch), the last line comes
before the second, with the old xhat and s, so that a message has until the next step to arrive.
xhat begins at x_0, which all workers have, as in the release for convex problems; in that for deep
networks it begins at 0. Momentum, or AdamW's moments, are local. Weight decay enters p_i. C takes
the flat vector, where the release compresses tensor by tensor, and the learning rate is as given,
where the release scales it with the number of neighbours.
Cost: 32 d / R bits per step for each neighbour and a sparsifier of ratio R, one exchange.
"""

from typing import Any, ClassVar

from cser_bench.algorithms.compressors.block import BlockSparsifier
from cser_bench.algorithms.core import (
    Compressor,
    DistributedOptimizer,
    Identity,
    Layout,
    Purpose,
    Stage,
)
from cser_bench.algorithms.core.settings import ConsensusStep
from cser_bench.algorithms.core.topology import Topology


class ChocoSGD(DistributedOptimizer):
    """CHOCO-SGD.

    Args:
        topology: who mixes with whom; all but one_peer, which changes with the step.
        compressor: C, any.
        gamma: the consensus step, in (0, 1]; the more is left out, the smaller it must be.
        released_order: mix with the estimates that were known before this step.
    """

    name = "choco_sgd"
    formula = "32 d / R neighbours"
    no_compression: ClassVar = {"topology": "complete", "compressor": Identity(), "gamma": 1.0}
    tried_with: ClassVar = {"topology": "ring", "gamma": 0.3}

    topology: Topology
    compressor: Compressor
    gamma: ConsensusStep
    released_order: bool = False

    def _set_up(self) -> None:
        if self.topology == "one_peer":
            raise ValueError(
                f"{self.name}: its sum over the neighbours' estimates needs the same neighbours in "
                f"each step, and the topology {self.topology} changes them; take ring, exponential "
                "or complete"
            )
        self.xhat = self.new_buffer("estimate", like=self.flat.parameters)
        self.s = self.new_buffer("mixed_estimates", like=self.flat.parameters)

    @classmethod
    def _at_ratio(cls, ratio: int, layout: Layout | None) -> dict[str, Any]:
        """Returns settings for a ring of three workers or more.

        gamma times the compressor's ratio times the ring's largest eigenvalue of 1 - W, 4/3, must
        stay below 2, or numbers that wait long to be sent swing apart; here it is 4/3.
        """
        return {
            "topology": "ring",
            "compressor": BlockSparsifier(2 * ratio),
            "gamma": min(1.0, 0.5 / ratio),
        }

    def stages(self) -> list[Stage]:
        (mixing,), exact = self.rounds, self.gamma == 1 and isinstance(self.compressor, Identity)
        averages = mixing.averages and exact and not self.released_order
        return [
            Stage(
                Purpose.MODEL, self.compressor, neighbours=mixing.num_messages, equalises=averages
            )
        ]

    def _update(self, step: int) -> None:
        self.local_step_()
        if self.released_order:
            self._mix_estimates()
            self._tell_neighbours(step)
        else:
            self._tell_neighbours(step)
            self._mix_estimates()

    def _tell_neighbours(self, step: int) -> None:
        difference = self.flat.parameters - self.xhat
        sent = self.mix(difference, self.compressor, self.mixing(step), step, Purpose.MODEL)
        sent.support.add_(self.xhat, sent.own)
        sent.support.add_(self.s, sent.pull.add_(sent.own))

    def _mix_estimates(self) -> None:
        # In two operations: a fused one is rounded as its kernel likes, and so not alike for
        # stacked workers.
        self.flat.parameters.add_((self.s - self.xhat).mul_(self.gamma))
