"""How attempts end and what follows: notice, policy, the last line of a job's script, and who may begin anew."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch.distributed as dist

import slurm.job
from algorithms import CollectiveError
from harness.records import store
from harness.records.recorder import SupersededError, write_failure
from harness.records.run_lock import owned
from harness.records.store import Failure, FailureKind, read_record
from harness.workers.attempt import attempt_stacked
from slurm import requeue
from slurm.allocation import Allocation
from slurm.campaign import put_submission
from slurm.profile import load_profile
from slurm.requeue import ALWAYS, RETRIED, NothingToDo, Start, add_start, begin_attempt, decide, read_starts
from tests.harness.support import ROOT, job_for, small_config
from tests.slurm.support import allocation, small_profile, submission, write_profile

# Notice

LISTENS = """
import os, signal, sys
from slurm.allocation import StopNotice
notice, number, trains = StopNotice(), int(sys.argv[1]), sys.argv[2] == "trains"
trains = trains and not notice.stop_requested()
os.kill(os.getpid(), number)
print(notice.stop_requested())
"""


@pytest.mark.parametrize(("number", "phase", "said"), [
    (signal.SIGUSR2, "trains", "True\n"),
    (signal.SIGTERM, "trains", "True\n"),
    (signal.SIGTERM, "loads", ""),
])  # fmt: skip
def test_notice_is_heard_by_a_worker_that_trains_and_ends_one_that_only_loads_at_once(
    number: signal.Signals, phase: str, said: str
) -> None:
    """So that the last line of the script has its turn before Slurm's KILL."""
    words = [sys.executable, "-c", LISTENS, str(int(number)), phase]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0 if said else -number, said)


# The last line of the script


