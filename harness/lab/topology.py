"""What a lab looks like: machines, workers, rates; and the one error that a lab raises."""

from __future__ import annotations

import math
from dataclasses import dataclass

from harness.spec import SpecError

MOST = 250
"""Machines, and workers of a machine: both are a byte of an address."""
LOWEST_RATE = 1e4


class LabError(SpecError):
    """There can be no such lab here: one sentence says why, and what to do."""


@dataclass(frozen=True)
class LabTopology:
    """Machines on one switch, each with as many workers.

    Args:
        num_machines, workers_per_machine: their product is the world size; ranks are contiguous within a machine.
        bits_per_second: what each machine's link to the switch carries, each way, headers included.
        inside_bits_per_second: the same of each worker's link inside its machine; None: nothing limits it. With one
            worker a machine there is no such link.

    Raises:
        LabError: a number or rate that no lab can have.
    """

    num_machines: int
    workers_per_machine: int
    bits_per_second: float
    inside_bits_per_second: float | None = None

    def __post_init__(self) -> None:
        for what, count in (("machines", self.num_machines), ("workers a machine", self.workers_per_machine)):
            if not 1 <= count <= MOST:
                raise LabError(f"a lab has 1 to {MOST} {what}, not {count}")
        for rate in (self.bits_per_second, self.inside_bits_per_second):
            if rate is not None and not (math.isfinite(rate) and rate >= LOWEST_RATE):
                raise LabError(f"a link's rate is at least {rate_text(LOWEST_RATE)}, not {rate:g} bit/s")

    @property
    def num_workers(self) -> int:
        return self.num_machines * self.workers_per_machine

    @property
    def ring_bits_per_second(self) -> float:
        """What all workers' links carry together when a ring of all workers keeps its slowest link busy.

        In a ring all workers send at the same pace, so a limit of some is a limit of all. 0: nothing limits any.
        """
        limits = [self.bits_per_second] if self.num_machines > 1 else []
        if self.workers_per_machine > 1 and self.inside_bits_per_second is not None:
            limits.append(self.inside_bits_per_second)
        return self.num_workers * min(limits, default=0.0)

    def __str__(self) -> str:
        shape = (
            f"{self.num_machines} x {self.workers_per_machine}" if self.workers_per_machine > 1 else self.num_machines
        )
        return f"{shape} x {rate_text(self.bits_per_second)}"


def rate_text(bits_per_second: float) -> str:
    """A rate for people: 200 Mb/s, 2.5 Gb/s."""
    for unit, size in (("Gb/s", 1e9), ("Mb/s", 1e6)):
        if bits_per_second >= size:
            return f"{bits_per_second / size:.4g} {unit}"
    return f"{bits_per_second / 1e3:.4g} kb/s"
