"""DiLoCo: workers train alone; what they moved on average is now and then the gradient of an outer optimiser.

Source: Douillard et al., "DiLoCo: Distributed low-communication training of language models", arXiv 2311.08105, 2023,
algorithm 1 (x is its theta); in fragments, Douillard et al., "Streaming DiLoCo with overlapping communication", arXiv
2501.18512, 2025, whose late fragments are `StreamingDiLoCo` below.

    x_i <- x_i - p_i                       (inner step; x is the same on all workers, x_i what the worker trains)
    every H steps:
        Delta <- mean(x - x_i)
        v     <- mu v + Delta
        x     <- x - alpha (Delta + mu v)  (outer step: SGD with Nesterov momentum, as in PyTorch)
        x_i   <- x

With F fragments the flat vector is cut into F pieces of d / F neighbouring coordinates. Every H / F steps one of them,
in turn, does these four lines: its share of x and v moves, and no other's. The momentum of p_i is local and is kept;
weight decay enters p_i.

The source's inner optimiser is local_step = "adamw", by default it is SGD; its moments are local and are kept.

Deviations: fragments are equal shares, where it takes layers; they arrive at once and are not quantised. As x is
common, Delta is x - mean(x_i), and x_i is sent: alpha = 1 and mu = 0 are local SGD to the bit. With shorter numbers
x - x_i is sent, and each x_i keeps what rounding took.
With send_gradients the inner step is of the mean gradient: nothing is saved, and what the outer step does is seen.
Cost: 32 d / H bits per step on average, an all-reduce of d / F every H / F steps; send_gradients: 32 d more.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from algorithms.compressors.quantisers import QuantisedBlocks
from algorithms.core import Compressor, Count, DistributedOptimizer, Layout, Purpose, Stage, Traffic, fixed
from algorithms.core.collectives import share_of
from algorithms.core.exchange import Exchanged
from algorithms.core.settings import BelowOne, Positive, Share
from algorithms.core.stages import EVERYTHING


class DiLoCo(DistributedOptimizer):
    """DiLoCo.

    `consensus()` shows the average of the x_i, as for any method, and not x, which lacks what was trained since.

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
                f"{self.name}: sync_interval = {self.sync_interval} must be a multiple of num_fragments = "
                f"{self.num_fragments}, as a fragment is sent every sync_interval / num_fragments steps"
            )
        if self.num_fragments > self.flat.layout.numel:
            raise ValueError(
                f"{self.name}: num_fragments = {self.num_fragments} is more than the model's {self.flat.layout.numel} "
                "parameters; lower it"
            )
        self.compressor: Compressor = EVERYTHING
        self.fragment_interval = self.sync_interval // self.num_fragments
        self.x = self.new_buffer("anchor", like=self.flat.parameters)
        self.v = self.new_buffer("outer_momentum") if self.outer_momentum else None

    def stages(self) -> list[Stage]:
        stages = [Stage(Purpose.GRADIENT, equalises=False)] if self.send_gradients else []
        for first in range(self.fragment_interval, self.sync_interval + 1, self.fragment_interval):
            part = Layout.flat(self.fragment(first))
            stages.append(Stage(Purpose.MODEL, self.compressor, every=self.sync_interval, first=first, layout=part))
        return stages

    def fragment(self, step: int) -> slice:
        """The coordinates that are synchronised at this step, which must be one with a synchronisation."""
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
        # Each product is rounded before it is added, so that no bit depends on where a kernel's vectors begin.
        delta = x - local
        x.copy_(local).add_(delta * (1 - self.outer_lr))
        if self.v is not None:
            v = self.v[..., here].mul_(self.outer_momentum).add_(delta)
            x.sub_(v * (self.outer_lr * self.outer_momentum))
        local.copy_(x)
        if unsent is not None:
            local.sub_(unsent)


