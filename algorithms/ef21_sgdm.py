"""EF21-SGDM: workers send how their averaged gradient has changed, compressed.

Source: Fatkhullin, Tyurin, Richtarik, "Momentum provably improves error feedback!", NeurIPS 2023,
algorithm 1. Its eta is a here, its gamma is eta, and its g_i and g are h_i and h. With a = 1 it is
EF21 (Richtarik, Sokolov, Fatkhullin, "EF21", NeurIPS 2021) on stochastic gradients.

    v_i <- (1 - a) v_i + a g_i
    c_i <- C(v_i - h_i)
    h_i <- h_i + c_i                       (what the others know of v_i)
    h   <- h + mean(c)                     (mean(h_i), held by every worker)
    x   <- x - eta h

In the first step v_i = g_i, and C is the identity: h_i = v_i is sent in full, and counted. Weight
decay is part of g_i. a = 1 - momentum, so that one number says in all methods how long a gradient
lasts. This momentum is the heavy ball's with dampening, and no Nesterov's: with C = identity the
method is, on the mean gradient, torch.optim.SGD(momentum=beta, dampening=beta, nesterov=False). So
a step is about 1 - beta times the other methods' at the same learning rate: what they train with at
eta, this does at about eta / (1 - beta).

Deviations: the first estimate is of the first batch, where the source has a larger one of its own.
A frozen parameter stays; all workers must freeze the same.
Cost: 32 d / R bits per step for a sparsifier of ratio R, one collective; in the first step 32 d.
State: v_i, h_i and h.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from cser_bench.algorithms.compressors.coordinates import TopK
from cser_bench.algorithms.core import (
    Compressor,
    DistributedOptimizer,
    Identity,
    Layout,
    Purpose,
    Replica,
    Stage,
)
from cser_bench.algorithms.core.by_traffic import top_k_ratio


class EF21SGDM(DistributedOptimizer):
    """EF21-SGDM.

    Begin with `compressor=TopK(192)`, which at 8 workers is 1/24 of DDP's traffic; see `TopK`.

    `at_traffic`: TopK(n / share), as in fashion_mnist_long.

    State: "momentum", v_i, and "estimate", h_i, are each worker's own; "mean_estimate", h, is
    common.

    Args:
        compressor: C, any.
    """

    name = "ef21_sgdm"
    family = "error feedback"
    formula = "32 d / R"
    no_compression: ClassVar = {"compressor": Identity()}
    sgd_alone = "its momentum is part of what it sends"
    nesterov = False
    workers_differ = False

    compressor: Compressor

    @classmethod
    def _at_traffic(
        cls, share: float, world_size: int, layout: Layout | None
    ) -> dict[str, Any]:
        return {"compressor": TopK(top_k_ratio(share, world_size))}

    def _set_up(self, replica: Replica) -> None:
        replica.new_buffer("estimate")
        replica.new_buffer("mean_estimate")

    def stages(self, replica: Replica) -> list[Stage]:
        return [
            Stage(Purpose.GRADIENT, last=1),
            Stage(Purpose.GRADIENT, self.compressor, first=2),
        ]

    def _update(self, replica: Replica, step: int) -> None:
        begins = step == 1 or "momentum" not in replica.buffers
        averages = replica.local.buffers(self.param_groups)
        estimates = (replica.buffers["estimate"], replica.buffers["mean_estimate"])
        with replica.flat.frozen_aside(replica.flat.parameters, *estimates, *averages):
            v_i = self._averaged_gradient(replica, begins, averages)
            self._send_change(replica, v_i, step)

    def _send_change(self, replica: Replica, v_i: Tensor, step: int) -> None:
        h_i = replica.buffers["estimate"]
        h = replica.buffers["mean_estimate"]
        # v_i - h_i, in the gradients' memory: nothing reads g_i after this.
        change = torch.sub(v_i, h_i, out=replica.flat.gradients)
        compressor = self.compressor
        if step == 1:
            compressor = Identity()
        sent = replica.exchange(change, compressor, step, Purpose.GRADIENT)
        # h_i <- h_i + c_i;   h <- h + mean(c)
        sent.support.add_(h_i, sent.own)
        sent.support.add_(h, sent.mean)
        # x <- x - eta h
        x = replica.flat.parameters
        # Row by row, as in every local step: a worker's bits must not depend on its neighbours.
        for here, group in zip(replica.flat.parts, self.param_groups, strict=True):
            for row, direction in zip(x[:, here], h[:, here], strict=True):
                row.add_(direction, alpha=-group["lr"])

    def _averaged_gradient(
        self, replica: Replica, begins: bool, averages: list[Tensor]
    ) -> Tensor:
        """Return v_i, which without momentum is g_i.

        Where a schedule switches momentum on, it begins with that step's g_i.
        """
        x = replica.flat.parameters
        g = replica.flat.gradients
        parts = list(zip(replica.flat.parts, self.param_groups, strict=True))
        for here, group in parts:
            if group["weight_decay"]:
                for gradient, parameters in zip(g[:, here], x[:, here], strict=True):
                    gradient.add_(parameters, alpha=group["weight_decay"])
        if not averages:
            return g
        (v,) = averages
        for here, group in parts:
            beta = 0.0 if begins else group["momentum"]
            for average, gradient in zip(v[:, here], g[:, here], strict=True):
                # v_i <- (1 - a) v_i + a g_i, with beta = 1 - a
                average.mul_(beta).add_(gradient, alpha=1 - beta)
        return v
