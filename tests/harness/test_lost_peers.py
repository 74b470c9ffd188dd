"""Processes of a run: they meet, are told and heard, and of a failure the one that caused it is
named."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cser_bench.algorithms import CollectiveError
from cser_bench.harness.records.endings import write_failure
from cser_bench.harness.records.store import Failure, read_record
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.tasks import blobs
from cser_bench.harness.train.training import Job
from cser_bench.harness.workers import process_group
from cser_bench.harness.workers.attempt import (
    ActiveRun,
    Resources,
    attempt_as_rank,
    close,
)
from cser_bench.harness.workers.process_group import joined
from cser_bench.harness.workers.processes import (
    Worker,
    WorkerError,
    WorkerProcesses,
    start_workers,
)
from cser_bench.harness.workers.temporary import YOUNG_SECONDS
from tests.harness.support import (
    DoctoredBlobs,
    call,
    environment,
    job_for,
    small_config,
)

# Who fails says so before its group ends


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Any:
    """How often the process group was destroyed: with NCCL a worker that does so while others wait
    for it hangs."""
    destroy = dist.destroy_process_group
    calls = list[str]()

    def counted() -> None:
        calls.append("destroyed")
        destroy()

    monkeypatch.setattr(dist, "destroy_process_group", counted)
    yield calls
    if dist.is_initialized():
        destroy()


def alone(
    folder: Path, hook: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> tuple[Job, bool]:
    """A run of one process that calls `hook` before each batch, and whether it has a result."""
    monkeypatch.setattr(blobs, "TASK", DoctoredBlobs(hook=hook))
    job = job_for(small_config(num_workers=1), folder)
    folder.mkdir(exist_ok=True)
    return job, attempt_as_rank(job, 0, f"file://{folder}/rendezvous")


def test_group_ends_after_success_alone(
    ended: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(rank: int, step: int) -> None:
        raise MemoryError("no room")

    assert alone(tmp_path / "whole", lambda rank, step: None, monkeypatch)[1]
    assert ended == ["destroyed"]
    ended.clear()
    job, done = alone(tmp_path / "broken", out_of_memory, monkeypatch)
    assert not done
    assert ended == []
    assert read_record(job.folder / "failure.json", Failure).kind == "oom"


@pytest.mark.parametrize("stands", [True, False])
def test_a_process_whose_group_still_stands_ends_before_pythons_own_end(
    stands: bool, tmp_path: Path
) -> None:
    """Torch's threads may abort that end, as what is registered here does."""
    script = f"""
import atexit, os
import torch.distributed as dist
from cser_bench.harness.workers.processes import end_process
if {stands}:
    dist.init_process_group(
        "gloo", init_method="file://{tmp_path}/meeting", rank=0, world_size=1
    )
atexit.register(os.abort)
print("said")
end_process(3)
"""
    ended = call([sys.executable, "-c", script], tmp_path)
    assert ended.returncode == (3 if stands else -signal.SIGABRT)
    assert not stands or ended.stdout == "said\n"


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (
            "init_process_group",
            RuntimeError("Gloo connectFullMesh failed: Connection refused"),
        ),
        ("init_process_group", dist.DistNetworkError("Connection refused")),
        ("broadcast_object_list", ConnectionResetError(104, "Connection refused")),
    ],
)
def test_worker_that_went_before_the_first_step_is_a_lost_connection(
    call: str,
    error: Exception,
    ended: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(dist, call, refused)
    job, done = alone(tmp_path, lambda rank, step: None, monkeypatch)
    assert not done
    assert ended == []
    failure = read_record(job.folder / "failure.json", Failure)
    assert failure.kind == "communication"
    assert "Connection refused" in failure.message


# Who waits in vain is ended by NCCL's watchdog, by SIGABRT

WAITED = (
    "[rank1]:[E618 ProcessGroupNCCL.cpp:1] [Rank 1] Watchdog caught collective operation timeout: "
    "WorkNCCL(SeqNum=4, "
    "OpType=ALLREDUCE, NumelIn=9437184, NumelOut=9437184, Timeout(ms)=9000) ran for 9007 "
    "milliseconds before timing "
    "out.\n[rank1]:[E618 ProcessGroupNCCL.cpp:2] [PG ID 0 PG GUID 0(default_pg) Rank 1] Process "
    "group watchdog thread "
    "terminated with exception: [Rank 1] Watchdog caught collective operation timeout: "
    "WorkNCCL(SeqNum=4)\n"
    "terminate called after throwing an instance of 'c10::DistBackendError'\n"
)
HEARD = (
    "[rank0]:[E618] [PG ID 0 Rank 0] Process group watchdog thread terminated with exception: "
    "CUDA error: "
)
"""What the watchdog says where it, and not the worker, was the first to hear of a kernel that
failed."""


ABORTED = -signal.SIGABRT
KILLED = -signal.SIGKILL


@pytest.mark.parametrize(
    ("codes", "said", "kind"),
    [
        ([ABORTED, ABORTED], WAITED, "communication"),
        (
            [KILLED, ABORTED],
            WAITED,
            "communication",
        ),  # which the launcher killed after a time of grace
        (
            [ABORTED, ABORTED],
            WAITED + HEARD + "an illegal memory access was encountered\n",
            "bug",
        ),
        ([ABORTED, ABORTED], HEARD + "out of memory\n" + WAITED, "oom"),
        ([KILLED, -signal.SIGSEGV], "", "bug"),
        ([1, ABORTED], WAITED, "disk"),  # as a worker has recorded
    ],
)
def test_end_by_the_watchdog_is_told_from_others(
    codes: list[int], said: str, kind: str, tmp_path: Path
) -> None:
    job, before = job_for(small_config(), tmp_path), WAITED  # an earlier attempt's
    job.folder.mkdir(parents=True)
    (job.folder / "log.txt").write_text(before + said)
    if kind == "disk":
        write_failure(
            job.folder, job.run.run_id, job.attempt.attempt, kind, "its own words", ""
        )
    ended: Any = SimpleNamespace(
        processes=[SimpleNamespace(exitcode=code) for code in codes], error_files=[]
    )
    workers = WorkerProcesses(ended, [], TemporaryDirectory())
    sentence = str(
        close(ActiveRun(job, Resources((), ()), workers, log_start=len(before)))
    )
    failure = read_record(job.folder / "failure.json", Failure)
    assert failure.kind == kind
    assert sentence.startswith(f"{kind}: {failure.message}")
    assert ("its own words" if kind == "disk" else "log.txt") in failure.message
    assert said or "ended with code -11" in failure.message


def test_nccl_waits_as_long_as_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(process_group, "identity", lambda device: device)
    monkeypatch.setattr(
        dist,
        "init_process_group",
        lambda backend, **options: given.update(options, backend=backend),
    )
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with joined("cuda:0", 17.0, f"file://{tmp_path}/rendezvous", 0, 1):
        assert given["backend"] == "nccl"
        assert given["timeout"] == timedelta(seconds=17)


# Starting workers


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
        (
            ("sleeps", "is killed"),
            "worker 1 failed: process 1 terminated with signal SIGKILL",
        ),
        (("returns", "has a bug"), "worker 1 failed: KeyError: 'x'"),
        (("leaves",), "worker 0 failed: it ended early"),
    ],
)
def test_who_failed_is_named_and_the_others_are_ended(
    how: tuple[str, ...], sentence: str
) -> None:
    started = time.monotonic()
    with (
        start_workers(ends, [(each,) for each in how]) as workers,
        pytest.raises(WorkerError) as caught,
    ):
        workers.hear_all()
    assert str(caught.value) == sentence
    assert time.monotonic() - started < 200, "the sleeping worker was waited for"
    assert None not in workers.exit_codes()


