"""PowerSGD: every matrix of the gradient travels as two factors of low rank.

Source: Vogels et al., "PowerSGD: Practical low-rank gradient compression for distributed
optimization", NeurIPS 2019, algorithms 1 (the factors) and 2 (error feedback with momentum).

    M_i <- g_i + e_i                    of each tensor of two or more axes, as (first axis, rest)
    P <- mean(M Q);  P <- orthonormal basis of its columns
    Q_i <- M_i^T P;  Q <- mean(Q)       kept for the next step (warm start); at first random,
                                        the same on all workers
    e_i <- M_i - P Q_i^T
    g <- P Q^T                          and of other tensors g <- mean(g)
    m <- beta m + g + lambda x;  x <- x - eta (beta m + g + lambda x)

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
State: the momentum or the moments, e_i, and Q of every matrix.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from cser_bench.algorithms.core import (
    Count,
    DistributedOptimizer,
    Layout,
    Purpose,
    Replica,
    Stage,
)
from cser_bench.algorithms.core.by_traffic import NEAR
from cser_bench.algorithms.core.low_rank import LowRank


class PowerSGD(DistributedOptimizer):
    """PowerSGD.

    Begin with `rank=4`.

    `at_traffic`: the rank, as in table_cnn, resnet_regime and gpt_text; it needs the parameters.

    Args:
        rank: r, of a matrix at most its smaller side.
    """

    name = "powersgd"
    family = "error feedback"
    formula = "32 (sum of r (rows + columns) + other numbers)"
    no_compression: ClassVar = {"rank": 1_000_000}
    tried_with: ClassVar = {"rank": 1}
    workers_differ = False

    rank: Count

    def _set_up(self, replica: Replica) -> None:
        replica.new_buffer("error")
        replica.new_common("right_factors", self._first_factors(replica))

    @classmethod
    def _at_traffic(
        cls, share: float, world_size: int, layout: Layout | None
    ) -> dict[str, Any]:
        """Return the rank that comes nearest to the share, by factor."""
        if layout is None:
            raise ValueError(
                "powersgd: what it sends depends on the model's shapes; give at_traffic its "
                "parameters as params=model.parameters()"
            )
        sides = [min(matrix.shape) for matrix in LowRank(layout, 1).matrices]
        highest = max(sides, default=1)

        def share_at(rank: int) -> float:
            return LowRank(layout, rank).sent_numel / layout.numel

        # What is sent grows with the rank, so that the first above the share can be bisected.
        above = 1 + bisect_right(range(1, highest + 1), share, key=share_at)
        near = [rank for rank in (above - 1, above) if 1 <= rank <= highest]
        rank = min(
            near, key=lambda rank: max(share_at(rank) / share, share / share_at(rank))
        )
        least = share_at(1)
        if least > NEAR * share:
            raise ValueError(
                f"powersgd: at rank 1 it sends {least:.3g} of DDP's traffic of this model, more "
                f"than {share:.3g}; ask for {least:.3g} or more"
            )
        return {"rank": rank}

    def _low_rank(self, replica: Replica) -> LowRank:
        # Scripts move parameters, and then the layout is another one.
        return seen_at_rank(replica.flat.layout, self.rank)

    def _first_factors(self, replica: Replica) -> Tensor:
        low = self._low_rank(replica)
        draw = replica.draw(0, Purpose.GRADIENT)
        # On the CPU, so that all workers begin with the same bits, whatever their device is.
        q = torch.empty(low.second_numel, dtype=torch.float64, device="cpu")
        rights = low.factors(q, "columns")
        for matrix, right in zip(low.matrices, rights, strict=True):
            _, num_columns = matrix.shape
            values = draw.normal((num_columns, matrix.rank), matrix.stream)
            right.copy_(values)
        low.normalise_(q)
        return q

    def stages(self, replica: Replica) -> list[Stage]:
        low = self._low_rank(replica)
        stages = []
        for numel in (low.first_numel, low.second_numel):
            message = Layout.flat(slice(0, numel))
            stages.append(Stage(Purpose.GRADIENT, layout=message))
        return stages

    def _update(self, replica: Replica, step: int) -> None:
        frozen = set(replica.flat.frozen)
        low = self._low_rank(replica)
        factors = low.factors(replica.common["right_factors"], "columns")
        # A frozen matrix sends zeros, and its Q would be made from these; but it is to stay.
        kept = []
        for matrix, right in zip(low.matrices, factors, strict=True):
            if matrix.number in frozen:
                kept.append((right, right.clone()))
        with replica.flat.frozen_aside(replica.buffers["error"]):
            self._average_in_low_rank_(replica, low)
        for right, values in kept:
            right.copy_(values)
        replica.local_step_()

    def _average_in_low_rank_(self, replica: Replica, low: LowRank) -> None:
        """Do g <- P Q^T, and of what is no matrix its mean."""
        g = replica.flat.gradients
        e = replica.buffers["error"]
        kept_q = replica.common["right_factors"]
        # A product with a matrix that begins elsewhere in memory is rounded in another way: each
        # begins as if alone.
        ms = list(e.add_(g).unbind())
        is_stacked = len(ms) > 1
        if is_stacked:
            ms = [row.clone() for row in ms]
        first, p = _average(replica, [_first_message(low, m, kept_q) for m in ms])
        low.orthonormalise_(p)
        lefts = low.factors(p, "rows")
        second, q = _average(replica, [_second_message(low, m, lefts) for m in ms])
        # The error: of each worker what it did not send itself.
        for m, sent_first, sent_second in zip(ms, first, second, strict=True):
            rights = low.factors(sent_second, "columns")
            for matrix, left, right in zip(low.matrices, lefts, rights, strict=True):
                right = matrix.as_in_memory(right)
                matrix.of(m).addmm_(left, right.T, alpha=-1)
            others = low.others_of(sent_first)
            low.rest.add_(m, others, alpha=-1)
        # All workers take the same step, so it is decoded once and copied to the other rows.
        decoded = g[0]
        mean_rights = low.factors(q, "columns")
        for matrix, left, right in zip(low.matrices, lefts, mean_rights, strict=True):
            right = matrix.as_in_memory(right)
            torch.mm(left, right.T, out=matrix.of(decoded))
        low.rest.copy_(decoded, low.others_of(p))
        if is_stacked:
            g[1:].copy_(decoded)
            torch.stack(ms, out=e)
        low.normalise_(q)
        kept_q.copy_(q)


@lru_cache(maxsize=8)
def seen_at_rank(layout: Layout, rank: int) -> LowRank:
    """Return the layout's matrices at this rank, which are worked out once."""
    return LowRank(layout, rank)


