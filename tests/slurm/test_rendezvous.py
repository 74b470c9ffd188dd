"""The rendezvous: workers of one start meet, and nobody else, whoever listens at their ports."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from algorithms import CollectiveError
from slurm import rendezvous
from slurm.rendezvous import candidates, invite, join

HOST = "127.0.0.1"


@contextmanager
def listening(*ports: int) -> Iterator[None]:
    """Something else that has these ports, and never says a word."""
    with ExitStack() as stack:
        for port in ports:
            stack.enter_context(socket.create_server((HOST, port)))
        yield


def meet(key: str, num_workers: int = 3) -> None:
    """Have workers meet, and each leave a word for the others in the store."""
    with ThreadPoolExecutor(num_workers) as pool:
        first = pool.submit(invite, key, HOST, "attempt", num_workers, 20.0)
        others = [pool.submit(join, key, HOST, 20.0) for _ in range(num_workers - 1)]
        meetings = [each.result() for each in (first, *others)]
    assert [each.message for each in meetings] == ["attempt"] * num_workers
    for number, meeting in enumerate(meetings):
        meeting.store.set(f"word {number}", key)
    for meeting in meetings:
        assert [meeting.store.get(f"word {number}") for number in range(num_workers)] == [key.encode()] * num_workers


def test_ports_are_outside_the_ephemeral_range_and_fresh_for_each_start() -> None:
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = [candidates(f"cluster/8/{restart}") for restart in range(200)]
    assert all(1024 < port < min(low, 32_768) for each in ports for port in each)
    assert candidates("cluster/8/0") == candidates("cluster/8/0")
    assert len({each[0] for each in ports}) > 190
    assert candidates("cluster/9/0") != candidates("cluster/8/0") != candidates("other/8/0")


def test_all_ranks_meet() -> None:
    meet("test/all/0")


def test_one_worker_meets_nobody() -> None:
    meet("test/one/0", 1)


def test_ports_that_are_taken_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "ANSWER_SECONDS", 0.3)
    first, _, third, *_ = candidates("test/taken/0")
    with listening(first, third):
        meet("test/taken/0")


def test_workers_of_another_job_at_the_same_ports_are_not_taken_for_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = candidates("test/ours/0")
    monkeypatch.setattr(rendezvous, "candidates", lambda key: ports)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(invite, "test/other/0", HOST, "another attempt", 2, 20.0)
        meet("test/ours/0")
        assert join("test/other/0", HOST, 20.0).message == "another attempt"
        other.result()


def test_no_free_port_no_rank_0_and_no_others_are_said() -> None:
    with listening(*set(candidates("test/full/0"))), pytest.raises(CollectiveError, match="no port is free"):
        invite("test/full/0", HOST, "attempt", 2, 5.0)
    with pytest.raises(CollectiveError, match="rank 0 did not open the rendezvous"):
        join("test/nobody/0", HOST, 0.3)
    with pytest.raises(CollectiveError, match=r"1 workers did not come within 0\.3 s"):
        invite("test/alone/0", HOST, "attempt", 2, 0.3)
