"""What a step consists of: its collectives, and how much is compute, codec and waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
import torch.distributed as dist

from cser_bench.algorithms.core.traffic import Mark, mark
from cser_bench.harness.records.timings import Collective

Interval = tuple[float, float]


@dataclass
class Recorded:
    """One collective of this worker, by its group and number in that, as other workers know it too.

    `ready` is the share of the backward pass that was done when it began; `ended` is None for one
    that the host does not see end (on a GPU, where it did not wait for it).
    """

    collective: Collective
    key: tuple[str, int]
    payload_bytes: int
    ready: float
    began: Mark
    ended: Mark | None = None


class Observer:
    """Notes this worker's collectives in the steps that are timed; see `Collectives.observer`.

    What torch's hooks of DDP send is seen where they have an `ObservedGroup`. What DDP sends by
    itself, in C++, is not.

    Args:
        share_done: tells the share of the backward pass that is done.
        device: of the collectives; its clock is the one that counts.
    """

    def __init__(self, share_done: Callable[[], float], device: torch.device) -> None:
        self._share_done = share_done
        self._device = device
        self._seen: list[Recorded] | None = None
        """What is recorded so far; None outside of `recording`."""

    @contextmanager
    def recording(self) -> Iterator[list[Recorded]]:
        """Inside, collectives are added to the list as they begin."""
        self._seen = []
        try:
            yield self._seen
        finally:
            self._seen = None

    @contextmanager
    def __call__(
        self, collective: Collective, group: str, payload_bytes: int
    ) -> Iterator[None]:
        """Note a collective that is over at the end of this context."""
        ended = self.began(collective, group, payload_bytes)
        yield
        ended()

    def began(
        self, collective: Collective, group: str, payload_bytes: int
    ) -> Callable[[], None]:
        """Note that a collective begins; return what notes its end."""
        if self._seen is None:
            return lambda: None
        # Workers begin a group's collectives in one order, so its number names one on all of them.
        number = sum(other.key[0] == group for other in self._seen)
        record = Recorded(
            collective=collective,
            key=(group, number),
            payload_bytes=payload_bytes,
            ready=self._share_done(),
            began=mark(self._device),
        )
        self._seen.append(record)

        def ended() -> None:
            record.ended = mark(self._device)

        return ended


class ObservedGroup(dist.ProcessGroup):
    """The group whose all-reduces an observer is told of, for torch's hooks of DDP.

    They call `dist.all_reduce` themselves, so that nobody else can see when. To torch, which looks
    groups up, it is the group itself.
    """

    def __init__(self, group: dist.ProcessGroup | None, observer: Observer) -> None:
        watched = group or dist.group.WORLD
        assert watched is not None
        # PyTorch's stubs know another constructor alone.
        super().__init__(watched.rank(), watched.size())  # type: ignore[call-arg]
        self._watched = watched
        self._observer = observer

    def __eq__(self, other: object) -> bool:
        return other is self or other is self._watched

    def __hash__(self) -> int:
        return hash(self._watched)

    def allreduce(self, tensors: Any, opts: Any = None) -> Any:  # type: ignore[override]
        """All-reduce as the group does; what is not waited for here ends when its future does."""
        [tensor] = tensors
        num_bytes = tensor.numel() * tensor.element_size()
        ended = self._observer.began("all_reduce", self._watched.group_name, num_bytes)
        work = self._watched.allreduce(tensors, opts)
        # The host does not see when a GPU is through.
        if not tensor.is_cuda:
            work.get_future().add_done_callback(lambda _: ended())
        return work


@dataclass(frozen=True)
class RankStep:
    """One worker's step, in seconds of its clock.

    Compute is from `passes_began` to `last_gradient`. Collectives are from when they were begun to
    when they were done, by keys that are the same on all workers. `scheduled_seconds` is infinite
    where passes are no waits.
    """

    began: float
    passes_began: float
    last_gradient: float
    ended: float
    collectives: dict[tuple[str, int], Interval]
    scheduled_seconds: float


@dataclass(frozen=True)
class Parts:
    """A step's parts in seconds.

    `total` is the slowest worker's, the others are means over workers.
    """

    total: float
    compute: float
    codec: float
    waiting: float
    transfer: float


def parts_of(workers: Sequence[RankStep], share_clock: bool) -> Parts:
    """Split a step.

    Communication is the time after the last gradient in which a collective is on its way; what else
    is not compute is codec, and so is what delays scheduled waits. A worker waits while a
    collective that it has begun is not yet begun by all; where workers share no clock nobody knows,
    and it is part of transfer. Where compute is scheduled all workers' is equal, so a worker that
    waits because another's codec took longer (one host's workers contend for its cores) has that
    counted as codec.
    """
    # A scheduled wait that ends late was delayed by a codec, so no more than the schedule counts.
    compute = [
        min(worker.last_gradient - worker.passes_began, worker.scheduled_seconds)
        for worker in workers
    ]
    sending = [_exposed(worker.collectives.values(), worker) for worker in workers]
    # What is left of a step: whole = compute + codec + sending.
    codec = [
        worker.ended - worker.began - computed - sent
        for worker, computed, sent in zip(workers, compute, sending, strict=True)
    ]
    waiting = [0.0] * len(workers)
    if share_clock:
        last_begun = {
            key: max(worker.collectives[key][0] for worker in workers)
            for key in workers[0].collectives
        }
        # A collective cannot end before its last worker has begun.
        waiting = [_waiting(worker, last_begun) for worker in workers]
    for rank, worker in enumerate(workers):
        if worker.scheduled_seconds < float("inf"):
            # Compute is scheduled: who waits does so for another's codec.
            # At most what the slowest codec is slower by.
            shift = min(waiting[rank], max(codec) - codec[rank])
            waiting[rank] -= shift
            codec[rank] += shift
            sending[rank] -= shift
    return Parts(
        total=max(worker.ended - worker.began for worker in workers),
        compute=mean(compute),
        codec=mean(codec),
        waiting=mean(waiting),
        transfer=mean(sending) - mean(waiting),
    )


def _waiting(worker: RankStep, last_begun: Mapping[tuple[str, int], float]) -> float:
    """Measure how long the worker has begun a collective that others have not, see `_exposed`."""
    intervals = []
    for key, (began, ended) in worker.collectives.items():
        intervals.append((began, min(ended, last_begun[key])))
    return _exposed(intervals, worker)


def _exposed(intervals: Iterable[Interval], worker: RankStep) -> float:
    """Measure the intervals' union between the worker's last gradient and its end."""
    total = 0.0
    reached = worker.last_gradient
    for began, ended in sorted(intervals):
        until = min(ended, worker.ended)
        # Only what goes beyond where the intervals before it have reached.
        total += max(0.0, until - max(began, reached))
        reached = max(reached, until)
    return total