class StreamingDiLoCo(DiLoCo):
    """Streaming DiLoCo: fragments take the outer step in turn, some steps after they were sent, and are merged.

        every H / F steps, of the next fragment, all in turn:
            Delta <- mean(x - x_i)                 (sent now, to be used tau steps later)
        tau steps after that, of the same fragment:
            v     <- mu v + Delta
            x     <- x - eta (Delta + mu v)        (outer step: SGD with Nesterov momentum, as in PyTorch)
            x_i   <- alpha x_i + (1 - alpha) x     (what was trained meanwhile is kept in part)

    Without lateness, tau = 0 and alpha = 0, this is `DiLoCo`, in fragments as there. What shorter numbers leave out is
    sent the next time: e_i <- x - x_i + e_i is sent, and e_i keeps what rounding took.

    With ProcessGroupCollectives(overlap=True) a message travels beside the steps until it is used. Else it is waited
    for when it is sent, and put by: training is the same, the clock is not.

    Deviations: fragments are equal shares of the flat vector, where it takes layers; its 4 bits are floating, here they
    are `quantised_blocks`, and it keeps no e. With fewer bits e grows without bound under an outer momentum of 0.9.
    Cost: as DiLoCo; b + 32 / 256 for 32 with b bits.

    Args:
        sync_interval, num_fragments, outer_lr, outer_momentum: H, F, eta and mu, as in `DiLoCo`.
        delay: tau, in steps, from 0 up and below H.
        merge: alpha, in [0, 1], the share of a worker's own parameters that it keeps.
        bits: of a number that is sent: 4 or 8, in two stages, or 32, which leaves it to `communication_dtype`.
    """

    name = "streaming_diloco"
    no_compression: ClassVar = {**DiLoCo.no_compression, "delay": 0, "merge": 0.0}
    tried_with: ClassVar = {**DiLoCo.tried_with, "delay": 1, "merge": 0.5}

    send_gradients: bool = fixed(False)
    delay: int = 1
    merge: Share = 0.5
    bits: Literal[4, 8, 32] = 32

    def _set_up(self) -> None:
        super()._set_up()
        if type(self.delay) is not int or not 0 <= self.delay < self.sync_interval:
            raise ValueError(
                f"{self.name}: delay must be an integer from 0 up and below sync_interval, not {self.delay!r}"
            )
        if self.bits != 32:
            self.compressor = self.checked("bits", QuantisedBlocks(self.bits))
        self.delta = self.new_buffer("delayed")
        is_exact = self.bits == 32 and self.communication_dtype is None
        self.e = None if is_exact else self.new_buffer("error")
        self._under_way = deque[tuple[int, Callable[[], Exchanged]]]()

    @classmethod
    def _at_ratio(cls, ratio: int, layout: Layout | None) -> dict[str, Any]:
        return {"sync_interval": ratio, "delay": min(1, ratio - 1)}

    def _agree_after(self, num_steps: int) -> bool:
        whole = self.num_fragments == 1 and self.merge == 0 and num_steps > self.delay
        return whole and (num_steps - self.delay) % self.sync_interval == 0

    @property
    def traffic(self) -> Traffic:
        """As for any method; waits for what is under way."""
        self._put_by()
        return super().traffic

    def _update(self, step: int) -> None:
        self.local_step_()
        if step % self.fragment_interval == 0:
            self._send(step)
        sent = step - self.delay
        if sent > 0 and sent % self.fragment_interval == 0:
            self._put_by(sent)
            self._arrive(self.fragment(sent))

    def _send(self, step: int) -> None:
        here = self.fragment(step)
        message = self.x[..., here] - self.flat.parameters[..., here]
        if self.e is not None:
            message = self.e[..., here].add_(message)
        draw = self.draw(step, Purpose.MODEL)
        sending = self.sending.begin_exchange(message, self.compressor, Layout.flat(here), draw, Purpose.MODEL)
        self._under_way.append((step, sending))
        if self.collectives.early is None:
            self._put_by()

    def _put_by(self, until: int | None = None) -> None:
        """Waits for what was sent up to a step, by default for all, and keeps it for the steps that use it."""
        while self._under_way and (until is None or self._under_way[0][0] <= until):
            step, waiting = self._under_way.popleft()
            here, sent = self.fragment(step), waiting()
            sent.support.copy_(self.delta[..., here].zero_(), sent.mean)
            if self.e is not None:
                sent.support.add_(self.e[..., here], sent.own, alpha=-1)

    def _arrive(self, here: slice) -> None:
        """Takes the outer step of a fragment and merges it."""
        local, x, delta = (each[..., here] for each in (self.flat.parameters, self.x, self.delta))
        # Each product is rounded before it is added, so that no bit depends on where a kernel's vectors begin.
        x.sub_(delta * self.outer_lr)
        if self.v is not None:
            v = self.v[..., here].mul_(self.outer_momentum).add_(delta)
            x.sub_(v * (self.outer_lr * self.outer_momentum))
        local.mul_(self.merge).add_(x * (1 - self.merge))

    def _flat_state(self) -> dict[str, Any]:
        self._put_by()
        return super()._flat_state()

    def _restore(self, state: dict[str, Any]) -> None:
        self._put_by()
        super()._restore(state)
