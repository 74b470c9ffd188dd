"""Starting workers: they meet, are told and heard, and of a failure the one that caused it is named."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist

from harness.workers.process_group import joined
from harness.workers.processes import Worker, WorkerError, start_workers

pytestmark = pytest.mark.timeout(240)  # The first process loads torch.


def summed(worker: Worker, number: float) -> float:
    """The sum over all workers' numbers, scaled by what this one is told."""
    with joined("cpu", 60.0, worker.init_method, worker.rank, worker.world_size):
        worker.pipe.send(("ready", worker.rank))
        own = torch.tensor(number)
        dist.all_reduce(own)
        return float(own) * worker.pipe.recv()


def test_workers_meet_are_told_and_heard() -> None:
    with start_workers(summed, [(1.5,), (2.0,), (4.0,)]) as workers:
        assert workers.hear_all() == [("ready", 0), ("ready", 1), ("ready", 2)]
        for rank, factor in enumerate((1.0, 10.0, 100.0)):
            workers.tell(rank, factor)
        assert workers.hear_all() == [7.5, 75.0, 750.0]
    assert None not in workers.exit_codes()
    assert not os.path.exists(workers.folder.name)


def ends(worker: Worker, how: str) -> str:
    """One of the ways in which a worker can end."""
    if how == "sleeps":
        time.sleep(600)
    elif how == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "fails late":
        time.sleep(0.3)
        raise RuntimeError("no such\n luck")
    elif how == "has a bug":
        raise KeyError("x")
    elif how == "leaves":
        os._exit(0)
    return how


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        (("sleeps", "fails late"), "worker 1 failed: no such luck"),
        (("sleeps", "is killed"), "worker 1 failed: process 1 terminated with signal SIGKILL"),
        (("returns", "has a bug"), "worker 1 failed: KeyError: 'x'"),
        (("leaves",), "worker 0 failed: it ended early"),
    ],
)
def test_who_failed_is_named_and_the_others_are_ended(how: tuple[str, ...], sentence: str) -> None:
    started = time.monotonic()
    with start_workers(ends, [(each,) for each in how]) as workers, pytest.raises(WorkerError) as caught:
        workers.hear_all()
    assert str(caught.value) == sentence
    assert time.monotonic() - started < 200, "the sleeping worker was waited for"
    assert None not in workers.exit_codes()


def test_a_worker_that_says_nothing_is_not_waited_for_without_end() -> None:
    with start_workers(ends, [("sleeps",)]) as workers, pytest.raises(WorkerError, match=r"did not answer in 0\.2 s"):
        workers.hear(0, 0.2)


def test_what_returns_is_heard_after_the_process_ended() -> None:
    with start_workers(ends, [("returns",)]) as workers:
        workers.context.processes[0].join()
        assert workers.hear(0) == "returns"
