"""Workers as threads of one process: collectives through memory, by the very code that process groups run."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from algorithms.core.collectives import CollectiveError, Collectives, sum_in_rank_order
from algorithms.core.topology import Mixing

T = TypeVar("T")

GATHER, EXCHANGE = "gather", "exchange with neighbours"


class ThreadGroup:
    """The meeting point of `world_size` workers.

    A worker that waits hands its turn straight to the next one that can go on, so that a collective costs each worker
    one change of threads, and the last to arrive none.

    Args:
        world_size: number of workers.
        timeout_seconds: how long a worker waits for the others before all fail with `CollectiveError`.
        max_active: how many workers compute at once; the others wait their turn. More than the cores only makes
            threads fight for the interpreter's lock.
    """

    def __init__(self, world_size: int, timeout_seconds: float = 300.0, max_active: int | None = None) -> None:
        self.world_size = world_size
        self.timeout_seconds = timeout_seconds
        self._mutex = threading.Lock()
        self._free_turns = max_active or world_size
        self._wakers = [threading.Lock() for _ in range(world_size)]
        for waker in self._wakers:
            waker.acquire()
        self._ready: deque[int] = deque()
        """Workers that could go on, and wait for their turn only."""
        self._slots: dict[int, tuple[str, Tensor]] = {}
        self._gathered: Tensor | None = None
        self._error: str | None = None

    @contextmanager
    def turn(self, rank: int) -> Iterator[None]:
        """The time in which worker `rank` may compute; it is interrupted by collectives only."""
        with self._mutex:
            self._ready.append(rank)
            self._pass_on()
        self._wakers[rank].acquire()
        try:
            yield
        finally:
            with self._mutex:
                self._free_turns += 1
                self._pass_on()

    def exchange(self, rank: int, name: str, tensor: Tensor) -> Tensor | None:
        """Take part in the collective `name`; the last to arrive does the work for all, and goes on."""
        with self._mutex:
            if self._error is None:
                self._slots[rank] = (name, tensor)
                if len(self._slots) == self.world_size:
                    self._perform()
                    self._ready.extend(other for other in self._slots if other != rank)
                    self._slots = {}
                    self._pass_on()
                    if self._error is None:
                        return self._gathered
            if self._error is not None:
                raise CollectiveError(self._error)
            self._free_turns += 1
            self._pass_on()
        self._wait(rank, name)
        if self._error is not None:
            raise CollectiveError(self._error)
        return self._gathered

    def _wait(self, rank: int, name: str) -> None:
        """For the others to come, at most the time-out, and then for the turn."""
        if not self._wakers[rank].acquire(timeout=self.timeout_seconds):
            with self._mutex:
                late = rank in self._slots
            if late:
                self.abort(f"worker {rank} waited {self.timeout_seconds:g} s in vain for the others to {name}")
            self._wakers[rank].acquire()

    def abort(self, reason: str) -> None:
        """Make every waiting and coming worker fail with `reason`; the first reason stands."""
        with self._mutex:
            self._error = self._error or reason
            self._ready.extend(self._slots)
            self._slots = {}
            self._pass_on()

    def _pass_on(self) -> None:
        """Give the free turns to those who wait for one. Called with the mutex held."""
        while self._free_turns and self._ready:
            self._free_turns -= 1
            self._wakers[self._ready.popleft()].release()

    def _perform(self) -> None:
        requests = [self._slots[rank] for rank in range(self.world_size)]
        name, first = requests[0]
        if any((n, t.shape, t.dtype) != (name, first.shape, first.dtype) for n, t in requests):
            asked = ", ".join(f"{r}: {n} {tuple(t.shape)} {t.dtype}" for r, (n, t) in enumerate(requests))
            self._error = f"workers ask for different collectives ({asked})"
            return
        tensors = [tensor for _, tensor in requests]
        with torch.no_grad():
            if name in (GATHER, EXCHANGE):
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
        gathered = self.group.exchange(self.rank, GATHER, tensor)
        assert gathered is not None
        return gathered

    def _broadcast_(self, tensor: Tensor) -> None:
        self.group.exchange(self.rank, "broadcast", tensor)

    def _exchange(self, tensor: Tensor, mixing: Mixing) -> dict[int, Tensor]:
        gathered = self.group.exchange(self.rank, EXCHANGE, tensor)
        assert gathered is not None
        return {sender: gathered[sender] for sender in mixing.senders[self.rank]}


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
        with group.turn(rank):
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
