"""The rendezvous: workers of one start meet, and nobody else, whoever listens at their ports."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from algorithms import CollectiveError
from slurm import rendezvous
from slurm.rendezvous import candidates, join_store, open_store, wait_for_all

HOST = "127.0.0.1"


@contextmanager
def listening(port: int) -> Iterator[None]:
    """Something else that has the port, and never says a word."""
    with socket.socket() as listener:
        listener.bind((HOST, port))
        listener.listen(16)
        yield


def meet(key: str) -> list[str]:
    """What three workers read."""
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(open_store, key, HOST, "attempt", 20.0)
        others = [pool.submit(join_store, key, HOST, 20.0) for _ in range(2)]
        stores = [first.result(), *(each.result()[0] for each in others)]
        list(pool.map(lambda store: wait_for_all(store, 3, 20.0), stores))
        return [store.get(key).decode() for store in stores]


def test_ports_are_outside_the_ephemeral_range_and_fresh_for_each_start() -> None:
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = [candidates(f"cluster/8/{restart}") for restart in range(200)]
    assert all(1024 < port < min(low, 32_768) for each in ports for port in each)
    assert candidates("cluster/8/0") == candidates("cluster/8/0")
    assert len({each[0] for each in ports}) > 190
    assert candidates("cluster/9/0") != candidates("cluster/8/0") != candidates("other/8/0")


def test_all_ranks_meet() -> None:
    assert meet("test/all/0") == ["attempt"] * 3


def test_port_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "ANSWER_SECONDS", 0.5)
    with listening(candidates("test/taken/0")[0]):
        assert meet("test/taken/0") == ["attempt"] * 3


def test_store_of_another_job_at_the_same_port_is_not_taken_for_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "ANSWER_SECONDS", 0.5)
    ports = candidates("test/ours/0")
    monkeypatch.setattr(rendezvous, "candidates", lambda key: ports)
    other = open_store("test/other/0", HOST, "another attempt", 20.0)
    assert meet("test/ours/0") == ["attempt"] * 3
    assert other.get("test/other/0") == b"another attempt"


def test_no_free_port_and_no_rank_0_are_said() -> None:
    with listening(candidates("test/full/0")[0]), pytest.raises(CollectiveError, match="no rendezvous"):
        ports = candidates("test/full/0")
        with listening(ports[1]), listening(ports[2]), listening(ports[3]):
            open_store("test/full/0", HOST, "attempt", 5.0)
    with pytest.raises(CollectiveError, match="rank 0 did not open the rendezvous"):
        join_store("test/nobody/0", HOST, 0.3)
