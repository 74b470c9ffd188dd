"""DDP's buckets: hooks that wait for others or have a group for each bucket, and the groups of a session."""

# No "from __future__ import annotations": DDP looks at the hooks' annotations, which must be types.

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState

from algorithms.baselines.ddp import Hook
from harness.timing.methods import BUCKET_MEGABYTES


def held_back(hook: Hook) -> Hook:
    """The hook, for all buckets at once when the last is full, which is when the backward pass is done."""
    held: list[tuple[GradBucket, torch.futures.Future[Tensor]]] = []

    def hold(state: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        promised: torch.futures.Future[Tensor] = torch.futures.Future()
        held.append((bucket, promised))
        if bucket.is_last():
            for each, result in held:
                _pass_on(hook(state, each), result)
            held.clear()
        return promised

    return hold


def one_by_one(hook: Hook) -> Hook:
    """The hook, whose last message of a bucket is through before the backward pass goes on."""

    def finish(state: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        result = hook(state, bucket)
        result.wait()
        return result

    return finish


def _pass_on(future: torch.futures.Future[Tensor], promised: torch.futures.Future[Tensor]) -> None:
    future.add_done_callback(lambda done: promised.set_result(done.value()))


def by_bucket(hooks: Sequence[tuple[Any, Hook]]) -> Hook:
    """The hook of a bucket's number, with its state, which may have a process group of its own.

    PowerSGD's second and third all-reduces are begun by whichever thread finds the one before done; on one group of
    gloo's, those of two buckets could have another order on another worker.
    """

    def communicate(_: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        state, hook = hooks[bucket.index()]
        if isinstance(state, PowerSGDState) and not bucket.is_last() and state.iter < state.start_powerSGD_iter:
            state.iter += 1  # The hook counts only where it sees the last bucket.
        return hook(state, bucket)

    return communicate


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
