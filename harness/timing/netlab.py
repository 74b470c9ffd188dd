"""The command: a sweep at each rate in a lab, a record of each, and a table of rates and bytes."""

from __future__ import annotations

import statistics
from pathlib import Path

from tabulate import tabulate

from harness.records.store import write_record
from harness.records.timings import Sweep, SweepPoint
from harness.timing.lab import PREFIX, lab, why_not
from harness.timing.layout import LabError, LabTopology, rate_text
from harness.timing.study import record_name
from harness.timing.sweep import ceiling_bits_per_second, connected, sweep

HEADER_BYTES = 66
"""Of each frame: Ethernet 14, IP 20, TCP with timestamps 32. A frame that only acknowledges is nothing else."""
COLUMNS = (
    "rate asked",
    "reached",
    "%",
    "collective",
    "payload kB",
    "ms",
    "wire kB",
    "/ payload",
    "formula kB",
    "headers kB",
    "other kB",
)


def run(num_workers: int, num_machines: int | None, rates: list[float], output: Path, prefix: str = PREFIX) -> None:
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
    ceiling = ceiling_bits_per_second(num_workers, prefix)
    possible = [topology for topology in topologies if topology.ring_bits_per_second <= ceiling]
    for topology in topologies:
        if topology not in possible:
            print(
                f"netlab: this machine cannot emulate {topology}: its links reach {rate_text(ceiling)} in all, "
                f"as measured, of {rate_text(topology.ring_bits_per_second)}; the point is left out",
                flush=True,
            )
    if not possible:
        raise LabError("none of the rates can be emulated on this machine: ask for lower ones")
    rows = []
    with lab(possible[0], prefix=prefix) as network, connected(network) as among:
        for topology in possible:
            network.set_rate(topology.bits_per_second)
            print(f"netlab: {topology}", flush=True)
            found = sweep(among.group())
            write_record(output / record_name(topology), found)
            rows += table_rows(found)
    print(tabulate(rows, COLUMNS, floatfmt=("", "", ".1f", "", ",.0f", ".2f", ",.1f", ".3f", ",.1f", ",.1f", ",.1f")))
    print(
        "\nBytes are what one machine's link sent for one collective, as its interface counted them. Headers are "
        f"{HEADER_BYTES} bytes of each frame\n(Ethernet, IP, TCP), acknowledgements included; other is what remains "
        "beside the formula: gloo's own messages, and what was sent again.\n"
        f"The largest message of each rate is shown; all are in {output}."
    )


def table_rows(found: Sweep) -> list[list[object]]:
    """The largest message of each collective."""
    largest: dict[str, SweepPoint] = {point.collective: point for point in found.points}
    asked = found.fabric.bits_per_second
    assert asked is not None, "a lab's links are limited"
    return [_row(point, asked) for point in largest.values()]


def _row(point: SweepPoint, asked: float) -> list[object]:
    wire, frames = point.wire_bytes, point.wire_frames
    assert wire is not None and frames is not None, "a lab counts"
    seconds = statistics.median(point.seconds)
    reached = 8 * wire / seconds
    kilobytes = [wire / 1e3, wire / point.payload_bytes, point.formula_bytes / 1e3]
    headers = HEADER_BYTES * frames
    return [
        rate_text(asked),
        rate_text(reached),
        100 * reached / asked,
        point.collective,
        point.payload_bytes / 1e3,
        1e3 * seconds,
        *kilobytes,
        headers / 1e3,
        (wire - headers - point.formula_bytes) / 1e3,
    ]
