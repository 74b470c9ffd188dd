"""How much longer a message in two stages takes than its hops and bytes, by the clock.

In two stages all workers send to all others at once, which costs more than a ring of the same bytes.
"""

from __future__ import annotations

from functools import cache
from statistics import fmean, median

from cser_bench.harness.records.shipped import SHIPPED
from cser_bench.harness.records.store import read_record
from cser_bench.harness.records.timings import Timing
from cser_bench.report.speed.cost_model import (
    HOP_SECONDS,
    Link,
    Links,
    Network,
    collective_seconds,
)

SESSIONS = tuple(sorted((SHIPPED / "scored_speedups").glob("table-*.json")))
"""Emulated sessions of the settings of README's table on images, on ResNet-50 and V100s."""


@cache
def two_stage_factor() -> float:
    """Return the time that messages in two stages took, over that of their hops and bytes.

    It is the median over methods and bandwidths of `SESSIONS`.
    """
    factors: list[float] = []
    for path in SESSIONS:
        factors += _factors_in(read_record(path, Timing))
    return median(factors)


def _factors_in(session: Timing) -> list[float]:
    """Return the factor of each method with one message, in two stages, at each bandwidth."""
    payloads = {
        method.name: method.messages[0].payload_bytes
        for method in session.methods
        if [message.collective for message in method.messages] == ["two_stages"]
    }
    factors = []
    for timed in session.timed_steps:
        # A step that sends nothing was timed without a bandwidth.
        if timed.method not in payloads or timed.bits_per_second is None:
            continue
        taken = fmean(timed.seconds) - session.workload.compute_seconds
        expected = _seconds(session, timed.bits_per_second, payloads[timed.method])
        factors.append(taken / expected)
    return factors


def _seconds(session: Timing, bits_per_second: float, payload_bytes: int) -> float:
    """Return what the hops and bytes of a message take on a session's machines."""
    between = Link(HOP_SECONDS, 8 / bits_per_second)
    links = Links(between, inside=Link(0.0, 0.0))
    fabric = session.fabric
    network = Network(
        fabric.num_machines, fabric.workers_per_machine, {"two_stages": links}
    )
    return collective_seconds(network, "two_stages", payload_bytes)
