"""PyTorch's DistributedDataParallel around a model: how it is made."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import GradBucket, ProcessGroup  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

Hook = Callable[[Any, GradBucket], torch.futures.Future[Tensor]]
"""A communication hook, which takes its state and a bucket; see `DistributedDataParallel.register_comm_hook`."""


def wrapped(
    module: nn.Module, group: ProcessGroup | None, fixed_buckets: bool, bucket_cap_mb: float | None = None
) -> DistributedDataParallel:
    """The module in a DistributedDataParallel; parameters must be equal already, and buffers stay the worker's own.

    Args:
        fixed_buckets: buckets stay those of the start, and gradients stay where they are. Else it is as fast as can be:
            buckets are put in the order of gradients after the first step, and gradients are views of them.
        bucket_cap_mb: size of a bucket; None for DDP's own, by which the first is smaller.
    """
    with warnings.catch_warnings():
        # Newer releases have another name for broadcast_buffers.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            module,
            process_group=group,
            bucket_cap_mb=bucket_cap_mb,
            gradient_as_bucket_view=not fixed_buckets,
            find_unused_parameters=fixed_buckets,
            broadcast_buffers=False,
            init_sync=False,
        )
