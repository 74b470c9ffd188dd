"""CSER: partial synchronisation of every update, and of the accumulated error every H steps.

Source: Xie et al., "CSER: Communication-efficient SGD with Error Reset", NeurIPS 2020, algorithm 2;
compressors C1 (error) and C2 (gradient).

    p'_i, r_i = PSync(p_i, C2);   x_i <- x_i - p'_i;   e_i <- e_i - r_i
    every H steps:
        e'_i, s_i = PSync(e_i, C1);   x_i <- x_i - e_i + e'_i;   e_i <- s_i

Two forms. The explicit one holds e_i and takes any compressor. Where both compressors have shared
support no e_i is
needed: x_i - e_i is the same on all workers, so on the blocks that C1 chose the last line says x_i
<- mean(x). The update that a worker sends is then what its local step really took off the
parameters, (x before) - (x after).

With momentum the method is the paper's M-CSER (`mcser.py`). Weight decay enters p_i.
Momentum, or AdamW's moments, are local: each worker's own, and never averaged.
Cost: 32 d / R2 + 32 d / (R1 H) bits per step on average for sparsifiers of ratios R1 and R2; a
collective per step and one more every H steps, none for a compressor that sends nothing.
"""

from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from cser_bench.algorithms.compressors.block import BlockSparsifier
from cser_bench.algorithms.core import (
    Compressor,
    Count,
    DistributedOptimizer,
    Identity,
    Layout,
    Purpose,
    SharedSupport,
    Stage,
)
from cser_bench.algorithms.core.compressors import Zero
from cser_bench.algorithms.core.layout import Support, Windows
from cser_bench.algorithms.core.settings import nearest_factors


class CSER(DistributedOptimizer):
    """CSER.

    Args:
        gradient_compressor: C2, any.
        error_compressor: C1, any.
        reset_interval: H, in steps.
        explicit_error: hold the error even where it is not needed, for instance to look at its
            norm.
    """

    name = "cser"
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

    def _set_up(self) -> None:
        shared = all(
            isinstance(each, SharedSupport)
            for each in (self.gradient_compressor, self.error_compressor)
        )
        self.e = self.new_buffer("error") if self.explicit_error or not shared else None

    @classmethod
    def _at_ratio(cls, ratio: int, layout: Layout | None) -> dict[str, Any]:
        """Half of what is sent for each stage. R1 is at most H, and at 32 and 1024 as the paper has
        it."""
        error_ratio = {32: 4, 1024: 8}.get(ratio, nearest_factors(2 * ratio)[0])
        return {
            "gradient_compressor": BlockSparsifier(2 * ratio),
            "error_compressor": BlockSparsifier(error_ratio),
            "reset_interval": 2 * ratio // error_ratio,
        }

    def stages(self) -> list[Stage]:
        stages = [
            Stage(Purpose.GRADIENT, self.gradient_compressor, early=self._update_to_send),
            Stage(
                Purpose.ERROR,
                self.error_compressor,
                every=self.reset_interval,
                early=self.after_local_step,
            ),
        ]
        return stages if self.e is None else [replace(stage, early=None) for stage in stages]

    def _update_to_send(self, support: Windows) -> Tensor:
        """(x before) - (x after) of the local step, before it is done."""
        return support.gather(self.flat.parameters).sub_(self.after_local_step(support))

    def _update(self, step: int) -> None:
        reset = step % self.reset_interval == 0
        if self.e is None:
            self._sync_update(step)
            if reset:
                self.average_coordinates_(self.error_compressor, step, Purpose.ERROR)
        else:
            self._sync_update_explicitly(step)
            if reset:
                sent = self.exchange(self.e, self.error_compressor, step, Purpose.ERROR)
                sent.support.add_(self.flat.parameters, sent.mean - sent.own)
                sent.support.add_(self.e, sent.own, alpha=-1)

    def _sync_update(self, step: int) -> None:
        x, support = (
            self.flat.parameters,
            self.support(self.gradient_compressor, step, Purpose.GRADIENT),
        )
        before = support.gather(x)
        self.local_step_()
        if before.numel():
            taken = before - support.gather(x)
            own, mean = self.average(taken, Purpose.GRADIENT)
            support.copy_(
                x, before.sub_(mean) if own is taken else before.sub_(taken).add_(own).sub_(mean)
            )

    def _sync_update_explicitly(self, step: int) -> None:
        x, e = self.flat.parameters, self.e
        assert e is not None
        p = self.flat.new_buffer()
        self.local_step_(p)
        x.sub_(p)
        e.sub_(p)
        if isinstance(self.gradient_compressor, Zero):
            return
        sent = self.exchange(p, self.gradient_compressor, step, Purpose.GRADIENT)
        # A compressor may make something of the nothing that is left of a frozen parameter's
        # update, as signs do.
        with self.flat.frozen_aside(x, e):
            sent.support.add_(x, sent.own - sent.mean)
            sent.support.add_(e, sent.own)

    def average_coordinates_(self, compressor: Compressor, step: int, purpose: Purpose) -> None:
        """x <- mean(x) on the coordinates that the compressor draws."""
        support = self.support(compressor, step, purpose)
        values = support.gather(self.flat.parameters)
        own, mean = self.average(values, purpose)
        support.copy_(self.flat.parameters, mean if own is values else values.sub_(own).add_(mean))

    def support(self, compressor: Compressor, step: int, purpose: Purpose) -> Support:
        """The coordinates that the compressor draws, which it must do alike on all workers."""
        assert isinstance(compressor, SharedSupport)
        return compressor.support(self.flat.layout, self.draw(step, purpose))
