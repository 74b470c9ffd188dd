"""Partial synchronisation, the primitive that the family is written in (Xie 2020, the definition of PSync)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.core.collectives import Collectives
from algorithms.core.compressors import Compressor, Gathered, SharedSupport
from algorithms.core.layout import Layout, Support, whole
from algorithms.core.randomness import Draw
from algorithms.core.traffic import Purpose


@dataclass(frozen=True)
class Exchanged:
    """What was sent, on the coordinates it was sent for.

    `own` is each worker's C(v), `mean` the average of it over all workers; both of shape (local workers,
    support.payload_numel).
    """

    support: Support
    own: Tensor
    mean: Tensor


def average(
    payload: Tensor, purpose: Purpose, collectives: Collectives, wire: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """What of `payload` was sent, and the workers' mean of that; `payload` is left as it is.

    With numbers of the type `wire` on the wire, what was sent is the payload rounded to it; else it is the payload.
    """
    message = payload.clone() if wire is None else payload.to(wire, copy=True)
    own = payload if wire is None else message.to(payload.dtype)
    if payload.numel():
        collectives.all_reduce_mean_(message, purpose)
    return own, message.to(payload.dtype)


def average_in_place_(
    vector: Tensor, purpose: Purpose, collectives: Collectives, wire: torch.dtype | None = None
) -> None:
    """vector <- mean(vector), rounded if the wire's numbers are shorter; without a copy if they are not."""
    if wire is None:
        collectives.all_reduce_mean_(vector, purpose)
    else:
        vector.copy_(average(vector, purpose, collectives, wire)[1])


def exchange(
    vector: Tensor,
    compressor: Compressor,
    layout: Layout,
    draw: Draw,
    purpose: Purpose,
    collectives: Collectives,
    wire: torch.dtype | None = None,
) -> Exchanged:
    """Send C(vector), of shape (local workers, d), and average it; `vector` stays. For `wire` see `average`."""
    if isinstance(compressor, SharedSupport):
        support = compressor.support(layout, draw)
        return Exchanged(support, *average(support.gather(vector), purpose, collectives, wire))
    assert isinstance(compressor, Gathered)
    own_ranks = collectives.own_ranks
    encoded = torch.stack([compressor.encode(own, draw, rank) for rank, own in zip(own_ranks, vector, strict=True)])
    own, mean = [], vector.new_zeros(layout.numel)
    for rank, message in enumerate(collectives.all_gather(encoded, purpose)):
        decoded = compressor.decode(message, layout.numel, vector.dtype)
        mean += decoded
        if rank in own_ranks:
            own.append(decoded)
    mean.div_(collectives.world_size)
    return Exchanged(whole(layout.numel), torch.stack(own), mean.expand_as(vector))


def partial_sync(
    vector: Tensor, compressor: Compressor, layout: Layout, draw: Draw, purpose: Purpose, collectives: Collectives
) -> tuple[Tensor, Tensor]:
    """PSync(v_i, C): returns mean(C(v)) + r_i and r_i = v_i - C(v_i), new tensors of shape (local workers, d).

    It keeps the workers' mean. The optimisers inline these two lines to save the copies.
    """
    sent = exchange(vector, compressor, layout, draw, purpose, collectives)
    residual = vector.clone()
    sent.support.add_(residual, sent.own, alpha=-1)
    synchronised = residual.clone()
    sent.support.add_(synchronised, sent.mean)
    return synchronised, residual
