"""Sweeps: what collectives take on a network, by size, and what its links sent.

The command `netlab` sweeps at each of some rates that this machine can emulate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

from cser_bench.harness.measures.steps import ring_bytes
from cser_bench.harness.records.provenance import new_attempt
from cser_bench.harness.records.store import VERSION, Attempt, write_record
from cser_bench.harness.records.timings import Collective, Fabric, Sweep, SweepPoint
from cser_bench.harness.timing.lab import Lab, lab
from cser_bench.harness.timing.links import (
    LabError,
    LabTopology,
    burst_bytes,
    rate_text,
)
from cser_bench.harness.timing.worker import Do, TimingWorker, connected

SIZES = (
    1_000,
    4_000,
    16_000,
    64_000,
    250_000,
    1_000_000,
    2_500_000,
    10_000_000,
    64_000_000,
)
PAYLOADS: dict[Collective, tuple[int, ...]] = {
    "all_reduce": SIZES,
    "all_gather": (*SIZES[:6], 4_000_000),
    "exchange": SIZES,
}
"""Payload of one worker, in bytes; of an exchange on a ring, both messages together."""
POINT_SECONDS = 0.5
LONGEST_POINT_SECONDS = 8.0
MOST_REPETITIONS = 20
LEAST_REPETITIONS = 3
LEAD_SECONDS = 3e-3
"""Time from an order to the moment at which all workers start; it must have reached them all by
then."""

BUSY = 0.9
"""Share of a rate that must be reached, frames' headers included, for a machine to count as able to
emulate it."""
CEILING_PAYLOAD_BYTES = 10_000_000
BEYOND_BITS_PER_SECOND = 100e9
"""A link's rate that is no limit."""
STEP = 0.8
MOST_STEPS = 12
"""Search for the ceiling: factor from one bandwidth to the next, and how many are tried at most."""

Sent = Sequence[tuple[int, int]]


def seconds_of(
    do: Do, network: Fabric, collective: Collective, payload_bytes: int
) -> float:
    """Time one collective of all workers, from when the last begins until the last is done.

    A lab's processes read one clock, so an agreed moment is a barrier that sends nothing. That some
    are late, as they contend for cores, is no part of the time. Links have their burst to give at
    the start, as after a backward pass. Elsewhere a collective begins after a barrier, and its time
    is the slowest worker's.
    """
    if network.kind == "host":
        times = do(TimingWorker.collective, collective, payload_bytes, None)
        return float(max(done - began for began, done in times))
    assert network.bits_per_second is not None
    burst_seconds = 8 * burst_bytes(network.bits_per_second) / network.bits_per_second
    # Links idle until then, so that each has all of its burst.
    start = time.monotonic() + max(LEAD_SECONDS, burst_seconds)
    began, done = zip(
        *do(TimingWorker.collective, collective, payload_bytes, start), strict=True
    )
    return float(max(done) - max(began))


def fabric(topology: LabTopology, dilation: float = 1.0) -> Fabric:
    """Describe a lab as records know it."""
    return Fabric(kind="netlab", backend="gloo", dilation=dilation, **asdict(topology))


def sweep_lab(network: Lab, do: Do) -> Sweep:
    """Sweep the lab at the rate that its links have now."""
    attempt = new_attempt("netlab", "gloo", torch.device("cpu"))
    return sweep(attempt, fabric(network.topology), do, network.sent)


def sweep(
    attempt: Attempt, network: Fabric, do: Do, sent: Callable[[], Sent] = list
) -> Sweep:
    """Time each collective at each size, small ones first.

    A size that would take more than some seconds is left out, and so are larger ones.

    Args:
        sent: counts bytes and frames that each machine's link sent so far; empty: nobody counts.
    """
    points: list[SweepPoint] = []
    # A host's rate is not known: its sizes are bounded by what was measured alone.
    pace = network.bits_per_second or math.inf
    for collective, payloads in PAYLOADS.items():
        timed_bytes = 0.0
        expected = 0.0
        for payload in payloads:
            formula = ring_bytes(collective, payload, network.num_workers)
            # The last size's best time, and what the bytes beyond it take at the full rate.
            expected += 8 * (formula - timed_bytes) / pace
            # One repetition is left out, and the least number count.
            if (1 + LEAST_REPETITIONS) * expected > LONGEST_POINT_SECONDS:
                break
            once = partial(seconds_of, do, network, collective, payload)
            # A repetition that is left out, then as many as fit.
            fitting = round(POINT_SECONDS / once())
            repetitions = min(MOST_REPETITIONS, max(LEAST_REPETITIONS, fitting))
            # After the repetition that is left out: its packets do not count either.
            before = sent()
            seconds = [once() for _ in range(repetitions)]
            wire = [None, None]
            if before:
                wire = (np.subtract(sent(), before).mean(axis=0) / repetitions).tolist()
            timed_bytes = formula
            # The best: others were disturbed.
            expected = min(seconds)
            points.append(
                SweepPoint(
                    collective=collective,
                    payload_bytes=payload,
                    seconds=seconds,
                    wire_bytes=wire[0],
                    wire_frames=wire[1],
                    # Inside one machine nothing passes a link.
                    formula_bytes=formula if network.num_machines > 1 else 0.0,
                )
            )
    return Sweep(version=VERSION, attempt=attempt, fabric=network, points=points)


