"""Sweeps: how long collectives take on a network, by size, and what its links sent for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache, partial

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
from harness.train.local_workers import seconds_to_idle
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
Sizes = Mapping[Collective, Sequence[int]]
Sent = Sequence[tuple[int, int]]


Seconds = Callable[[Collective, int], float]
"""One collective of all workers of a group with so many bytes of each, until the last is done."""


@contextmanager
def connected(lab: Lab) -> Iterator[Seconds]:
    """Inside, the lab has gloo workers that are connected, and do collectives. Their processes start and end here.

    Raises:
        WorkerError: a worker failed before it was connected.
    """
    with start_inside(lab, _obey, [()] * lab.topology.num_workers) as processes:
        processes.hear_all()
        yield partial(agreed_seconds, lab, processes)


def agreed_seconds(lab: Lab, processes: WorkerProcesses, collective: Collective, payload_bytes: int) -> float:
    """One collective of all workers, begun at an agreed moment: from when the last has until the last is done.

    All processes of a machine read the same monotonic clock, so an agreed moment is a barrier that sends nothing. That
    some are late, since they contend for this machine's cores, is no part of the time. Links have their burst to give
    at the start, as they have in training after a backward pass.

    Raises:
        WorkerError: a worker failed.
    """
    rate = lab.topology.bits_per_second
    start = time.monotonic() + max(LEAD_SECONDS, 8 * burst_bytes(rate) / rate)
    for rank in range(lab.topology.num_workers):
        processes.tell(rank, (collective, payload_bytes, start))
    began, done = zip(*processes.hear_all(), strict=True)
    return float(max(done) - max(began))


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


def slowest_seconds(device: torch.device) -> Seconds:
    """The group that this process is a worker of, all of whom call it together, and who share no clock: a collective
    begins after a barrier, and its time is the slowest worker's."""
    latest = lru_cache(maxsize=1)(prepared)

    def seconds(collective: Collective, payload_bytes: int) -> float:
        once = latest(collective, payload_bytes, device)
        dist.barrier()
        own = torch.tensor([seconds_to_idle(once, device)], dtype=torch.float64, device=device)
        dist.all_reduce(own, op=dist.ReduceOp.MAX)
        return float(own)

    return seconds


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


def fabric(topology: LabTopology, dilation: float = 1.0) -> Fabric:
    """A lab as records know it."""
    return Fabric(kind="netlab", backend="gloo", dilation=dilation, inside_bits_per_second=None, **asdict(topology))


def sweep_lab(lab: Lab, seconds: Seconds, sizes: Sizes = SIZES) -> Sweep:
    """Sweep the lab at the rate that its links have now; `seconds` is of workers that are `connected` in it.

    Raises:
        WorkerError: a worker failed.
    """
    attempt = new_attempt("netlab", "gloo", torch.device("cpu"))
    return sweep(attempt, fabric(lab.topology), seconds, lab.sent, sizes)


def sweep(
    attempt: Attempt, network: Fabric, seconds: Seconds, sent: Callable[[], Sent] = list, sizes: Sizes = SIZES
) -> Sweep:
    """Time each collective at each size, small ones first; a size that would take more than some seconds is left out,
    and so are larger ones.

    Args:
        sent: bytes and frames that each machine's link has sent so far; empty where nobody counts.
        sizes: by collective, payloads of one worker in bytes.
    """
    points: list[SweepPoint] = []
    pace = network.bits_per_second or math.inf
    for collective, payloads in sizes.items():
        known, expected = 0.0, 0.0
        for payload in sorted(payloads):
            more = ring_bytes(collective, payload, network.num_workers) - known
            expected += 8 * more / pace
            if (1 + LEAST_REPETITIONS) * expected > LONGEST_POINT_SECONDS:
                break
            point = _point(network, partial(seconds, collective, payload), sent, collective, payload)
            known, expected = known + more, min(point.seconds)
            points.append(point)
    return Sweep(version=VERSION, attempt=attempt, fabric=network, points=points)


def _point(
    network: Fabric, once: Callable[[], float], sent: Callable[[], Sent], collective: Collective, payload_bytes: int
) -> SweepPoint:
    """A repetition that is left out, then as many as fit into POINT_SECONDS."""
    repetitions = min(MOST_REPETITIONS, max(LEAST_REPETITIONS, round(POINT_SECONDS / once())))
    before = sent()
    seconds = [once() for _ in range(repetitions)]
    wire = (np.subtract(sent(), before).mean(axis=0) / repetitions).tolist() if before else (None, None)
    return SweepPoint(
        collective=collective,
        payload_bytes=payload_bytes,
        seconds=seconds,
        wire_bytes=wire[0],
        wire_frames=wire[1],
        formula_bytes=formula_bytes(collective, payload_bytes, network),
    )
