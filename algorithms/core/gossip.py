"""Mixing with neighbours, the primitive of decentralised methods: x_i <- sum_j w_ij x_j, on what is sent of x."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from algorithms.core.collectives import Collectives
from algorithms.core.compressors import Compressor, Gathered, SharedSupport
from algorithms.core.layout import Support, whole
from algorithms.core.topology import Mixing
from algorithms.core.traffic import Purpose

if TYPE_CHECKING:
    from algorithms.core.optimizer import DistributedOptimizer


@dataclass(frozen=True)
class Mixed:
    """What was sent to neighbours, on the coordinates it was sent for.

    `own` is this worker's C(v_i), and `pull` is sum_j w_ij (C(v_j) - C(v_i)), so that own + pull is its row of W C(v);
    both of shape (local workers, support.payload_numel).
    """

    support: Support
    own: Tensor
    pull: Tensor


def mix(
    optimizer: DistributedOptimizer,
    vector: Tensor,
    compressor: Compressor,
    mixing: Mixing,
    step: int,
    purpose: Purpose,
) -> Mixed:
    """Send C(vector), of shape (local workers, d), to the neighbours and mix what these send; `vector` stays."""
    collectives, layout = optimizer.collectives, optimizer.flat.layout
    draw = optimizer.draw(step, purpose)
    if isinstance(compressor, SharedSupport):
        support = compressor.support(layout, draw)
        return Mixed(support, *mix_dense(support.gather(vector), mixing, purpose, collectives, optimizer.wire))
    assert isinstance(compressor, Gathered)

    def decode(message: Tensor) -> Tensor:
        return compressor.decode(message, layout.numel, vector.dtype)

    encoded = [compressor.encode(own, draw, rank) for rank, own in zip(collectives.own_ranks, vector, strict=True)]
    received = collectives.exchange_with_neighbours(torch.stack(encoded), mixing, purpose)
    own = torch.stack([decode(message) for message in encoded])
    return Mixed(whole(layout.numel), own, _pull(own, mixing, collectives, lambda sender: decode(received[sender])))


def mix_dense(
    payload: Tensor, mixing: Mixing, purpose: Purpose, collectives: Collectives, wire: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """What of `payload` was sent, of any length, and its pull, as in `Mixed`; `payload` is left as it is.

    With numbers of the type `wire` on the wire, what was sent is the payload rounded to it; else it is the payload.
    """
    message = payload if wire is None else payload.to(wire)
    own = payload if wire is None else message.to(payload.dtype)
    if not payload.numel():
        return own, torch.zeros_like(own)
    received = collectives.exchange_with_neighbours(message, mixing, purpose)
    return own, _pull(own, mixing, collectives, lambda sender: received[sender].to(own.dtype))


def _pull(own: Tensor, mixing: Mixing, collectives: Collectives, sent_by: Callable[[int], Tensor]) -> Tensor:
    """sum_j w_ij (m_j - m_i) for the workers at this end, j in the order of ranks; a new tensor.

    Differences rather than the sum itself: rounded weights need not sum to 1, and in many steps a small excess would
    let the parameters grow. A product and an addition, each on its own, are rounded alike by all kernels, so that all
    kinds of group give the same bits.
    """
    pull, rows, own_ranks = torch.zeros_like(own), own.unbind(), collectives.own_ranks
    for rank, mine, total in zip(own_ranks, rows, pull, strict=True):
        for sender, weight in mixing.neighbours[rank]:
            theirs = rows[sender - own_ranks.start] if sender in own_ranks else sent_by(sender)
            total.add_((theirs - mine).mul_(weight))
    return pull


def mixing_of(rounds: tuple[Mixing, ...], step: int) -> Mixing:
    """That of step number `step`, counted from 1."""
    return rounds[(step - 1) % len(rounds)]


def require_gamma(name: str, gamma: float) -> None:
    """Raises ValueError unless `gamma`, the consensus step, is a number in (0, 1]."""
    if isinstance(gamma, bool) or not isinstance(gamma, int | float) or not 0 < gamma <= 1:
        raise ValueError(f"{name}: gamma must be a number above 0 and up to 1, not {gamma!r}")
