"""Workers as threads of one process: a process group's stand-in, which starts at once."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from cser_bench.algorithms.core.collectives import (
    Add,
    CollectiveError,
    Collectives,
    share_of,
    sum_in_rank_order,
)
from cser_bench.algorithms.core.topology import Mixing

T = TypeVar("T")


class ThreadGroup:
    """Where the workers meet: the last to arrive does the collective for all of them."""

    def __init__(self, world_size: int, timeout_seconds: float) -> None:
        self.world_size = world_size
        self._tensors: dict[int, tuple[str, Tensor]] = {}
        self._result = torch.empty(0)
        self.said: dict[str, str] = {}
        """What the first worker said, by key."""
        self.num_keys = [0] * world_size
        """How many keys each worker has made."""
        # `_perform` is run by one thread, while all others wait: nothing needs a lock.
        self.barrier = threading.Barrier(world_size, self._perform, timeout_seconds)

    def exchange(self, rank: int, name: str, tensor: Tensor) -> Tensor:
        """Return what the collective `name` gives.

        Every worker must ask for the same one, for tensors of one shape.
        """
        self._tensors[rank] = name, tensor
        try:
            self.barrier.wait()
        except threading.BrokenBarrierError:
            raise CollectiveError(
                f"worker {rank} waited in vain for the others to {name}"
            ) from None
        return self._result

    @torch.no_grad()
    def _perform(self) -> None:
        asked = [self._tensors[rank] for rank in range(self.world_size)]
        names = [name for name, _ in asked]
        tensors = [tensor for _, tensor in asked]
        if len({(name, tensor.shape, tensor.dtype) for name, tensor in asked}) > 1:
            raise CollectiveError(f"workers ask for different collectives: {names}")
        if names[0] == "sum":
            self._result = sum_in_rank_order(tensors)
        elif names[0] == "broadcast":
            self._result = tensors[0].clone()
        else:
            # Each is (1, ...), so this is (workers, ...), as a gather gives it.
            self._result = torch.cat(tensors)


class ThreadCollectives(Collectives):
    """One thread's end of a `ThreadGroup`."""

    def __init__(self, group: ThreadGroup, rank: int) -> None:
        super().__init__(rank, group.world_size)
        self.group = group

    def new_key(self) -> str:
        self.group.num_keys[self.rank] += 1
        return str(self.group.num_keys[self.rank])

    def first_to_say(self, key: str, words: str) -> str:
        return self.group.said.setdefault(key, words)

    def _sum_(self, tensor: Tensor) -> None:
        tensor.copy_(self.group.exchange(self.rank, "sum", tensor))

    def _gather(self, tensor: Tensor) -> Tensor:
        return self.group.exchange(self.rank, "gather", tensor)

    # Each sees its share alone, as over a network, and sends what comes of it to all.
    def _reduce_blocks(self, blocks: Tensor, add: Add) -> tuple[Tensor, Tensor]:
        num_blocks = blocks.shape[1]
        shares = []
        for rank in range(self.world_size):
            shares.append(share_of(range(rank, rank + 1), num_blocks, self.world_size))
        message, rest = add(self._gather(blocks)[:, shares[self.rank]])
        everyones = torch.zeros_like(blocks)
        # (1, blocks, bytes), of which this worker fills its share.
        everyones[0, shares[self.rank]] = message
        everyones = self._gather(everyones)
        return torch.cat(
            [row[share] for row, share in zip(everyones, shares, strict=True)]
        ), rest

    def _broadcast_(self, tensor: Tensor) -> None:
        tensor.copy_(self.group.exchange(self.rank, "broadcast", tensor))

    def _exchange(self, tensor: Tensor, mixing: Mixing) -> dict[int, Tensor]:
        gathered = self.group.exchange(self.rank, "exchange with neighbours", tensor)
        return {sender: gathered[sender] for sender in mixing.senders[self.rank]}


def run_workers(
    work: Callable[[Collectives], T], world_size: int, timeout_seconds: float = 60.0
) -> list[T]:
    """Call `work(collectives)` in `world_size` threads, and return the results by rank.

    Raises:
        Exception: what the first failing worker raised; the others are released with
            `CollectiveError`.
    """
    group = ThreadGroup(world_size, timeout_seconds)
    failures: list[BaseException] = []

    def worker(rank: int) -> T:
        try:
            return work(ThreadCollectives(group, rank))
        except BaseException as error:
            failures.append(error)
            # Else the others would wait for this worker until the time-out.
            group.barrier.abort()
            raise

    with ThreadPoolExecutor(world_size) as pool:
        futures = [pool.submit(worker, rank) for rank in range(world_size)]
    if failures:
        # Others fail for want of the one that failed by itself.
        own = [error for error in failures if not isinstance(error, CollectiveError)]
        raise (own or failures)[0]
    return [future.result() for future in futures]
