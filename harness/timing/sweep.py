"""Sweeps: how long collectives take on a network, by size, and what its links sent for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.distributed as dist

from algorithms import ProcessGroupCollectives, Purpose
from algorithms.core.topology import Topology
from harness.records.provenance import new_attempt
from harness.records.store import VERSION, Attempt
from harness.records.timings import Collective, Fabric, Sweep, SweepPoint, formula_bytes, ring_bytes
from harness.timing.lab import Lab, start_inside
from harness.timing.links import LabTopology, burst_bytes
from harness.train.clock import seconds_to_idle
from harness.workers.attempt import prepare_thread
from harness.workers.process_group import joined
from harness.workers.processes import Worker, WorkerProcesses

SIZES: dict[Collective, tuple[int, ...]] = {
    "all_reduce": (1_000, 4_000, 16_000, 64_000, 250_000, 1_000_000, 2_500_000, 10_000_000, 64_000_000),
    "all_gather": (1_000, 4_000, 16_000, 64_000, 250_000, 1_000_000, 4_000_000),
    "exchange": (1_000, 4_000, 16_000, 64_000, 250_000, 1_000_000, 2_500_000, 10_000_000, 64_000_000),
}
"""Payload of one worker, in bytes; of an exchange on a ring, both messages together."""
POINT_SECONDS, LONGEST_POINT_SECONDS = 0.5, 8.0
MOST_REPETITIONS, LEAST_REPETITIONS = 20, 3
LEAD_SECONDS = 3e-3
"""Time from an order to the moment at which all workers start; it must have reached them all by then."""
TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class SweptGroup:
    """Workers that are connected, however they were started, as a sweep needs them."""

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
        """The group for a sweep that begins now, at the rate that the links now have."""
        attempt, pace = new_attempt("netlab", "gloo", torch.device("cpu")), self.lab.topology.bits_per_second
        return SweptGroup(attempt, fabric(self.lab.topology), self.seconds, self.lab.sent, pace)

    def seconds(self, collective: Collective, payload_bytes: int) -> float:
        """One collective of all workers, begun at an agreed moment: from when the last has until the last is done.

        All processes of a machine read the same monotonic clock, so an agreed moment is a barrier that sends nothing.
        That some are late, since they contend for this machine's cores, is no part of the time. Links have their burst
        to give at the start, as they have in training after a backward pass.

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
    with start_inside(lab, _obey, [()] * lab.topology.num_workers) as processes:
        processes.hear_all()
        yield Connected(lab, processes)


def _obey(worker: Worker) -> None:
    """Each order is (collective, payload in bytes, when to start); each answer when it was begun and done (monotonic,
    seconds). The first thing said is that the workers are connected."""
    prepare_thread()
    with joined("cpu", TIMEOUT_SECONDS, worker.init_method, worker.rank, worker.world_size):
        worker.pipe.send("connected")
        latest = lru_cache(maxsize=1)(prepared)
        while True:
            collective, payload_bytes, start = worker.pipe.recv()
            once = latest(collective, payload_bytes, torch.device("cpu"))
            time.sleep(max(0.0, start - time.monotonic()))
            began = time.monotonic()
            once()
            worker.pipe.send((began, time.monotonic()))


def own_group(network: Fabric, attempt: Attempt, device: torch.device) -> SweptGroup:
    """The group that this process is a worker of, swept by all of them together, who share no clock: a collective
    begins after a barrier, and its time is the slowest worker's."""
    latest = lru_cache(maxsize=1)(prepared)

    def slowest(collective: Collective, payload_bytes: int) -> float:
        once = latest(collective, payload_bytes, device)
        dist.barrier()
        seconds = torch.tensor([seconds_to_idle(once, device)], dtype=torch.float64, device=device)
        dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
        return float(seconds)

    return SweptGroup(attempt, network, slowest)


def prepared(collective: Collective, payload_bytes: int, device: torch.device) -> Callable[[], object]:
    """A function that does the collective once, as one worker of the group that stands, with so large a payload."""
    payload = torch.zeros(1, payload_bytes, dtype=torch.uint8, device=device)
    if payload_bytes % 4 == 0:
        payload = payload.view(torch.float32)
    collectives = ProcessGroupCollectives()
    if collective == "all_gather":
        return lambda: collectives.all_gather(payload, Purpose.EVALUATION)
    if collective == "exchange":
        [ring] = Topology("ring").rounds(dist.get_world_size())
        message = payload[:, : payload.numel() // ring.num_messages]
        return lambda: collectives.exchange_with_neighbours(message, ring, Purpose.EVALUATION)
    return lambda: collectives.all_reduce_sum_(payload, Purpose.EVALUATION)


def sweep(group: SweptGroup, sizes: Mapping[Collective, Sequence[int]] = SIZES) -> Sweep:
    """Time each collective at each size, small ones first; a size that would take more than some seconds is left out,
    and so are larger ones.

    Args:
        group: the workers and what is between them.
        sizes: by collective, payloads of one worker in bytes.

    Raises:
        WorkerError: a worker of a lab failed.
    """
    points = [point for collective, payloads in sizes.items() for point in _points(group, collective, payloads)]
    return Sweep(version=VERSION, attempt=group.attempt, fabric=group.fabric, points=points)


def fabric(topology: LabTopology, dilation: float = 1.0) -> Fabric:
    """A lab as records know it."""
    return Fabric(kind="netlab", backend="gloo", dilation=dilation, inside_bits_per_second=None, **asdict(topology))


def _points(group: SweptGroup, collective: Collective, payloads: Sequence[int]) -> Iterator[SweepPoint]:
    sent, expected = 0.0, 0.0
    for payload in sorted(payloads):
        more = ring_bytes(collective, payload, group.fabric.num_workers) - sent
        expected += 8 * more / group.pace if group.pace else 0.0
        if (1 + LEAST_REPETITIONS) * expected > LONGEST_POINT_SECONDS:
            return
        yield (point := _point(group, collective, payload))
        sent, expected = sent + more, min(point.seconds)


def _point(group: SweptGroup, collective: Collective, payload_bytes: int) -> SweepPoint:
    """A repetition that is left out, then as many as fit into POINT_SECONDS."""
    first = group.seconds(collective, payload_bytes)
    repetitions = min(MOST_REPETITIONS, max(LEAST_REPETITIONS, round(POINT_SECONDS / first)))
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
