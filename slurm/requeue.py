"""Starts of a job: when one must stop, how it ended, and whether the job is requeued.

Starts are the attempts in a run's run.json. The last line of every job's script calls this file: it
looks at how the workers ended, and requeues the job or lets it end. It loads no torch, which can
take longer than Slurm leaves a job.
"""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import submitit
from submitit.helpers import TorchDistributedEnvironment

from cser_bench.harness.records import packs, store
from cser_bench.harness.records.endings import (
    End,
    end_of_workers,
    end_without_attempt,
    read_failure,
    recorded_end,
    tail_of,
    write_failure,
)
from cser_bench.harness.records.provenance import output_of
from cser_bench.harness.records.recorder import Recorder
from cser_bench.harness.records.run_lock import BusyError, owned
from cser_bench.harness.records.state import ALWAYS, RETRIED, is_done, saved_step
from cser_bench.harness.records.store import Attempt, RecordError, RunFile
from cser_bench.harness.workers.processes import StopFlag
from cser_bench.slurm.campaign import Campaign, Submission, log_of, logs_of

PORTS = range(20_000, 32_000)
"""Below the ephemeral ports of Linux, from which others' connections take theirs (32768 and up by
default)."""

NONE = "none"
"""The attempt of a job none of whose workers began one."""

TOLD_TO_STOP = 128 + signal.SIGUSR2
"""The exit code of srun where USR2 ended the workers: they were still loading, and did not listen
for it."""


@dataclass(frozen=True)
class Allocation:
    """One start of one job, as one of its processes sees it.

    Attributes:
        job: as in the campaign's record, such as 7_2 for a task of an array. It is not
            SLURM_JOB_ID: for an array's last task that is the number of the whole array.
        restart: how often the job was requeued before.
        task: the index in the array; 0 where there is none.
    """

    job: str
    restart: int
    task: int
    rank: int
    local_rank: int
    world_size: int
    first_node: str

    @property
    def key(self) -> str:
        """The name of this start of this job, among all of this cluster's."""
        return f"{os.environ.get('SLURM_CLUSTER_NAME', '')}/{self.job}/{self.restart}"

    @property
    def attempt(self) -> str:
        """The attempt's name, by which all of its processes call it."""
        # The time tells two jobs of one number apart, where Slurm's numbers have begun anew.
        began = os.environ.get("SLURM_JOB_START_TIME", "")
        return hashlib.sha256(f"{self.key} {began}".encode()).hexdigest()[:8]

    @property
    def port(self) -> int:
        """The port at which the workers of this start meet.

        Another start, and another job, has another.
        """
        digest = hashlib.sha256(self.key.encode()).digest()
        return PORTS[int.from_bytes(digest[:8], "big") % len(PORTS)]


def this_allocation() -> Allocation:
    """Read this process's place from its environment; the batch script's own counts as rank 0."""
    place = TorchDistributedEnvironment()
    return Allocation(
        job=submitit.JobEnvironment().job_id,
        restart=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        task=int(os.environ.get("SLURM_ARRAY_TASK_ID", "0")),
        rank=place.rank,
        local_rank=place.local_rank,
        world_size=place.world_size,
        first_node=place.master_addr,
    )


class StopNotice(StopFlag):
    """Slurm's warning that a worker must stop; training asks for it between steps.

    Listens for USR2, which comes before the time limit or by hand, and TERM, which comes before a
    job is ended. Until the first question nothing is worth saving, and TERM ends the process at
    once, so that what `slurm.requeue` has to say of it comes before Slurm's KILL. submitit's own
    handler for USR2 takes every warning within ten minutes of the limit for a time-out, and
    requeues before workers agree on a step; so this one replaces it.
    """

    def __init__(self) -> None:
        super().__init__()
        signal.signal(signal.SIGUSR2, self.note)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def stop_requested(self) -> bool:
        """Say whether the worker must stop at the next occasion."""
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self.note)
        return super().stop_requested()


class NothingToDo(RuntimeError):
    """The job ends here; the message says why."""


