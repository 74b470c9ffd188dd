"""Which jobs have started a run and how each start ended, in `slurm.json` of its folder; and what follows from that.

The last line of every job's script calls this: it looks at how the workers ended, and requeues the job or lets it end.
It loads no torch, which can take longer than Slurm leaves a job that it ends.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from harness.records import packs, store
from harness.records.recorder import end_by_watchdog, tail_of, write_failure
from harness.records.run_lock import BusyError, owned
from harness.records.state import is_done, saved_step
from harness.records.store import Failure, FailureKind, Record, RecordError, RunFile
from slurm.allocation import Allocation, ask_slurm, this_allocation
from slurm.campaign import Campaign, Submission, now

ALWAYS: tuple[FailureKind, ...] = ("preempted",)
COUNTED: tuple[FailureKind, ...] = ("node", "communication", "timeout")
"""Ends after which a job goes on: always, or `max_retries` times. All others - oom, disk, data, bug - would come again;
a run that diverged has a result, and is done."""


TOLD_TO_STOP = 128 + signal.SIGUSR2
"""srun's exit code where USR2 ended the workers: they were still loading, and did not listen for it."""


class Start(Record):
    """One start of a job, and how it ended, which is filled in when the next start looks back.

    `progressed`: whether it left a later checkpoint than it began from.
    """

    job: str
    restart: int
    attempt: str
    time: str
    ended: FailureKind | None = None
    progressed: bool | None = None

    @property
    def counts(self) -> bool:
        """Whether going on after it is a retry: a long run meets its time limit again and again, and gets on."""
        return self.ended in COUNTED and not (self.ended == "timeout" and self.progressed)


class Starts(Record):
    """slurm.json."""

    version: int
    starts: list[Start]


class NothingToDo(RuntimeError):
    """The job ends here; the message says why."""


def read_starts(folder: Path) -> list[Start]:
    """The starts so far, the last one closed where there is a record of how it ended: no record means `node`.

    Raises:
        RecordError: damaged, or of another version.
    """
    record = store.read_optional(folder / "slurm.json", Starts)
    if record is None or not record.starts:
        return []
    *before, last = record.starts
    if last.ended:
        return record.starts
    found = {"ended": recorded_end(folder, last.attempt), "progressed": _has_progressed(folder, last.attempt)}
    return [*before, last.model_copy(update=found)]


def add_start(folder: Path, before: Sequence[Start], start: Start) -> None:
    """Write the next start down."""
    store.write_record(folder / "slurm.json", Starts(version=store.VERSION, starts=[*before, start]))


def read_failure(folder: Path, attempt: str) -> Failure | None:
    """What there is on how this attempt failed."""
    failure = store.read_optional(folder / "failure.json", Failure)
    return failure if failure is not None and failure.attempt == attempt else None


def recorded_end(folder: Path, attempt: str) -> FailureKind:
    """How an attempt that left no result ended."""
    failure = read_failure(folder, attempt)
    return failure.kind if failure else "node"


def num_retries(starts: Sequence[Start], job: str) -> int:
    """Starts of this job after which going on is a retry; another job of the same run begins to count anew."""
    return sum(start.counts for start in starts if start.job == job)


def begins(attempt: str) -> str:
    """What every worker of an attempt says first: a job that is requeued goes on in the same logs."""
    return f"attempt {attempt} begins"


def begin_attempt(folder: Path, run_id: str, allocation: Allocation, max_retries: int, stack: ExitStack) -> None:
    """Begin this start's attempt, over any that its job left; the run's lock is held until `stack` ends.

    Raises:
        NothingToDo: the run is done, another process is at it, or its processes ended without a word too often.
        RecordError: a record is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = read_starts(folder)
    run = store.read_optional(folder / "run.json", RunFile)
    newest = run.attempts[-1].attempt if run and run.attempts else None
    try:
        stack.enter_context(owned(folder))
    except BusyError as error:
        ours = [start.attempt for start in starts if start.job == allocation.job]
        if newest not in ours if newest else not ours:
            raise NothingToDo(str(error)) from None
        # An orphan of this job has the lock, and will find out that it was replaced.
    if num_retries(starts, allocation.job) > max_retries:
        kinds = ", ".join(start.ended or "node" for start in starts if start.job == allocation.job)
        message, last = f"gave up: the attempts of job {allocation.job} ended with {kinds}", starts[-1]
        write_failure(folder, run_id, last.attempt, last.ended or "node", message, "", is_last_word=True)
        raise NothingToDo(message)
    start = Start(job=allocation.job, restart=allocation.restart, attempt=allocation.attempt, time=now())
    add_start(folder, starts, start)
    # Only now: having written to the folder, this node sees what others wrote to it before.
    if is_done(folder):
        raise NothingToDo(f"run {run_id} is done")


def _has_progressed(folder: Path, attempt: str) -> bool:
    """Whether the newest attempt, if it is this one, has left a later checkpoint than it began from."""
    run, saved = store.read_optional(folder / "run.json", RunFile), saved_step(folder)
    newest = run.attempts[-1] if run and run.attempts else None
    return bool(newest and newest.attempt == attempt and saved is not None and saved > newest.resumed_from_step)


def main(arguments: Sequence[str] | None = None) -> int:
    """Decide on this job; the exit code is its own.

    Args:
        arguments: campaign.json, the submission's number in it, the retries a job may have, and what srun returned.
    """
    campaign, number, max_retries, code = sys.argv[1:] if arguments is None else arguments
    allocation = this_allocation()
    try:
        submission = store.read_record(Path(campaign), Campaign).submissions[int(number)]
        folder = Path(campaign).parent / submission.runs[allocation.task]
        return decide(folder, submission, allocation, int(max_retries), int(code))
    except (RecordError, OSError) as error:
        print(f"the job is not requeued: {error}", flush=True)
        return 1


def goes_on(starts: Sequence[Start], max_retries: int) -> bool:
    """Whether the last start's job is requeued, which goes on so many times after an end that counts."""
    last = starts[-1]
    return last.ended in (*ALWAYS, *COUNTED) and not (last.counts and num_retries(starts, last.job) > max_retries)


