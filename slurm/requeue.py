"""Which jobs have started a run, in `slurm.json` of its folder; how a start ended; and what follows from that.

The last line of every job's script calls this: it looks at how the workers ended, and requeues the job or lets it end.
It loads no torch, which can take longer than Slurm leaves a job that it ends.
"""

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
from harness.records.provenance import now, output_of
from harness.records.recorder import end_by_watchdog, read_failure, tail_of, write_failure
from harness.records.run_lock import BusyError, owned
from harness.records.state import is_done, saved_step
from harness.records.store import FailureKind, Record, RecordError, RunFile
from slurm.allocation import Allocation, this_allocation
from slurm.campaign import Campaign, Submission

ALWAYS: tuple[FailureKind, ...] = ("preempted",)
RETRIED: tuple[FailureKind, ...] = ("node", "communication", "timeout")
"""Ends after which a job goes on: always, or `max_retries` times in a row without a later checkpoint. All others - oom,
disk, data, bug - would come again; a run that diverged has a result, and is done."""

NONE = "none"
"""The attempt of a job none of whose workers began one."""

End = tuple[FailureKind, str]
"""Kind of a failure, and what there is to say of it."""

TOLD_TO_STOP = 128 + signal.SIGUSR2
"""srun's exit code where USR2 ended the workers: they were still loading, and did not listen for it."""


class Start(Record):
    """One start of a job. `saved`: the step of the checkpoint that it began from, 0 where there was none."""

    job: str
    restart: int
    attempt: str
    time: str
    saved: int = 0


class Starts(Record):
    """slurm.json."""

    version: int
    starts: list[Start]


class NothingToDo(RuntimeError):
    """The job ends here; the message says why."""


def read_starts(folder: Path) -> list[Start]:
    """The starts so far.

    Raises:
        RecordError: damaged, or of another version.
    """
    record = store.read_optional(folder / "slurm.json", Starts)
    return record.starts if record else []


def add_start(folder: Path, before: Sequence[Start], start: Start) -> None:
    """Write the next start down."""
    store.write_record(folder / "slurm.json", Starts(version=store.VERSION, starts=[*before, start]))


def recorded_end(folder: Path, attempt: str) -> FailureKind:
    """How an attempt that left no result ended; no record means `node`."""
    failure = read_failure(folder, attempt)
    return failure.kind if failure else "node"


def num_in_vain(folder: Path, starts: Sequence[Start]) -> int:
    """Starts of one job that began where the run still is; none where the last one was told to stop."""
    saved = saved_step(folder) or 0
    in_vain = [start for start in starts if start.saved == saved]
    return 0 if starts and recorded_end(folder, starts[-1].attempt) in ALWAYS else len(in_vain)


def goes_on(folder: Path, starts: Sequence[Start], max_retries: int) -> bool:
    """Whether the job of these starts goes on; another job of the same run begins to count anew."""
    ended = recorded_end(folder, starts[-1].attempt)
    return ended in (*ALWAYS, *RETRIED) and num_in_vain(folder, starts) <= max_retries


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
    ours = [start for start in starts if start.job == allocation.job]
    run = store.read_optional(folder / "run.json", RunFile)
    newest = run.attempts[-1].attempt if run and run.attempts else None
    try:
        stack.enter_context(owned(folder))
    except BusyError as error:
        if newest not in [start.attempt for start in ours] if newest else not ours:
            raise NothingToDo(str(error)) from None
        # An orphan of this job has the lock, and will find out that it was replaced.
    if num_in_vain(folder, ours) > max_retries:
        last = ours[-1].attempt
        kind = recorded_end(folder, last)
        message = f"gave up: job {allocation.job} ended with {kind} at start {len(ours)}, and has saved nothing new"
        write_failure(folder, run_id, last, kind, message, "", is_last_word=True)
        raise NothingToDo(message)
    place = {"job": allocation.job, "restart": allocation.restart, "attempt": allocation.attempt}
    add_start(folder, starts, Start(**place, time=now(), saved=saved_step(folder) or 0))
    # Only now: having written to the folder, this node sees what others wrote to it before.
    if is_done(folder):
        raise NothingToDo(f"run {run_id} is done")


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