def netlab(
    num_workers: int, num_machines: int | None, rates: list[float], output: Path
) -> None:
    """Sweep at each rate that this machine can emulate.

    What each rate's largest messages reached is printed, acknowledgements and headers included.

    Args:
        rates: bits a second of a machine's link.

    Raises:
        LabError: it can emulate none.
    """
    num_machines = num_machines or num_workers
    if num_machines < 2 or num_workers % num_machines:
        raise LabError(
            f"{num_workers} workers are not as many on each of {num_machines} machines, two at the "
            "least"
        )
    topologies = [
        LabTopology(num_machines, num_workers // num_machines, rate)
        for rate in sorted(rates, reverse=True)
    ]
    # All links at once: the kernel of one machine carries them all.
    ceiling = ceiling_bits_per_second(num_workers)
    possible = [
        topology
        for topology in topologies
        if num_workers * topology.bits_per_second <= ceiling
    ]
    for topology in topologies[: len(topologies) - len(possible)]:
        wanted = rate_text(num_workers * topology.bits_per_second)
        reached = (
            f"its links reach {rate_text(ceiling)} in all, as measured, of {wanted}"
        )
        print(
            f"netlab: this machine cannot emulate {topology}: {reached}; the point is left out",
            flush=True,
        )
    if not possible:
        raise LabError(
            "none of the rates can be emulated on this machine: ask for lower ones"
        )
    with lab(possible[0]) as network, connected(network) as do:
        for topology in possible:
            network.set_rate(topology.bits_per_second)
            print(f"netlab: {topology}", flush=True)
            swept = sweep_lab(network, do)
            write_record(output / record_name(topology), swept)
            largest = {point.collective: point for point in swept.points}
            for point in largest.values():
                _print_point(point, topology.bits_per_second)
    print(f"netlab: all sizes, and what links sent, are in {output}")


def _print_point(point: SweepPoint, bits_per_second: float) -> None:
    seconds = median(point.seconds)
    reached = 8 * (point.wire_bytes or 0.0) / seconds
    print(
        f"netlab:   {point.collective} of {point.payload_bytes / 1e3:,.0f} kB took "
        f"{1e3 * seconds:.2f} ms, at {rate_text(reached)}, "
        f"{100 * reached / bits_per_second:.1f} % of the rate",
        flush=True,
    )


def record_name(topology: LabTopology) -> str:
    """Name the file of a sweep's record."""
    layout = f"{topology.num_machines}x{topology.workers_per_machine}"
    return f"sweep-{layout}-{topology.bits_per_second / 1e6:g}mbps.json"


@cache
def ceiling_bits_per_second(num_workers: int) -> float:
    """Find the highest rate of all workers' links together, each way.

    It is one that an all-reduce over gloo reaches to 90 %, measured with one worker a machine, once
    in a process. More of them on one machine cost no more, since all workers of a ring send at one
    pace.

    Raises:
        LabError: no lab is possible here, or no rate is reached.
    """
    topology = LabTopology(num_workers, 1, BEYOND_BITS_PER_SECOND)
    with lab(topology) as network, connected(network) as do:
        # Without a limit: what the machine carries at best, and an upper bound for the search.
        rate = _reached(network, do)
        for _ in range(MOST_STEPS):
            network.set_rate(rate)
            if _reached(network, do) >= BUSY * rate:
                return rate * num_workers
            # Down in a geometric series: rates matter by their ratio.
            rate *= STEP
    raise LabError(
        f"this machine reaches 90 % of no rate that was tried, down to {rate_text(rate)} a worker"
    )


def _reached(network: Lab, do: Do) -> float:
    """Measure the bits a second that links send during a large all-reduce, headers included.

    It is the mean over machines, and the better of two tries: a pause of the machine's is not its
    ceiling.
    """
    tries = []
    for _ in range(2):
        before = network.sent()
        seconds = seconds_of(
            do, fabric(network.topology), "all_reduce", CEILING_PAYLOAD_BYTES
        )
        after = network.sent()
        sent = [now - then for (now, _), (then, _) in zip(after, before, strict=True)]
        tries.append(8 * sum(sent) / len(sent) / seconds)
    return max(tries)
