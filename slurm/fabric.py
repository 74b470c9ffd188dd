"""The network between a job's processes: whether it leads from node to node, and what an all-reduce gets through it."""

from __future__ import annotations

import fcntl
import os
import platform
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from algorithms import CollectiveError

PROBE_BYTES = {"cuda": 64_000_000, "cpu": 8_000_000}
"""What is reduced, by kind of device: enough that latency hardly counts."""

REPEATS = 5
SIOCGIFADDR = 0x8915
"""Linux's request for the IPv4 address of an interface (netdevice(7))."""


@dataclass(frozen=True)
class Place:
    """Where a process is, and how the others would reach it: `address` is "" where that cannot be told.

    `machine` is the same for all nodes that one kernel holds; nodes may be virtual.
    """

    host: str
    machine: str
    interface: str
    address: str
    interfaces: tuple[str, ...]


def this_place(device: str) -> Place:
    """Where this process is, and the address that NCCL on GPUs, or gloo, would tell the others."""
    gpu = device != "cpu"
    interface = os.environ.get("NCCL_SOCKET_IFNAME" if gpu else "GLOO_SOCKET_IFNAME", "")
    interfaces = tuple(name for _, name in socket.if_nameindex())
    if interface:
        address = _address_of(interface)
    elif gpu:  # NCCL takes the loopback only where there is nothing else.
        others = [name for name in interfaces if not name.startswith(("lo", "docker"))]
        address = next(filter(None, map(_address_of, others)), "127.0.0.1")
    else:  # gloo takes what the machine's own name resolves to.
        address = _resolved(socket.gethostname())
    machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return Place(os.environ.get("SLURMD_NODENAME") or platform.node(), machine, interface, address, interfaces)


def _address_of(interface: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            packed = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        except OSError:
            return ""
    return socket.inet_ntoa(packed[20:24])


def _resolved(name: str) -> str:
    try:
        return socket.gethostbyname(name)
    except OSError:
        return ""


def no_way(places: Sequence[Place]) -> str | None:
    """Why the processes cannot reach each other, in a sentence; None where nothing speaks against it."""
    advice = "set network_interface in the profile to the one between nodes (`ip -brief address` on a node)"
    for place in places:
        # NCCL also takes the beginning of a name, and lists.
        plain = place.interface.isalnum()
        if plain and not any(name.startswith(place.interface) for name in place.interfaces):
            has = ", ".join(place.interfaces)
            return f"node {place.host} has no network interface {place.interface}, but {has}; {advice}"
    if len({place.machine for place in places}) == 1:
        return None
    for place in places:
        if place.address.startswith("127."):
            by = f"its interface {place.interface}" if place.interface else "the address of its own name"
            return (
                f"the network only reaches loopback: node {place.host} would have the others call {place.address}, "
                f"{by}, which leads each back to itself; {advice}"
            )
    return None


def all_reduce_bits_per_second(device: str) -> float:
    """What one link carries while all workers of the group reduce a vector: 2 (n - 1) / n of it, as in a ring.

    All must call it. A tree, which NCCL may take for few bytes, would carry another share.

    Raises:
        CollectiveError: the sum is wrong.
        RuntimeError: a backend's error, as where the others cannot be reached.
    """
    world_size, kind = dist.get_world_size(), torch.device(device).type
    numbers = torch.ones(PROBE_BYTES[kind] // 4, device=device)
    dist.all_reduce(numbers)
    if not bool((numbers == world_size).all()):
        raise CollectiveError(f"{world_size} ones sum up to {numbers.min().item():g} to {numbers.max().item():g}")
    numbers.zero_()
    started = _now(kind)
    for _ in range(REPEATS):
        dist.all_reduce(numbers)
    seconds = _now(kind) - started
    return 2 * (world_size - 1) / world_size * 8 * PROBE_BYTES[kind] * REPEATS / seconds


def _now(kind: str) -> float:
    if kind == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def in_words(measured: float, promised: float | None, num_workers: int, nodes: int) -> str:
    """An all-reduce's rate beside what the profile says of a node's link; bits per second."""
    text = f"an all-reduce among {num_workers} workers on {nodes} nodes gets {measured / 1e9:.3g} Gb/s through a link"
    if promised is None:
        return text
    text += f"; the profile says {promised / 1e9:g}"
    return f"{text}, so look at network_interface, or ask the site" if measured < promised / 2 else text
