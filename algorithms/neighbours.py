"""Methods whose workers talk to their neighbours alone: D-PSGD, CHOCO-SGD, DeepSqueeze, and NoLoCo in drawn groups.

w_ij are the topology's weights of a step. Workers' parameters differ, and what comes of a run is their mean. Momentum,
or AdamW's moments, are local and not mixed. Weight decay enters p_i, with worker i's own x_i. C takes the flat vector,
where releases compress tensor by tensor.
"""

from typing import Any, ClassVar, Literal

import numpy

from algorithms.compressors.block import BlockSparsifier
from algorithms.core import Compressor, Count, DistributedOptimizer, Identity, Layout, Purpose, Stage
from algorithms.core.settings import BelowOne, ConsensusStep, Positive
from algorithms.core.topology import Mixing, Topology

Order = Literal["combine_while_adapt", "adapt_then_combine"]


class DPSGD(DistributedOptimizer):
    """Decentralised SGD: each worker steps alone and mixes its parameters with its neighbours'.

    Source: Lian et al., "Can decentralized algorithms outperform centralized algorithms?", NeurIPS 2017, algorithm 1
    (D-PSGD), which combines while it adapts: its gradient is taken before the mixing, at x_i. BlueFog has both orders.

        combine_while_adapt:  x_i <- sum_j w_ij x_j - p_i
        adapt_then_combine:   x_i <- sum_j w_ij (x_j - p_j)

    The workers' mean moves by -mean(p) in each step. Where messages are rounded, x_i + sum_j w_ij (r_j - r_i) stands
    for the sum, r being what was sent.
    Cost: 32 d bits per step for each neighbour (ring 2, exponential log2 n, one_peer 1, complete n - 1), one exchange.

    Args:
        topology: who mixes with whom.
        order: of the step and the mixing.
    """

    name = "dpsgd"
    formula = "32 d neighbours"
    no_compression: ClassVar = {"topology": "complete", "order": "adapt_then_combine"}
    tried_with: ClassVar = {"topology": "ring"}

    topology: Topology
    order: Order

    @classmethod
    def _at_ratio(cls, ratio: int, layout: Layout | None) -> dict[str, Any]:
        """Each neighbour is sent the whole model, and to have one of them is the least."""
        if ratio > 1:
            raise ValueError(f"dpsgd: nothing is compressed, so its ratio is at most 1, not {ratio}; take choco_sgd")
        return {"topology": "one_peer", "order": "adapt_then_combine"}

    def stages(self) -> list[Stage]:
        averages = self.order == "adapt_then_combine" and self.rounds[0].averages
        return [Stage(Purpose.MODEL, neighbours=self.rounds[0].num_messages, equalises=averages)]

    def _update(self, step: int) -> None:
        x, mixing = self.flat.parameters, self.mixing(step)
        if self.order == "adapt_then_combine":
            self.local_step_()
        _, pull = self.sending.mix_dense(x, mixing, Purpose.MODEL)
        if self.order == "combine_while_adapt":
            self.local_step_()
        x.add_(pull)