def _average(
    replica: Replica, messages: list[Tensor]
) -> tuple[Sequence[Tensor], Tensor]:
    """Return what each worker here has sent, and the mean, which all workers have in common."""
    own, mean = replica.average(torch.stack(messages), Purpose.GRADIENT)
    rows = own.unbind()
    # As in `_average_in_low_rank_`: each begins in memory as if alone.
    if len(rows) > 1:
        rows = tuple(row.clone() for row in rows)
    return rows, mean[0]


def _first_message(low: LowRank, m: Tensor, q: Tensor) -> Tensor:
    """Return every M Q, and what is no matrix."""
    # A loop: matrices differ in shape and lie where the parameters do, so to batch them would
    # be to copy them all. Their factors are batches where that costs nothing.
    parts = []
    for matrix, right in zip(low.matrices, low.factors(q, "columns"), strict=True):
        right = matrix.as_in_memory(right)
        product = matrix.of(m) @ right
        parts.append(product.view(-1))
    others = low.rest.gather(m)
    return torch.cat([*parts, others])


def _second_message(low: LowRank, m: Tensor, lefts: list[Tensor]) -> Tensor:
    """Return every M^T P."""
    # Without any matrix there would be nothing to concatenate.
    parts = [m.new_empty(0)]
    for matrix, left in zip(low.matrices, lefts, strict=True):
        product = matrix.of(m).T @ left
        right = matrix.as_in_tensor(product)
        parts.append(right.view(-1))
    return torch.cat(parts)
