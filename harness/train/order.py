"""Which samples each worker trains on at each step.

All of it is a stateless function of seed and step, so resuming needs no position. Samples are
shuffled over all workers, or each worker has a fixed shard, alike or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy
import numpy.typing as npt
import torch
from torch import Tensor

from cser_bench.harness.seeds import derive_seed, generator
from cser_bench.harness.spec.run import PartitionSpec

Labels = npt.NDArray[numpy.int64]


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
    """Return the samples that worker `rank` trains on at each of `steps`.

    They are int64 indices of shape (batch_size,); steps are counted from 0.

    Every epoch is shuffled anew: over all samples, which are dealt out to the workers batch by
    batch, or, where the worker has a `shard` of its own, over that. Where samples have `lengths`,
    those of a step are of like length, and steps come in an order of their own, which all workers
    have in common.
    """
    if shard is None:
        # All workers shuffle all samples alike, and each takes its batch of a step's.
        num_samples = num_train
        # A step's samples lie side by side in the order, worker by worker.
        size = num_workers * batch_size
        first = rank * batch_size
        stream: tuple[int, ...] = ()
    else:
        num_samples = len(shard)
        size = batch_size
        first = 0
        # Each worker shuffles its own shard, by draws of its own.
        stream = (rank,)
    order = torch.empty(0, dtype=torch.int64)
    shuffled_epoch = -1
    for step in steps:
        # Samples that fill no step are left out, others in each epoch.
        epoch, step_of_epoch = divmod(step, num_samples // size)
        if epoch != shuffled_epoch:
            shuffled_epoch = epoch
            random = generator(seed, "order", *stream, epoch)
            order = torch.randperm(num_samples, generator=random)
            if shard is not None:
                order = shard[order]
            if lengths is not None:
                order = by_length(
                    order, lengths, size, generator(seed, "lengths", epoch)
                )
        # Where samples are dealt out, worker r has numbers r B to (r + 1) B of the step's n B.
        start = step_of_epoch * size + first
        yield order[start : start + batch_size]


def by_length(
    order: Tensor, lengths: Tensor, batch_size: int, random: torch.Generator
) -> Tensor:
    """Return the full batches of an order, made anew of samples of like length.

    The batches are shuffled.

    Samples that fill no batch are left out: the last of the order. Within a batch samples stay in
    the order that they had.
    """
    num_batches = len(order) // batch_size
    order = order[: num_batches * batch_size]
    # Places in the order, not samples: (batches, batch), the shortest first.
    places = torch.argsort(lengths[order], stable=True).view(num_batches, batch_size)
    # Workers take consecutive parts of a batch: by length, worker 0 would always have the shortest.
    places_in_order = places.sort(dim=1).values
    shuffled = places_in_order[torch.randperm(num_batches, generator=random)]
    return order[shuffled.view(-1)]


def shard_size(spec: PartitionSpec, num_train: int, num_workers: int) -> int:
    """Return how many samples each worker has for an epoch."""
    stretches = spec.shards_per_worker if spec.kind == "class_shards" else 1
    return stretches * (num_train // (num_workers * stretches))


def worker_shards(
    spec: PartitionSpec, labels: Tensor, num_workers: int, seed: int
) -> list[Tensor] | None:
    """Return the sample indices of each worker, all of the same number.

    None where every epoch is dealt out anew.

    "contiguous": the i-th stretch of the data set (as released). "dirichlet": the shares of a
    worker's classes are drawn from a Dirichlet distribution, with parameter `alpha` for each of
    classes of equal size, else in proportion to their sizes (Hsu et al., arXiv 1909.06335, whose
    alpha is this one times the number of classes). "class_shards": sorted by class, cut, and dealt
    out, `shards_per_worker` to each (McMahan et al., AISTATS 2017).

    Args:
        labels: int64 of shape (num_train,).
        seed: the run's; equal seeds give equal shards to all algorithms.
    """
    if spec.kind == "reshuffled":
        return None
    per_worker = shard_size(spec, len(labels), num_workers)
    if spec.kind == "contiguous":
        starts = [rank * per_worker for rank in range(num_workers)]
        return [torch.arange(start, start + per_worker) for start in starts]
    # NumPy's draws, as torch has no Dirichlet that takes a generator.
    random = numpy.random.Generator(
        numpy.random.Philox(key=derive_seed(seed, "partition"))
    )
    classes: Labels = labels.cpu().numpy()
    if spec.kind == "class_shards":
        shards = _class_shards(classes, num_workers, spec.shards_per_worker, random)
    else:
        shards = _dirichlet_shards(classes, num_workers, spec.alpha, random)
    return [torch.from_numpy(numpy.sort(shard)) for shard in shards]


def _class_shards(
    labels: Labels,
    num_workers: int,
    shards_per_worker: int,
    random: numpy.random.Generator,
) -> list[Labels]:
    num_shards = num_workers * shards_per_worker
    size = len(labels) // num_shards
    # All of class 0, then all of class 1, ...; what fills no shard is left out.
    by_class = numpy.argsort(labels, kind="stable")[: size * num_shards]
    shards = by_class.reshape(num_shards, size)
    # (num_workers, shards_per_worker): which shards each worker has.
    dealt = random.permutation(num_shards).reshape(num_workers, shards_per_worker)
    return [shards[numbers].ravel() for numbers in dealt]


def _dirichlet_shards(
    labels: Labels, num_workers: int, alpha: float, random: numpy.random.Generator
) -> list[Labels]:
    classes, sizes = numpy.unique(labels, return_counts=True)
    # Each class in a drawn order, so that no worker has the first samples of all classes.
    pools = [
        random.permutation(numpy.flatnonzero(labels == number)) for number in classes
    ]
    left = sizes.copy()
    shards = []
    for _ in range(num_workers):
        # alpha p_c K, where p_c is the share of class c and K the number of classes.
        shares = random.dirichlet(alpha * sizes / sizes.sum() * len(classes))
        taken = _take(len(labels) // num_workers, shares, left, random)
        # Each pool is dealt out from its end.
        starts = left - taken
        parts = [
            pool[start:end]
            for pool, start, end in zip(pools, starts, left, strict=True)
        ]
        shards.append(numpy.concatenate(parts))
        left -= taken
    return shards


def _take(
    count: int,
    shares: npt.NDArray[numpy.float64],
    left: Labels,
    random: numpy.random.Generator,
) -> Labels:
    """Return how many of each class to take: by its share, but no more than is left of it.

    What is lacking comes from the others.
    """
    taken = numpy.zeros_like(left)
    lacking = count
    while lacking > 0:
        # Shares of classes of which something is left.
        open_shares = numpy.where(taken < left, shares, 0.0)
        # The worker's classes are used up: it takes of the others as there are of them.
        if open_shares.sum() <= 0:
            open_shares = (left - taken).astype(numpy.float64)
        more = random.multinomial(lacking, open_shares / open_shares.sum())
        taken = numpy.minimum(left, taken + more)
        lacking = count - int(taken.sum())
    return taken


def class_counts(
    shards: list[Tensor], labels: Tensor, num_classes: int
) -> list[list[int]]:
    """Return how many samples of each class each worker holds."""
    return [
        torch.bincount(labels[shard].cpu(), minlength=num_classes).tolist()
        for shard in shards
    ]


def token_weights(
    num_tokens: Tensor, batches: Sequence[Iterator[Tensor]], ranks: Sequence[int]
) -> Iterator[list[float]]:
    """Return, step by step, what the mean losses of workers `ranks` are multiplied with.

    It is n times the worker's share of all tokens, n being the number of workers. The mean over
    workers of what comes of it is the sum over all tokens by their number. Nothing is sent for
    that, since everyone knows what everyone sees: it follows from the seed.

    Args:
        num_tokens: of each sample, int64, on the CPU.
        batches: the indices that each worker trains on, step by step, by rank.
    """
    for step in zip(*batches, strict=True):
        counts = num_tokens[torch.stack(step)].sum(1).tolist()
        total = sum(counts)
        # mean_i (w_i L_i) = sum_i (t_i L_i) / sum_i t_i   with w_i = n t_i / sum_j t_j
        yield [len(counts) * counts[rank] / total for rank in ranks]
