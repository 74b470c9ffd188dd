"""Starts workers inside a lab, each in the network namespace of its rank."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from harness.workers.processes import Worker, WorkerProcesses, start_workers

CLONE_NEWNET = 0x40000000


class Namespaces(Protocol):
    """What is needed of a lab; see `harness.lab.lab.Lab`."""

    interface: str

    def namespace(self, rank: int) -> Path | None:
        """The file of the rank's namespace; None: that of this process."""


def start_inside(
    network: Namespaces, work: Callable[..., object], arguments: Sequence[tuple[Any, ...]]
) -> WorkerProcesses:
    """As `start_workers`, inside the network. Pipes are no part of it, and so is the file by which workers meet."""
    places = [(network.namespace(rank), network.interface, work) for rank in range(len(arguments))]
    whole = [(*place, *own) for place, own in zip(places, arguments, strict=True)]
    return start_workers(_inside, whole, preload=(work.__module__,))


def _inside(
    worker: Worker, namespace: Path | None, interface: str, work: Callable[..., object], *arguments: object
) -> object:
    if namespace is not None:
        _enter(namespace)
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    return work(worker, *arguments)


def _enter(namespace: Path) -> None:
    """As `ip netns exec`, for this thread and those that it starts. os.setns would do, from Python 3.12 on."""
    with open(namespace) as file:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "cannot enter the network namespace", str(namespace))
