"""Sweeps: how long collectives take on a network, by size, and what its links sent for it; and what a lab can reach."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from algorithms import ProcessGroupCollectives, Purpose
from algorithms.core.topology import Topology
from harness.records.provenance import new_attempt
from harness.records.store import VERSION, Attempt
from harness.records.timings import Collective, Fabric, Sweep, SweepPoint, formula_bytes, ring_bytes
from harness.timing.lab import PREFIX, Lab, lab
from harness.timing.layout import LabError, LabTopology, burst_bytes, rate_text
from harness.train.clock import seconds_to_idle
from harness.workers.attempt import prepare_thread
from harness.workers.process_group import joined
from harness.workers.processes import Worker, WorkerProcesses, start_workers

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
TIMEOUT_SECONDS = 60.0
CLONE_NEWNET = 0x40000000

BUSY = 0.9
"""Share of a rate that must be reached, frames' headers included, for a machine to count as able to emulate it."""
CEILING_PAYLOAD_BYTES = 10_000_000
BEYOND_BITS_PER_SECOND = 100e9
"""Of a link: no limit."""
STEP, MOST_STEPS = 0.8, 12


def start_inside(network: Lab, work: Callable[..., object], arguments: Sequence[tuple[Any, ...]]) -> WorkerProcesses:
    """As `start_workers`, each in the namespace of its rank. Pipes are no part of the network, and so is the file by
    which workers meet."""
    places = [(network.namespace(rank), network.interface, work) for rank in range(len(arguments))]
    whole = [(*place, *own) for place, own in zip(places, arguments, strict=True)]
    return start_workers(_inside, whole, preload=(work.__module__,))


def _inside(
    worker: Worker, namespace: Path | None, interface: str, work: Callable[..., object], *arguments: object
) -> object:
    """Enter the namespace (None: stay), as `ip netns exec` does, and work. os.setns would do, from Python 3.12 on."""
    if namespace is not None:
        with open(namespace) as file:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "cannot enter the network namespace", str(namespace))
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    return work(worker, *arguments)


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


def prepared(collective: Collective, payload_bytes: int, device: torch.device) -> Callable[[], object]:
    """What does the collective once, as one worker of the group that stands, with so large a payload of each."""
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


def fabric(topology: LabTopology, dilation: float = 1.0) -> Fabric:
    """A lab as records know it."""
    return Fabric(kind="netlab", backend="gloo", dilation=dilation, inside_bits_per_second=None, **asdict(topology))


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


@cache
def ceiling_bits_per_second(num_workers: int, prefix: str = PREFIX) -> float:
    """The highest rate of all workers' links together that an all-reduce over gloo reaches to 90 %, each way.

    It is measured with one worker a machine, once in a process. More of them on one machine cost about the same, since
    all workers of a ring send at one pace and most of their frames then pass a bridge as before.

    Raises:
        LabError: no lab is possible here, or no rate is reached.
    """
    with lab(LabTopology(num_workers, 1, BEYOND_BITS_PER_SECOND), prefix=prefix) as network, connected(network) as all:
        rate = _reached(all)
        for _ in range(MOST_STEPS):
            network.set_rate(rate)
            if _reached(all) >= BUSY * rate:
                return rate * num_workers
            rate *= STEP
    raise LabError(f"this machine reaches 90 % of no rate that was tried, down to {rate_text(rate)} a worker")


def _reached(among: Connected) -> float:
    """Bits a second that a machine's link sends during a large all-reduce, headers included; mean over machines.

    The better of two tries: a pause of the machine's is not its ceiling.
    """
    found = []
    for _ in range(2):
        before = among.lab.bytes_sent()
        seconds = among.seconds("all_reduce", CEILING_PAYLOAD_BYTES)
        found.append(8 * (sum(among.lab.bytes_sent()) - sum(before)) / len(before) / seconds)
    return max(found)