def read_attempts(folder: Path) -> list[Attempt]:
    """Read the attempts at the run so far.

    Raises:
        RecordError: the record is damaged, or of another version.
    """
    run = store.read_optional(folder / "run.json", RunFile)
    if run is None:
        return []
    return run.attempts


def slurm_fact(attempt: Attempt, key: str) -> str | None:
    """Look up what the attempt's record says of its allocation under this name."""
    if attempt.slurm is None:
        return None
    return attempt.slurm.get(key)


def of_job(attempts: Sequence[Attempt], job: str) -> list[Attempt]:
    """List the attempts that this job has started."""
    return [attempt for attempt in attempts if slurm_fact(attempt, "job") == job]


def num_in_vain(folder: Path, starts: Sequence[Attempt]) -> int:
    """Count the starts of one job that began at what is still the newest checkpoint.

    They saved nothing. It is 0 where the last start was told to stop, which is no failure.
    """
    if starts and recorded_end(folder, starts[-1].attempt) in ALWAYS:
        return 0
    # As records have it: text, of the step at which the start began.
    saved = str(saved_step(folder) or 0)
    return sum(slurm_fact(start, "saved") == saved for start in starts)


def goes_on(folder: Path, starts: Sequence[Attempt], max_retries: int) -> bool:
    """Say whether this job is to be requeued after its last start; only its own starts count."""
    ended = recorded_end(folder, starts[-1].attempt)
    return ended in (*ALWAYS, *RETRIED) and num_in_vain(folder, starts) <= max_retries


def begins(attempt: str) -> str:
    """Give the line that every worker of an attempt says first.

    A job that is requeued goes on in the same logs, which this line divides.
    """
    return f"attempt {attempt} begins"


def begin_attempt(
    recorder: Recorder, allocation: Allocation, max_retries: int, stack: ExitStack
) -> None:
    """Begin this start's attempt, over any that its job left.

    Args:
        stack: the run's lock is held until it ends.

    Raises:
        NothingToDo: the run is done, another process is at it, or starts of its job ended too often
            without having saved anything new.
    """
    folder = recorder.folder
    # Slurm starts a job anew whose node died as its run ended; the record of what is done stays.
    if is_done(folder):
        raise NothingToDo(f"run {recorder.run_id} is done")
    attempts = read_attempts(folder)
    ours = of_job(attempts, allocation.job)
    try:
        stack.enter_context(owned(folder))
    except BusyError as error:
        if not ours or ours[-1] is not attempts[-1]:
            raise NothingToDo(str(error)) from None
        # An orphan of this job has the lock, and will find out that it was replaced.
    if num_in_vain(folder, ours) > max_retries:
        last = ours[-1].attempt
        kind = recorded_end(folder, last)
        message = (
            f"gave up: job {allocation.job} ended with {kind} at start {len(ours)}, and has "
            "saved nothing new"
        )
        write_failure(
            folder, recorder.run_id, last, kind, message, "", is_last_word=True
        )
        raise NothingToDo(message)
    recorder.enter(saved_step(folder) or 0)
    # And once more: having written to the folder, this node sees what others wrote to it before.
    if is_done(folder):
        raise NothingToDo(f"run {recorder.run_id} is done")


def main(arguments: Sequence[str] | None = None) -> int:
    """Decide whether this job is requeued, and return the exit code that it is to end with.

    Args:
        arguments: campaign.json, the submission's number in it, the retries a job may have, and
            what srun returned.
    """
    if arguments is None:
        arguments = sys.argv[1:]
    campaign, number, max_retries, code = arguments
    allocation = this_allocation()
    try:
        submission = store.read_record(Path(campaign), Campaign).submissions[
            int(number)
        ]
        folder = Path(campaign).parent / submission.runs[allocation.task]
        return decide(folder, submission, allocation, int(max_retries), int(code))
    except (RecordError, OSError) as error:
        print(f"the job is not requeued: {error}", flush=True)
        return 1


