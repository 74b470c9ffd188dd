"""CSER: partial synchronisation of every update, and of the accumulated error every H steps.

Source: Xie et al., "CSER: Communication-efficient SGD with Error Reset", NeurIPS 2020, algorithm 2;
compressors C1 (error) and C2 (gradient).

    p'_i, r_i = PSync(p_i, C2);   x_i <- x_i - p'_i;   e_i <- e_i - r_i
    every H steps:
        e'_i, s_i = PSync(e_i, C1);   x_i <- x_i - e_i + e'_i;   e_i <- s_i

Two forms. The explicit one holds e_i and takes any compressor. Parameters of 16 bits have an e_i of
32, which takes up what rounding does to x_i, so that x_i - e_i stays equal on all workers. Where
both compressors have shared support no e_i is needed: x_i - e_i is the same on all workers, so on
the blocks that C1 chose the last line says x_i <- mean(x). The update that a worker sends is then
what its local step really took off the parameters, (x before) - (x after).

With momentum the method is the paper's M-CSER (`mcser.py`). Weight decay enters p_i.
Momentum, or AdamW's moments, are local: each worker's own, and never averaged.
Cost: 32 d / R2 + 32 d / (R1 H) bits per step on average for sparsifiers of ratios R1 and R2; a
collective per step and one more every H steps, none for a compressor that sends nothing.
State: the momentum or the moments, and in the explicit form e_i, of 32 bits where parameters are of 16.
"""

from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from cser_bench.algorithms.compressors.block import BlockSparsifier
from cser_bench.algorithms.core import (
    Compressor,
    Count,
    DistributedOptimizer,
    Identity,
    Layout,
    Purpose,
    Replica,
    SharedSupport,
    Stage,
)
from cser_bench.algorithms.core.by_traffic import nearest_count, nearest_factors
from cser_bench.algorithms.core.compressors import Zero, rounded
from cser_bench.algorithms.core.layout import Support, Windows

CHOSEN = {8: 2, 24: 3, 32: 4, 1024: 8}
"""R1 by the inverse of the share of traffic, where it is another than that of the nearest factors."""


