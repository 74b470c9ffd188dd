"""Where a job's processes meet: at ports of the first node that all derive from the job and its restart."""

from __future__ import annotations

import datetime
import hashlib
import json
import socket
import time
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from algorithms import CollectiveError

PORTS = range(20_000, 30_000)
"""Below the ephemeral ports of Linux, from which others' connections take theirs (32768 and up by default)."""

CANDIDATES = 8
"""Ports that are tried, should somebody listen at the first ones. Two are needed."""

ANSWER_SECONDS = 5.0
"""How long a peer may take to say a word: whoever else listens at a port may never do so."""


@dataclass(frozen=True)
class Meeting:
    """What all ranks have after they met: a store for the process group, and rank 0's message."""

    store: TCPStore
    message: str


def candidates(key: str) -> list[int]:
    """The ports of a job's start. Another start, or another job, has others."""
    digest = hashlib.sha256(key.encode()).digest()
    return [PORTS[int.from_bytes(digest[4 * n : 4 * n + 4], "big") % len(PORTS)] for n in range(CANDIDATES)]


def invite(key: str, address: str, message: str, world_size: int, timeout_seconds: float) -> Meeting:
    """Rank 0's part: open a store, and tell every other rank its port and the message. Returns when all have come.

    Raises:
        CollectiveError: no port is free, or not all ranks came in time.
    """
    ends = time.monotonic() + timeout_seconds
    with _listener(key) as listener:
        store = _open_store(key, address, timeout_seconds)
        greeting = json.dumps({"key": key, "port": store.port, "message": message}).encode() + b"\n"
        missing = world_size - 1
        while missing:
            listener.settimeout(max(0.01, ends - time.monotonic()))
            try:
                guest, _ = listener.accept()
            except TimeoutError:
                raise CollectiveError(f"{missing} workers did not come within {timeout_seconds:g} s") from None
            missing -= _greet(guest, greeting)
    return Meeting(store, message)


def join(key: str, address: str, timeout_seconds: float) -> Meeting:
    """The other ranks' part: find rank 0 by its greeting, which has the key, and open its store.

    Raises:
        CollectiveError: rank 0 was not there in time.
    """
    ends = time.monotonic() + timeout_seconds
    while time.monotonic() < ends:
        for port in candidates(key):
            said = _ask(address, port, key)
            if said is not None:
                timeout = datetime.timedelta(seconds=timeout_seconds)
                return Meeting(TCPStore(address, said["port"], timeout=timeout), said["message"])
        time.sleep(0.1)
    raise CollectiveError(f"rank 0 did not open the rendezvous at {address} within {timeout_seconds:g} s")


def _listener(key: str) -> socket.socket:
    errors = []
    for port in candidates(key):
        try:
            return socket.create_server(("", port), backlog=1024)
        except OSError as error:
            errors.append(f"{port}: {error.strerror}")
    raise CollectiveError(f"no port is free for the rendezvous: {'; '.join(errors)}")


def _open_store(key: str, address: str, timeout_seconds: float) -> TCPStore:
    errors = []
    for port in candidates(key):
        try:
            return TCPStore(
                address,
                port,
                is_master=True,
                timeout=datetime.timedelta(seconds=timeout_seconds),
                wait_for_workers=False,
            )
        except dist.DistError as error:
            errors.append(f"{port}: {error}")
    raise CollectiveError(f"no store for the rendezvous at {address}: {'; '.join(errors)}")


def _greet(guest: socket.socket, greeting: bytes) -> bool:
    """Whether the guest is one of the workers: it says so after it has read the greeting."""
    with guest:
        guest.settimeout(ANSWER_SECONDS)
        try:
            guest.sendall(greeting)
            return guest.recv(2) == b"ok"
        except OSError:
            return False


def _ask(address: str, port: int, key: str) -> dict[str, Any] | None:
    """The greeting at this port, if it is that of the key."""
    try:
        with socket.create_connection((address, port), timeout=ANSWER_SECONDS) as host:
            said: dict[str, Any] = json.loads(host.makefile("rb").readline())
            if not isinstance(said, dict) or said.get("key") != key:
                return None
            host.sendall(b"ok")
            return said
    except (OSError, ValueError):
        return None
