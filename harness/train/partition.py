"""How the training samples are divided among the workers: shuffled over all, or a fixed shard each, alike or not."""

from __future__ import annotations

import numpy
import numpy.typing as npt
import torch
from torch import Tensor

from harness.seeds import derive_seed
from harness.spec import PartitionSpec

Labels = npt.NDArray[numpy.int64]


def shard_size(spec: PartitionSpec, num_train: int, num_workers: int) -> int:
    """Samples that each worker has for an epoch."""
    stretches = spec.shards_per_worker if spec.kind == "class_shards" else 1
    return stretches * (num_train // (num_workers * stretches))


def worker_shards(spec: PartitionSpec, labels: Tensor, num_workers: int, seed: int) -> list[Tensor] | None:
    """The sample indices of each worker, all of the same number, or None where every epoch is dealt out anew.

    "contiguous": the i-th stretch of the data set (as released). "dirichlet": the shares of a worker's classes are
    drawn from a Dirichlet distribution, with parameter `alpha` for each of classes of equal size, else in proportion to
    their sizes (Hsu et al., arXiv 1909.06335, whose alpha is this one times the number of classes). "class_shards":
    sorted by class, cut, and dealt out, `shards_per_worker` to each (McMahan et al., AISTATS 2017).

    Args:
        labels: int64 of shape (num_train,).
        seed: the run's; equal seeds give equal shards to all algorithms.
    """
    if spec.kind == "reshuffled":
        return None
    per_worker = shard_size(spec, len(labels), num_workers)
    if spec.kind == "contiguous":
        return [torch.arange(rank * per_worker, (rank + 1) * per_worker) for rank in range(num_workers)]
    random = numpy.random.Generator(numpy.random.Philox(key=derive_seed(seed, "partition")))
    known: Labels = labels.cpu().numpy()
    if spec.kind == "class_shards":
        shards = _class_shards(known, num_workers, spec.shards_per_worker, random)
    else:
        shards = _dirichlet_shards(known, num_workers, spec.alpha, random)
    return [torch.from_numpy(numpy.sort(shard)) for shard in shards]


def _class_shards(
    labels: Labels, num_workers: int, shards_per_worker: int, random: numpy.random.Generator
) -> list[Labels]:
    size = len(labels) // (num_workers * shards_per_worker)
    by_class = numpy.argsort(labels, kind="stable")[: size * num_workers * shards_per_worker]
    dealt = random.permutation(num_workers * shards_per_worker).reshape(num_workers, shards_per_worker)
    cut = by_class.reshape(-1, size)
    return [cut[row].ravel() for row in dealt]


def _dirichlet_shards(labels: Labels, num_workers: int, alpha: float, random: numpy.random.Generator) -> list[Labels]:
    classes, sizes = numpy.unique(labels, return_counts=True)
    pools = [random.permutation(numpy.flatnonzero(labels == each)) for each in classes]
    left = sizes.copy()
    shards = []
    for _ in range(num_workers):
        shares = random.dirichlet(alpha * sizes / sizes.sum() * len(classes))
        taken = _take(len(labels) // num_workers, shares, left, random)
        shards.append(numpy.concatenate([pools[c][left[c] - taken[c] : left[c]] for c in range(len(classes))]))
        left -= taken
    return shards


def _take(count: int, shares: npt.NDArray[numpy.float64], left: Labels, random: numpy.random.Generator) -> Labels:
    """How many of each class: by its share, but no more than is left of it; what is lacking comes from the others."""
    taken = numpy.zeros_like(left)
    while (lacking := count - int(taken.sum())) > 0:
        open_shares = numpy.where(taken < left, shares, 0.0)
        if open_shares.sum() <= 0:
            open_shares = (left - taken).astype(numpy.float64)
        taken = numpy.minimum(left, taken + random.multinomial(lacking, open_shares / open_shares.sum()))
    return taken


def class_counts(shards: list[Tensor], labels: Tensor, num_classes: int) -> list[list[int]]:
    """Samples of each class that each worker holds."""
    return [torch.bincount(labels[shard].cpu(), minlength=num_classes).tolist() for shard in shards]