def decide(
    folder: Path,
    submission: Submission,
    allocation: Allocation,
    max_retries: int,
    code: int,
) -> int:
    """Requeue the job where its run has no result and may go on; return the job's exit code.

    Raises:
        OSError: no space, no permission: going on would end in the same way.
    """
    # From what settles it to what must be guessed: a result, a later start, Slurm's own end, the
    # worker's record, srun's code.
    if packs.read_result(folder) is not None:
        return 0
    attempts = read_attempts(folder)
    ours = of_job(attempts, allocation.job)
    here = [
        start
        for start in ours
        if slurm_fact(start, "restart") == str(allocation.restart)
    ]
    if here and here[-1] is not attempts[-1]:
        # Slurm believed this job dead and started it anew: requeuing it now would end that other
        # start.
        print(
            "a later start has taken the run over: nothing follows from this one",
            flush=True,
        )
        return 1

    attempt = NONE
    if here:
        attempt = here[-1].attempt
    by_slurm = _ended_by_slurm(allocation)
    # Where no attempt began and srun is content there is nothing to tell of.
    if here or code:
        jobs_folder = Path(submission.jobs_folder)
        _record_end(folder, jobs_folder, allocation.job, attempt, code, by_slurm)

    if not here:
        # Earlier starts that ended before a worker began: without a bound a job could be requeued
        # for ever.
        num_without_attempt = allocation.restart - len(ours)
        was_told_to_stop = by_slurm is None and code == TOLD_TO_STOP
        if was_told_to_stop and num_without_attempt < max_retries:
            return _requeue(allocation, "told to stop before a worker began")
        return code
    how = f"ended with {recorded_end(folder, attempt)}"
    if by_slurm is None and goes_on(folder, ours, max_retries):
        return _requeue(allocation, how)
    why = "not requeued"
    if by_slurm is not None:
        why = "Slurm ends the job, and requeues it or not"
    print(f"{how} as start {allocation.restart + 1} of this job: {why}", flush=True)
    return 1


def _record_end(
    folder: Path,
    jobs_folder: Path,
    job: str,
    attempt: str,
    code: int,
    by_slurm: End | None,
) -> None:
    """Write down how an attempt ended, where no worker has or where Slurm ended it."""
    # Slurm's own reason is offered even where a worker has said one: it takes the place of
    # "communication", which is never the cause, and of nothing else.
    if by_slurm is None and read_failure(folder, attempt) is not None:
        return
    kind, why = by_slurm or _unsaid_end(logs_of(jobs_folder, job), attempt, code)
    message = f"{why}; srun ended with code {code}, see {log_of(jobs_folder, job)}"
    write_failure(folder, folder.name, attempt, kind, message, "")


def _requeue(allocation: Allocation, why: str) -> int:
    """Put the job into the queue again, and return scontrol's exit code."""
    print(f"{why}: requeued", flush=True)
    return subprocess.run(
        ["scontrol", "requeue", allocation.job], check=False
    ).returncode


def _ended_by_slurm(allocation: Allocation) -> End | None:
    """Say how Slurm itself ends this job; None where it does not.

    A cancelled job would come back if it were requeued here. At its time limit a job is being ended
    too, and comes back only if it is requeued here.
    """
    shown = output_of("scontrol", "show", "job", "--oneliner", allocation.job)
    if shown is None or "JobState=RUNNING" in shown.split() or _is_at_its_limit():
        return None
    if lost := re.search(r"\bFailedNode=(\S+)", shown):
        return "node", f"the node {lost[1]} was lost"
    restarts = re.search(r"\bRestarts=(\d+)", shown)
    if restarts and int(restarts[1]) > allocation.restart:
        return "preempted", "the job was requeued by Slurm"
    return "preempted", "the job was cancelled; `make resubmit` takes it up again"


def _is_at_its_limit() -> bool:
    """Tell whether the job's time is over; never where Slurm gave it no end."""
    return time.time() >= float(os.environ.get("SLURM_JOB_END_TIME") or "inf")


def _unsaid_end(logs: Sequence[Path], attempt: str, code: int) -> End:
    """Say how an attempt ended whose workers left no record, or a job without an attempt."""
    if attempt == NONE:
        return end_without_attempt(code == TOLD_TO_STOP)
    texts = [tail_of(log) for log in logs]
    said = "\n".join(text.partition(begins(attempt))[2] for text in texts)
    return end_of_workers(said, _is_at_its_limit())


if __name__ == "__main__":
    sys.exit(main())
