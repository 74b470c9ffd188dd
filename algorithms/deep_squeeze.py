"""DeepSqueeze: workers send their compressed parameters to their neighbours, with error feedback.

Source: Tang et al., "DeepSqueeze: Decentralization meets error-compensated compression", 2019
(arXiv:1907.07346); the order of the lines is that of epfml/ChocoSGD, which has it as a baseline.

    x_i <- x_i - p_i
    v_i = x_i + e_i;   c_i = C(v_i), which goes to the neighbours;   e_i <- v_i - c_i
    x_i <- x_i + gamma sum_j w_ij (c_j - c_i)

What is compressed is the model itself, so the method is meant for quantisers. A sparsifier of ratio
R leaves some R models in the error, and sends as much at once; gamma must then be of the order of 1
/ R. Momentum, or AdamW's moments, are local. Weight decay enters p_i. C takes the flat vector,
where the release compresses tensor by tensor.
Cost: 32 d / R bits per step for each neighbour and a sparsifier of ratio R, one exchange.
State: the momentum or the moments, and e_i.
"""

from typing import Any, ClassVar

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
from cser_bench.algorithms.core.settings import ConsensusStep
from cser_bench.algorithms.core.topology import Topology, mixing_at, rounds_of
from cser_bench.algorithms.core.traffic import carried


class DeepSqueeze(DistributedOptimizer):
    """DeepSqueeze.

    Begin with `**DeepSqueeze.at_traffic(1 / 4, world_size=8)`.

    `at_traffic`: blocks on a ring, as in fashion_mnist_long.

    Args:
        topology: which workers are neighbours; see `Topology`.
        compressor: C, any; top-k sends the same largest parameters again and again.
        gamma: the consensus step, in (0, 1].
    """

    name = "deep_squeeze"
    family = "neighbours"
    formula = "32 d / R neighbours"
    no_compression: ClassVar = {
        "topology": "complete",
        "compressor": Identity(),
        "gamma": 1.0,
    }
    tried_with: ClassVar = {"topology": "ring", "gamma": 0.1}

    topology: Topology
    compressor: Compressor
    gamma: ConsensusStep

    def _set_up(self, replica: Replica) -> None:
        replica.new_buffer("error")

    @classmethod
    def _at_traffic(
        cls, share: float, world_size: int, layout: Layout | None
    ) -> dict[str, Any]:
        """Return settings for a ring, whose consensus step is about half of what is kept."""
        [mixing] = rounds_of("ring", world_size)
        # A link carries a message to each neighbour once.
        whole_models = mixing.num_messages / carried(world_size, 1.0)
        ratio = nearest_count(cls.name, whole_models, share)
        return {
            "topology": "ring",
            "compressor": BlockSparsifier(ratio),
            "gamma": min(1.0, 0.512 / ratio),
        }

    def stages(self, replica: Replica) -> list[Stage]:
        first = self.rounds[0]
        is_exact = self.gamma == 1 and isinstance(
            replica.fitted(self.compressor), Identity
        )
        stage = Stage(
            Purpose.MODEL,
            self.compressor,
            neighbours=first.num_messages,
            equalises=first.averages and is_exact,
        )
        return [stage]

    def _update(self, replica: Replica, step: int) -> None:
        replica.local_step_()
        # e_i <- e_i + x_i, of shape (local workers, d)
        e = replica.buffers["error"].add_(replica.flat.parameters)
        sent = replica.mix(
            e, self.compressor, mixing_at(self.rounds, step), step, Purpose.MODEL
        )
        # What was not sent stays: e_i <- e_i - C(e_i).
        sent.support.add_(e, sent.own, alpha=-1)
        # x_i <- x_i + gamma sum_j w_ij (C(e_j) - C(e_i))
        sent.support.add_(replica.flat.parameters, sent.pull.mul_(self.gamma))
