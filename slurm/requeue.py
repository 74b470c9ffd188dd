"""The last line of every job's script: looks at how the workers ended, and requeues the job or lets it end."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from harness.records import packs, store
from harness.records.recorder import write_failure
from harness.records.store import Failure, RecordError
from harness.workers import watchdog
from slurm.allocation import Allocation, this_allocation
from slurm.campaign import Campaign, Submission
from slurm.policy import End, goes_on
from slurm.starts import Start, begins, end_of, ends_of_job, read_starts


def main(arguments: Sequence[str] | None = None) -> int:
    """Decide on this job after srun has returned; the exit code is the job's."""
    parser = argparse.ArgumentParser(prog="slurm.requeue", description=__doc__)
    parser.add_argument("campaign", type=Path)
    parser.add_argument("submission", type=int)
    parser.add_argument("--max-retries", type=int, required=True)
    parser.add_argument("code", type=int, help="what srun returned")
    options = parser.parse_args(arguments)
    allocation = this_allocation()
    try:
        submission = store.read_record(options.campaign, Campaign).submissions[options.submission]
        folder = options.campaign.parent / submission.runs[allocation.task]
        return decide(folder, submission, allocation, options.max_retries, options.code)
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
    starts = read_starts(folder)
    here = [start for start in starts if (start.job, start.restart) == (allocation.job, allocation.restart)]
    if not here:
        return _without_a_start(folder, submission, allocation, code)
    if here[-1] is not starts[-1]:
        # Slurm believed this job dead and started it anew: requeuing it now would end that other start.
        print("a later start has taken the run over: nothing follows from this one", flush=True)
        return 1
    kind = _recorded_end(folder, here[-1], submission.log_of(allocation.job), code)
    ends = ends_of_job(starts[:-1], allocation.job)
    if not goes_on(End(kind, bool(here[-1].progressed)), ends, max_retries):
        print(f"ended with {kind} after {len(ends)} earlier attempts of this job: not requeued", flush=True)
        return 1
    if _is_being_ended(allocation.number):
        print(f"ended with {kind}: Slurm ends the job, and requeues it or not", flush=True)
        return 1
    print(f"ended with {kind}: requeued", flush=True)
    return subprocess.run(["scontrol", "requeue", allocation.number], check=False).returncode


def _is_being_ended(number: str) -> bool:
    """Whether the job was cancelled, or requeued by others: a cancelled one would come back if it were requeued here.

    At its time limit a job is being ended too, and comes back only if it is requeued here.
    """
    try:
        said = subprocess.run(
            ["scontrol", "show", "job", "--oneliner", number], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    return "JobState=RUNNING" not in said.split() and not _is_at_its_limit()


def _is_at_its_limit() -> bool:
    return time.time() >= float(os.environ.get("SLURM_JOB_END_TIME") or "inf")


def _without_a_start(folder: Path, submission: Submission, allocation: Allocation, code: int) -> int:
    """The workers had nothing to do, or did not come so far as to say which attempt they are."""
    if code:
        log = submission.log_of(allocation.job)
        message = f"the job's processes ended with code {code} before they began; see {log}"
        write_failure(folder, folder.name, "none", "bug", message, "")
    return code


def _recorded_end(folder: Path, start: Start, log: Path, code: int) -> store.FailureKind:
    """How the attempt ended; where it left no word of that, there is a record afterwards all the same."""
    failure = store.read_optional(folder / "failure.json", Failure)
    if failure is None or failure.attempt != start.attempt:
        # As where they did not come to save within warning_seconds.
        kind: store.FailureKind = "timeout" if _is_at_its_limit() else "node"
        kind, message = _said_by_watchdog(log, start) or (kind, "the workers ended without a word")
        write_failure(folder, folder.name, start.attempt, kind, f"{message}, srun with code {code}; see {log}", "")
    return end_of(folder, start.attempt)


def _said_by_watchdog(log: Path, start: Start) -> tuple[store.FailureKind, str] | None:
    """What NCCL's watchdog said as the last of this attempt, in any worker's log, before it ended the process."""
    own, suffix = log.name.rsplit("_0_", 1)
    texts = [watchdog.tail_of(each) for each in sorted(log.parent.glob(f"{own}_*_{suffix}"))]
    return watchdog.end_in("\n".join(text.partition(begins(start.attempt))[2] for text in texts))


if __name__ == "__main__":
    sys.exit(main())
