"""DiLoCo: workers train alone; now and then an outer optimiser steps by what they moved by.

Source: Douillard et al., "DiLoCo: Distributed low-communication training of language models", arXiv
2311.08105, 2023, algorithm 1 (x is its theta); in fragments, Douillard et al., "Streaming DiLoCo
with overlapping communication", arXiv 2501.18512, 2025.

    x_i <- x_i - p_i                       (inner step; x is common, x_i what the worker trains)
    every H steps:
        Delta <- mean(x - x_i)
        v     <- mu v + Delta
        x     <- x - alpha (Delta + mu v)  (outer step: SGD with Nesterov momentum, as in PyTorch)
        x_i   <- x

With F fragments the flat vector is cut into F pieces of d / F neighbouring coordinates. Every H / F
steps one of them, in turn, does these four lines: its share of x and v moves, and no other's. The
momentum of p_i is local and is kept; weight decay enters p_i.

The source's inner optimiser is local_step = "adamw", by default it is SGD; its moments are local
and are kept.

Deviations: fragments are equal shares, where it takes layers; they arrive at once, and
`streaming_diloco` has late ones; they are not quantised. As x is common, Delta is x - mean(x_i),
and x_i is sent: alpha = 1 and mu = 0 are local SGD to the bit. With shorter numbers x - x_i is
sent, and each x_i keeps what rounding took.
With send_gradients the inner step is of the mean gradient: nothing is saved, and what the outer
step does is seen.
Cost: 32 d / H bits per step on average, an all-reduce of d / F every H / F steps; send_gradients:
32 d more.
State: the momentum or the moments, x, and v unless mu = 0.
"""

from typing import Any, ClassVar

from torch import Tensor

from cser_bench.algorithms.core import (
    Compressor,
    Count,
    DistributedOptimizer,
    Layout,
    Purpose,
    Replica,
    Stage,
)
from cser_bench.algorithms.core.by_traffic import nearest_count
from cser_bench.algorithms.core.collectives import share_of
from cser_bench.algorithms.core.settings import BelowOne, Positive
from cser_bench.algorithms.core.stages import EVERYTHING


class DiLoCo(DistributedOptimizer):
    """DiLoCo.

    Begin with `sync_interval=4`.

    `at_traffic`: H = 1 / share with outer rate 0.7 and outer momentum 0.5, as in table_cnn,
    resnet_regime and gpt_text.

    `consensus()` shows the average of the x_i, as for any method, and not x, which lacks what was
    trained since.

    Args:
        sync_interval: H, in steps; a multiple of `num_fragments`, F, which is at most d.
        outer_lr, outer_momentum: alpha, above 0, which no schedule changes, and mu, in [0, 1).
        send_gradients: average the gradients of every step too.
    """

    name = "diloco"
    family = "local steps"
    formula = "32 d / H"
    no_compression: ClassVar = {
        "sync_interval": 1,
        "outer_lr": 1.0,
        "outer_momentum": 0.0,
    }
    tried_with: ClassVar = {"outer_lr": 0.7, "outer_momentum": 0.9}

    sync_interval: Count
    outer_lr: Positive = 0.7
    outer_momentum: BelowOne = 0.9
    num_fragments: Count = 1
    send_gradients: bool = False

    @classmethod
    def _at_traffic(
        cls, share: float, world_size: int, layout: Layout | None
    ) -> dict[str, Any]:
        sync_interval = nearest_count(cls.name, 1.0, share)
        return {"sync_interval": sync_interval, "outer_lr": 0.7, "outer_momentum": 0.5}

    def _set_up(self, replica: Replica) -> None:
        if self.sync_interval % self.num_fragments:
            raise ValueError(
                f"{self.name}: sync_interval = {self.sync_interval} must be a multiple of "
                f"num_fragments = {self.num_fragments}, as a fragment is sent every sync_interval "
                "/ num_fragments steps"
            )
        if self.num_fragments > replica.flat.layout.numel:
            raise ValueError(
                f"{self.name}: num_fragments = {self.num_fragments} is more than the model's "
                f"{replica.flat.layout.numel} parameters; lower it"
            )
        self.compressor: Compressor = EVERYTHING
        self.fragment_interval = self.sync_interval // self.num_fragments
        replica.new_buffer("anchor", like=replica.flat.parameters)
        if self.outer_momentum:
            replica.new_buffer("outer_momentum")

    def stages(self, replica: Replica) -> list[Stage]:
        stages = []
        if self.send_gradients:
            stages.append(Stage(Purpose.GRADIENT, equalises=False))
        for first in range(
            self.fragment_interval, self.sync_interval + 1, self.fragment_interval
        ):
            stage = Stage(
                Purpose.MODEL,
                self.compressor,
                every=self.sync_interval,
                first=first,
                layout=Layout.flat(self.fragment(replica, first)),
            )
            stages.append(stage)
        return stages

    def fragment(self, replica: Replica, step: int) -> slice:
        """Return the coordinates that are synchronised at this step, which must be one with any."""
        # The first is due at step H / F, the last of a round at step H.
        number = (step // self.fragment_interval - 1) % self.num_fragments
        return share_of(
            range(number, number + 1), replica.flat.layout.numel, self.num_fragments
        )

    def _update(self, replica: Replica, step: int) -> None:
        if self.send_gradients:
            replica.average_gradients_()
        replica.local_step_()
        if step % self.fragment_interval == 0:
            self._synchronise(replica, self.fragment(replica, step))

    def _synchronise(self, replica: Replica, here: slice) -> None:
        # (local workers, d / F), like x, v and Delta
        local = replica.flat.parameters[..., here]
        x = replica.buffers["anchor"][..., here]
        unsent = None
        if replica.communication_dtype is None:
            replica.average_in_place_(local, Purpose.MODEL)
        else:
            # The difference is sent and not x_i, as a small number loses less to rounding.
            unsent = x - local
            own, mean = replica.average(unsent, Purpose.MODEL)
            unsent.sub_(own)
            # mean(x_i) = x - Delta
            local.copy_(x - mean)
        # A frozen parameter is averaged as others are, and takes no outer step.
        with replica.flat.frozen_aside(
            replica.flat.parameters, *outer_buffers(replica)
        ):
            # Each product is rounded before it is added, so that no bit depends on where a kernel's
            # vectors begin.
            delta = x - local
            # x - alpha Delta = mean(x_i) + (1 - alpha) Delta, which for alpha = 1 is the mean to
            # the bit.
            x.copy_(local).add_(delta * (1 - self.outer_lr))
            self.add_outer_momentum(replica, x, delta, here)
            local.copy_(x)
        if unsent is not None:
            # x_i <- x less what rounding kept back, which is sent with the next difference.
            local.sub_(unsent)

    def add_outer_momentum(
        self, replica: Replica, x: Tensor, delta: Tensor, here: slice
    ) -> None:
        """Do v <- mu v + Delta, x <- x - alpha mu v, on the coordinates of a fragment."""
        if "outer_momentum" in replica.buffers:
            v = replica.buffers["outer_momentum"][..., here]
            v.mul_(self.outer_momentum).add_(delta)
            x.sub_(v * (self.outer_lr * self.outer_momentum))


def outer_buffers(replica: Replica) -> list[Tensor]:
    """Return what the outer step changes: x and, if there is one, its momentum."""
    keys = ("anchor", "outer_momentum")
    return [replica.buffers[key] for key in keys if key in replica.buffers]
