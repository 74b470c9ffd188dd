"""What each process of a run's job does: meet the others, train as a worker, leave a record of how it ended."""

from __future__ import annotations

import datetime
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import submitit
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from algorithms import CollectiveError, ProcessGroupCollectives
from algorithms.core.process_group import translated_errors
from harness.records.provenance import new_attempt, output_of
from harness.records.recorder import SupersededError, write_failure
from harness.train.training import Preempted
from harness.workers.attempt import Job, attempt_in_group, prepare_thread, recorded
from harness.workers.devices import own_gpu
from harness.workers.process_group import backend_for, joined_through
from slurm.allocation import Allocation, StopNotice, this_allocation
from slurm.profile import Profile
from slurm.staging import STAGING_SECONDS, is_archive, staged
from slurm.starts import NothingToDo, begin_attempt, begins, recorded_end

GRACE_SECONDS = 5.0
"""How long a worker that lost the others stays, so that the one that caused it can say why before Slurm ends all."""


def do_run(job: Job, profile: Profile) -> None:
    """Be one worker of the run. Ends the process: with 0 after a result, a notice, or where there is nothing to do."""
    notice, allocation, attempt = StopNotice(profile), this_allocation(), ""
    device = own_device(profile, allocation)
    prepare_thread(device)
    with ExitStack() as stack:
        if allocation.rank == 0:
            try:
                attempt = begin_attempt(job.folder, job.run.run_id, allocation, profile.max_retries, stack)
            except NothingToDo as error:
                print(error, flush=True)
        try:
            store = meet(allocation, profile, job.timeout_seconds)
            if allocation.rank == 0:
                store.set("attempt", attempt)
            attempt = store.get("attempt").decode()
        except CollectiveError as error:
            print(f"rank {allocation.rank}: {error}", flush=True)
            if attempt:
                write_failure(job.folder, job.run.run_id, attempt, "communication", str(error), "")
            time.sleep(GRACE_SECONDS)
            sys.exit(1)
        sys.exit(_train(_here(job, allocation, attempt, device), profile, allocation, store, notice) if attempt else 0)


def own_device(profile: Profile, allocation: Allocation) -> str:
    """The worker's device."""
    return "cpu" if profile.device == "cpu" else own_gpu(allocation.local_rank, torch.cuda.device_count())


def meet(allocation: Allocation, profile: Profile, timeout_seconds: float) -> TCPStore:
    """A store that all workers of this start share; returns when all have come.

    Raises:
        CollectiveError: they have not in time, or another job has the port.
    """
    address, port = profile.master_address or allocation.first_node, allocation.port
    timeout = datetime.timedelta(seconds=timeout_seconds)
    try:
        with translated_errors():
            store = TCPStore(address, port, allocation.world_size, allocation.rank == 0, timeout)
            if allocation.rank == 0:
                store.set("key", allocation.key)
            found = store.get("key").decode()
    except CollectiveError as error:
        raise CollectiveError(f"the workers do not meet at {address}:{port}: {error}") from None
    if found != allocation.key:
        raise CollectiveError(f"the workers do not meet at {address}:{port}: the job {found} has that port")
    return store


def _here(job: Job, allocation: Allocation, attempt: str, device: str) -> Job:
    """The job as this process does it. Its commit stays the snapshot's: the checkout around that goes on."""
    kept = job.attempt.model_dump(include={"command", "git_commit", "git_diff_sha256"})
    kept |= {"attempt": attempt, "slurm": facts(allocation) if allocation.rank == 0 else None}
    made = new_attempt("slurm", backend_for(device), torch.device(device))
    return replace(job, device=device, attempt=made.model_copy(update=kept))


def _train(job: Job, profile: Profile, allocation: Allocation, store: TCPStore, notice: StopNotice) -> int:
    """Train, and record how it ended; returns the process's exit code."""
    print(begins(job.attempt.attempt), flush=True)

    def work() -> None:
        here = replace(job, data=_data(job.data, profile, allocation, store))
        with joined_through(store, job.device, job.timeout_seconds, allocation.rank, allocation.world_size):
            _train_in_group(here, allocation.rank, notice)

    if recorded(job, work):
        return 0
    if recorded_end(job.folder, job.attempt.attempt) == "communication":
        time.sleep(GRACE_SECONDS)
    return 1


def _data(data: Path | None, profile: Profile, allocation: Allocation, store: TCPStore) -> Path | None:
    """Where this node has the data; returns when all nodes have it."""
    if not is_archive(data) or profile.scratch is None:
        return data
    folder = staged(data, profile.scratch)
    store.set(f"data of {allocation.rank}", "")
    names = [f"data of {rank}" for rank in range(allocation.world_size)]
    store.wait(names, datetime.timedelta(seconds=STAGING_SECONDS))
    return folder


def _train_in_group(job: Job, rank: int, notice: StopNotice) -> None:
    """Ends the process, and leaves the group as it stands, where another attempt has taken the run over."""
    try:
        attempt_in_group(job, ProcessGroupCollectives(), notice.stop_requested)
    except Preempted as error:
        if rank == 0:
            write_failure(job.folder, job.run.run_id, job.attempt.attempt, notice.kind or "preempted", str(error), "")
    except SupersededError as error:
        print(f"{error}; this one stops and writes nothing", flush=True)
        sys.exit(1)


def facts(allocation: Allocation) -> dict[str, str]:
    """What an attempt's record says of the allocation: Slurm's variables, nodes, GPUs, driver, topology."""
    kept = ("SLURM_CLUSTER_NAME", "SLURM_JOB_", "SLURM_ARRAY_", "SLURM_RESTART", "SLURM_NTASKS", "SLURM_CPUS_PER_TASK",
            "SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES")  # fmt: skip
    found = {name: text for name, text in os.environ.items() if name.startswith(kept)}
    found |= {"job": allocation.job, "nodes": ",".join(submitit.JobEnvironment().hostnames)}
    found["gpus"] = output_of("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader") or ""
    found["topology"] = output_of("nvidia-smi", "topo", "-m") or ""
    return {name: text for name, text in found.items() if text}
