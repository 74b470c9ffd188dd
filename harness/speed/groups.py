"""The process groups of a session: the world, one for each of DDP's buckets, and worker 0 alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.distributed as dist

from harness.speed.methods import BUCKET_MEGABYTES


@dataclass(frozen=True)
class Groups:
    """`buckets` are as many as DDP can need; None is the world."""

    main: dist.ProcessGroup | None
    buckets: list[dist.ProcessGroup | None]


def max_buckets(num_bytes: int) -> int:
    """DDP closes a bucket when it is full, but the first, which at the start is small, and the last."""
    return math.ceil(num_bytes / (BUCKET_MEGABYTES << 20)) + 2


def make_groups(num_buckets: int) -> tuple[Groups, Groups]:
    """For all workers together, and for worker 0 alone. All workers must call it."""
    together = Groups(None, [dist.new_group() for _ in range(num_buckets)])
    alone = dist.new_group([0])
    return together, Groups(alone, [alone] * num_buckets)
