"""Workers as threads and as processes: the same bits and counts, and errors where a collective cannot take place."""

from __future__ import annotations

import multiprocessing
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from algorithms import (
    CollectiveError,
    Collectives,
    Purpose,
    SoloCollectives,
    ThreadCollectives,
    ThreadGroup,
    run_workers,
)
from algorithms.core.traffic import Entry, Traffic
from tests.algorithms import processes
from tests.algorithms.problems import workers

slow_to_start = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def by_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What four processes, started once, found."""
    folder: Path = tmp_path_factory.mktemp("processes")
    # The fork server imports PyTorch once for all; what it starts has no thread or state of this process.
    multiprocessing.get_context("forkserver").set_forkserver_preload(["torch", "torch._dynamo"])
    mp.start_processes(processes.process, (folder,), nprocs=processes.WORLD_SIZE, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes.WORLD_SIZE)]


@slow_to_start
@pytest.mark.parametrize("world_size", [2, 4])
def test_threads_equal_processes_to_the_bit(by_processes: list[dict[str, Any]], world_size: int) -> None:
    for name, key in processes.RUNS:
        by_threads = workers(lambda collectives, n=name, k=key: processes.final_state(collectives, n, k), world_size)  # type: ignore[misc]
        for rank, (parameters, traffic) in enumerate(by_threads):
            others, other_traffic = by_processes[rank][f"runs_of_{world_size}"][name, key]
            assert torch.equal(parameters, others), (name, key, rank)
            assert traffic == other_traffic, (name, key, rank)


def assert_results_equal(threads: dict[str, Any], others: dict[str, Any], exact: bool) -> None:
    for key in [key for key in threads if key != "traffic"]:
        for a, b in zip(threads[key], others[key], strict=True):
            torch.testing.assert_close(a, b, rtol=0 if exact else 1e-6, atol=0)
    assert threads["traffic"] == others["traffic"]


@slow_to_start
def test_each_collective_of_threads_equals_that_of_processes(by_processes: list[dict[str, Any]]) -> None:
    for rank, results in enumerate(workers(processes.every_collective, 4)):
        assert_results_equal(results, by_processes[rank]["collectives"], exact=True)
        assert_results_equal(results, by_processes[rank]["own_all_reduce"], exact=False)


@slow_to_start
@pytest.mark.parametrize("kind", processes.MISSED)
def test_a_missed_collective_of_processes_times_out(by_processes: list[dict[str, Any]], kind: str) -> None:
    for rank in (0, 2, 3):
        missed = by_processes[rank]["missed"][kind]
        assert missed["error"] == "CollectiveError"
        assert "a collective failed" in missed["message"]
        assert processes.PATIENCE - 1 < missed["seconds"] < 60


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_each_collective_does_what_its_name_says(world_size: int) -> None:
    ranks = torch.arange(world_size, dtype=torch.float32)
    for rank, results in enumerate(workers(processes.every_collective, world_size)):
        for shape in [(1,), (7,), (2, 5)]:
            total, mean, first, gathered = results[str(shape)]
            sum_of_all = 0.1 * float((ranks + 1).sum())
            torch.testing.assert_close(total, torch.full(shape, sum_of_all))
            torch.testing.assert_close(mean, torch.full(shape, sum_of_all / world_size))
            torch.testing.assert_close(first, torch.full(shape, 0.1))
            torch.testing.assert_close(gathered[rank], torch.full(shape, 0.1 * (rank + 1)))
            assert gathered.shape == (world_size, *shape)
        for kind, mixing in processes.every_mixing(world_size):
            senders, *messages = results[kind]
            assert tuple(senders.tolist()) == mixing.senders[rank]
            for sender, message in zip(senders, messages, strict=True):
                torch.testing.assert_close(message, torch.full((2, 5), 0.1 * (int(sender) + 1)))
        counts, codes = results["whole"]
        assert counts.tolist() == [sum(range(world_size)), world_size]
        assert codes.tolist() == [[i, 255] for i in range(world_size)]


def test_the_traffic_of_each_collective_is_its_message() -> None:
    numbers = 1 + 7 + 10  # of 32 bits, in three messages
    to_neighbours = 32 * 10 * (2 + 2 + 2)  # of three workers all are neighbours: by a ring, exponential and complete
    for results in workers(processes.every_collective, 3):
        assert results["traffic"] == {
            "gradient": [32 * numbers, 3, 0, 0],
            "error": [32 * numbers, 3, 0, 0],
            "model": [32 * numbers + to_neighbours, 6, 0, to_neighbours],
            "evaluation": [32 * numbers, 3, 32 * numbers, 0],
            "control": [2 * 64 + 2 * 8, 2, 2 * 8, 0],
        }


def test_a_group_of_one_is_free_and_yet_counts() -> None:
    results = processes.every_collective(SoloCollectives())
    assert results["(7,)"][0].tolist() == pytest.approx([0.1] * 7)
    assert results["(7,)"][3].shape == (1, 7)
    assert results["traffic"]["gradient"] == [32 * 18, 3, 0, 0]


def test_traffic_adds_up_and_survives_a_checkpoint() -> None:
    traffic = Traffic()
    for purpose, bits in ((Purpose.GRADIENT, 10), (Purpose.GRADIENT, 5), (Purpose.MODEL, 1), (Purpose.EVALUATION, 100)):
        traffic.add(purpose, bits)
    assert traffic[Purpose.GRADIENT] == Entry(15, 2)
    assert traffic.training_bits == 16
    assert traffic.training() == {"gradient": Entry(15, 2), "error": Entry(), "model": Entry(1, 1)}
    again = Traffic()
    again.load_state_dict(traffic.state_dict())
    assert again == traffic
    again.add(Purpose.ERROR, 1)
    assert again != traffic


def test_sums_are_taken_in_the_order_of_ranks() -> None:
    values = [1e8, 1.0, -1e8, 1.0]  # in 32 bits, (((1e8 + 1) - 1e8) + 1) = 1, and other orders give 0 or 2

    def work(collectives: Collectives) -> float:
        time.sleep(0.02 * (collectives.world_size - collectives.rank))
        tensor = torch.tensor([values[collectives.rank]])
        collectives.all_reduce_sum_(tensor, Purpose.GRADIENT)
        return tensor.item()

    assert workers(work, 4) == [1.0] * 4


def test_time_in_collectives_is_measured() -> None:
    arrives = threading.Event()

    def work(collectives: Collectives) -> float:
        if collectives.rank == 0:
            arrives.set()
        else:
            arrives.wait()
            time.sleep(0.5)
        collectives.all_gather(torch.ones(1), Purpose.CONTROL)
        return collectives.seconds

    patient, _ = run_workers(work, 2, timeout_seconds=60)
    assert patient > 0.05


# Failures among threads.


@pytest.mark.parametrize("kind", ["sum", "gather", "broadcast", "exchange with neighbours"])
def test_a_missed_collective_of_threads_times_out(kind: str) -> None:
    def work(collectives: Collectives) -> dict[str, Any]:
        return processes.missed(collectives, kind)

    first, absent, third = run_workers(work, 3, timeout_seconds=0.3)
    assert absent == {}
    for missed in (first, third):
        assert missed["error"] == "CollectiveError"
        assert "in vain" in missed["message"] and kind in missed["message"]
        assert missed["seconds"] < 20


def test_a_missed_collective_is_an_error_of_the_whole_run() -> None:
    def work(collectives: Collectives) -> None:
        if collectives.rank:
            collectives.all_gather(torch.ones(1), Purpose.CONTROL)

    with pytest.raises(CollectiveError, match=r"waited 0\.2 s in vain for the others to gather"):
        run_workers(work, 3, timeout_seconds=0.2)


def different_shapes(collectives: Collectives) -> None:
    collectives.all_reduce_sum_(torch.ones(3 + collectives.rank), Purpose.GRADIENT)


def different_types(collectives: Collectives) -> None:
    dtype = torch.float64 if collectives.rank else torch.float32
    collectives.all_reduce_sum_(torch.ones(3, dtype=dtype), Purpose.GRADIENT)


def different_kinds(collectives: Collectives) -> None:
    if collectives.rank:
        collectives.all_gather(torch.ones(3), Purpose.GRADIENT)
    else:
        collectives.all_reduce_sum_(torch.ones(3), Purpose.GRADIENT)


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (different_shapes, ["sum (3,)", "sum (4,)"]),
        (different_types, ["float32", "float64"]),
        (different_kinds, ["sum", "gather"]),
    ],
)
def test_workers_that_ask_for_different_collectives_are_told(work: Any, words: list[str]) -> None:
    messages = []

    def watched(collectives: Collectives) -> None:
        try:
            work(collectives)
        except CollectiveError as error:
            messages.append(str(error))
            raise

    with pytest.raises(CollectiveError, match="different collectives"):
        workers(watched, 2)
    assert len(messages) == 2
    for message in messages:
        assert all(word in message for word in words)


class Mishap(Exception):
    """A failure of one worker."""


def test_a_failing_worker_releases_the_others_and_its_own_exception_is_raised() -> None:
    released: list[str] = []

    def work(collectives: Collectives) -> None:
        if collectives.rank == 2:
            time.sleep(0.05)
            raise Mishap("out of luck")
        try:
            collectives.all_reduce_sum_(torch.ones(3), Purpose.GRADIENT)
        except CollectiveError as error:
            released.append(str(error))
            raise

    started = time.monotonic()
    with pytest.raises(Mishap, match="out of luck"):
        run_workers(work, 4, timeout_seconds=60)
    assert time.monotonic() - started < 30
    assert released == ["worker 2 failed: out of luck"] * 3


def test_a_worker_that_comes_after_the_failure_is_told_too() -> None:
    group = ThreadGroup(2, timeout_seconds=60)
    group.abort("worker 0 failed: first")
    group.abort("worker 9 failed: second")
    with group.turn(1), pytest.raises(CollectiveError, match="first"):
        ThreadCollectives(group, 1).all_gather(torch.ones(1), Purpose.CONTROL)


def test_results_come_in_the_order_of_ranks() -> None:
    def work(collectives: Collectives) -> tuple[int, int]:
        time.sleep(0.01 * (3 - collectives.rank))
        return collectives.rank, collectives.world_size

    assert run_workers(work, 3) == [(0, 3), (1, 3), (2, 3)]


@pytest.mark.parametrize("max_active", [1, 2])
def test_no_more_workers_compute_at_once_than_allowed(max_active: int) -> None:
    active, most, lock = 0, 0, threading.Lock()

    def work(collectives: Collectives) -> None:
        nonlocal active, most
        for _ in range(5):
            with lock:
                active += 1
                most = max(most, active)
            time.sleep(0.002)
            with lock:
                active -= 1
            collectives.all_gather(torch.ones(1), Purpose.CONTROL)

    run_workers(work, 4, timeout_seconds=60, max_active=max_active)
    assert most == max_active


def test_how_many_compute_at_once_changes_no_bit() -> None:
    runs = [
        run_workers(lambda c: processes.final_state(c, "cser", "blocks")[0], 3, timeout_seconds=60, max_active=active)
        for active in (1, 3)
    ]
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)
