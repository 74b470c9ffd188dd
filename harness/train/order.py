"""Which samples each worker sees at which step: a stateless function of the seed, so resuming needs no position."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from harness.seeds import generator


def steps_per_epoch(num_train: int, num_workers: int, batch_size: int) -> int:
    """Full global batches in an epoch; the rest, which changes from epoch to epoch, is left out."""
    return num_train // (num_workers * batch_size)


def worker_batches(
    seed: int,
    num_train: int,
    rank: int,
    num_workers: int,
    batch_size: int,
    steps: range,
    shard: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Iterator[Tensor]:
    """The int64 indices, of shape (batch_size,), that worker `rank` trains on at each of `steps`, counted from 0.

    Every epoch is shuffled anew: over all samples, which are dealt out to the workers batch by batch, or, where the
    worker has a `shard` of its own, over that. Where samples have `lengths`, those of a step are of like length, and
    steps come in an order of their own, which all workers have in common.
    """
    samples, of_worker = (num_train, ()) if shard is None else (len(shard), (rank,))
    size, first = (num_workers * batch_size, rank * batch_size) if shard is None else (batch_size, 0)
    order, shuffled = torch.empty(0, dtype=torch.int64), -1
    for step in steps:
        epoch, within = divmod(step, samples // size)
        if epoch != shuffled:
            order, shuffled = torch.randperm(samples, generator=generator(seed, "order", *of_worker, epoch)), epoch
            order = order if shard is None else shard[order]
            if lengths is not None:
                order = by_length(order, lengths, size, generator(seed, "lengths", epoch))
        start = within * size + first
        yield order[start : start + batch_size]


def by_length(order: Tensor, lengths: Tensor, batch_size: int, random: torch.Generator) -> Tensor:
    """The full batches of an order, made anew of samples of like length, and the batches shuffled.

    Which samples are left out is the order's affair, as is the order within a batch.
    """
    num_batches = len(order) // batch_size
    order = order[: num_batches * batch_size]
    places = torch.argsort(lengths[order], stable=True).view(num_batches, batch_size)
    return order[places.sort(dim=1).values[torch.randperm(num_batches, generator=random)].view(-1)]
