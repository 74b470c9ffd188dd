"""The lab's namespaces, links and rates: their names, and the lines for `ip` and `tc` that make them so."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from harness.spec import SpecError

MOST = 250
"""Machines, and workers of a machine: both are a byte of an address."""
LOWEST_RATE = 1e4

FRAME_BYTES = 1514
"""An Ethernet frame of the usual 1500 bytes, as the kernel counts it: without preamble, checksum and gap."""
BURST_SECONDS = 1e-3
"""A link may be ahead of its rate by this much: more than this kernel's timers are late, less than a message takes."""
NETWORK = "10.83.0.0/16"
CONGESTION_CONTROL = "cubic"
"""Linux's usual one, whatever the host is set to: BBR, for one, stops every ten seconds to look for a shorter way."""
MOST_FRAMES = 65535
"""The kernel's own bound of a piece."""
QUEUE_BYTES = 1 << 20
"""What waits at each end of a link before frames are dropped, as in a switch with a deep buffer."""


class LabError(SpecError):
    """There can be no such lab here: one sentence says why, and what to do."""


@dataclass(frozen=True)
class LabTopology:
    """Machines on one switch, each with as many workers. Links inside a machine are as fast as they can be.

    Args:
        num_machines, workers_per_machine: their product is the world size; ranks are contiguous within a machine.
        bits_per_second: what each machine's link to the switch carries, each way, headers included.

    Raises:
        LabError: a number or rate that no lab can have.
    """

    num_machines: int
    workers_per_machine: int
    bits_per_second: float

    def __post_init__(self) -> None:
        for what, count in (("machines", self.num_machines), ("workers a machine", self.workers_per_machine)):
            if not 1 <= count <= MOST:
                raise LabError(f"a lab has 1 to {MOST} {what}, not {count}")
        if not (math.isfinite(self.bits_per_second) and self.bits_per_second >= LOWEST_RATE):
            raise LabError(f"a link's rate is at least {rate_text(LOWEST_RATE)}, not {self.bits_per_second:g} bit/s")

    @property
    def num_workers(self) -> int:
        return self.num_machines * self.workers_per_machine

    @property
    def ring_bits_per_second(self) -> float:
        """What all workers' links carry together when a ring of all workers keeps the machines' links busy.

        In a ring all workers send at the same pace, so a limit of some is a limit of all.
        """
        return self.num_workers * self.bits_per_second

    def __str__(self) -> str:
        workers = f"{self.workers_per_machine} x " if self.workers_per_machine > 1 else ""
        return f"{self.num_machines} x {workers}{rate_text(self.bits_per_second)}"


def rate_text(bits_per_second: float) -> str:
    """A rate for people: 200 Mb/s, 2.5 Gb/s."""
    for unit, size in (("Gb/s", 1e9), ("Mb/s", 1e6)):
        if bits_per_second >= size:
            return f"{bits_per_second / size:.4g} {unit}"
    return f"{bits_per_second / 1e3:.4g} kb/s"


@dataclass(frozen=True)
class VethPair:
    """One veth pair: an interface in a worker's or machine's namespace, and a port of a bridge."""

    namespace: str
    interface: str
    bridge_namespace: str
    port: str

    def ends(self) -> tuple[tuple[str, str], tuple[str, str]]:
        return (self.namespace, self.interface), (self.bridge_namespace, self.port)


