"""Sweeps: how long collectives over gloo take in a lab, by size, and what its links sent for it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from harness.lab.inside import start_inside
from harness.lab.lab import Lab
from harness.lab.layout import burst_bytes
from harness.lab.sweep_worker import obey
from harness.records.provenance import new_attempt
from harness.records.store import VERSION
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


class Connected:
    """The workers of a sweep, one a rank, in a lab's namespaces, and connected."""

    def __init__(self, lab: Lab, processes: WorkerProcesses) -> None:
        self.lab = lab
        self._processes = processes

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


def sweep(lab: Lab, sizes: Mapping[Collective, Sequence[int]] = SIZES, among: Connected | None = None) -> Sweep:
    """Time each collective at each size (payload of one worker, bytes), small ones first.

    Each point repeats for about half a second. A size that would take more than some seconds is left out, and so are
    larger ones.

    Args:
        lab: the network.
        sizes: by collective.
        among: workers that are up in this lab already; by default they are started and ended.

    Raises:
        WorkerError: a worker failed.
    """
    if among is None:
        with connected(lab) as started:
            return sweep(lab, sizes, started)
    points = [point for collective, payloads in sizes.items() for point in _points(among, collective, payloads)]
    attempt = new_attempt("netlab", "gloo", torch.device("cpu"))
    return Sweep(version=VERSION, attempt=attempt, fabric=fabric(lab), points=points)


def fabric(lab: Lab, dilation: float = 1.0) -> Fabric:
    """The lab as records know it."""
    topology = lab.topology
    return Fabric(
        kind="netlab",
        backend="gloo",
        num_machines=topology.num_machines,
        workers_per_machine=topology.workers_per_machine,
        bits_per_second=topology.bits_per_second,
        inside_bits_per_second=topology.inside_bits_per_second,
        dilation=dilation,
    )


def _points(among: Connected, collective: Collective, payloads: Sequence[int]) -> Iterator[SweepPoint]:
    topology = among.lab.topology
    pace = topology.ring_bits_per_second / topology.num_workers
    sent, expected = 0.0, 0.0
    for payload in sorted(payloads):
        more = ring_bytes(collective, payload, topology.num_workers) - sent
        expected += 8 * more / pace if pace else 0.0
        if (1 + LEAST_REPETITIONS) * expected > LONGEST_POINT_SECONDS:
            return
        yield (point := measure(among, collective, payload))
        sent, expected = sent + more, min(point.seconds)


def measure(among: Connected, collective: Collective, payload_bytes: int) -> SweepPoint:
    """One point: a repetition that is left out, then as many as fit into POINT_SECONDS.

    Raises:
        WorkerError: a worker failed.
    """
    first = among.seconds(collective, payload_bytes)
    repetitions = min(MOST_REPETITIONS, max(LEAST_REPETITIONS, round(POINT_SECONDS / first)))
    before = among.lab.sent()
    seconds = [among.seconds(collective, payload_bytes) for _ in range(repetitions)]
    sent = [
        [now - then for now, then in zip(*pair, strict=True)] for pair in zip(among.lab.sent(), before, strict=True)
    ]
    num_bytes, frames = (sum(column) / len(sent) / repetitions for column in zip(*sent, strict=True))
    return SweepPoint(
        collective=collective,
        payload_bytes=payload_bytes,
        seconds=seconds,
        wire_bytes=num_bytes,
        wire_frames=frames,
        formula_bytes=formula_bytes(collective, payload_bytes, fabric(among.lab)),
    )
