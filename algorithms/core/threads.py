"""Workers as threads of one process: collectives through memory, by the very code that process groups run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from algorithms.core.collectives import CollectiveError, Collectives, sum_in_rank_order

T = TypeVar("T")


class ThreadGroup:
    """The meeting point of `world_size` workers.

    Args:
        world_size: number of workers.
        timeout_seconds: how long a worker waits for the others before all fail with `CollectiveError`.
        max_active: how many workers compute at once; the others wait their turn. More than the cores only makes
            threads fight for the interpreter's lock.
    """

    def __init__(self, world_size: int, timeout_seconds: float = 300.0, max_active: int | None = None) -> None:
        self.world_size = world_size
        self.timeout_seconds = timeout_seconds
        self.turns = threading.Semaphore(max_active or world_size)
        self._slots: list[tuple[str, Tensor] | None] = [None] * world_size
        self._barrier = threading.Barrier(world_size, action=self._perform)
        self._gathered: Tensor | None = None
        self._error: str | None = None

    def exchange(self, rank: int, name: str, tensor: Tensor) -> Tensor | None:
        """Take part in the collective `name`; the last to arrive does the work for all."""
        self._slots[rank] = (name, tensor)
        self.turns.release()
        try:
            self._barrier.wait(self.timeout_seconds)
        except threading.BrokenBarrierError:
            raise CollectiveError(
                self._error or f"worker {rank} waited {self.timeout_seconds:g} s in vain for the others to {name}"
            ) from None
        finally:
            self.turns.acquire()
        return self._gathered

    def abort(self, reason: str) -> None:
        """Make every waiting and coming worker fail with `reason`; the first reason stands."""
        self._error = self._error or reason
        self._barrier.abort()

    def _perform(self) -> None:
        requests = [slot for slot in self._slots if slot is not None]
        name, first = requests[0]
        if any((n, t.shape, t.dtype) != (name, first.shape, first.dtype) for n, t in requests):
            asked = ", ".join(f"{r}: {n} {tuple(t.shape)} {t.dtype}" for r, (n, t) in enumerate(requests))
            self._error = f"workers ask for different collectives ({asked})"
            raise CollectiveError(self._error)
        tensors = [tensor for _, tensor in requests]
        with torch.no_grad():
            if name == "gather":
                self._gathered = torch.stack(tensors)
                return
            total = tensors[0] if name == "broadcast" else sum_in_rank_order(tensors)
            for tensor in tensors:
                if tensor is not total:
                    tensor.copy_(total)


class ThreadCollectives(Collectives):
    """One thread's end of a `ThreadGroup`."""

    def __init__(self, group: ThreadGroup, rank: int) -> None:
        super().__init__(rank, group.world_size)
        self.group = group

    def _sum_(self, tensor: Tensor) -> None:
        self.group.exchange(self.rank, "sum", tensor)

    def _gather(self, tensor: Tensor) -> Tensor:
        gathered = self.group.exchange(self.rank, "gather", tensor)
        assert gathered is not None
        return gathered

    def _broadcast_(self, tensor: Tensor) -> None:
        self.group.exchange(self.rank, "broadcast", tensor)


def run_workers(
    work: Callable[[Collectives], T],
    world_size: int,
    timeout_seconds: float = 300.0,
    max_active: int | None = None,
) -> list[T]:
    """Call `work(collectives)` in `world_size` threads; return the results by rank.

    Raises:
        Exception: what the first failing worker raised; the others are released with `CollectiveError`.
    """
    group = ThreadGroup(world_size, timeout_seconds, max_active)
    failures: list[BaseException] = []

    def worker(rank: int) -> T:
        with group.turns:
            try:
                return work(ThreadCollectives(group, rank))
            except BaseException as error:
                failures.append(error)
                group.abort(f"worker {rank} failed: {error}")
                raise

    with ThreadPoolExecutor(world_size, thread_name_prefix="worker") as pool:
        futures = [pool.submit(worker, rank) for rank in range(world_size)]
    if failures:
        causes = [failure for failure in failures if not isinstance(failure, CollectiveError)]
        raise (causes or failures)[0]
    return [future.result() for future in futures]
