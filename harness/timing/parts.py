"""What a step consists of: compute, codec, waiting for others and transfer, from the marks of all workers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean

Interval = tuple[float, float]


@dataclass(frozen=True)
class RankStep:
    """One worker's step, in seconds of its clock.

    Attributes:
        passes_began, last_gradient: of the forward and backward pass; the time between is compute.
        collectives: by a key that is the same on all workers, from when it was begun to when it was done.
        scheduled_seconds: what the passes take where they are waits; infinite where they are not.
        clock: workers with the same can be compared; None: with nobody.
    """

    began: float
    passes_began: float
    last_gradient: float
    ended: float
    collectives: dict[tuple[str, int], Interval]
    scheduled_seconds: float
    clock: str | None


@dataclass(frozen=True)
class Parts:
    """In seconds; `total` is the slowest worker's, the others are means over workers."""

    total: float
    compute: float
    codec: float
    waiting: float | None
    transfer: float


def parts_of(workers: Sequence[RankStep]) -> Parts:
    """Split a step.

    Communication is the time after the last gradient in which a collective is on its way; what else is not compute is
    codec, and so is what delays scheduled waits. A worker waits while a collective that it has begun is not yet begun
    by all. Where compute is scheduled all workers' is equal, so a worker that waits because another's codec took longer
    (one host's workers contend for its cores) has that counted as codec.
    """
    clocks = {worker.clock for worker in workers}
    comparable = None not in clocks and len(clocks) == 1
    exposed = [_clipped(worker.collectives.values(), worker.last_gradient, worker.ended) for worker in workers]
    compute = [min(each.last_gradient - each.passes_began, each.scheduled_seconds) for each in workers]
    communication = [_length(intervals) for intervals in exposed]
    codec = [
        each.ended - each.began - own - sent for each, own, sent in zip(workers, compute, communication, strict=True)
    ]
    waiting = _waiting(workers) if comparable else [0.0] * len(workers)
    for rank, worker in enumerate(workers):
        if worker.scheduled_seconds < float("inf"):
            shift = min(waiting[rank], max(codec) - codec[rank])
            waiting[rank] -= shift
            codec[rank] += shift
            communication[rank] -= shift
    return Parts(
        total=max(worker.ended - worker.began for worker in workers),
        compute=mean(compute),
        codec=mean(codec),
        waiting=mean(waiting) if comparable else None,
        transfer=mean(communication) - mean(waiting),
    )


def _waiting(workers: Sequence[RankStep]) -> list[float]:
    last = {key: max(worker.collectives[key][0] for worker in workers) for key in workers[0].collectives}
    return [
        _length(
            _clipped(
                ((began, min(ended, last[key])) for key, (began, ended) in worker.collectives.items()),
                worker.last_gradient,
                worker.ended,
            )
        )
        for worker in workers
    ]


def _clipped(intervals: Iterable[Interval], start: float, end: float) -> list[Interval]:
    clipped = [(max(lo, start), min(hi, end)) for lo, hi in intervals]
    return [(lo, hi) for lo, hi in clipped if lo < hi]


def _length(intervals: Sequence[Interval]) -> float:
    """Of the union."""
    total, reached = 0.0, float("-inf")
    for lo, hi in sorted(intervals):
        total += max(0.0, hi - max(lo, reached))
        reached = max(reached, hi)
    return total
