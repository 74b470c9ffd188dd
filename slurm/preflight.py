"""Before the array: the job that looks at what would stop all its runs, and the wait for what it finds."""

from __future__ import annotations

import time
from pathlib import Path

from submitit import SlurmExecutor

from harness.records import store
from slurm.errors import CampaignError
from slurm.look import Look, Looked, look
from slurm.queue import queued_jobs

POLL_SECONDS, ASK_SECONDS = 0.5, 5.0
"""Between two looks for the answer, and between two questions to squeue, which others ask too."""

LATE_SECONDS = 30.0
"""How much later than its job an answer may arrive, over a network file system."""


def submit_preflight(executor: SlurmExecutor, task: Look) -> str:
    """Submit the job; returns its id."""
    return str(executor.submit(look, task).job_id)


def wait_for_preflight(job: str, answer: Path, log: Path, wait_minutes: float) -> bool:
    """Whether the job found all well; False where it has not begun in time, which is no bad sign.

    Raises:
        CampaignError: a check failed, or the job ended without an answer.
    """
    ends = time.monotonic() + 60 * wait_minutes
    asked = seen = time.monotonic()
    while not answer.exists():
        now = time.monotonic()
        if now > ends:
            return False
        if now - asked > ASK_SECONDS:
            asked, queue = now, queued_jobs()
            seen = now if queue is None or job in queue else seen
        if now - seen > LATE_SECONDS:
            raise CampaignError(
                f"the preflight job {job} ended without an answer; if {log} is missing too, compute nodes do not see "
                f"{answer.parent}: give --results a folder on a shared file system"
            )
        time.sleep(POLL_SECONDS)
    looked = store.read_record(answer, Looked)
    failed = [f"{line.what}: {line.detail}" for line in looked.lines if not line.passed]
    if failed:
        raise CampaignError(f"on the compute nodes {looked.nodes}, preflight fails: {'; '.join(failed)}")
    for line in looked.lines:
        print(f"ok   {line.what}: {line.detail}", flush=True)
    return True
