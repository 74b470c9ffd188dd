"""Sweeps: what collectives take on a network, by size, and what its links sent; and the command `netlab`, which sweeps
at each of some rates that this machine can emulate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache, lru_cache, partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.distributed as dist
from tabulate import tabulate

from algorithms import ProcessGroupCollectives, Purpose
from algorithms.core.topology import Topology
from harness.records.provenance import new_attempt
from harness.records.store import VERSION, Attempt, write_record
from harness.records.timings import Collective, Fabric, Sweep, SweepPoint, formula_bytes, ring_bytes
from harness.timing.lab import Lab, lab, start_inside
from harness.timing.links import LabError, LabTopology, burst_bytes, rate_text
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
HEADER_BYTES = 66
"""Headers of a frame: Ethernet 14, IP 20, TCP with timestamps 32. A frame that only acknowledges is nothing else."""
COLUMNS = "rate asked", "reached", "%", "collective", "payload kB", "ms", "sent kB", "without headers", "formula"
FORMATS = "", "", ".1f", "", ",.0f", ".2f", ",.1f", ",.1f", ",.1f"

BUSY = 0.9
"""Share of a rate that must be reached, frames' headers included, for a machine to count as able to emulate it."""
CEILING_PAYLOAD_BYTES = 10_000_000
BEYOND_BITS_PER_SECOND = 100e9
"""A link's rate that is no limit."""
STEP, MOST_STEPS = 0.8, 12

Sizes = Mapping[Collective, Sequence[int]]
Sent = Sequence[tuple[int, int]]


Seconds = Callable[[Collective, int], float]
"""One collective of all workers of a group with so many bytes of each, until the last is done."""


@contextmanager
def connected(network: Lab) -> Iterator[Seconds]:
    """Inside, the lab has gloo workers that are connected, and do collectives. Their processes start and end here."""
    with start_inside(network, _obey, [()] * network.topology.num_workers) as processes:
        processes.hear_all()
        yield partial(agreed_seconds, network, processes)


def agreed_seconds(network: Lab, processes: WorkerProcesses, collective: Collective, payload_bytes: int) -> float:
    """One collective of all workers, begun at an agreed moment: from when the last has until the last is done.

    All processes of a machine read the same monotonic clock, so an agreed moment is a barrier that sends nothing. That
    some are late, since they contend for this machine's cores, is no part of the time. Links have their burst to give
    at the start, as they have in training after a backward pass. Raises WorkerError: a worker failed.
    """
    rate = network.topology.bits_per_second
    start = time.monotonic() + max(LEAD_SECONDS, 8 * burst_bytes(rate) / rate)
    for rank in range(network.topology.num_workers):
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


def sweep_lab(network: Lab, seconds: Seconds, sizes: Sizes = SIZES) -> Sweep:
    """Sweep the lab at the rate that its links have now; `seconds` is of workers that are `connected` in it."""
    attempt = new_attempt("netlab", "gloo", torch.device("cpu"))
    return sweep(attempt, fabric(network.topology), seconds, network.sent, sizes)


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


def netlab(num_workers: int, num_machines: int | None, rates: list[float], output: Path) -> None:
    """Sweep at each rate (bits a second of a machine's link) that this machine can emulate; LabError if none."""
    num_machines = num_machines or num_workers
    if num_machines < 2 or num_workers % num_machines:
        raise LabError(f"{num_workers} workers are not as many on each of {num_machines} machines, two at the least")
    topologies = [LabTopology(num_machines, num_workers // num_machines, rate) for rate in sorted(rates, reverse=True)]
    ceiling = ceiling_bits_per_second(num_workers)
    possible = [topology for topology in topologies if topology.ring_bits_per_second <= ceiling]
    for topology in topologies:
        if topology not in possible:
            wanted = rate_text(topology.ring_bits_per_second)
            reached = f"its links reach {rate_text(ceiling)} in all, as measured, of {wanted}"
            print(f"netlab: this machine cannot emulate {topology}: {reached}; the point is left out", flush=True)
    if not possible:
        raise LabError("none of the rates can be emulated on this machine: ask for lower ones")
    rows = []
    with lab(possible[0]) as network, connected(network) as seconds:
        for topology in possible:
            network.set_rate(topology.bits_per_second)
            print(f"netlab: {topology}", flush=True)
            found = sweep_lab(network, seconds)
            write_record(output / record_name(topology), found)
            largest = {point.collective: point for point in found.points}
            rows += [_row(point, topology.bits_per_second) for point in largest.values()]
    print(tabulate(rows, COLUMNS, floatfmt=FORMATS))
    print(
        f"\nThe largest message of each collective is shown. Sent is what one machine's link counted for it, with\n"
        f"acknowledgements and {HEADER_BYTES} bytes of headers a frame (Ethernet, IP, TCP). All are in {output}."
    )


def record_name(topology: LabTopology) -> str:
    """The file of a sweep's record."""
    return f"sweep-{topology.num_machines}x{topology.workers_per_machine}-{topology.bits_per_second / 1e6:g}mbps.json"


def _row(point: SweepPoint, asked: float) -> list[object]:
    sent, frames, seconds = point.wire_bytes, point.wire_frames, median(point.seconds)
    assert sent is not None and frames is not None, "a lab counts"
    rates = [rate_text(asked), rate_text(8 * sent / seconds), 100 * 8 * sent / seconds / asked]
    kilobytes = [each / 1e3 for each in (sent, sent - HEADER_BYTES * frames, point.formula_bytes)]
    return [*rates, point.collective, point.payload_bytes / 1e3, 1e3 * seconds, *kilobytes]


@cache
def ceiling_bits_per_second(num_workers: int) -> float:
    """The highest rate of all workers' links together that an all-reduce over gloo reaches to 90 %, each way.

    It is measured with one worker a machine, once in a process. More of them on one machine cost no more, since all
    workers of a ring send at one pace. Raises LabError: no lab is possible here, or no rate is reached.
    """
    with lab(LabTopology(num_workers, 1, BEYOND_BITS_PER_SECOND)) as network, connected(network) as seconds:
        rate = _reached(network, seconds)
        for _ in range(MOST_STEPS):
            network.set_rate(rate)
            if _reached(network, seconds) >= BUSY * rate:
                return rate * num_workers
            rate *= STEP
    raise LabError(f"this machine reaches 90 % of no rate that was tried, down to {rate_text(rate)} a worker")


def _reached(network: Lab, seconds: Seconds) -> float:
    """Bits a second that a machine's link sends during a large all-reduce, headers included; mean over machines.

    The better of two tries: a pause of the machine's is not its ceiling.
    """
    found = []
    for _ in range(2):
        before = network.sent()
        taken = seconds("all_reduce", CEILING_PAYLOAD_BYTES)
        sent = [now - then for (now, _), (then, _) in zip(network.sent(), before, strict=True)]
        found.append(8 * sum(sent) / len(sent) / taken)
    return max(found)
