"""What each process of a run's job does: meet the others, train as a worker, leave a record of how it ended."""

from __future__ import annotations

import os
import sys
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace

import submitit
import torch

from algorithms import ProcessGroupCollectives
from harness.records.provenance import new_attempt, output_of
from harness.records.recorder import SupersededError, write_failure
from harness.train.training import Preempted
from harness.workers.attempt import Job, attempt_in_group, prepare_thread, recorded
from harness.workers.process_group import backend_for, from_rank_0, joined, own_gpu
from slurm.allocation import Allocation, StopNotice, this_allocation
from slurm.profile import Profile
from slurm.requeue import NothingToDo, begin_attempt, begins, recorded_end

GRACE_SECONDS = 5.0
"""How long a worker that lost the others stays, so that the one that caused it can say why before Slurm ends all."""


def do_run(job: Job, profile: Profile) -> None:
    """Be one worker of the run. Ends the process: with 0 after a result, a notice, or where there is nothing to do."""
    notice, allocation = StopNotice(profile), this_allocation()
    job = _here(job, profile, allocation)
    prepare_thread(job.device)
    print(begins(allocation.attempt), flush=True)
    with ExitStack() as stack:
        to_do = True
        if allocation.rank == 0:
            try:
                begin_attempt(job.folder, job.run.run_id, allocation, profile.max_retries, stack)
            except NothingToDo as error:
                print(error, flush=True)
                to_do = False

        def work() -> None:
            with meeting(profile, allocation, job.timeout_seconds):
                if from_rank_0(to_do):
                    _train(job, allocation.rank, notice)

        if not recorded(job, work):
            if recorded_end(job.folder, allocation.attempt) == "communication":
                time.sleep(GRACE_SECONDS)
            sys.exit(1)
    sys.exit(0)


def own_device(profile: Profile, allocation: Allocation) -> str:
    """The worker's device."""
    return "cpu" if profile.device == "cpu" else own_gpu(allocation.local_rank, torch.cuda.device_count())


def meeting(profile: Profile, allocation: Allocation, timeout_seconds: float) -> AbstractContextManager[None]:
    """Inside, this process is one of the group of all workers of this start; see `joined`."""
    address = f"tcp://{profile.master_address or allocation.first_node}:{allocation.port}"
    device, (rank, world_size) = own_device(profile, allocation), (allocation.rank, allocation.world_size)
    return joined(device, timeout_seconds, address, rank, world_size, allocation.key)


def _here(job: Job, profile: Profile, allocation: Allocation) -> Job:
    """The job as this process does it. Its commit stays the snapshot's: the checkout around that goes on."""
    device = own_device(profile, allocation)
    kept = job.attempt.model_dump(include={"command", "git_commit", "git_diff_sha256"})
    kept |= {"attempt": allocation.attempt, "slurm": facts(allocation) if allocation.rank == 0 else None}
    made = new_attempt("slurm", backend_for(device), torch.device(device))
    return replace(job, device=device, attempt=made.model_copy(update=kept))


def _train(job: Job, rank: int, notice: StopNotice) -> None:
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
