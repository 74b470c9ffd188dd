"""The job that looks, from a compute node, at what would stop all the others: data, disk, GPUs, NCCL."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from submitit import SlurmExecutor

from harness.plan.plan import Plan
from harness.records import store
from harness.records.store import Record
from harness.tasks.image_reading import own_cores
from harness.tasks.task import configured_task
from harness.workers.preflight import check_data, check_disk, check_gpus, check_locks, check_nccl, check_reading
from slurm.errors import CampaignError
from slurm.profile import Profile
from slurm.queue import queued_jobs

POLL_SECONDS, ASK_SECONDS = 0.5, 5.0
"""Between two looks for the answer, and between two questions to squeue, which others ask too."""

LATE_SECONDS = 30.0
"""How much later than its job an answer may arrive, over a network file system."""


class Line(Record):
    """One check."""

    what: str
    passed: bool
    detail: str


class Looked(Record):
    """preflight.json beside the job's log."""

    host: str
    lines: list[Line]


@dataclass(frozen=True)
class Look:
    """What the job needs."""

    plan: Plan
    results: Path
    data: Path | None
    profile: Profile
    answer: Path


def look(task: Look) -> None:
    """The job itself: writes what it found; ends the process with 1 where a check failed."""
    from slurm.allocation import this_allocation

    profile, config = task.profile, task.plan.runs[0].config
    checks = [
        *check_data(configured_task(config.task), task.data),
        *check_reading(config, task.data, profile.device, own_cores()),
        check_disk(task.plan, task.results, profile.array_parallelism),
        check_locks(task.results),
    ]
    if profile.device == "cuda":
        # That there are as many as the profile says is Slurm's affair.
        checks += [*check_gpus(), check_nccl()]
    lines = [Line(**check._asdict()) for check in checks]
    store.write_record(task.answer, Looked(host=this_allocation().first_node, lines=lines))
    sys.exit(0 if all(check.passed for check in checks) else 1)


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
        raise CampaignError(f"from the compute node {looked.host}, preflight fails: {'; '.join(failed)}")
    return True
