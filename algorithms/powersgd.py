"""PowerSGD: every matrix of the gradient travels as two factors of low rank, found by one step of
power iteration.

Source: Vogels et al., "PowerSGD: Practical low-rank gradient compression for distributed
optimization", NeurIPS 2019, algorithms 1 (the factors) and 2 (error feedback with momentum).

    M_i <- g_i + e_i                    of each tensor of two or more axes, seen as (first axis,
    rest) P <- mean(M Q);  P <- orthonormal basis of its columns Q_i <- M_i^T P;  Q <- mean(Q)
    kept for the next step (warm start); at first random, the same on all workers e_i <- M_i - P
    Q_i^T g <- P Q^T                          and of other tensors g <- mean(g) m <- beta m + g +
    lambda x;  x <- x - eta (beta m + g + lambda x)

Momentum, or AdamW's moments, and weight decay follow the reduction, as in SGD: all workers hold the
same x. The rank r of a matrix is at most its smaller side; there P Q^T = mean(M), and the method is
SGD.

Deviations. The authors' training code steps by g + m with m <- beta m + g, this by g + beta m; and
it orthogonalises by Gram and Schmidt with 1e-8 added, this by reflections. The error is what the
worker itself did not send; theirs is M_i - P Q^T with the mean Q. Both give the same x, but that
error adds up g_i - mean(g) for ever. Q's columns get the length 1 before they are used again: P
spans the same, and M Q, as long as M, fits 16-bit numbers. With such messages other tensors have an
error, too.
Cost: 32 (sum of r (rows + columns) over matrices + other numbers) bits per step, two all-reduces:
every P with what is no matrix, then every Q.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from cser_bench.algorithms.core import Count, DistributedOptimizer, Layout, Purpose, Stage
from cser_bench.algorithms.core.low_rank import LowRank


class PowerSGD(DistributedOptimizer):
    """PowerSGD.

    Args:
        rank: r, of a matrix at most its smaller side.
    """

    name = "powersgd"
    formula = "32 (sum of r (rows + columns) + other numbers)"
    no_compression: ClassVar = {"rank": 1_000_000}
    tried_with: ClassVar = {"rank": 1}
    workers_differ = False

    rank: Count

    def _set_up(self) -> None:
        self._low_rank = LowRank(self.flat.layout, self.rank)
        self.e = self.new_buffer("error")
        self.q = self.new_common("right_factors", self._first_factors())

    @classmethod
    def _at_ratio(cls, ratio: int, layout: Layout | None) -> dict[str, Any]:
        """The greatest rank that sends no more."""
        if layout is None:
            raise ValueError(
                "powersgd: ratios depend on the model's shapes; give at_ratio its parameters as "
                "well"
            )
        ranks = range(
            1, max((min(each.shape) for each in LowRank(layout, 1).matrices), default=1) + 1
        )
        rank = bisect_right(
            ranks, layout.numel // ratio, key=lambda rank: LowRank(layout, rank).sent_numel
        )
        if rank == 0:
            most = layout.numel / LowRank(layout, 1).sent_numel
            raise ValueError(
                f"powersgd: at rank 1 the ratio of this model is {most:.4g}, less than {ratio}; "
                "lower it"
            )
        return {"rank": rank}

    def _first_factors(self) -> Tensor:
        low, draw = self._low_rank, self.draw(0, Purpose.GRADIENT)
        q = torch.empty(low.second_numel, dtype=torch.float64, device="cpu")
        for each, right in zip(low.matrices, low.factors(q, "columns"), strict=True):
            right.copy_(draw.normal((each.shape[1], each.rank), each.number))
        low.normalise_(q)
        return q

    def stages(self) -> list[Stage]:
        sizes = (self._low_rank.first_numel, self._low_rank.second_numel)
        return [Stage(Purpose.GRADIENT, layout=Layout.flat(slice(0, numel))) for numel in sizes]

    def _update(self, step: int) -> None:
        frozen = set(self.flat.frozen)
        factors = zip(
            self._low_rank.matrices, self._low_rank.factors(self.q, "columns"), strict=True
        )
        kept = (
            [(right, right.clone()) for each, right in factors if each.number in frozen]
            if frozen
            else []
        )
        with self.flat.frozen_aside(self.e):
            self._average_in_low_rank_()
        for right, values in kept:
            right.copy_(values)
        self.local_step_()

    def _average_in_low_rank_(self) -> None:
        """g <- P Q^T, and of what is no matrix its mean."""
        if self._low_rank.layout is not self.flat.layout:  # a script has moved parameters
            self._low_rank = LowRank(self.flat.layout, self.rank)
        low, g = self._low_rank, self.flat.gradients
        # A product with a matrix that begins elsewhere in memory is rounded in another way: each
        # begins as if alone.
        rows = self.e.add_(g).unbind()
        ms = [row.clone() for row in rows] if len(rows) > 1 else list(rows)
        first, p = self._average([self._first_message(low, m) for m in ms])
        low.orthonormalise_(p)
        lefts = low.factors(p, "rows")
        second, q = self._average([self._second_message(low, m, lefts) for m in ms])
        for m, sent_first, sent_second in zip(ms, first, second, strict=True):
            for each, left, right in zip(
                low.matrices, lefts, low.factors(sent_second, "columns"), strict=True
            ):
                each.of(m).addmm_(left, each.as_in_memory(right).T, alpha=-1)
            low.rest.add_(m, low.others_of(sent_first), alpha=-1)
        decoded = g[0]
        for each, left, right in zip(low.matrices, lefts, low.factors(q, "columns"), strict=True):
            torch.mm(left, each.as_in_memory(right).T, out=each.of(decoded))
        low.rest.copy_(decoded, low.others_of(p))
        if len(rows) > 1:
            g[1:].copy_(decoded)
            torch.stack(ms, out=self.e)
        low.normalise_(q)
        self.q.copy_(q)

    def _average(self, messages: list[Tensor]) -> tuple[Sequence[Tensor], Tensor]:
        """Returns what each worker here has sent, and the mean, which all workers have in
        common."""
        own, mean = self.average(torch.stack(messages), Purpose.GRADIENT)
        return [row.clone() for row in own] if len(own) > 1 else own.unbind(), mean[0]

    def _first_message(self, low: LowRank, m: Tensor) -> Tensor:
        """Every M Q, and what is no matrix."""
        # A loop: matrices differ in shape and lie where the parameters do, so to batch them would
        # be to copy them all. Their factors are batches where that costs nothing.
        pairs = zip(low.matrices, low.factors(self.q, "columns"), strict=True)
        parts = [each.of(m) @ each.as_in_memory(right) for each, right in pairs]
        return torch.cat([*(part.view(-1) for part in parts), low.rest.gather(m)])

    def _second_message(self, low: LowRank, m: Tensor, lefts: list[Tensor]) -> Tensor:
        """Every M^T P."""
        parts = [
            each.as_in_tensor(each.of(m).T @ left)
            for each, left in zip(low.matrices, lefts, strict=True)
        ]
        return torch.cat([m.new_empty(0), *(part.view(-1) for part in parts)])
