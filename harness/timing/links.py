"""What a lab can be: machines and the rate of their links, on one switch or far apart.

Far apart, a relay stands in the switch's place.
The relay holds every packet back, as a long way does (Linux, root). It is a process of its own,
which a lab starts and ends. Each machine's interface is a TUN device whose other end is here, so
the kernel cuts and sums what leaves a machine as for a real link. A machine's end limits what it
sends; what it receives is limited here.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import math
import os
import random
import select
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from cser_bench.harness.records.timings import latency_text
from cser_bench.harness.spec.errors import SpecError

MOST = 250
"""Machines, each a byte of an address; and workers of a machine."""
LOWEST_RATE = 1e4

FRAME_BYTES = 1514
"""An Ethernet frame of the usual 1500 bytes, as the kernel counts it: without preamble, checksum
and gap."""
BURST_SECONDS = 1e-3
"""A link may be ahead of its rate by this much: more than this kernel's timers are late, less than
a message takes."""
QUEUE_BYTES = 1 << 20
"""What waits at each end of a link before frames are dropped, as in a switch with a deep buffer."""
LARGEST_UNIT_BYTES = 60_000
"""Packet size (MTU) of a link with latency: large, so that the relay passes on few packets."""

TUNSETIFF = 0x400454CA
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
CLONE_NEWNET = 0x40000000
"""Constants from Linux's headers if_tun.h and sched.h."""
LARGEST_PACKET = 1 << 16
DESTINATION = 19
"""Where a packet of IPv4 has the last byte of the address that it goes to."""


class LabError(SpecError):
    """There can be no such lab here: one sentence says why, and what to do."""


@dataclass(frozen=True)
class LabTopology:
    """Machines on one switch, each with as many workers.

    Links inside a machine are as fast as they can be.

    Args:
        num_machines: times workers_per_machine, that is the world size; ranks are contiguous within
            a machine.
        bits_per_second: what each machine's link carries, each way, headers included.
        latency_seconds: from one machine to another, one way, in addition to this machine's; above
            0 by a relay.
        jitter_seconds: how much more it is at most, evenly and for each packet. None overtakes
            another on its way to the same machine, so a burst comes nearer the longer time.
    """

    num_machines: int
    workers_per_machine: int
    bits_per_second: float
    latency_seconds: float = 0.0
    jitter_seconds: float = 0.0

    def __post_init__(self) -> None:
        counts = {
            "machines": self.num_machines,
            "workers a machine": self.workers_per_machine,
        }
        for what, count in counts.items():
            if not 1 <= count <= MOST:
                raise LabError(f"a lab has 1 to {MOST} {what}, not {count}")
        if not (
            math.isfinite(self.bits_per_second) and self.bits_per_second >= LOWEST_RATE
        ):
            raise LabError(
                f"a link's rate is at least {rate_text(LOWEST_RATE)}, not {self.bits_per_second:g} "
                "bit/s"
            )
        if self.jitter_seconds and not (
            self.jitter_seconds > 0 and self.latency_seconds
        ):
            raise LabError(
                "a link's jitter is at least 0 s, and there is some only where it has latency"
            )

    @property
    def num_workers(self) -> int:
        return self.num_machines * self.workers_per_machine

    def __str__(self) -> str:
        text = f"{self.num_machines} x "
        if self.workers_per_machine > 1:
            text += f"{self.workers_per_machine} x "
        text += rate_text(self.bits_per_second)
        if self.latency_seconds:
            text += (
                f", {latency_text(self.latency_seconds, self.jitter_seconds)} one way"
            )
        return text


def rate_text(bits_per_second: float) -> str:
    """Write a rate for people: 200 Mb/s, 2.5 Gb/s."""
    for unit, size in (("Gb/s", 1e9), ("Mb/s", 1e6)):
        if bits_per_second >= size:
            return f"{bits_per_second / size:.4g} {unit}"
    return f"{bits_per_second / 1e3:.4g} kb/s"


