"""How attempts end and what follows: notice, policy, the last line of a job's script, and who may
begin anew."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from cser_bench.harness.records import store
from cser_bench.harness.records.endings import write_failure
from cser_bench.harness.records.recorder import Recorder
from cser_bench.harness.records.run_lock import owned
from cser_bench.harness.records.state import ALWAYS, RETRIED
from cser_bench.harness.records.store import Failure, FailureKind, read_record
from cser_bench.harness.workers.attempt import attempt_stacked
from cser_bench.slurm import requeue
from cser_bench.slurm.campaign import put_submission
from cser_bench.slurm.requeue import (
    Allocation,
    NothingToDo,
    begin_attempt,
    decide,
    read_attempts,
)
from tests.harness.support import ROOT, Table, job_for, small_config
from tests.slurm.support import allocation, submission

pytestmark = pytest.mark.whole

# Notice

LISTENS = """
import os, signal, sys
from cser_bench.slurm.requeue import StopNotice
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
    words = [sys.executable, "-c", LISTENS, str(int(number)), phase]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0 if said else -number, said)


# The last line of the script


@pytest.fixture
def requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that a made-up scontrol writes its words to. Any job but 7_0 is an array to it, of
    which a task runs."""
    said = tmp_path / "said"
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    show = 'if [ "$1" = show ]; then echo "JobId=$4 JobState=${STATE:-RUNNING} Reason=None ${MORE}"'
    show += '; [ "$4" = 7_0 ] || echo "JobId=9 JobState=RUNNING"'
    program.write_text(f'#!/bin/sh\n{show}; else echo "$@" >>{said}; fi\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return said


def requeue_of(folder: Path, restart: int, code: int, max_retries: int = 2) -> int:
    return decide(
        folder,
        submission(folder.parent, folder.name),
        allocation(restart=restart),
        max_retries,
        code,
    )


def failure_of(folder: Path) -> Failure:
    return read_record(folder / "failure.json", Failure)


def enter(
    folder: Path, attempt: str, restart: int, saved: int = 0, job: str = "7_0"
) -> None:
    """A start of a job, as the newest attempt of run.json."""
    recorder_of(folder, allocation(job=job, restart=restart), attempt, saved).enter(
        saved
    )


def recorder_of(
    folder: Path, here: Allocation, attempt: str | None = None, saved: int = 0
) -> Recorder:
    made = job_for(small_config(), folder)
    slurm = {"job": here.job, "restart": str(here.restart), "saved": str(saved)}
    named = made.attempt.model_copy(
        update={"attempt": attempt or here.attempt, "slurm": slurm}
    )
    return replace(made, folder=folder, attempt=named).recorder()


def started(
    folder: Path, before: int = 0, said: tuple[str, FailureKind] | None = None
) -> Path:
    """Records of a run whose job 7_0 started so often before, and once more, as attempt `now`."""
    for restart in range(before):
        enter(folder, f"a{restart}", restart)
        if said and said[0] == f"a{restart}":
            write_failure(folder, "run", *said, "its own words", "")
    enter(folder, "now", before)
    if said and said[0] == "now":
        write_failure(folder, "run", *said, "its own words", "")
    return folder


def begun(folder: Path, **changes: int | str) -> str:
    with ExitStack() as stack:
        begin_attempt(
            recorder_of(folder, allocation(**changes)), allocation(**changes), 2, stack
        )
    return allocation(**changes).attempt


def test_a_start_that_begins_to_train_is_one_attempt(tmp_path: Path) -> None:
    recorder = recorder_of(
        started(tmp_path / "run", before=1), allocation(restart=2), "third"
    )
    recorder.enter(0)
    recorder.begin(30)
    attempts = [
        (each.attempt, each.resumed_from_step)
        for each in read_attempts(tmp_path / "run")
    ]
    assert attempts == [("a0", 0), ("now", 0), ("third", 30)]


def save(folder: Path, step: int) -> None:
    """The pointer of a checkpoint at this step."""
    (folder / "checkpoint").mkdir(exist_ok=True)
    (folder / "checkpoint" / "latest").write_text(f"step-{step:09d}\n")


@pytest.mark.parametrize(("kind", "follows"), [
    ("preempted", [0] * 6),
    *((kind, [0, 0, 0, 0, 0, 1]) for kind in RETRIED),
    *((kind, [1] * 6) for kind in get_args(FailureKind) if kind not in (*ALWAYS, *RETRIED)),
])  # fmt: skip
def test_job_is_requeued_by_kind_so_long_as_its_starts_save_something_new(
    kind: FailureKind, follows: list[int], tmp_path: Path, requeued: Path
) -> None:
    """Each start saves 10 steps more, but for the last two, which save none; one retry is all that
    is left then.

    Starts of another job of the run do not count.
    """
    folder = tmp_path / "run"
    turns = [0, 10, 20, 30, 40, 40, 40]
    for restart in range(9):
        enter(folder, f"a{restart}", restart, saved=40, job="6_0")
    for restart, (saved, step) in enumerate(itertools.pairwise(turns)):
        enter(folder, f"b{restart}", restart, saved)
        save(folder, step)
        write_failure(folder, "run", f"b{restart}", kind, "why", "")
        assert requeue_of(folder, restart, 1, max_retries=1) == follows[restart]
    assert follows[0] or requeued.read_text() == "requeue 7_0\n" * follows.count(0)


BEFORE = "attempt a0 begins\n"
NOW = "attempt now begins\n"
WAITED = (
    "[rank0]:[E] [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=4, "
    "OpType=ALLREDUCE)\n"
)
ENDED = (
    "[rank1]:[E] Process group watchdog thread terminated with exception: CUDA error: an "
    "illegal memory access\n"
)
LIMIT = {"SLURM_JOB_END_TIME": "0"}
IS_ENDED = {"STATE": "COMPLETING", "SLURM_JOB_END_TIME": "9e9"}
LOST = ("now", "communication")
BY_SLURM = [
    (
        "Restarts=0",
        "preempted",
        "the job was cancelled; `make resubmit` takes it up again",
    ),
    ("Restarts=1", "preempted", "the job was requeued by Slurm"),
    ("FailedNode=node7 Restarts=1", "node", "the node node7 was lost"),
]
ENDS: dict[str, tuple[Table, int, str, str]] = {
    # name: (starts before, what was said, logs, Slurm's variables, srun's code), the job's code,
    #     kind and words
    "without a word": ({"before": 2}, 1, "node", "srun ended with code 137, see "),
    "a word of an earlier attempt": ({"before": 2, "said": ("a1", "oom")}, 1, "node", "/jobs/7_0_0_log.out"),
    "with a word": ({"before": 2, "said": LOST}, 1, "communication", "its own words"),
    "one was lost": (
        {"before": 1, "logs": [BEFORE + NOW + WAITED, BEFORE + ENDED + NOW]},
        0, "communication", "srun ended with code 137, see",
    ),
    "the watchdog before": ({"before": 1, "logs": [BEFORE + WAITED + NOW, BEFORE + ENDED]}, 0, "node", "without a"),
    "before it began": ({}, 137, "bug", "before a worker began; srun ended with code 137, see"),
    "too late to save": ({"before": 0, "slurm": LIMIT}, 0, "timeout", "without a word"),
    "ended, and saved": ({"before": 0, "said": ("now", "preempted"), "slurm": IS_ENDED}, 1, "preempted", "its own"),
    "ended at its limit": (
        {"before": 0, "said": ("now", "preempted"), "slurm": IS_ENDED | LIMIT, "code": 0}, 0, "preempted", "its own"
    ),
    **{
        f"{more}, {what}": (how | {"slurm": IS_ENDED | {"MORE": more}}, code, kind, words)
        for more, kind, words in BY_SLURM
        for what, how, code in [
            ("no worker began", {}, 137), ("no word", {"before": 0}, 1), ("lost", {"before": 0, "said": LOST}, 1)
        ]
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_what_is_recorded_of_an_end_and_whether_the_job_goes_on(
    name: str, tmp_path: Path, requeued: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that Slurm ends comes back only at its time limit. Two retries are left to each."""
    how, code, kind, words = ENDS[name]
    folder = tmp_path / "run"
    (tmp_path / "jobs").mkdir()
    if "before" in how:
        started(folder, how["before"], how.get("said"))
    for rank, text in enumerate(how.get("logs", ())):
        (tmp_path / "jobs" / f"7_0_{rank}_log.out").write_text(text)
    for variable, value in how.get("slurm", {}).items():
        monkeypatch.setenv(variable, value)
    assert requeue_of(folder, how.get("before", 0), how.get("code", 137)) == code
    assert requeued.exists() == (code == 0)
    assert failure_of(folder).kind == kind
    assert words in failure_of(folder).message


