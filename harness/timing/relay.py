"""A relay between a lab's machines in place of a switch: it holds every packet back, as a long way does. Linux, root.

It is a process of its own, which a lab starts and ends. Each machine's interface is a TUN device whose other end is
here, so the kernel cuts and sums what leaves a machine as for a real link. A machine's end limits what it sends; what
it receives is limited here.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import select
import struct
import sys
import time
from collections.abc import Sequence

from harness.timing.links import QUEUE_BYTES

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
LARGEST_PACKET = 1 << 16
DESTINATION = 19
"""Where a packet of IPv4 has the last byte of the address that it goes to."""


def enter(namespace: str) -> None:
    """Moves this thread into a network namespace. os.setns would do, from Python 3.12 on.

    Raises:
        OSError: there is no such namespace, or it cannot be entered.
    """
    with open(namespace) as file:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "cannot enter the network namespace", namespace)


def open_tun(namespace: str, interface: str) -> int:
    """Returns the file that is the other end of a new TUN device in the namespace."""
    enter(namespace)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", interface.encode(), IFF_TUN | IFF_NO_PI))
    return device


def relay(devices: Sequence[int], latency_seconds: float, orders: int) -> None:
    """Passes packets on until `orders` is closed, from where each line gives the rate of all links, in bits a second.

    A packet leaves for the machine whose address it has, after those before it at the link's rate, and arrives
    `latency_seconds` later. One that would wait behind more than QUEUE_BYTES is dropped.
    """
    rate, number = 1e12, 0
    free = [0.0] * len(devices)
    """When the link to a machine will have sent what was given to it."""
    flying: list[tuple[float, int, int, bytes]] = []
    while True:
        wait = max(0.0, flying[0][0] - time.monotonic()) if flying else None
        ready, _, _ = select.select([orders, *devices], [], [], wait)
        if orders in ready:
            lines = os.read(orders, LARGEST_PACKET).split()
            if not lines:
                return
            rate = float(lines[-1])
            os.write(1, b"set\n")
            ready.remove(orders)
        for device in ready:
            packet = os.read(device, LARGEST_PACKET)
            machine, now = packet[DESTINATION] - 1, time.monotonic()
            is_ours = packet[0] >> 4 == 4 and 0 <= machine < len(devices)
            if is_ours and (free[machine] - now) * rate <= 8 * QUEUE_BYTES:
                free[machine] = max(free[machine], now) + 8 * len(packet) / rate
                heapq.heappush(flying, (free[machine] + latency_seconds, number, machine, packet))
                number += 1
        while flying and flying[0][0] <= time.monotonic():
            _, _, machine, packet = heapq.heappop(flying)
            os.write(devices[machine], packet)


def main(interface: str, latency_seconds: str, *namespaces: str) -> None:
    """Makes the devices, says so, and relays; it ends in the last machine's namespace, with which it is ended."""
    devices = [open_tun(namespace, interface) for namespace in namespaces]
    os.write(1, b"made\n")
    relay(devices, float(latency_seconds), 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