class CSER(DistributedOptimizer):
    """CSER: C2 compresses each step's update, and C1 the accumulated error at each reset.

    Begin with `**CSER.at_traffic(1 / 4, world_size=8)`.

    `at_traffic`: blocks, half of the traffic for each stage, as in gpt_text; M-CSER's are those of
    table_cnn, fashion_mnist_long and the paper.

    Args:
        gradient_compressor: C2, of any kind.
        error_compressor: C1, of any kind.
        reset_interval: H, in steps.
        explicit_error: hold the error even where it is not needed, for instance to look at its
            norm.
    """

    name = "cser"
    family = "error reset"
    formula = "32 d / R2 + 32 d / (R1 H)"
    no_compression: ClassVar = {
        "gradient_compressor": Identity(),
        "error_compressor": Identity(),
        "reset_interval": 1,
    }

    gradient_compressor: Compressor
    error_compressor: Compressor
    reset_interval: Count
    explicit_error: bool = False

    def _set_up(self, replica: Replica) -> None:
        compressors = (self.gradient_compressor, self.error_compressor)
        is_shared = all(
            isinstance(replica.fitted(c), SharedSupport) for c in compressors
        )
        # With shared support x_i - e_i is equal on all workers, so e_i follows from x_i.
        if self.explicit_error or not is_shared:
            # e_i: (local workers, d)
            replica.new_buffer(
                "error", dtype=torch.promote_types(replica.dtype, torch.float32)
            )

    @classmethod
    def _at_traffic(
        cls, share: float, world_size: int, layout: Layout | None
    ) -> dict[str, Any]:
        """Spend half of the traffic on each stage: R2 = R1 H = 2 R, and R the inverse of the share.

        R1 is that of the experiments at 8 and 24, and the paper's at 32 and 1024. Elsewhere R1 <=
        H, and the two are as close to each other as whole factors allow.
        """
        ratio = nearest_count(cls.name, 1.0, share)
        # R1 H = 2 ratio, so H = 2 ratio / R1 below is whole.
        error_ratio = CHOSEN.get(ratio, nearest_factors(2 * ratio)[0])
        return {
            "gradient_compressor": BlockSparsifier(2 * ratio),
            "error_compressor": BlockSparsifier(error_ratio),
            "reset_interval": 2 * ratio // error_ratio,
        }

    def stages(self, replica: Replica) -> list[Stage]:
        gradient = Stage(Purpose.GRADIENT, self.gradient_compressor)
        error = Stage(Purpose.ERROR, self.error_compressor, every=self.reset_interval)
        if "error" in replica.buffers:
            return [gradient, error]
        # Without e_i, what is sent of a block follows from the block's gradients alone.
        return [
            replace(gradient, early=partial(_update_to_send, replica)),
            replace(error, early=replica.after_local_step),
        ]

    def _update(self, replica: Replica, step: int) -> None:
        is_reset = step % self.reset_interval == 0
        e = replica.buffers.get("error")
        if e is None:
            self._sync_update(replica, step)
            if is_reset:
                # x_i - e_i is common, so averaging the error averages the parameters.
                self.average_coordinates_(
                    replica, self.error_compressor, step, Purpose.ERROR
                )
        elif e.dtype != replica.dtype:
            self._update_in_short(replica, e, step)
        else:
            self._sync_update_and_error(replica, e, step)
            if is_reset:
                sent = replica.exchange(e, self.error_compressor, step, Purpose.ERROR)
                # e' - e = mean(C1(e)) - C1(e_i), as PSync leaves the other coordinates alone.
                sent.support.add_(replica.flat.parameters, sent.mean - sent.own)
                # s_i = e_i - C1(e_i)
                sent.support.add_(e, sent.own, alpha=-1)

    def _sync_update(self, replica: Replica, step: int) -> None:
        x = replica.flat.parameters  # (local workers, d)
        support = _support(replica, self.gradient_compressor, step, Purpose.GRADIENT)
        before = support.gather(x)  # (local workers, d / R2), like all below
        # Off the support the step stands as it is: x_i <- x_i - p_i, and e_i <- e_i - p_i with it.
        replica.local_step_()
        # C2 = 0 draws nothing.
        if not before.numel():
            return
        taken = before - support.gather(x)  # C2(p_i), as the parameters' dtype has it
        own, mean = replica.average(taken, Purpose.GRADIENT)
        # On the support all workers take the same step: x_i <- x_i - mean(C2(p)).
        # If nothing is rounded, `own` is `taken` itself.
        if own is not taken:
            # With rounding x_i <- x_i - taken + own - mean: what was not sent stays in the
            # worker's parameters, as its error.
            before.sub_(taken).add_(own)
        support.copy_(x, before.sub_(mean))

    def _sync_update_and_error(self, replica: Replica, e: Tensor, step: int) -> None:
        x = replica.flat.parameters  # (local workers, d), like p and e
        p = replica.flat.new_buffer()
        replica.local_step_(p)
        # With p' = p - C2(p) + mean(C2(p)) and r = p - C2(p), both in two halves: p here, what was
        # sent below.
        x.sub_(p)
        e.sub_(p)
        # Nothing was sent: p' = p, r = p.
        if isinstance(self.gradient_compressor, Zero):
            return
        sent = replica.exchange(p, self.gradient_compressor, step, Purpose.GRADIENT)
        # A frozen parameter's update is zero, but a compressor may decode zeros to something else:
        # signs become +1 or -1. Set aside, the parameter and its error stay as they are.
        with replica.flat.frozen_aside(x, e):
            sent.support.add_(x, sent.own - sent.mean)
            sent.support.add_(e, sent.own)

    def _update_in_short(self, replica: Replica, e: Tensor, step: int) -> None:
        """Step parameters of 16 bits, whose error is of 32.

        Rounding x_i, each worker in its own way, must not move x_i - e_i, which no reset would bring
        together again. So x_i - e_i takes what all receive, and e_i is what is left of x_i.
        """
        x = replica.flat.parameters  # (local workers, d), like e
        common = x - e
        before = x.clone()
        replica.local_step_()
        # C2 = 0 draws nothing.
        if not isinstance(self.gradient_compressor, Zero):
            # The update as it was rounded.
            p = before.sub_(x)
            sent = replica.exchange(p, self.gradient_compressor, step, Purpose.GRADIENT)
            # As in `_sync_update_and_error`.
            with replica.flat.frozen_aside(x, common):
                sent.support.add_(x, sent.own - sent.mean)
                sent.support.add_(common, sent.mean.to(e.dtype), alpha=-1)
        if step % self.reset_interval == 0:
            # In 16 bits, as messages are; what that leaves out stays in e_i.
            to_send = rounded(x - common, x.dtype)
            sent = replica.exchange(to_send, self.error_compressor, step, Purpose.ERROR)
            sent.support.add_(x, sent.mean - sent.own)
            sent.support.add_(common, sent.mean.to(e.dtype))
        torch.sub(x, common, out=e)

    def average_coordinates_(
        self, replica: Replica, compressor: Compressor, step: int, purpose: Purpose
    ) -> None:
        """Do x <- mean(x) on the coordinates that the compressor draws."""
        support = _support(replica, compressor, step, purpose)
        # (local workers, coordinates drawn)
        values = support.gather(replica.flat.parameters)
        own, mean = replica.average(values, purpose)
        if own is not values:
            # x_i <- mean + (x_i - own): a worker keeps what rounding took from its own.
            mean = values.sub_(own).add_(mean)
        support.copy_(replica.flat.parameters, mean)


def _update_to_send(replica: Replica, support: Windows) -> Tensor:
    """Predict (x before) - (x after) of the local step, so that it can be sent before the step."""
    return support.gather(replica.flat.parameters).sub_(
        replica.after_local_step(support)
    )


def _support(
    replica: Replica, compressor: Compressor, step: int, purpose: Purpose
) -> Support:
    """Return the coordinates that the compressor draws, which it must do alike on all workers."""
    fitted = replica.fitted(compressor)
    assert isinstance(fitted, SharedSupport)
    return fitted.support(replica.flat.layout, replica.draw(step, purpose))
