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

    `own` is this worker's C(v), `mean` the workers' average of it; both of shape (support.payload_numel,).
    """

    support: Support
    own: Tensor
    mean: Tensor


def exchange(
    vector: Tensor, compressor: Compressor, layout: Layout, draw: Draw, purpose: Purpose, collectives: Collectives
) -> Exchanged:
    """Send C(vector), of shape (d,), and average it; `vector` is left as it is."""
    if isinstance(compressor, SharedSupport):
        support = compressor.support(layout, draw)
        own = support.gather(vector)
        mean = own.clone()
        if own.numel():
            collectives.all_reduce_mean_(mean, purpose)
        return Exchanged(support, own, mean)
    assert isinstance(compressor, Gathered)
    messages = collectives.all_gather(compressor.encode(vector, draw, collectives.rank), purpose)
    own, mean = torch.empty_like(vector), torch.zeros_like(vector)
    for rank, message in enumerate(messages):
        decoded = compressor.decode(message, layout.numel, vector.dtype)
        mean += decoded
        if rank == collectives.rank:
            own = decoded
    return Exchanged(whole(layout.numel), own, mean.div_(collectives.world_size))


def partial_sync(
    vector: Tensor, compressor: Compressor, layout: Layout, draw: Draw, purpose: Purpose, collectives: Collectives
) -> tuple[Tensor, Tensor]:
    """PSync(v_i, C): returns mean(C(v)) + r_i and r_i = v_i - C(v_i), new tensors of shape (d,).

    It keeps the workers' mean. The optimisers inline these two lines to save the copies.
    """
    sent = exchange(vector, compressor, layout, draw, purpose, collectives)
    residual = vector.clone()
    sent.support.add_(residual, sent.own, alpha=-1)
    synchronised = residual.clone()
    sent.support.add_(synchronised, sent.mean)
    return synchronised, residual
