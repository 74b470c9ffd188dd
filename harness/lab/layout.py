"""How a topology becomes namespaces, bridges and limited links: pure data, and the lines for `ip` and `tc`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.lab.topology import LabTopology

FRAME_BYTES = 1514
"""An Ethernet frame of the usual 1500 bytes, as the kernel counts it: without preamble, checksum and gap."""
BURST_SECONDS = 1e-3
"""A link may be ahead of its rate by this much: more than this kernel's timers are late, less than a message takes."""
NETWORK = "10.83.0.0/16"
CONGESTION_CONTROL = "cubic"
"""Linux's usual one, whatever the host is set to: BBR, for one, stops every ten seconds to look for a shorter way."""
MOST_FRAMES = 65535
"""In one piece, by the kernel's own bound."""
QUEUE_BYTES = 1 << 20
"""What waits at each end of a link before frames are dropped, as in a switch with a deep buffer."""


@dataclass(frozen=True)
class VethPair:
    """One veth pair: an interface in a worker's or machine's namespace, and a port of a bridge."""

    namespace: str
    interface: str
    bridge_namespace: str
    port: str
    bits_per_second: float | None

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

    @property
    def bridge(self) -> str:
        return f"{self.prefix}-br"

    @property
    def switch(self) -> str:
        return f"{self.prefix}-switch"

    def worker(self, rank: int) -> str:
        return f"{self.prefix}-w{rank}"

    def machine(self, index: int) -> str:
        """The namespace at the machine's end of its link: of its one worker, or of its bridge."""
        return self.worker(index) if self.topology.workers_per_machine == 1 else f"{self.prefix}-m{index}"

    def address(self, rank: int) -> str:
        machine, place = divmod(rank, self.topology.workers_per_machine)
        return f"10.83.{machine}.{place + 1}"  # In NETWORK.

    def uplinks(self) -> list[VethPair]:
        """The machines' links to the switch, in order."""
        alone = self.topology.workers_per_machine == 1
        interface = self.interface if alone else f"{self.prefix}-up"
        rate = self.topology.bits_per_second
        return [
            VethPair(self.machine(index), interface, self.switch, f"{self.prefix}-m{index}", rate)
            for index in range(self.topology.num_machines)
        ]

    def inside_links(self) -> list[VethPair]:
        """The workers' links to their machine's bridge, by rank; none where a machine has one worker."""
        per_machine = self.topology.workers_per_machine
        if per_machine == 1:
            return []
        rate = self.topology.inside_bits_per_second
        return [
            VethPair(
                self.worker(rank), self.interface, self.machine(rank // per_machine), f"{self.prefix}-w{rank}", rate
            )
            for rank in range(self.topology.num_workers)
        ]

    def bridge_ports(self) -> dict[str, list[str]]:
        """The interfaces on the bridge of each namespace that has one."""
        ports: dict[str, list[str]] = {self.switch: []}
        for link in self.uplinks():
            ports[self.switch].append(link.port)
            if self.topology.workers_per_machine > 1:
                ports[link.namespace] = [link.interface]
        for link in self.inside_links():
            ports[link.bridge_namespace].append(link.port)
        return ports

    def namespaces(self) -> list[str]:
        workers = [self.worker(rank) for rank in range(self.topology.num_workers)]
        return [*self.bridge_ports(), *workers]


def creating_lines(layout: LabLayout) -> Iterator[str]:
    """For `ip` outside: the namespaces, and the links between them."""
    for namespace in layout.namespaces():
        yield f"netns add {namespace}"
    for link in [*layout.uplinks(), *layout.inside_links()]:
        near, far = (f"name {interface} netns {namespace}" for namespace, interface in link.ends())
        yield f"link add {near} type veth peer {far}"


def inside_lines(layout: LabLayout) -> dict[str, list[str]]:
    """For `ip` inside each namespace. IPv6 stays off and bridges do not chat, so that nothing but workers send."""
    ports = layout.bridge_ports()
    lines = {namespace: ["link set lo up"] for namespace in layout.namespaces()}
    for namespace in ports:
        lines[namespace].append(f"link add {layout.bridge} type bridge stp_state 0 mcast_snooping 0")
        lines[namespace].append(f"link set {layout.bridge} addrgenmode none")
        lines[namespace].append(f"link set {layout.bridge} up")
    for link in [*layout.uplinks(), *layout.inside_links()]:
        for namespace, interface in link.ends():
            master = f"master {layout.bridge} " if interface in ports.get(namespace, ()) else ""
            lines[namespace].append(f"link set {interface} {master}addrgenmode none")
            lines[namespace].append(f"link set {interface} up")
    for rank in range(layout.topology.num_workers):
        lines[layout.worker(rank)] += [
            f"addr add {layout.address(rank)}/16 dev {layout.interface} noprefixroute",
            f"route add {NETWORK} dev {layout.interface} src {layout.address(rank)} congctl {CONGESTION_CONTROL}",
        ]
    return lines


def limiting_lines(links: list[VethPair], verb: str) -> dict[str, list[str]]:
    """For `tc` inside each namespace: both ends of each link that has a limit; `verb` is add or change."""
    lines: dict[str, list[str]] = {}
    for link in links:
        if link.bits_per_second is not None:
            limit = bucket(link.bits_per_second)
            for namespace, interface in link.ends():
                lines.setdefault(namespace, []).append(f"qdisc {verb} dev {interface} root {limit}")
    return lines


def bucket(bits_per_second: float) -> str:
    """The token bucket of one end of a link, as `tc` has it."""
    return f"tbf rate {round(bits_per_second)}bit burst {burst_bytes(bits_per_second)} limit {QUEUE_BYTES}"


def burst_bytes(bits_per_second: float) -> int:
    """Two frames, or what the rate carries in BURST_SECONDS: no small message gets through on an idle time's tokens."""
    return max(2 * FRAME_BYTES, round(bits_per_second * BURST_SECONDS / 8))


def train_lines(layout: LabLayout) -> dict[str, list[str]]:
    """For `ip` inside each worker's namespace: how many frames TCP may hand down in one piece.

    A piece larger than the burst would be cut into frames by the limit, one by one, which takes much more CPU.
    Sockets look the number up with their route, so that is forgotten: those that are open would keep the old one.
    """
    rates = layout.topology.bits_per_second, layout.topology.inside_bits_per_second
    frames = min(burst_bytes(rate) // FRAME_BYTES for rate in rates if rate is not None)
    lines = [f"link set {layout.interface} gso_max_segs {min(frames, MOST_FRAMES)}", "route flush cache"]
    return {layout.worker(rank): lines for rank in range(layout.topology.num_workers)}