class ChocoSGD(DistributedOptimizer):
    """CHOCO-SGD: workers send compressed differences to estimates of themselves, and mix the estimates.

    Source: Koloskova et al., "Decentralized stochastic optimization and gossip algorithms with compressed
    communication", ICML 2019, the memory-efficient form of CHOCO-SGD; its release, epfml/ChocoSGD.

        x_i <- x_i - p_i
        q_i = C(x_i - xhat_i), which goes to the neighbours
        xhat_i <- xhat_i + q_i;   s_i <- s_i + sum_j w_ij q_j
        x_i <- x_i + gamma (s_i - xhat_i)

    xhat_i is what the neighbours know of x_i, and s_i = sum_j w_ij xhat_j what worker i needs of theirs, so the weights
    must be the same in each step. As released (a switch), the last line comes before the second, with the old xhat and
    s, so that a message has until the next step to arrive. xhat begins at x_0, which all workers have, as in the
    release for convex problems; in that for deep networks it begins at 0.
    The learning rate is as given, where the release scales it with the number of neighbours.
    Cost: 32 d / R bits per step for each neighbour and a sparsifier of ratio R, one exchange.

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
                f"{self.name}: its sum over the neighbours' estimates needs the same neighbours in each step, and the "
                f"topology {self.topology} changes them; take ring, exponential or complete"
            )
        self.xhat = self.new_buffer("estimate", like=self.flat.parameters)
        self.s = self.new_buffer("mixed_estimates", like=self.flat.parameters)

    @classmethod
    def _at_ratio(cls, ratio: int, layout: Layout | None) -> dict[str, Any]:
        """Returns settings for a ring of three workers or more.

        gamma times the compressor's ratio times the ring's largest eigenvalue of 1 - W, 4/3, must stay below 2, or
        numbers that wait long to be sent swing apart; here it is 4/3.
        """
        return {"topology": "ring", "compressor": BlockSparsifier(2 * ratio), "gamma": min(1.0, 0.5 / ratio)}

    def stages(self) -> list[Stage]:
        (mixing,), exact = self.rounds, self.gamma == 1 and isinstance(self.compressor, Identity)
        averages = mixing.averages and exact and not self.released_order
        return [Stage(Purpose.MODEL, self.compressor, neighbours=mixing.num_messages, equalises=averages)]

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
        # In two operations: a fused one is rounded as its kernel likes, and so not alike for stacked workers.
        self.flat.parameters.add_((self.s - self.xhat).mul_(self.gamma))


class DeepSqueeze(DistributedOptimizer):
    """DeepSqueeze: workers send their compressed parameters to their neighbours, with error feedback.

    Source: Tang et al., "DeepSqueeze: Decentralization meets error-compensated compression", 2019 (arXiv:1907.07346);
    the order of the lines is that of epfml/ChocoSGD, which has it as a baseline.

        x_i <- x_i - p_i
        v_i = x_i + e_i;   c_i = C(v_i), which goes to the neighbours;   e_i <- v_i - c_i
        x_i <- x_i + gamma sum_j w_ij (c_j - c_i)

    What is compressed is the model itself, so the method is meant for quantisers. A sparsifier of ratio R leaves some R
    models in the error, and sends as much at once; gamma must then be of the order of 1 / R.
    Cost: 32 d / R bits per step for each neighbour and a sparsifier of ratio R, one exchange.

    Args:
        topology: who mixes with whom.
        compressor: C, any; top-k sends the same largest parameters again and again.
        gamma: the consensus step, in (0, 1].
    """

    name = "deep_squeeze"
    formula = "32 d / R neighbours"
    no_compression: ClassVar = {"topology": "complete", "compressor": Identity(), "gamma": 1.0}
    tried_with: ClassVar = {"topology": "ring", "gamma": 0.1}

    topology: Topology
    compressor: Compressor
    gamma: ConsensusStep

    def _set_up(self) -> None:
        self.e = self.new_buffer("error")

    @classmethod
    def _at_ratio(cls, ratio: int, layout: Layout | None) -> dict[str, Any]:
        """Returns settings for a ring of three workers or more, with a consensus step of about half of what is kept."""
        return {"topology": "ring", "compressor": BlockSparsifier(2 * ratio), "gamma": min(1.0, 0.256 / ratio)}

    def stages(self) -> list[Stage]:
        first = self.rounds[0]
        averages = first.averages and self.gamma == 1 and isinstance(self.compressor, Identity)
        return [Stage(Purpose.MODEL, self.compressor, neighbours=first.num_messages, equalises=averages)]

    def _update(self, step: int) -> None:
        self.local_step_()
        self.e.add_(self.flat.parameters)
        sent = self.mix(self.e, self.compressor, self.mixing(step), step, Purpose.MODEL)
        sent.support.add_(self.e, sent.own, alpha=-1)
        sent.support.add_(self.flat.parameters, sent.pull.mul_(self.gamma))


class NoLoCo(DistributedOptimizer):
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
            # Each product is rounded before it is added, so that no bit depends on where a kernel's vectors begin.
            self.m.mul_(self.outer_momentum).add_(pull.add_(x).sub_(self.phi).mul_(self.outer_lr))
            self.phi.add_(self.m)
            x.copy_(self.phi)
