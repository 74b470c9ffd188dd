"""Workers as processes: what user scripts do to them, and collectives, also where these cannot take
place."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cser_bench.algorithms import Collectives, Purpose
from tests.algorithms import processes
from tests.algorithms.problems import run_processes, stacked, workers

slow_to_start = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def by_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What four processes, started once, found."""
    return run_processes(
        processes.process, processes.WORLD_SIZE, tmp_path_factory.mktemp("processes")
    )


@pytest.mark.whole
@slow_to_start
@pytest.mark.parametrize("key", processes.KEYS)
def test_a_script_of_ones_own(by_processes: list[dict[str, Any]], key: str) -> None:
    """Also with overlap, which changes no bit: what would change a message afterwards is
    refused."""
    told = [(rank, results["cases"][key]) for rank, results in enumerate(by_processes)]
    wrong = [f"rank {rank}: {raised}" for rank, raised in told if raised]
    assert not wrong, "\n".join(wrong)


@pytest.mark.whole
@slow_to_start
def test_processes_do_what_workers_of_one_process_do(
    by_processes: list[dict[str, Any]],
) -> None:
    """The stated tolerance between launchers: only the order of a sum's additions may differ."""
    for number, run in enumerate(processes.runs()):
        final_state = partial(processes.final_state, run=run)
        here = workers(final_state, processes.WORLD_SIZE)
        for (parameters, traffic), results in zip(here, by_processes, strict=True):
            others, other_traffic = results["runs"][number]
            torch.testing.assert_close(
                parameters, others, rtol=1e-4, atol=1e-5, msg=str(run)
            )
            del (
                traffic["control"],
                other_traffic["control"],
            )  # processes look at each other's gradients once
            assert traffic == other_traffic, run


@pytest.mark.whole
@slow_to_start
def test_a_worker_that_is_left_over_meets_nobody(
    by_processes: list[dict[str, Any]],
) -> None:
    """Three processes in pairs do what three stacked workers do, and count the same."""
    for number, (name, own) in enumerate(processes.LEFT_OVER):
        optimizer, rows = stacked(name, own, 3, processes.NUM_STEPS)
        training = optimizer.traffic.training()
        assert training == optimizer.expected_traffic(processes.NUM_STEPS).training()
        expected = {
            purpose: list(astuple(entry)) for purpose, entry in training.items()
        }
        for row, results in zip(rows, by_processes, strict=False):
            parameters, traffic = results["left over"][number]
            torch.testing.assert_close(parameters, row, rtol=1e-4, atol=1e-5)
            assert {key: traffic[key] for key in expected} == expected


@pytest.mark.whole
@slow_to_start
@pytest.mark.parametrize("kind", processes.MISSED)
def test_a_missed_collective_of_processes_times_out(
    by_processes: list[dict[str, Any]], kind: str
) -> None:
    waited = []
    for rank in (0, 2, 3):
        said, seconds = by_processes[rank]["missed"][kind]
        assert "a collective failed" in said
        assert seconds < 60
        assert (kind, rank) != ("consensus", 0) or said.startswith(
            "all workers must enter consensus()"
        )
        waited.append(seconds)
    # The first whose time is over ends the others' waiting, who may have come later.
    assert max(waited) > processes.PATIENCE - 1


@pytest.mark.whole
@slow_to_start
def test_who_freezes_a_parameter_alone_is_told_so(
    by_processes: list[dict[str, Any]],
) -> None:
    """By those who see it; the others' collectives fail, as these do not come any more."""
    said = [results["froze alone"] for results in by_processes]
    assert all(said), said
    assert any("frozen parameters = [[0]] on rank 0" in words for words in said), said


FAILING = """
import gc, os, sys, time, torch
import torch._dynamo  # which the first optimiser would import in each rank
from cser_bench.algorithms import SGD

# Torch is imported once: the ranks are forks, each of which goes on as a script of its own. What
# is frozen they do not visit as they end, which would copy all of torch.
gc.freeze()
ranks = []
for rank in range(3):
    ranks.append(os.fork())
    if not ranks[rank]:
        os.environ["RANK"] = str(rank)
        said = os.open(f"{folder}/{{rank}}.txt", os.O_CREAT | os.O_WRONLY)
        os.dup2(said, 1)
        os.dup2(said, 2)
        break
else:
    for process in ranks:
        os.waitpid(process, 0)
    sys.exit()

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


@pytest.mark.whole
@slow_to_start
@pytest.mark.parametrize(
    ("rank", "fails", "waits", "words"),
    [
        (
            1,
            "raise KeyError('sample 17')",
            "optimizer.step()",
            "rank 1 raised KeyError: 'sample 17'",
        ),
        (
            1,
            "raise SystemExit(3)",
            "optimizer.step()",
            r"rank 1 .* called sys.exit\(\)",
        ),
        (
            1,
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "optimizer.step()",
            r"a worker's process has ended and told nothing, as one that is killed \(by SIGKILL",
        ),
        # This rank keeps the group's store, as there is no torchrun: its reason may go with it.
        (
            0,
            "optimizer.state_dict(1)",
            "optimizer.consensus().__enter__()",
            "rank 0 (raised TypeError: .*state|is gone)",
        ),
    ],
)
def test_who_failed_first_is_named_to_others(
    rank: int, fails: str, waits: str, words: str, tmp_path: Path
) -> None:
    """In a script of one's own, where an exception ends the process: within seconds, and not after
    the time-out."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    script = FAILING.format(rank=rank, fails=fails, waits=waits, folder=tmp_path)
    env = {
        **os.environ,
        "WORLD_SIZE": "3",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
    }
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", script], env=env, cwd=root, check=True)
    said = [(tmp_path / f"{each}.txt").read_text() for each in range(3)]
    assert "CollectiveError" not in said.pop(rank)
    for each in said:
        assert re.search(f"CollectiveError: .*a collective failed: {words}", each), each
        seconds, *_ = re.findall(r"([0-9.]+) seconds", each)
        assert float(seconds) < 60


def test_time_in_collectives_is_measured() -> None:
    is_about_to_wait = threading.Event()

    def work(collectives: Collectives) -> float:
        if collectives.rank == 1:
            is_about_to_wait.wait()
            time.sleep(0.5)
        is_about_to_wait.set()
        collectives.all_gather(torch.ones(1), Purpose.CONTROL)
        return sum(collectives.elapsed.seconds().values())

    patient, _ = workers(work, 2)
    assert patient > 0.1