def decide(folder: Path, submission: Submission, allocation: Allocation, max_retries: int, code: int) -> int:
    """Requeue the job where its run has no result and may go on; returns the job's exit code.

    Raises:
        OSError: no space, no permission: going on would end in the same way.
    """
    if packs.read_result(folder) is not None:
        return 0
    starts = read_starts(folder)
    here = [start for start in starts if (start.job, start.restart) == (allocation.job, allocation.restart)]
    if here and here[-1] is not starts[-1]:
        # Slurm believed this job dead and started it anew: requeuing it now would end that other start.
        print("a later start has taken the run over: nothing follows from this one", flush=True)
        return 1
    by_slurm = _ended_by_slurm(allocation)
    if not here:
        lost = allocation.restart - sum(start.job == allocation.job for start in starts)
        is_told = _without_a_start(folder, submission.log_of(allocation.job), by_slurm, code) and lost < max_retries
        return _requeue(allocation, "told to stop before a worker began") if is_told else code
    _record_end(folder, here[-1], submission.log_of(allocation.job), by_slurm, code)
    starts = read_starts(folder)
    how = f"ended with {starts[-1].ended}"
    if not goes_on(starts, max_retries):
        print(f"{how} as start {allocation.restart + 1} of this job: not requeued", flush=True)
        return 1
    if by_slurm is not None:
        print(f"{how}: Slurm ends the job, and requeues it or not", flush=True)
        return 1
    return _requeue(allocation, how)


def _requeue(allocation: Allocation, why: str) -> int:
    print(f"{why}: requeued", flush=True)
    return subprocess.run(["scontrol", "requeue", allocation.job], check=False).returncode


def _ended_by_slurm(allocation: Allocation) -> tuple[FailureKind, str] | None:
    """How Slurm itself ends this job: a cancelled one would come back if it were requeued here. None where it does not.

    At its time limit a job is being ended too, and comes back only if it is requeued here.
    """
    said = ask_slurm("scontrol", "show", "job", "--oneliner", allocation.job)
    if said is None or "JobState=RUNNING" in said.split() or _is_at_its_limit():
        return None
    if lost := re.search(r"\bFailedNode=(\S+)", said):
        return "node", f"the node {lost[1]} was lost"
    restarts = re.search(r"\bRestarts=(\d+)", said)
    if restarts and int(restarts[1]) > allocation.restart:
        return "preempted", "the job was requeued by Slurm"
    return "preempted", "the job was cancelled; `resubmit` takes it up again"


def _is_at_its_limit() -> bool:
    return time.time() >= float(os.environ.get("SLURM_JOB_END_TIME") or "inf")


def _without_a_start(folder: Path, log: Path, by_slurm: tuple[FailureKind, str] | None, code: int) -> bool:
    """Say how a job ended whose workers had nothing to do, or did not come so far as to say which attempt they are.

    Returns whether they were only told to stop, before they could listen.
    """
    is_told = by_slurm is None and code == TOLD_TO_STOP
    usual: tuple[FailureKind, str] = ("bug", f"the job's processes ended with code {code}")
    kind, why = by_slurm or (("preempted", "the job was told to stop") if is_told else usual)
    if code:
        write_failure(folder, folder.name, "none", kind, f"{why}, before a worker began; see {log}", "")
    return is_told


def _record_end(folder: Path, start: Start, log: Path, by_slurm: tuple[FailureKind, str] | None, code: int) -> None:
    """See to it that there is a record of how the attempt ended, where it left no word of that."""
    if by_slurm is None and read_failure(folder, start.attempt) is not None:
        return
    # At its limit: the workers did not come to save within warning_seconds.
    usual: tuple[FailureKind, str] = ("timeout" if _is_at_its_limit() else "node", "the workers ended without a word")
    kind, message = by_slurm or _said_by_watchdog(log, start) or usual
    # What a worker has said stands, but for "communication", which is no cause.
    write_failure(folder, folder.name, start.attempt, kind, f"{message}, srun with code {code}; see {log}", "")


def _said_by_watchdog(log: Path, start: Start) -> tuple[FailureKind, str] | None:
    """What NCCL's watchdog said as the last of this attempt, in any worker's log, before it ended the process."""
    own, suffix = log.name.rsplit("_0_", 1)
    texts = [tail_of(each) for each in sorted(log.parent.glob(f"{own}_*_{suffix}"))]
    return end_by_watchdog("\n".join(text.partition(begins(start.attempt))[2] for text in texts))


if __name__ == "__main__":
    sys.exit(main())
