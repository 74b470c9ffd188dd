"""What each process of a run's job does: meet the others, train as a worker, leave a record of how it ended."""

from __future__ import annotations

import datetime
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from algorithms import CollectiveError, ProcessGroupCollectives
from harness.plan.plan import PlannedRun
from harness.records.provenance import new_attempt
from harness.records.recorder import SupersededError, write_failure
from harness.records.store import Attempt
from harness.train.work import Preempted
from harness.workers.attempt import Job, attempt_in_group, prepare_thread, recorded
from harness.workers.devices import own_gpu
from harness.workers.process_group import backend_for, joined_through
from slurm.allocation import Allocation, this_allocation
from slurm.begin import NothingToDo, begin_attempt
from slurm.facts import facts
from slurm.notice import Notice
from slurm.profile import Profile
from slurm.rendezvous import Meeting, invite, join
from slurm.staging import STAGING_SECONDS, is_archive, staged
from slurm.starts import begins, end_of

GRACE_SECONDS = 5.0
"""How long a worker that lost the others stays, so that the one that caused it can say why before Slurm ends all."""

NOTHING = "nothing to do"


@dataclass(frozen=True)
class RunTask:
    """A task of the array: all that its job needs, as it was when it was submitted."""

    experiment: str
    folder: Path
    run: PlannedRun
    profile: Profile
    data: Path | None
    command: str
    git_commit: str | None
    git_diff_sha256: str | None


def do_run(task: RunTask) -> None:
    """Be one worker of the run. Ends the process: with 0 after a result, a notice, or where there is nothing to do."""
    notice, allocation = Notice(task.profile), this_allocation()
    device = own_device(task.profile, allocation)
    prepare_thread(device)
    with ExitStack() as stack:
        try:
            meeting = _meet(task, allocation, stack)
        except CollectiveError as error:
            print(f"rank {allocation.rank}: {error}", flush=True)
            time.sleep(GRACE_SECONDS)
            sys.exit(1)
        sys.exit(0 if meeting.message == NOTHING else _work(task, allocation, meeting, notice, device))


def own_device(profile: Profile, allocation: Allocation) -> str:
    """The worker's device."""
    return "cpu" if profile.device == "cpu" else own_gpu(allocation.local_rank, torch.cuda.device_count())


def _meet(task: RunTask, allocation: Allocation, stack: ExitStack) -> Meeting:
    """Find the other workers, and hear the attempt's name from rank 0."""
    address = task.profile.master_address or allocation.first_node
    timeout = task.profile.timeout_seconds
    if allocation.rank:
        return join(allocation.key, address, timeout)
    try:
        message = begin_attempt(task.folder, task.run.run_id, allocation, task.profile.max_retries, stack)
    except NothingToDo as error:
        print(error, flush=True)
        message = NOTHING
    return invite(allocation.key, address, message, allocation.world_size, timeout)


def _work(task: RunTask, allocation: Allocation, meeting: Meeting, notice: Notice, device: str) -> int:
    """Train, and record how it ended; returns the process's exit code."""
    print(begins(meeting.message), flush=True)
    job = _job(task, allocation, meeting.message, device)

    def work() -> None:
        here = replace(job, data=_data(task, allocation, meeting))
        with joined_through(meeting.store, device, job.timeout_seconds, allocation.rank, allocation.world_size):
            _train(here, allocation.rank, notice)

    if recorded(job, work):
        return 0
    if end_of(job.folder, job.attempt.attempt) == "communication":
        time.sleep(GRACE_SECONDS)
    return 1


def _data(task: RunTask, allocation: Allocation, meeting: Meeting) -> Path | None:
    """Where this node has the data; returns when all nodes have it."""
    if not is_archive(task.data) or task.profile.scratch is None:
        return task.data
    folder = staged(task.data, task.profile.scratch)
    meeting.store.set(f"data of {allocation.rank}", "")
    names = [f"data of {rank}" for rank in range(allocation.world_size)]
    meeting.store.wait(names, datetime.timedelta(seconds=STAGING_SECONDS))
    return folder


def _train(job: Job, rank: int, notice: Notice) -> None:
    """Ends the process, and leaves the group as it stands, where another attempt has taken the run over."""
    try:
        attempt_in_group(job, ProcessGroupCollectives(), notice.stop_requested)
    except Preempted as error:
        if rank == 0:
            write_failure(job.folder, job.run.run_id, job.attempt.attempt, notice.kind or "preempted", str(error), "")
    except SupersededError as error:
        print(f"{error}; this one stops and writes nothing", flush=True)
        sys.exit(1)


def _job(task: RunTask, allocation: Allocation, attempt: str, device: str) -> Job:
    return Job(
        experiment=task.experiment,
        folder=task.folder,
        run=task.run,
        attempt=_attempt(task, allocation, attempt, device),
        data=task.data,
        device=device,
        cores=(),
        checkpoint_minutes=task.profile.checkpoint_minutes,
        timeout_seconds=task.profile.timeout_seconds,
        memory_format=task.profile.memory_format,
    )


def _attempt(task: RunTask, allocation: Allocation, name: str, device: str) -> Attempt:
    """The attempt's record. Its commit is that of the snapshot, and not of the checkout around it, which goes on."""
    made = new_attempt("slurm", backend_for(device), torch.device(device))
    return made.model_copy(
        update={
            "attempt": name,
            "command": task.command,
            "git_commit": task.git_commit,
            "git_diff_sha256": task.git_diff_sha256,
            "slurm": facts(allocation) if allocation.rank == 0 else None,
        }
    )