def test_a_worker_that_says_nothing_is_not_waited_for_without_end() -> None:
    with (
        start_workers(ends, [("sleeps",)]) as workers,
        pytest.raises(WorkerError, match=r"did not answer in 0\.2 s"),
    ):
        workers.hear(0, 0.2)


STARTS_WORKERS = """
import sys, time
from cser_bench.harness.workers.processes import start_workers
from tests.harness.test_lost_peers import ends
if __name__ == "__main__":
    with start_workers(ends, [("answers",)]) as workers:
        workers.hear_all()
        print("ready", flush=True)
        time.sleep(float(sys.argv[1]))
"""


def test_what_a_killed_program_left_in_the_temporary_folder_goes_at_the_next_start(
    tmp_path: Path,
) -> None:
    """Of a program that is on it stays, however old."""
    script = tmp_path / "starts.py"
    script.write_text(STARTS_WORKERS)
    # Not under `tmp_path`, which is too long for the name of a socket.
    with TemporaryDirectory() as place:
        _check_what_is_left(script, Path(place))


def _check_what_is_left(script: Path, place: Path) -> None:

    def start(seconds: float) -> subprocess.Popen[str]:
        program = subprocess.Popen(
            [sys.executable, str(script), str(seconds)],
            env={**environment(), "TMPDIR": str(place)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        return program

    def left() -> set[Path]:
        # torch has a cache there, which is for all programs.
        found = set(place.iterdir()) - set(place.glob("torchinductor*"))
        for folder in found:
            long_ago = time.time() - 2 * YOUNG_SECONDS
            os.utime(folder, (long_ago, long_ago))
        return found

    killed = start(600)
    of_killed = left()
    assert len(of_killed) == 1, "one folder holds all that a program makes"
    on = start(600)
    assert left() > of_killed
    of_on = left() - of_killed
    killed.kill()
    killed.communicate()
    assert left() == of_killed | of_on
    last = start(0)
    last.communicate(timeout=60)
    assert left() == of_on
    on.kill()
    on.communicate()


# Who does not come, or has been given something else


def meets(worker: Worker, number: int, seconds: float, ranks: int) -> str:
    """What a rank hears, and after how long, where so many ranks are to meet in these seconds."""
    began = time.monotonic()
    try:
        with joined(
            "cpu",
            seconds,
            worker.init_method,
            worker.rank,
            ranks,
            given={"run cser": {"learning_rate": 0.1 * number}},
        ):
            return "joined"
    except (CollectiveError, SpecError) as error:
        assert time.monotonic() - began < seconds + 5
        return str(error)


def test_who_does_not_come_is_named_in_time_on_all_ranks() -> None:
    with start_workers(meets, [(1, 3.0, 4)] * 2) as workers:
        ends = workers.hear_all()
    for end in ends:
        assert "ranks 2, 3 did not come within 3 s" in end


def test_rank_0_that_does_not_come_is_named_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    for name, value in {**place, "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    began = time.monotonic()
    with (
        pytest.raises(CollectiveError, match=r"rank 0 did not come within 5 s"),
        joined("cpu", 5.0, "env://"),
    ):
        pass
    assert time.monotonic() - began < 9


def test_a_rank_that_was_given_something_else_is_named_on_all_with_what_differs() -> (
    None
):
    with start_workers(meets, [(1, 60.0, 3), (1, 60.0, 3), (2, 60.0, 3)]) as workers:
        ends = workers.hear_all()
    for end in ends:
        assert end.startswith("the ranks were not given the same: rank 2 has run cser ")
        assert "learning_rate 0.2, rank 0 0.1; start all ranks by the same" in end
