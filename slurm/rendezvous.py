"""Where a job's processes meet: a store on the first node, at a port that all derive from the job and its restart."""

from __future__ import annotations

import datetime
import hashlib
import socket
import time

import torch.distributed as dist

from algorithms import CollectiveError

PORTS = range(20_000, 30_000)
"""Below the ephemeral ports of Linux, from which others' connections take theirs (32768 and up by default)."""

CANDIDATES = 4
"""Ports that are tried, should somebody listen at the first."""

ANSWER_SECONDS = 5.0
"""How long a service may take to show that it is the store that is looked for."""


def candidates(key: str) -> list[int]:
    """The ports of a job's start. Another start, or another job, has others."""
    digest = hashlib.sha256(key.encode()).digest()
    return [PORTS[int.from_bytes(digest[4 * n : 4 * n + 4], "big") % len(PORTS)] for n in range(CANDIDATES)]


def open_store(key: str, address: str, message: str, timeout_seconds: float) -> dist.TCPStore:
    """Rank 0's part: serve the store, and in it, under the key, a message to all.

    Raises:
        CollectiveError: none of the ports is free.
    """
    timeout = datetime.timedelta(seconds=timeout_seconds)
    errors = []
    for port in candidates(key):
        try:
            store = dist.TCPStore(address, port, is_master=True, timeout=timeout, wait_for_workers=False)
        except dist.DistError as error:
            errors.append(f"{port}: {error}")
            continue
        store.set(key, message)
        return store
    raise CollectiveError(f"no rendezvous at {address}: {'; '.join(errors)}")


def join_store(key: str, address: str, timeout_seconds: float) -> tuple[dist.TCPStore, str]:
    """The other ranks' part: find the store and read the message. What else listens at those ports lacks the key.

    Raises:
        CollectiveError: the store was not there in time.
    """
    ends = time.monotonic() + timeout_seconds
    while time.monotonic() < ends:
        for port in candidates(key):
            if not _listens(address, port):
                continue
            try:
                store = dist.TCPStore(address, port, timeout=datetime.timedelta(seconds=ANSWER_SECONDS))
                message = store.get(key).decode()
            except dist.DistError:
                continue
            store.set_timeout(datetime.timedelta(seconds=timeout_seconds))
            return store, message
        time.sleep(0.1)
    raise CollectiveError(f"rank 0 did not open the rendezvous at {address} within {timeout_seconds:g} s")


def _listens(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


def wait_for_all(store: dist.TCPStore, world_size: int, timeout_seconds: float) -> None:
    """Until every rank has come here, so that the store does not end before all have read its message."""
    store.add("seen", 1)
    ends = time.monotonic() + timeout_seconds
    while store.add("seen", 0) < world_size and time.monotonic() < ends:
        time.sleep(0.05)
