"""Streaming DiLoCo: fragments take the outer step in turn, some steps after they were sent.

Source: Douillard et al., "Streaming DiLoCo with overlapping communication", arXiv 2501.18512, 2025.

    x_i <- x_i - p_i                       (inner step; x is common, x_i what the worker trains)
    every H / F steps, of the next fragment, all in turn:
        Delta <- mean(x - x_i)             (sent now, to be used tau steps later)
    tau steps after that, of the same fragment:
        v     <- mu v + Delta
        x     <- x - eta (Delta + mu v)    (outer step: SGD with Nesterov momentum, as in PyTorch)
        x_i   <- alpha x_i + (1 - alpha) x (what was trained meanwhile is kept in part)

Without lateness, tau = 0 and alpha = 0, this is `diloco`, in fragments as there. Momentum, or
AdamW's moments, are local and are kept. The source's inner optimiser is local_step = "adamw", by
default it is SGD.

What shorter numbers leave out is sent the next time: e_i <- x - x_i + e_i is sent, and e_i keeps
what rounding took.

With ProcessGroupCollectives(overlap=True) a message travels during the steps until it is used.
Otherwise the worker waits when it sends, and keeps the result until then: the same training, more time.

Deviations: fragments are equal shares of the flat vector, where it takes layers; its 4 bits are
floating, here they are `quantised_blocks`, and it keeps no e. With fewer bits e grows without bound
under an outer momentum of 0.9.
Cost: 32 d / H bits per step on average, an all-reduce of d / F every H / F steps; b + 32 / 256 for
32 with b bits.
State: the momentum or the moments, x, v, and what is under way; with shorter numbers e_i.
"""

from typing import Any, ClassVar, Literal

from cser_bench.algorithms.compressors.quantisers import QuantisedBlocks
from cser_bench.algorithms.core import Layout, Purpose, Replica, fixed
from cser_bench.algorithms.core.by_traffic import nearest_interval
from cser_bench.algorithms.core.settings import CountFromZero, Share
from cser_bench.algorithms.diloco import DiLoCo, outer_buffers


class StreamingDiLoCo(DiLoCo):
    """Streaming DiLoCo.

    Begin with `sync_interval=4`.

    `at_traffic`: 4 bits every H steps, a step late, 0.129 / H of DDP's traffic, with outer rate 0.7
    and outer momentum 0.5, as in resnet_methods.

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
    delay: CountFromZero = 1
    merge: Share = 0.5
    bits: Literal[4, 8, 32] = 32

    def _set_up(self, replica: Replica) -> None:
        super()._set_up(replica)
        if self.delay >= self.sync_interval:
            raise ValueError(
                f"{self.name}: delay must be below sync_interval, not {self.delay}"
            )
        if self.bits != 32:
            self.compressor = QuantisedBlocks(self.bits)
            replica.check_compressor("bits", self.compressor)
        replica.new_buffer("delayed")
        # Only where messages are rounded is there a rest to be kept.
        if self.bits != 32 or replica.communication_dtype is not None:
            replica.new_buffer("error")

    @classmethod
    def _at_traffic(
        cls, share: float, world_size: int, layout: Layout | None
    ) -> dict[str, Any]:
        sync_interval = nearest_interval(
            cls.name, QuantisedBlocks(4), share, world_size
        )
        return {
            "sync_interval": sync_interval,
            "outer_lr": 0.7,
            "outer_momentum": 0.5,
            # Below the interval, which may be 1.
            "delay": min(1, sync_interval - 1),
            "bits": 4,
        }

    def _agree_after(self, replica: Replica, num_steps: int) -> bool:
        # Workers agree where the whole vector has just arrived and nothing of their own is kept.
        if self.num_fragments != 1 or self.merge != 0:
            return False
        sent = num_steps - self.delay
        return sent > 0 and sent % self.sync_interval == 0

    def _update(self, replica: Replica, step: int) -> None:
        replica.local_step_()
        if step % self.fragment_interval == 0:
            self._send(replica, step)
        sent = step - self.delay
        if sent > replica.dropped_until and sent % self.fragment_interval == 0:
            self._put_by(replica, sent)
            here = self.fragment(replica, sent)
            self._arrive(replica, here)

    def _send(self, replica: Replica, step: int) -> None:
        here = self.fragment(replica, step)
        x = replica.buffers["anchor"][..., here]
        local = replica.flat.parameters[..., here]
        # (local workers, d / F)
        message = x - local
        if "error" in replica.buffers:
            error = replica.buffers["error"][..., here]
            # e_i <- x - x_i + e_i, which is sent
            message = error.add_(message)
        compressor = replica.fitted(self.compressor)
        draw = replica.draw(step, Purpose.MODEL)
        sending = replica.sending.begin_exchange(
            message, compressor, Layout.flat(here), draw, Purpose.MODEL
        )
        replica.under_way.append((step, sending))
        # Without overlap it has arrived, and is put by, so that it is in the state.
        if replica.collectives.early is None:
            self._settle(replica)

    def _settle(self, replica: Replica) -> None:
        if replica.under_way:
            last, _ = replica.under_way[-1]
            self._put_by(replica, last)

    def _put_by(self, replica: Replica, until: int) -> None:
        """Wait for what was sent up to a step, and keep it for the steps that use it."""
        delta = replica.buffers["delayed"]
        while replica.under_way and replica.under_way[0][0] <= until:
            step, waiting = replica.under_way.popleft()
            here = self.fragment(replica, step)
            sent = waiting()
            arrived = delta[..., here].zero_()
            sent.support.copy_(arrived, sent.mean)
            if "error" in replica.buffers:
                error = replica.buffers["error"][..., here]
                # e_i keeps what rounding took.
                sent.support.add_(error, sent.own, alpha=-1)

    def _arrive(self, replica: Replica, here: slice) -> None:
        """Take the outer step of a fragment and merge it; of frozen tensors nothing is taken."""
        local = replica.flat.parameters[..., here]
        x = replica.buffers["anchor"][..., here]
        delta = replica.buffers["delayed"][..., here]
        with replica.flat.frozen_aside(
            replica.flat.parameters, *outer_buffers(replica)
        ):
            # Each product is rounded before it is added, so that no bit depends on where a kernel's
            # vectors begin.
            # x <- x - eta Delta;   v <- mu v + Delta;   x <- x - eta mu v
            x.sub_(delta * self.outer_lr)
            self.add_outer_momentum(replica, x, delta, here)
            # x_i <- alpha x_i + (1 - alpha) x
            local.mul_(self.merge).add_(x * (1 - self.merge))
