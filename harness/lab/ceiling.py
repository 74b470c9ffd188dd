"""What this machine can emulate: the highest rates of all links together that its workers still keep busy."""

from __future__ import annotations

from functools import cache

from harness.lab.lab import PREFIX, LabTopology, lab
from harness.lab.sweep import Connected, connected
from harness.lab.topology import LabError, rate_text

BUSY = 0.9
"""Share of a rate that must be reached, frames' headers included."""
PAYLOAD_BYTES = 10_000_000
BEYOND_BITS_PER_SECOND = 100e9
"""Of a link: no limit."""
STEP, MOST_STEPS = 0.8, 12


class CeilingError(LabError):
    """A rate is beyond what this machine can emulate: the point is to be left out, not faked."""


def require_emulatable(topology: LabTopology, prefix: str = PREFIX) -> None:
    """Refuse a topology whose links this machine cannot keep busy. The ceiling is measured once in a process.

    Raises:
        CeilingError: the rates are beyond the ceiling.
        LabError: no lab is possible here.
    """
    if not topology.ring_bits_per_second:
        return
    found = ceiling_bits_per_second(topology.num_workers, prefix)
    if topology.ring_bits_per_second > found:
        raise CeilingError(
            f"this machine cannot emulate {topology}: its {topology.num_workers} workers' links reach "
            f"{rate_text(found)} in all, as measured, of {rate_text(topology.ring_bits_per_second)}; "
            "the point is left out"
        )


@cache
def ceiling_bits_per_second(num_workers: int, prefix: str = PREFIX) -> float:
    """The highest rate of all workers' links together that an all-reduce over gloo reaches to 90 %, each way.

    It is measured with one worker a machine. More of them on one machine cost about the same, since all workers of
    a ring send at one pace and most of their frames then pass a bridge as before.

    Raises:
        LabError: no lab is possible here, or no rate is reached.
    """
    topology = LabTopology(num_workers, 1, BEYOND_BITS_PER_SECOND)
    with lab(topology, prefix=prefix) as network, connected(network) as among:
        rate = reached(among)
        for _ in range(MOST_STEPS):
            network.set_rate(rate)
            if reached(among) >= BUSY * rate:
                return rate * num_workers
            rate *= STEP
    raise LabError(f"this machine reaches 90 % of no rate that was tried, down to {rate_text(rate)} a worker")


def reached(among: Connected) -> float:
    """Bits a second that a machine's link sends during a large all-reduce, headers included; mean over machines.

    The better of two tries: a pause of the machine's is not its ceiling.
    """
    found = []
    for _ in range(2):
        before = among.lab.bytes_sent()
        seconds = among.seconds("all_reduce", PAYLOAD_BYTES)
        found.append(8 * (sum(among.lab.bytes_sent()) - sum(before)) / len(before) / seconds)
    return max(found)