@pytest.fixture
def requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that a made-up scontrol writes its words to. Any job but 7_0 is an array to it, of which a task runs."""
    said, program = tmp_path / "said", tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    show = 'if [ "$1" = show ]; then echo "JobId=$4 JobState=${STATE:-RUNNING} Reason=None ${MORE}"'
    show += '; [ "$4" = 7_0 ] || echo "JobId=9 JobState=RUNNING"'
    program.write_text(f'#!/bin/sh\n{show}; else echo "$@" >>{said}; fi\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return said


def requeue_of(folder: Path, restart: int, code: int, max_retries: int = 2) -> int:
    return decide(folder, submission(folder.parent, folder.name), allocation(restart=restart), max_retries, code)


def failure_of(folder: Path) -> Failure:
    return read_record(folder / "failure.json", Failure)


def starts_of(num_starts: int, job: str = "7_0", saved: int = 0) -> list[Start]:
    given = [(number, f"a{number}") for number in range(num_starts)]
    return [Start(job=job, restart=restart, attempt=name, time="", saved=saved) for restart, name in given]


def started(folder: Path, before: int = 0, said: tuple[str, FailureKind] | None = None) -> Path:
    """Records of a run whose job 7_0 started so often before, and once more, as attempt `now`."""
    add_start(folder, starts_of(before), Start(job="7_0", restart=before, attempt="now", time=""))
    if said:
        write_failure(folder, "run", *said, "its own words", "")
    return folder


def begun(folder: Path, **changes: int) -> str:
    with ExitStack() as stack:
        begin_attempt(folder, folder.name, allocation(**changes), 2, stack)
    return allocation(**changes).attempt


def with_attempt(folder: Path, attempt: str, resumed_from_step: int = 0, saved: int | None = None) -> None:
    """run.json of a run at which this attempt is the newest, and the pointer of a checkpoint at the step `saved`."""
    job = job_for(small_config(), folder)
    recorder = job.recorder()
    recorder.folder = folder
    recorder._attempt = job.attempt.model_copy(update={"attempt": attempt})
    recorder.begin(resumed_from_step)
    if saved is not None:
        (folder / "checkpoint").mkdir(exist_ok=True)
        (folder / "checkpoint" / "latest").write_text(f"step-{saved:09d}\n")


@pytest.mark.parametrize(("kind", "follows"), [
    ("preempted", [0] * 6),
    *((kind, [0, 0, 0, 0, 0, 1]) for kind in RETRIED),
    *((kind, [1] * 6) for kind in get_args(FailureKind) if kind not in (*ALWAYS, *RETRIED)),
])  # fmt: skip
def test_job_is_requeued_by_kind_so_long_as_its_starts_save_something_new(
    kind: FailureKind, follows: list[int], tmp_path: Path, requeued: Path
) -> None:
    """Each start saves 10 steps more, but for the last two, which save none; one retry is all that is left then.

    Starts of another job of the run do not count.
    """
    folder, turns = tmp_path / "run", [10, 20, 30, 40, 40, 40]
    before = starts_of(9, job="6_0", saved=40)
    for restart, step in enumerate(turns):
        start = Start(job="7_0", restart=restart, attempt=f"b{restart}", time="", saved=turns[max(0, restart - 1)])
        before.append(start.model_copy(update={"saved": 0}) if restart == 0 else start)
        add_start(folder, before[:-1], before[-1])
        with_attempt(folder, f"b{restart}", before[-1].saved, saved=step)
        write_failure(folder, "run", f"b{restart}", kind, "why", "")
        assert requeue_of(folder, restart, 1, max_retries=1) == follows[restart]
    assert follows[0] or requeued.read_text() == "requeue 7_0\n" * follows.count(0)


def test_workers_that_did_not_come_to_save_before_the_limit_ended_with_it(
    tmp_path: Path, requeued: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() - 1))
    folder = tmp_path / "run"
    with_attempt(folder, begun(folder), saved=10)
    assert requeue_of(folder, 0, 137, max_retries=0) == 0
    assert failure_of(folder).kind == "timeout"


@pytest.mark.parametrize(("said", "kind"), [
    (None, "node"),  # without a word
    (("a1", "oom"), "node"),  # what was said of an earlier attempt
    (("now", "communication"), "communication"),
])  # fmt: skip
def test_a_record_is_left_of_an_end_that_nobody_told_of(
    said: tuple[str, FailureKind] | None, kind: FailureKind, tmp_path: Path, requeued: Path
) -> None:
    folder = started(tmp_path / "run", 2, said=said)
    assert requeue_of(folder, 2, 137) == 1 and not requeued.exists()
    failure = failure_of(folder)
    assert (failure.kind, failure.attempt) == (kind, "now")
    if kind == "node":
        assert "code 137" in failure.message and "jobs/7_0_0_log.out" in failure.message
    else:
        assert failure.message == "its own words"


BEFORE, NOW = "attempt a0 begins\n", "attempt now begins\n"
WAITED = "[rank0]:[E] [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=4, OpType=ALLREDUCE)\n"
ENDED = "[rank1]:[E] Process group watchdog thread terminated with exception: CUDA error: an illegal memory access\n"


@pytest.mark.parametrize(("logs", "kind"), [
    ([BEFORE + NOW + WAITED, BEFORE + ENDED + NOW], "communication"),
    ([NOW + WAITED, NOW + ENDED], "bug"),
    ([BEFORE + WAITED + NOW, BEFORE + ENDED], "node"),
])  # fmt: skip
def test_workers_that_nccls_watchdog_ended_have_lost_one_and_are_tried_again(
    logs: list[str], kind: str, tmp_path: Path, requeued: Path
) -> None:
    folder = started(tmp_path / "run", 1)
    (tmp_path / "jobs").mkdir()
    for rank, text in enumerate(logs):
        (tmp_path / "jobs" / f"7_0_{rank}_log.out").write_text(text)
    assert requeue_of(folder, 1, 134) == (kind == "bug") != requeued.exists()
    assert failure_of(folder).kind == kind and "srun ended with code 134, see" in failure_of(folder).message


def test_job_whose_workers_did_not_begin_says_where_to_look_and_one_with_nothing_to_do_leaves_nothing(
    tmp_path: Path, requeued: Path
) -> None:
    assert requeue_of(tmp_path / "run", 0, 0) == 0 and not (tmp_path / "run").exists()
    assert requeue_of(tmp_path / "run", 0, 1) == 1 and not requeued.exists()
    failure = failure_of(tmp_path / "run")
    assert failure.kind == "bug" and "before a worker began; srun ended with code 1, see" in failure.message


def test_job_that_is_told_to_stop_while_its_workers_load_goes_on_but_not_for_ever(
    tmp_path: Path, requeued: Path
) -> None:
    """Its first start began; then two may be lost."""
    folder = tmp_path / "run"
    begun(folder)
    assert [requeue_of(folder, restart, 128 + signal.SIGUSR2) for restart in (1, 2, 3)] == [0, 0, 140]
    assert requeued.read_text() == "requeue 7_0\n" * 2
    failure = failure_of(folder)
    assert failure.kind == "preempted" and failure.message.startswith("the job was told to stop before a worker began")


@pytest.mark.parametrize(("end_time", "comes_back"), [(3600.0, False), (-1.0, True)])
def test_job_that_is_being_ended_comes_back_only_at_its_time_limit(
    end_time: float, comes_back: bool, tmp_path: Path, requeued: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE", "COMPLETING")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + end_time))
    assert requeue_of(started(tmp_path / "run", said=("now", "preempted")), 0, 0) == (not comes_back)
    assert requeued.exists() == comes_back


BY_SLURM: list[tuple[str, FailureKind, str]] = [
    ("Restarts=0", "preempted", "the job was cancelled; `make resubmit` takes it up again"),
    ("Restarts=1", "preempted", "the job was requeued by Slurm"),
    ("FailedNode=node7 Restarts=1", "node", "the node node7 was lost"),
]


@pytest.mark.parametrize(("more", "kind", "words"), BY_SLURM, ids=[more for more, *_ in BY_SLURM])
@pytest.mark.parametrize("before", ["no worker began", "no word", "communication"])
def test_job_that_slurm_ends_is_said_to_be_cancelled_requeued_or_to_have_lost_a_node(
    more: str,
    kind: FailureKind,
    words: str,
    before: str,
    tmp_path: Path,
    requeued: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its processes were killed at their start, or had lost each other."""
    monkeypatch.setenv("STATE", "COMPLETING")
    monkeypatch.setenv("MORE", more)
    folder = tmp_path / "run"
    if before != "no worker began":
        started(folder, said=("now", "communication") if before == "communication" else None)
    assert requeue_of(folder, 0, 143) != 0
    assert failure_of(folder).kind == kind and failure_of(folder).message.startswith(words) and not requeued.exists()


