"""Decentralised SGD: each worker steps alone and mixes its parameters with its neighbours'.

Source: Lian et al., "Can decentralized algorithms outperform centralized algorithms?", NeurIPS
2017, algorithm 1 (D-PSGD), which combines while it adapts: its gradient is taken before the mixing,
at x_i. BlueFog has both orders.

    combine_while_adapt:  x_i <- sum_j w_ij x_j - p_i
    adapt_then_combine:   x_i <- sum_j w_ij (x_j - p_j)

w_ij are the topology's weights of this step. Momentum, or AdamW's moments, are local and not mixed.
Weight decay enters p_i, with worker i's own x_i. Workers' parameters differ; what comes of a run is
their mean, which moves by -mean(p) in each step. Where messages are rounded, x_i + sum_j w_ij (r_j
- r_i) stands for the sum, r being what was sent.
Cost: 32 d bits per step for each neighbour (ring 2, exponential log2 n, one_peer 1, complete n -
1), one exchange.
State: the momentum or the moments.
"""

from typing import Any, ClassVar, Literal

from cser_bench.algorithms.core import (
    DistributedOptimizer,
    Layout,
    Purpose,
    Replica,
    Stage,
)
from cser_bench.algorithms.core.topology import Topology, mixing_at

Order = Literal["combine_while_adapt", "adapt_then_combine"]


class DPSGD(DistributedOptimizer):
    """Decentralised SGD.

    Begin with `topology="ring", order="adapt_then_combine"`.

    Args:
        topology: which workers are neighbours; see `Topology`.
        order: of the step and the mixing.
    """

    name = "dpsgd"
    family = "neighbours"
    formula = "32 d neighbours"
    no_compression: ClassVar = {"topology": "complete", "order": "adapt_then_combine"}
    tried_with: ClassVar = {"topology": "ring"}

    topology: Topology
    order: Order

    @classmethod
    def _at_traffic(
        cls, share: float, world_size: int, layout: Layout | None
    ) -> dict[str, Any]:
        raise ValueError(
            "dpsgd sends whole models at every step, whatever is asked for; take choco_sgd, which "
            "compresses, or give topology and order themselves"
        )

    def stages(self, replica: Replica) -> list[Stage]:
        first = self.rounds[0]
        averages = self.order == "adapt_then_combine" and first.averages
        return [Stage(Purpose.MODEL, neighbours=first.num_messages, equalises=averages)]

    def _update(self, replica: Replica, step: int) -> None:
        x = replica.flat.parameters
        if self.order == "adapt_then_combine":
            replica.local_step_()
        # sum_j w_ij (x_j - x_i), of the parameters as they are here: after the step, or before it.
        _, pull = replica.sending.mix_dense(
            x, mixing_at(self.rounds, step), Purpose.MODEL
        )
        if self.order == "combine_while_adapt":
            replica.local_step_()
        # After the step, which needs the x_i that its gradient was taken at.
        x.add_(pull)
