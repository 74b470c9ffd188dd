"""How a process joins the workers' group: rendezvous, a device of its own, and the backend that fits the device."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from algorithms import CollectiveError
from algorithms.core.process_group import translated_errors
from harness.workers import devices

T = TypeVar("T")


@contextmanager
def joined(
    device: str, timeout_seconds: float, init_method: str, rank: int = -1, world_size: int = -1, key: str = ""
) -> Iterator[None]:
    """Inside, this process is one of the group's workers; `init_method` is PyTorch's, "env://" knows rank and size.

    The group is destroyed after success alone. NCCL's end waits for collectives that are under way, and the peers of a
    worker that failed wait in one for that worker: it would hang before it could say why. Its process must end instead.

    Args:
        key: this group's, where another group's workers may meet at the same place by chance; they then wait in vain.

    Raises:
        SpecError: two ranks have the same GPU.
        CollectiveError: another worker did not come in time, or went.
    """
    timeout = datetime.timedelta(seconds=timeout_seconds)
    try:
        with translated_errors():
            shared, rank, world_size = next(rendezvous(init_method, rank, world_size, timeout=timeout))
            store = PrefixStore(key, shared)
            store.set_timeout(timeout)
            store.set(f"device of {rank}", devices.identity(device))
            owned = [store.get(f"device of {other}").decode() for other in range(world_size)]
    except CollectiveError as error:
        raise CollectiveError(f"the workers do not meet at {init_method}: {error}") from None
    # Before the group is made: NCCL on a shared GPU stops with a message that names neither rank nor remedy.
    devices.require_own_devices(owned)
    with translated_errors():
        dist.init_process_group(backend_for(device), store=store, rank=rank, world_size=world_size, timeout=timeout)
    yield
    dist.destroy_process_group()


def from_rank_0(value: T) -> T:
    """Rank 0's value, on every rank of the group.

    Raises:
        CollectiveError: another worker did not come in time, or went.
    """
    box: list[T] = [value]
    with translated_errors():
        dist.broadcast_object_list(box)
    return box[0]


def backend_for(device: str) -> str:
    """NCCL on CUDA, gloo otherwise."""
    return "nccl" if device.startswith("cuda") else "gloo"