def burst_bytes(bits_per_second: float) -> int:
    """Size a link's burst: two frames, or what the rate carries in BURST_SECONDS.

    So no small message gets through on an idle time's tokens.
    """
    return max(2 * FRAME_BYTES, round(bits_per_second * BURST_SECONDS / 8))


def unit_bytes(bits_per_second: float) -> int:
    """Size the largest packet on a link with latency.

    It is what the rate carries in BURST_SECONDS, as far as packets go.
    """
    return min(burst_bytes(bits_per_second) - FRAME_BYTES + 1500, LARGEST_UNIT_BYTES)


def enter(namespace: str) -> None:
    """Move this thread into a network namespace. os.setns would do, from Python 3.12 on."""
    with open(namespace) as file:
        libc = ctypes.CDLL(None, use_errno=True)
        # Not 0 is an error; the namespace is this thread's alone.
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(
                ctypes.get_errno(), "cannot enter the network namespace", namespace
            )


def open_tun(namespace: str, interface: str) -> int:
    """Return the file that is the other end of a new TUN device in the namespace."""
    enter(namespace)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    # struct ifreq: the name in 16 bytes, then the flags.
    fcntl.ioctl(
        device, TUNSETIFF, struct.pack("16sH", interface.encode(), IFF_TUN | IFF_NO_PI)
    )
    return device


def relay(
    devices: Sequence[int], latency_seconds: float, jitter_seconds: float, orders: int
) -> None:
    """Pass packets on until `orders` is closed.

    A packet leaves for the machine whose address it has, after those before it at the link's rate,
    and arrives `latency_seconds` later, and a drawn part of `jitter_seconds` more. One that would
    wait behind more than QUEUE_BYTES is dropped.

    Args:
        devices: files, see `open_tun`, of the machines in their order.
        orders: a file, each line of which gives the rate of all links, in bits a second.
    """
    # No limit: the lab gives the order that sets one before it has workers.
    rate = 1e12
    number = 0
    draws = random.Random(0)
    # By machine: when its link will have sent everything given to it, and when the last of it arrives.
    free = [0.0] * len(devices)
    last = [0.0] * len(devices)
    # Heap of (arrival time, serial number, machine, packet); the serial number breaks ties.
    flying: list[tuple[float, int, int, bytes]] = []
    while True:
        wait = None
        if flying:
            wait = max(0.0, flying[0][0] - time.monotonic())
        ready, _, _ = select.select([orders, *devices], [], [], wait)
        if orders in ready:
            lines = os.read(orders, LARGEST_PACKET).split()
            # The lab closed its end: it is over.
            if not lines:
                return
            rate = float(lines[-1])
            os.write(1, b"set\n")
            ready.remove(orders)
        for device in ready:
            packet = os.read(device, LARGEST_PACKET)
            # Machines have the addresses 1, 2, ...
            machine = packet[DESTINATION] - 1
            now = time.monotonic()
            # The kernel also sends IPv6 and multicasts, which go nowhere.
            is_ours = packet[0] >> 4 == 4 and 0 <= machine < len(devices)
            if is_ours and (free[machine] - now) * rate <= 8 * QUEUE_BYTES:
                free[machine] = max(free[machine], now) + 8 * len(packet) / rate
                # A link sends one packet after the other, and only then is it on its way.
                arrives = (
                    free[machine] + latency_seconds + jitter_seconds * draws.random()
                )
                # None overtakes another: TCP takes packets out of order for lost ones.
                last[machine] = max(last[machine], arrives)
                heapq.heappush(flying, (last[machine], number, machine, packet))
                number += 1
        while flying and flying[0][0] <= time.monotonic():
            _, _, machine, packet = heapq.heappop(flying)
            os.write(devices[machine], packet)


def main(
    interface: str, latency_seconds: str, jitter_seconds: str, *namespaces: str
) -> None:
    """Make the devices, say so, and relay.

    The process is in the last machine's namespace by then, with which it is ended.
    """
    devices = [open_tun(namespace, interface) for namespace in namespaces]
    os.write(1, b"made\n")
    relay(devices, float(latency_seconds), float(jitter_seconds), 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