def test_the_last_line_has_its_turn_before_slurms_kill_since_it_loads_no_torch() -> None:
    script = "import sys, slurm.requeue; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0


def test_orphan_does_not_requeue_the_start_that_replaced_it(tmp_path: Path, requeued: Path) -> None:
    folder = started(tmp_path / "run", 2)
    assert requeue_of(folder, 1, 1) == 1
    assert not requeued.exists() and not (folder / "failure.json").exists()


def test_full_disk_requeues_nothing(
    tmp_path: Path, requeued: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started(tmp_path / "run")
    put_submission(tmp_path, 0, submission(tmp_path, "run"))
    job = {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", "SUBMITIT_EXECUTOR": "slurm"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)

    def no_space(*arguments: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(store, "write_record", no_space)
    assert requeue.main([str(tmp_path / "campaign.json"), "0", "3", "1"]) == 1
    assert "not requeued: " in (said := capsys.readouterr().out) and "quota" in said
    assert not requeued.exists()


# Workers of a start


def test_workers_of_a_start_meet_and_nobody_elses_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another job has the same port by chance, one that came late waits in vain, and says where."""
    monkeypatch.setattr(dist, "init_process_group", lambda *arguments, **options: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    profile = load_profile(str(write_profile(tmp_path, small_profile())))
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    starts = [allocation(job=str(os.getpid()), restart=restart, world_size=2) for restart in range(200)]
    assert all(1024 < start.port < low for start in starts) and len({start.port for start in starts}) > 190
    ours, others = starts[0], (allocation(job=f"x{number}", world_size=2) for number in range(10**6))
    other = next(start for start in others if start.port == ours.port)

    def come(start: Allocation, seconds: float) -> None:
        with slurm.job.meeting(profile, start, seconds):
            pass

    with ThreadPoolExecutor(1) as pool:
        peer = pool.submit(come, replace(other, rank=1), 60.0)
        with slurm.job.meeting(profile, other, 60.0):
            peer.result()
            words = rf"the workers do not meet at tcp://127\.0\.0\.1:{ours.port}: "
            with pytest.raises(CollectiveError, match=words):
                come(replace(ours, rank=1), 1.0)


def test_replaced_worker_ends_without_waiting_for_its_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replaced(*arguments: object) -> None:
        raise SupersededError("attempt b has taken the run over")

    monkeypatch.setattr(slurm.job, "attempt_in_group", replaced)
    monkeypatch.setattr(slurm.job, "ProcessGroupCollectives", lambda: None)
    task = job_for(small_config(), tmp_path)
    with pytest.raises(SystemExit) as ended:
        slurm.job._train(task, 0, SimpleNamespace(stop_requested=None))  # type: ignore[arg-type]
    assert ended.value.code == 1 and not (task.folder / "failure.json").exists()


# Beginning anew


def test_starts_that_save_nothing_new_give_up_and_a_job_that_was_submitted_anew_begins_to_count_anew(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    attempts = [begun(folder, restart=restart) for restart in (0, 1, 2)]
    assert [start.attempt for start in read_starts(folder)] == attempts and len(set(attempts)) == 3
    with pytest.raises(NothingToDo, match="gave up: job 7_0 ended with node at start 3"):
        begun(folder, restart=3)
    assert failure_of(folder).kind == "node"
    write_failure(folder, "run", attempts[-1], "preempted", "", "", is_last_word=True)
    begun(folder, restart=3)
    with ExitStack() as stack:
        begin_attempt(folder, "run", allocation(job="9_0"), 2, stack)


def test_result_that_is_seen_late_is_not_made_twice(tmp_path: Path) -> None:
    job = job_for(small_config(), tmp_path)
    assert attempt_stacked(job)
    before = (job.folder / "result.json").read_bytes()
    with pytest.raises(NothingToDo, match="is done"):
        begun(job.folder)
    assert (job.folder / "result.json").read_bytes() == before


def test_orphan_of_the_same_job_does_not_keep_its_successor_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.records.run_lock.PATIENCE_SECONDS", 0.2)
    folder = tmp_path / "run"
    orphan = begun(folder)
    with_attempt(folder, orphan)
    with owned(folder):  # which the orphan still holds
        assert begun(folder, restart=1) != orphan
        with pytest.raises(NothingToDo), ExitStack() as stack:
            begin_attempt(folder, "run", allocation(job="9_0"), 2, stack)