def test_job_that_is_told_to_stop_while_its_workers_load_goes_on_but_not_for_ever(
    tmp_path: Path, requeued: Path
) -> None:
    """Its first start began; then two may be lost."""
    folder = tmp_path / "run"
    begun(folder)
    assert [
        requeue_of(folder, restart, 128 + signal.SIGUSR2) for restart in (1, 2, 3)
    ] == [0, 0, 140]
    assert requeued.read_text() == "requeue 7_0\n" * 2
    failure = failure_of(folder)
    assert failure.kind == "preempted"
    assert failure.message.startswith("the job was told to stop before a worker began")


def test_the_last_line_has_its_turn_before_slurms_kill_since_it_loads_no_torch() -> (
    None
):
    script = "import sys, slurm.requeue; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0


def test_orphan_does_not_requeue_the_start_that_replaced_it(
    tmp_path: Path, requeued: Path
) -> None:
    folder = started(tmp_path / "run", 2)
    assert requeue_of(folder, 1, 1) == 1
    assert not requeued.exists()
    assert not (folder / "failure.json").exists()


def test_full_disk_requeues_nothing(
    tmp_path: Path,
    requeued: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    started(tmp_path / "run")
    put_submission(tmp_path, 0, submission(tmp_path, "run"))
    job = {
        "SLURM_JOB_ID": "8",
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "0",
        "SUBMITIT_EXECUTOR": "slurm",
    }
    for name, value in job.items():
        monkeypatch.setenv(name, value)

    def no_space(*arguments: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(store, "write_record", no_space)
    assert requeue.main([str(tmp_path / "campaign.json"), "0", "3", "1"]) == 1
    assert "not requeued: " in (said := capsys.readouterr().out)
    assert "quota" in said
    assert not requeued.exists()


# Workers of a start


def test_starts_meet_at_ports_of_their_own_which_linux_hands_out_to_nobody() -> None:
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    starts = [
        allocation(job=str(os.getpid()), restart=restart, world_size=2)
        for restart in range(200)
    ]
    assert all(1024 < start.port < low for start in starts)
    assert len({start.port for start in starts}) > 190
    # Where two have the same port by chance
    assert len({start.key for start in starts}) == 200


# Beginning anew


def test_starts_that_save_nothing_new_give_up_and_a_job_that_was_submitted_anew_begins_to_count_anew(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    attempts = [begun(folder, restart=restart) for restart in (0, 1, 2)]
    assert [each.attempt for each in read_attempts(folder)] == attempts
    assert len(set(attempts)) == 3
    with pytest.raises(
        NothingToDo, match="gave up: job 7_0 ended with node at start 3"
    ):
        begun(folder, restart=3)
    assert failure_of(folder).kind == "node"
    write_failure(folder, "run", attempts[-1], "preempted", "", "", is_last_word=True)
    begun(folder, restart=3)
    with ExitStack() as stack:
        begin_attempt(
            recorder_of(folder, allocation(job="9_0")), allocation(job="9_0"), 2, stack
        )


def test_a_start_after_the_result_leaves_the_record_as_it_is(tmp_path: Path) -> None:
    job = job_for(small_config(), tmp_path)
    assert attempt_stacked(job)
    names = ("result.json", "run.json")
    before = [(job.folder / name).read_bytes() for name in names]
    with pytest.raises(NothingToDo, match="is done"):
        begun(job.folder)
    assert [(job.folder / name).read_bytes() for name in names] == before


def test_result_that_is_seen_late_is_not_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a shared folder, where a node sees what another wrote once it has written itself."""
    job = job_for(small_config(), tmp_path)
    assert attempt_stacked(job)
    before = (job.folder / "result.json").read_bytes()
    seen = iter([False, True])
    monkeypatch.setattr("cser_bench.slurm.requeue.is_done", lambda folder: next(seen))
    with pytest.raises(NothingToDo, match="is done"):
        begun(job.folder)
    assert (job.folder / "result.json").read_bytes() == before


def test_orphan_of_the_same_job_does_not_keep_its_successor_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cser_bench.harness.records.run_lock.PATIENCE_SECONDS", 0.2)
    folder = tmp_path / "run"
    orphan = begun(folder)
    with owned(folder):  # which the orphan still holds
        assert begun(folder, restart=1) != orphan
        with pytest.raises(NothingToDo), ExitStack() as stack:
            begin_attempt(
                recorder_of(folder, allocation(job="9_0")),
                allocation(job="9_0"),
                2,
                stack,
            )
