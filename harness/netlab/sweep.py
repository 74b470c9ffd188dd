"""Sweeps: how long all-reduce and all-gather over gloo take in a lab, by size, and what its links sent for it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from harness.netlab.lab import Lab, LabError, Topology
from harness.provenance import new_attempt
from harness.store import VERSION
from harness.timings import Collective, Fabric, Sweep, SweepPoint

SIZES: dict[Collective, tuple[int, ...]] = {
    "all_reduce": (1_000, 4_000, 16_000, 64_000, 250_000, 1_000_000, 2_500_000, 10_000_000),
    "all_gather": (1_000, 4_000, 16_000, 64_000, 250_000, 1_000_000),
}
"""Payload of one worker, in bytes."""
POINT_SECONDS, LONGEST_POINT_SECONDS = 0.5, 6.0
MOST_REPETITIONS, LEAST_REPETITIONS = 20, 2
LEAD_SECONDS = 3e-3
"""From an order to the moment at which all workers start; it must have reached them all by then."""


class Workers:
    """The processes of a sweep, one a rank, in a lab's namespaces. They are told what to do through pipes, which are
    no part of the lab's network."""

    def __init__(self, lab: Lab, processes: Sequence[subprocess.Popen[str]]) -> None:
        self.lab = lab
        self._processes = processes

    def seconds(self, collective: Collective, payload_bytes: int) -> float:
        """One collective of all workers: from an agreed start to the moment at which the last one is done.

        Raises:
            LabError: a worker ended.
        """
        start = time.monotonic() + LEAD_SECONDS
        for process in self._processes:
            with contextlib.suppress(BrokenPipeError):  # That it ended is said below.
                assert process.stdin is not None
                process.stdin.write(json.dumps([collective, payload_bytes, start]) + "\n")
                process.stdin.flush()
        return max(self.answers()) - start

    def answers(self) -> list[float]:
        """What every worker says next."""
        return [self._answer(rank, process) for rank, process in enumerate(self._processes)]

    def _answer(self, rank: int, process: subprocess.Popen[str]) -> float:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise LabError(f"the sweep's worker {rank} ended early, with exit code {process.wait()}; see its message")
        return float(line)


@contextmanager
def workers(lab: Lab) -> Iterator[Workers]:
    """Inside, the lab has gloo workers that are connected. Their processes start here and end here.

    Raises:
        LabError: a worker ended before it was connected.
    """
    with tempfile.TemporaryDirectory(prefix="cserlab-") as folder, contextlib.ExitStack() as stack:
        processes = []
        for rank in range(lab.topology.num_workers):
            processes.append(stack.enter_context(_process(lab, rank, Path(folder) / "meeting")))
        found = Workers(lab, processes)
        found.answers()
        yield found


@contextmanager
def _process(lab: Lab, rank: int, meeting_file: Path) -> Iterator[subprocess.Popen[str]]:
    size = str(lab.topology.num_workers)
    command = [sys.executable, "-m", "harness.netlab.sweep_worker", str(meeting_file), str(rank), size]
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": lab.interface, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        lab.command(rank, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def sweep(
    lab: Lab, sizes: Mapping[Collective, Sequence[int]] = SIZES, among: Workers | None = None
) -> Sweep:
    """Time each collective at each size (payload of one worker, bytes), small ones first.

    Each point repeats for about half a second. A size that would take more than some seconds is left out, and so are
    larger ones.

    Args:
        lab: the network.
        sizes: by collective.
        among: workers that are up in this lab already; by default they are started and ended.

    Raises:
        LabError: a worker ended.
    """
    if among is None:
        with workers(lab) as started:
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


def _points(among: Workers, collective: Collective, payloads: Sequence[int]) -> Iterator[SweepPoint]:
    size, expected = 0, 0.0
    for payload in sorted(payloads):
        if size and (1 + LEAST_REPETITIONS) * expected * payload / size > LONGEST_POINT_SECONDS:
            return
        yield (point := measure(among, collective, payload))
        size, expected = payload, min(point.seconds)


def measure(among: Workers, collective: Collective, payload_bytes: int) -> SweepPoint:
    """One point: a repetition that is left out, then as many as fit into POINT_SECONDS.

    Raises:
        LabError: a worker ended.
    """
    first = among.seconds(collective, payload_bytes)
    repetitions = min(MOST_REPETITIONS, max(LEAST_REPETITIONS, round(POINT_SECONDS / first)))
    before = among.lab.sent()
    seconds = [among.seconds(collective, payload_bytes) for _ in range(repetitions)]
    sent = [[now - then for now, then in zip(*pair, strict=True)] for pair in zip(among.lab.sent(), before, strict=True)]
    num_bytes, frames = (sum(column) / len(sent) / repetitions for column in zip(*sent, strict=True))
    return SweepPoint(
        collective=collective,
        payload_bytes=payload_bytes,
        seconds=seconds,
        wire_bytes=num_bytes,
        wire_frames=frames,
        formula_bytes=formula_bytes(collective, payload_bytes, among.lab.topology),
    )


def formula_bytes(collective: Collective, payload_bytes: int, topology: Topology) -> float:
    """What one machine's link sends in a ring over the ranks, without headers.

    A ring enters and leaves a machine once, however many of its workers are in it: a machine's link carries what one
    worker sends to the next. That is 2(n-1)/n of the payload in an all-reduce, n-1 payloads in an all-gather.
    """
    n = topology.num_workers
    if topology.num_machines == 1:
        return 0.0
    return (2 * (n - 1) / n if collective == "all_reduce" else n - 1) * payload_bytes
