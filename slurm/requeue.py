"""The last line of every job's script: looks at how the workers ended, and requeues the job or lets it end.

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
from pathlib import Path

from harness.records import packs, store
from harness.records.recorder import end_by_watchdog, tail_of, write_failure
from harness.records.store import FailureKind, RecordError
from slurm.allocation import Allocation, ask_slurm, this_allocation
from slurm.campaign import Campaign, Submission
from slurm.starts import ALWAYS, COUNTED, Start, begins, num_retries, read_failure, read_starts

TOLD_TO_STOP = 128 + signal.SIGUSR2
"""srun's exit code where USR2 ended the workers: they were still loading, and did not listen for it."""


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
    return subprocess.run(["scontrol", "requeue", allocation.number], check=False).returncode


def _ended_by_slurm(allocation: Allocation) -> tuple[FailureKind, str] | None:
    """How Slurm itself ends this job: a cancelled one would come back if it were requeued here. None where it does not.

    At its time limit a job is being ended too, and comes back only if it is requeued here.
    """
    said = ask_slurm("scontrol", "show", "job", "--oneliner", allocation.number)
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
