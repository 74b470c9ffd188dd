"""DiLoCo: workers train alone; what they moved on average is now and then the gradient of an outer
optimiser.

Source: Douillard et al., "DiLoCo: Distributed low-communication training of language models", arXiv
2311.08105, 2023, algorithm 1 (x is its theta); in fragments, Douillard et al., "Streaming DiLoCo
with overlapping communication", arXiv 2501.18512, 2025.

    x_i <- x_i - p_i                       (inner step; x is the same on all workers, x_i what the
    worker trains) every H steps:
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
sent, and each x_i keeps what rounding took. With send_gradients the inner step is of the mean
gradient: nothing is saved, and what the outer step does is seen.
Cost: 32 d / H bits per step on average, an all-reduce of d / F every H / F steps; send_gradients:
    32 d more.
"""

from typing import ClassVar

from cser_bench.algorithms.core import (
    Compressor,
    Count,
    DistributedOptimizer,
    Layout,
    Purpose,
    Stage,
)
from cser_bench.algorithms.core.collectives import share_of
from cser_bench.algorithms.core.settings import BelowOne, Positive
from cser_bench.algorithms.core.stages import EVERYTHING


class DiLoCo(DistributedOptimizer):
    """DiLoCo.

    `consensus()` shows the average of the x_i, as for any method, and not x, which lacks what was
    trained since.

    Args:
        sync_interval: H, in steps; a multiple of `num_fragments`, F, which is at most d.
        outer_lr, outer_momentum: alpha, above 0, which no schedule changes, and mu, in [0, 1).
        send_gradients: average the gradients of every step too.
    """

    name = "diloco"
    formula = "32 d / H"
    no_compression: ClassVar = {"sync_interval": 1, "outer_lr": 1.0, "outer_momentum": 0.0}
    tried_with: ClassVar = {"outer_lr": 0.7, "outer_momentum": 0.9}

    sync_interval: Count
    outer_lr: Positive = 0.7
    outer_momentum: BelowOne = 0.9
    num_fragments: Count = 1
    send_gradients: bool = False

    def _set_up(self) -> None:
        if self.sync_interval % self.num_fragments:
            raise ValueError(
                f"{self.name}: sync_interval = {self.sync_interval} must be a multiple of "
                f"num_fragments = {self.num_fragments}, as a fragment is sent every sync_interval "
                "/ num_fragments steps"
            )
        if self.num_fragments > self.flat.layout.numel:
            raise ValueError(
                f"{self.name}: num_fragments = {self.num_fragments} is more than the model's "
                f"{self.flat.layout.numel} parameters; lower it"
            )
        self.compressor: Compressor = EVERYTHING
        self.fragment_interval = self.sync_interval // self.num_fragments
        self.x = self.new_buffer("anchor", like=self.flat.parameters)
        self.v = self.new_buffer("outer_momentum") if self.outer_momentum else None
        self._outer = [self.x] if self.v is None else [self.x, self.v]

    def stages(self) -> list[Stage]:
        stages = [Stage(Purpose.GRADIENT, equalises=False)] if self.send_gradients else []
        for first in range(self.fragment_interval, self.sync_interval + 1, self.fragment_interval):
            part = Layout.flat(self.fragment(first))
            stages.append(
                Stage(
                    Purpose.MODEL,
                    self.compressor,
                    every=self.sync_interval,
                    first=first,
                    layout=part,
                )
            )
        return stages

    def fragment(self, step: int) -> slice:
        """The coordinates that are synchronised at this step, which must be one with a
        synchronisation."""
        number = (step // self.fragment_interval - 1) % self.num_fragments
        return share_of(range(number, number + 1), self.flat.layout.numel, self.num_fragments)

    def _update(self, step: int) -> None:
        if self.send_gradients:
            self.average_gradients_()
        self.local_step_()
        if step % self.fragment_interval == 0:
            self._synchronise(self.fragment(step))

    def _synchronise(self, here: slice) -> None:
        local, x = self.flat.parameters[..., here], self.x[..., here]
        unsent = None
        if self.communication_dtype is None:
            self.average_in_place_(local, Purpose.MODEL)
        else:
            unsent = x - local
            own, mean = self.average(unsent, Purpose.MODEL)
            unsent.sub_(own)
            local.copy_(x - mean)
        # A frozen parameter is averaged as others are, and takes no outer step.
        with self.flat.frozen_aside(self.flat.parameters, *self._outer):
            # Each product is rounded before it is added, so that no bit depends on where a kernel's
            # vectors begin.
            delta = x - local
            x.copy_(local).add_(delta * (1 - self.outer_lr))
            if self.v is not None:
                v = self.v[..., here].mul_(self.outer_momentum).add_(delta)
                x.sub_(v * (self.outer_lr * self.outer_momentum))
            local.copy_(x)
        if unsent is not None:
            local.sub_(unsent)
