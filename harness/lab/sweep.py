"""Sweeps: how long collectives take on a network, by size, and what its links sent for it; and those of a lab."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch

from harness.lab.inside import start_inside
from harness.lab.lab import Lab
from harness.lab.layout import burst_bytes
from harness.lab.sweep_worker import obey
from harness.records.provenance import new_attempt
from harness.records.store import VERSION, Attempt
from harness.records.timings import Collective, Fabric, Sweep, SweepPoint, formula_bytes, ring_bytes
from harness.workers.processes import WorkerProcesses

SIZES: dict[Collective, tuple[int, ...]] = {
    "all_reduce": (1_000, 4_000, 16_000, 64_000, 250_000, 1_000_000, 2_500_000, 10_000_000),
    "all_gather": (1_000, 4_000, 16_000, 64_000, 250_000, 1_000_000),
    "exchange": (1_000, 4_000, 16_000, 64_000, 250_000, 1_000_000, 2_500_000, 10_000_000),
}
"""Payload of one worker, in bytes; of an exchange on a ring, both messages together."""
POINT_SECONDS, LONGEST_POINT_SECONDS = 0.5, 8.0
MOST_REPETITIONS, LEAST_REPETITIONS = 20, 3
LEAD_SECONDS = 3e-3
"""From an order to the moment at which all workers start; it must have reached them all by then."""


@dataclass(frozen=True)
class SweptGroup:
    """What a sweep needs of workers that are connected, however they were started."""

    attempt: Attempt
    fabric: Fabric
    seconds: Callable[[Collective, int], float]
    """One collective of all workers with so many bytes of each, until the last is done."""
    sent: Callable[[], Sequence[tuple[int, int]]] = tuple
    """Bytes and frames that each machine's link has sent so far; empty where nobody counts."""
    pace: float = 0.0
    """Bits a second of a ring's slowest link, by which long points are foreseen; 0: unknown, or nothing limits it."""


class Connected:
    """The workers of a sweep, one a rank, in a lab's namespaces, and connected."""

    def __init__(self, lab: Lab, processes: WorkerProcesses) -> None:
        self.lab = lab
        self._processes = processes

    def group(self) -> SweptGroup:
        """For a sweep that begins now, at the rate that the links now have."""
        attempt, topology = new_attempt("netlab", "gloo", torch.device("cpu")), self.lab.topology
        pace = topology.ring_bits_per_second / topology.num_workers
        return SweptGroup(attempt, fabric(self.lab), self.seconds, self.lab.sent, pace)

    def seconds(self, collective: Collective, payload_bytes: int) -> float:
        """One collective of all workers, begun at an agreed moment: from when the last has until the last is done.

        That some are late, since they contend for this machine's cores, is no part of it. Links have their burst to
        give at the start, as they have in training after a backward pass.

        Raises:
            WorkerError: a worker failed.
        """
        rate = self.lab.topology.bits_per_second
        start = time.monotonic() + max(LEAD_SECONDS, 8 * burst_bytes(rate) / rate)
        for rank in range(self.lab.topology.num_workers):
            self._processes.tell(rank, (collective, payload_bytes, start))
        began, done = zip(*self._processes.hear_all(), strict=True)
        return float(max(done) - max(began))


@contextmanager
def connected(lab: Lab) -> Iterator[Connected]:
    """Inside, the lab has gloo workers that are connected. Their processes start here and end here.

    Raises:
        WorkerError: a worker failed before it was connected.
    """
    with start_inside(lab, obey, [()] * lab.topology.num_workers) as processes:
        processes.hear_all()
        yield Connected(lab, processes)


def sweep(
    group: SweptGroup, sizes: Mapping[Collective, Sequence[int]] = SIZES, repetitions: int | None = None
) -> Sweep:
    """Time each collective at each size (payload of one worker, bytes), small ones first.

    Args:
        group: the workers and what is between them.
        sizes: by collective.
        repetitions: of each point. None: as many as take about half a second; a size that would take more than some
            seconds is then left out, and so are larger ones.

    Raises:
        WorkerError: a worker of a lab failed.
    """
    points = [point for each, payloads in sizes.items() for point in _points(group, each, payloads, repetitions)]
    return Sweep(version=VERSION, attempt=group.attempt, fabric=group.fabric, points=points)


def fabric(lab: Lab, dilation: float = 1.0) -> Fabric:
    """The lab as records know it."""
    return Fabric(kind="netlab", backend="gloo", dilation=dilation, **asdict(lab.topology))


def _points(
    group: SweptGroup, collective: Collective, payloads: Sequence[int], repetitions: int | None
) -> Iterator[SweepPoint]:
    sent, expected = 0.0, 0.0
    for payload in sorted(payloads):
        more = ring_bytes(collective, payload, group.fabric.num_workers) - sent
        expected += 8 * more / group.pace if group.pace else 0.0
        if repetitions is None and (1 + LEAST_REPETITIONS) * expected > LONGEST_POINT_SECONDS:
            return
        yield (point := _point(group, collective, payload, repetitions))
        sent, expected = sent + more, min(point.seconds)


def _point(group: SweptGroup, collective: Collective, payload_bytes: int, repetitions: int | None) -> SweepPoint:
    """A repetition that is left out, then those that were asked for, or as many as fit into POINT_SECONDS."""
    first = group.seconds(collective, payload_bytes)
    repetitions = repetitions or min(MOST_REPETITIONS, max(LEAST_REPETITIONS, round(POINT_SECONDS / first)))
    before = group.sent()
    seconds = [group.seconds(collective, payload_bytes) for _ in range(repetitions)]
    wire = (np.subtract(group.sent(), before).mean(axis=0) / repetitions).tolist() if before else (None, None)
    return SweepPoint(
        collective=collective,
        payload_bytes=payload_bytes,
        seconds=seconds,
        wire_bytes=wire[0],
        wire_frames=wire[1],
        formula_bytes=formula_bytes(collective, payload_bytes, group.fabric),
    )