@dataclass(frozen=True)
class LabLayout:
    """All names of a lab begin with its prefix and a hyphen; none of its interfaces is outside of its namespaces."""

    prefix: str
    topology: LabTopology

    @property
    def interface(self) -> str:
        """The worker's, in its namespace."""
        return f"{self.prefix}-eth"

    def worker(self, rank: int) -> str:
        """The namespace of a rank."""
        return f"{self.prefix}-w{rank}"

    def address(self, rank: int) -> str:
        machine, place = divmod(rank, self.topology.workers_per_machine)
        return f"10.83.{machine}.{place + 1}"  # In NETWORK.

    def uplinks(self) -> list[VethPair]:
        """The machines' links to the switch, in order: of a machine's one worker, or of the machine's own bridge."""
        alone = self.topology.workers_per_machine == 1
        interface = self.interface if alone else f"{self.prefix}-up"
        machines = [f"{self.prefix}-m{index}" for index in range(self.topology.num_machines)]
        return [
            VethPair(self.worker(index) if alone else machine, interface, f"{self.prefix}-switch", machine)
            for index, machine in enumerate(machines)
        ]

    def inside_links(self) -> list[VethPair]:
        """The workers' links to their machine's bridge, by rank; none where a machine has one worker."""
        per_machine, workers = self.topology.workers_per_machine, range(self.topology.num_workers)
        return [
            VethPair(self.worker(rank), self.interface, f"{self.prefix}-m{rank // per_machine}", self.worker(rank))
            for rank in workers
            if per_machine > 1
        ]

    def bridge_namespaces(self) -> list[str]:
        """The switch, and the machines that have several workers."""
        links = [*self.uplinks(), *self.inside_links()]
        return list(dict.fromkeys(link.bridge_namespace for link in links))

    def namespaces(self) -> list[str]:
        return [*self.bridge_namespaces(), *(self.worker(rank) for rank in range(self.topology.num_workers))]


def creating_lines(layout: LabLayout) -> Iterator[str]:
    """Lines for `ip` outside: the namespaces, and the links between them."""
    for namespace in layout.namespaces():
        yield f"netns add {namespace}"
    for link in [*layout.uplinks(), *layout.inside_links()]:
        near, far = (f"name {interface} netns {namespace}" for namespace, interface in link.ends())
        yield f"link add {near} type veth peer {far}"


def inside_lines(layout: LabLayout) -> dict[str, list[str]]:
    """Lines for `ip` inside each namespace. IPv6 stays off and bridges do not chat: nothing but workers send."""
    lines = {namespace: ["link set lo up"] for namespace in layout.namespaces()}
    bridge, bridged = f"{layout.prefix}-br", layout.bridge_namespaces()
    for namespace in bridged:
        lines[namespace] += [
            f"link add {bridge} type bridge stp_state 0 mcast_snooping 0",
            f"link set {bridge} addrgenmode none",
            f"link set {bridge} up",
        ]
    for link in [*layout.uplinks(), *layout.inside_links()]:
        for namespace, interface in link.ends():
            master = f"master {bridge} " if namespace in bridged else ""
            lines[namespace] += [f"link set {interface} {master}addrgenmode none", f"link set {interface} up"]
    for rank in range(layout.topology.num_workers):
        lines[layout.worker(rank)] += [
            f"addr add {layout.address(rank)}/16 dev {layout.interface} noprefixroute",
            f"route add {NETWORK} dev {layout.interface} src {layout.address(rank)} congctl {CONGESTION_CONTROL}",
        ]
    return lines


def limiting_lines(layout: LabLayout, verb: str) -> dict[str, list[str]]:
    """Lines for `tc` inside each namespace: a token bucket at both ends of machines' links; `verb` is add or change."""
    lines: dict[str, list[str]] = {}
    rate = layout.topology.bits_per_second
    limit = f"tbf rate {round(rate)}bit burst {burst_bytes(rate)} limit {QUEUE_BYTES}"
    for link in layout.uplinks():
        for namespace, interface in link.ends():
            lines.setdefault(namespace, []).append(f"qdisc {verb} dev {interface} root {limit}")
    return lines


def burst_bytes(bits_per_second: float) -> int:
    """Two frames, or what the rate carries in BURST_SECONDS: no small message gets through on an idle time's tokens."""
    return max(2 * FRAME_BYTES, round(bits_per_second * BURST_SECONDS / 8))


def train_lines(layout: LabLayout) -> dict[str, list[str]]:
    """Lines for `ip` inside each worker's namespace: how many frames TCP may hand down in one piece.

    A piece larger than the burst would be cut into frames by the limit, one by one, which takes much more CPU.
    Sockets look the number up with their route, so that is forgotten: those that are open would keep the old one.
    """
    frames = burst_bytes(layout.topology.bits_per_second) // FRAME_BYTES
    lines = [f"link set {layout.interface} gso_max_segs {min(frames, MOST_FRAMES)}", "route flush cache"]
    return {layout.worker(rank): lines for rank in range(layout.topology.num_workers)}
