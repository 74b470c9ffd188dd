"""Streaming DiLoCo: fragments take the outer step in turn, some steps after they were sent, and are
merged.

Source: Douillard et al., "Streaming DiLoCo with overlapping communication", arXiv 2501.18512, 2025.

    x_i <- x_i - p_i                           (inner step; x is the same on all workers, x_i what
    the worker trains) every H / F steps, of the next fragment, all in turn:
        Delta <- mean(x - x_i)                 (sent now, to be used tau steps later)
    tau steps after that, of the same fragment:
        v     <- mu v + Delta x     <- x - eta (Delta + mu v)        (outer step: SGD with Nesterov
        momentum, as in PyTorch) x_i   <- alpha x_i + (1 - alpha) x     (what was trained meanwhile
        is kept in part)

Without lateness, tau = 0 and alpha = 0, this is `diloco`, in fragments as there. Momentum, or
AdamW's moments, are local and are kept. The source's inner optimiser is local_step = "adamw", by
default it is SGD.

What shorter numbers leave out is sent the next time: e_i <- x - x_i + e_i is sent, and e_i keeps
what rounding took.

With ProcessGroupCollectives(overlap=True) a message travels beside the steps until it is used. Else
it is waited for when it is sent, and put by: training is the same, the clock is not.

Deviations: fragments are equal shares of the flat vector, where it takes layers; its 4 bits are
floating, here they are `quantised_blocks`, and it keeps no e. With fewer bits e grows without bound
under an outer momentum of 0.9.
Cost: 32 d / H bits per step on average, an all-reduce of d / F every H / F steps; b + 32 / 256 for
    32 with b bits.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from cser_bench.algorithms.compressors.quantisers import QuantisedBlocks
from cser_bench.algorithms.core import Layout, Purpose, Traffic, fixed
from cser_bench.algorithms.core.exchange import Exchanged
from cser_bench.algorithms.core.settings import Share
from cser_bench.algorithms.diloco import DiLoCo


class StreamingDiLoCo(DiLoCo):
    """Streaming DiLoCo.

    Args:
        sync_interval, num_fragments, outer_lr, outer_momentum: H, F, eta and mu, as in `DiLoCo`.
        delay: tau, in steps, from 0 up and below H.
        merge: alpha, in [0, 1], the share of a worker's own parameters that it keeps.
        bits: of a number that is sent: 4 or 8, in two stages, or 32, which leaves it to
            `communication_dtype`.
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
                f"{self.name}: delay must be an integer from 0 up and below sync_interval, not "
                f"{self.delay!r}"
            )
        if self.bits != 32:
            self.compressor = self.checked("bits", QuantisedBlocks(self.bits))
        self.delta = self.new_buffer("delayed")
        is_exact = self.bits == 32 and self.communication_dtype is None
        self.e = None if is_exact else self.new_buffer("error")
        self._under_way = deque[tuple[int, Callable[[], Exchanged]]]()
        self._dropped_until = 0
        """The last step whose message, and all before, must not arrive any more."""

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
        if sent > self._dropped_until and sent % self.fragment_interval == 0:
            self._put_by(sent)
            self._arrive(self.fragment(sent))

    def _send(self, step: int) -> None:
        here = self.fragment(step)
        message = self.x[..., here] - self.flat.parameters[..., here]
        if self.e is not None:
            message = self.e[..., here].add_(message)
        draw = self.draw(step, Purpose.MODEL)
        sending = self.sending.begin_exchange(
            message, self.compressor, Layout.flat(here), draw, Purpose.MODEL
        )
        self._under_way.append((step, sending))
        if self.collectives.early is None:
            self._put_by()

    def _put_by(self, until: int | None = None) -> None:
        """Waits for what was sent up to a step, by default for all, and keeps it for the steps that
        use it."""
        while self._under_way and (until is None or self._under_way[0][0] <= until):
            step, waiting = self._under_way.popleft()
            here, sent = self.fragment(step), waiting()
            sent.support.copy_(self.delta[..., here].zero_(), sent.mean)
            if self.e is not None:
                sent.support.add_(self.e[..., here], sent.own, alpha=-1)

    def _arrive(self, here: slice) -> None:
        """Takes the outer step of a fragment and merges it; of frozen tensors what was sent is
        dropped."""
        local, x, delta = (each[..., here] for each in (self.flat.parameters, self.x, self.delta))
        with self.flat.frozen_aside(self.flat.parameters, *self._outer):
            # Each product is rounded before it is added, so that no bit depends on where a kernel's
            # vectors begin.
            x.sub_(delta * self.outer_lr)
            if self.v is not None:
                v = self.v[..., here].mul_(self.outer_momentum).add_(delta)
                x.sub_(v * (self.outer_lr * self.outer_momentum))
            local.mul_(self.merge).add_(x * (1 - self.merge))

    def _drop_under_way(self) -> None:
        self._put_by()
        self.delta.zero_()
        self._dropped_until = self.num_steps

    def _flat_state(self) -> dict[str, Any]:
        self._put_by()
        return super()._flat_state() | {"dropped_until": self._dropped_until}

    def _restore(self, state: dict[str, Any]) -> None:
        self._put_by()
        super()._restore(state)
        self._dropped_until = state.get(
            "dropped_until", 0
        )  # a state from before it was kept has dropped none