def decide(folder: Path, submission: Submission, allocation: Allocation, max_retries: int, code: int) -> int:
    """Requeue the job where its run has no result and may go on; returns the job's exit code.

    Raises:
        OSError: no space, no permission: going on would end in the same way.
    """
    if packs.read_result(folder) is not None:
        return 0
    starts, log = read_starts(folder), submission.log_of(allocation.job)
    here = [start for start in starts if (start.job, start.restart) == (allocation.job, allocation.restart)]
    if here and here[-1] is not starts[-1]:
        # Slurm believed this job dead and started it anew: requeuing it now would end that other start.
        print("a later start has taken the run over: nothing follows from this one", flush=True)
        return 1
    attempt = here[-1].attempt if here else NONE
    by_slurm = _ended_by_slurm(allocation)
    if (here or code) and (by_slurm or read_failure(folder, attempt) is None):
        # What a worker has said stands, but for "communication", which is no cause.
        kind, why = by_slurm or _unsaid_end(log, attempt, code)
        write_failure(folder, folder.name, attempt, kind, f"{why}; srun ended with code {code}, see {log}", "")
    ours = [start for start in starts if start.job == allocation.job]
    if not here:
        lost = allocation.restart - len(ours)
        is_told = by_slurm is None and code == TOLD_TO_STOP and lost < max_retries
        return _requeue(allocation, "told to stop before a worker began") if is_told else code
    how = f"ended with {recorded_end(folder, attempt)}"
    if by_slurm is None and goes_on(folder, ours, max_retries):
        return _requeue(allocation, how)
    why = "not requeued" if by_slurm is None else "Slurm ends the job, and requeues it or not"
    print(f"{how} as start {allocation.restart + 1} of this job: {why}", flush=True)
    return 1


def _requeue(allocation: Allocation, why: str) -> int:
    print(f"{why}: requeued", flush=True)
    return subprocess.run(["scontrol", "requeue", allocation.job], check=False).returncode


def _ended_by_slurm(allocation: Allocation) -> End | None:
    """How Slurm itself ends this job: a cancelled one would come back if it were requeued here. None where it does not.

    At its time limit a job is being ended too, and comes back only if it is requeued here.
    """
    said = output_of("scontrol", "show", "job", "--oneliner", allocation.job)
    if said is None or "JobState=RUNNING" in said.split() or _is_at_its_limit():
        return None
    if lost := re.search(r"\bFailedNode=(\S+)", said):
        return "node", f"the node {lost[1]} was lost"
    restarts = re.search(r"\bRestarts=(\d+)", said)
    if restarts and int(restarts[1]) > allocation.restart:
        return "preempted", "the job was requeued by Slurm"
    return "preempted", "the job was cancelled; `make resubmit` takes it up again"


def _is_at_its_limit() -> bool:
    return time.time() >= float(os.environ.get("SLURM_JOB_END_TIME") or "inf")


def _unsaid_end(log: Path, attempt: str, code: int) -> End:
    """How an attempt ended whose workers left no record of it, or a job none of whose workers began one."""
    if attempt == NONE:
        told: End = ("preempted", "the job was told to stop before a worker began")
        return told if code == TOLD_TO_STOP else ("bug", "the job's processes ended before a worker began")
    own, suffix = log.name.rsplit("_0_", 1)
    texts = [tail_of(each) for each in sorted(log.parent.glob(f"{own}_*_{suffix}"))]
    watchdog = end_by_watchdog("\n".join(text.partition(begins(attempt))[2] for text in texts))
    # At its limit: the workers did not come to save within warning_seconds.
    return watchdog or ("timeout" if _is_at_its_limit() else "node", "the workers ended without a word")


if __name__ == "__main__":
    sys.exit(main())
