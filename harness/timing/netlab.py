"""The command `netlab`: what rates this machine can emulate, a sweep at each, a record of each, and a table."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from statistics import median

from tabulate import tabulate

from harness.records.store import write_record
from harness.records.timings import SweepPoint
from harness.timing.lab import Lab, lab, why_not
from harness.timing.links import LabError, LabTopology, rate_text
from harness.timing.sweep import Seconds, connected, sweep_lab

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


def run(num_workers: int, num_machines: int | None, rates: list[float], output: Path) -> None:
    """Sweep at each rate (bits a second of a machine's link) that this machine can emulate.

    Raises:
        LabError: no lab is possible here, the workers cannot be laid out so, or no rate can be emulated.
    """
    if reason := why_not():
        raise LabError(reason)
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
    workers of a ring send at one pace.

    Raises:
        LabError: no lab is possible here, or no rate is reached.
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
