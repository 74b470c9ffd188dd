"""Workers as processes: what user scripts do to them, overlap, and collectives, also where these cannot take place."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from algorithms import Collectives, Purpose
from tests.algorithms import overlap_scripts, processes, user_scripts
from tests.algorithms.problems import NAMES, run_processes, workers

slow_to_start = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def by_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What four processes, started once, found."""
    return run_processes(processes.process, processes.WORLD_SIZE, tmp_path_factory.mktemp("processes"))


@slow_to_start
@pytest.mark.parametrize("case", user_scripts.CASES)
@pytest.mark.parametrize("name", NAMES)
def test_a_script_of_ones_own(by_processes: list[dict[str, Any]], name: str, case: str) -> None:
    told = [(rank, results["scripts"][case, name]) for rank, results in enumerate(by_processes)]
    wrong = [f"rank {rank}: {raised}" for rank, raised in told if raised]
    assert not wrong, "\n".join(wrong)


@slow_to_start
def test_what_the_guide_shows_runs_as_it_stands(by_processes: list[dict[str, Any]]) -> None:
    for results in by_processes:
        said = results["printed"]
        assert "evaluated 1302 parameters" in said and "worker " in said and " of 4" in said
        assert "training in all" in said and "MCSER(gradient_compressor=BlockSparsifier(ratio=512" in said


@slow_to_start
@pytest.mark.parametrize("key", overlap_scripts.KEYS)
def test_overlap_changes_no_bit_and_what_would_change_a_message_afterwards_is_refused(
    by_processes: list[dict[str, Any]], key: str
) -> None:
    wrong = [f"rank {rank}: {results['overlap'][key]}" for rank, results in enumerate(by_processes)]
    assert all(each.endswith(": None") for each in wrong), "\n".join(wrong)


@slow_to_start
def test_under_a_grad_scaler_nothing_is_sent_early(by_processes: list[dict[str, Any]]) -> None:
    words = "overlap: a GradScaler takes the scale out of the gradients in step(), so nothing is sent before step()"
    assert all(results["said"] == [words] for results in by_processes)


@slow_to_start
@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_do_what_workers_of_one_process_do(by_processes: list[dict[str, Any]], world_size: int) -> None:
    """The stated tolerance between launchers: only the order of a sum's additions may differ."""
    for name, key in processes.RUNS:
        here = workers(lambda collectives, n=name, k=key: processes.final_state(collectives, n, k), world_size)  # type: ignore[misc]
        for rank, (parameters, traffic) in enumerate(here):
            others, other_traffic = by_processes[rank][f"runs_of_{world_size}"][name, key]
            torch.testing.assert_close(parameters, others, rtol=1e-4, atol=1e-5, msg=f"{name} {key} {rank}")
            del traffic["control"], other_traffic["control"]  # processes look at each other's gradients once
            assert traffic == other_traffic, (name, key, rank)


@slow_to_start
@pytest.mark.parametrize("kind", processes.MISSED)
def test_a_missed_collective_of_processes_times_out(by_processes: list[dict[str, Any]], kind: str) -> None:
    for rank in (0, 2, 3):
        missed = by_processes[rank]["missed"][kind]
        assert missed["error"] == "CollectiveError"
        assert "a collective failed" in missed["message"]
        assert (kind, rank) != ("consensus", 0) or missed["message"].startswith("all workers must enter consensus()")
        assert processes.PATIENCE - 1 < missed["seconds"] < 60


FAILING = """
import time, torch
from algorithms import SGD
torch.distributed.init_process_group("gloo")
optimizer = SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1)
optimizer.param_groups[0]["params"][0].sum().backward()
optimizer.step()
started = time.monotonic()
try:
    if torch.distributed.get_rank() == {rank}: {fails}
    {waits}
finally:
    print(f"{{time.monotonic() - started:.1f}} seconds", flush=True)
"""


@slow_to_start
@pytest.mark.parametrize(
    ("rank", "fails", "waits", "words"),
    [
        (1, "raise KeyError('sample 17')", "optimizer.step()", "rank 1 raised KeyError: 'sample 17'"),
        # This rank keeps the group's store, as there is no torchrun: its reason may go with it.
        (
            0,
            "optimizer.state_dict(1)",
            "optimizer.consensus().__enter__()",
            "rank 0 (raised TypeError: .*state|is gone)",
        ),
    ],
)
def test_who_failed_first_is_named_to_others(rank: int, fails: str, waits: str, words: str) -> None:
    """In a script of one's own, where an exception ends the process: within seconds, and not after the time-out."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", FAILING.format(rank=rank, fails=fails, waits=waits)]
    env = {**os.environ, "WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    pipe: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "cwd": Path(__file__).parents[2]}
    started = [subprocess.Popen(command, env={**env, "RANK": each}, text=True, **pipe) for each in "012"]
    said = [process.communicate()[0] for process in started]
    assert "CollectiveError" not in said.pop(rank)
    for each in said:
        assert re.search(f"CollectiveError: .*a collective failed: {words}", each), each
        assert float(re.findall(r"([0-9.]+) seconds", each)[0]) < 60


@slow_to_start
@pytest.mark.parametrize("world_size", [1, 2, 4, "4 processes"])
def test_each_collective_does_what_its_name_says(by_processes: list[dict[str, Any]], world_size: int | str) -> None:
    if isinstance(world_size, str):
        world_size, found = 4, [results["collectives"] for results in by_processes]
    else:
        found = workers(processes.every_collective, world_size)
    ranks = torch.arange(world_size, dtype=torch.float32)
    for rank, results in enumerate(found):
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
            "control": [2 * 64 + 2 * 8 + 2 * 7 * 16, 4, 2 * 8, 0],
        }


def test_time_in_collectives_is_measured() -> None:
    def work(collectives: Collectives) -> float:
        time.sleep(0.2 * collectives.rank)
        collectives.all_gather(torch.ones(1), Purpose.CONTROL)
        return sum(collectives.elapsed.seconds().values())

    patient, _ = workers(work, 2)
    assert patient > 0.05
