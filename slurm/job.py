"""What each process of a job does: of a run's, and of the preflight's, which checks nodes, network
and data before."""

import os
import platform
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path

import submitit
import torch

from cser_bench.algorithms import ProcessGroupCollectives
from cser_bench.harness.records.provenance import new_attempt, output_of
from cser_bench.harness.records.state import saved_step
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.tasks.task import Check, find_task
from cser_bench.harness.train.train import train
from cser_bench.harness.train.training import Job
from cser_bench.harness.workers import preflight as machine
from cser_bench.harness.workers.attempt import prepare_thread, recorded
from cser_bench.harness.workers.preflight import first_line
from cser_bench.harness.workers.process_group import backend_for, from_rank_0, joined, own_gpu
from cser_bench.slurm.campaign import Request
from cser_bench.slurm.profile import Profile
from cser_bench.slurm.requeue import (
    Allocation,
    NothingToDo,
    StopNotice,
    begin_attempt,
    begins,
    recorded_end,
    this_allocation,
)

GRACE_SECONDS = 5.0
"""How long a worker that lost the others stays, so that the one that caused it can say why before
Slurm ends all."""

ALL_WELL = "all is well here"
"""What a process of the preflight says last, where no check has failed."""

PATIENCE_SECONDS = 100.0
"""How long the processes wait for each other."""


def do_run(job: Job, profile: Profile) -> None:
    """Be one worker of the run. Ends the process: with 0 after a result, a notice, or where there
    is nothing to do."""
    notice, allocation = StopNotice(), this_allocation()
    job = _here(job, profile, allocation)
    prepare_thread(job.device)
    print(begins(allocation.attempt), flush=True)
    with ExitStack() as stack:
        to_do = True
        if allocation.rank == 0:
            try:
                begin_attempt(job.recorder(), allocation, profile.max_retries, stack)
            except NothingToDo as error:
                print(error, flush=True)
                to_do = False

        def work() -> None:
            with meeting(profile, allocation, job.timeout_seconds):
                if from_rank_0(to_do):
                    train(job, ProcessGroupCollectives(), notice.stop_requested)

        if not recorded(job, work):
            kind = recorded_end(job.folder, allocation.attempt)
            if kind == "communication":
                time.sleep(GRACE_SECONDS)
            sys.exit(0 if kind == "preempted" else 1)
    sys.exit(0)


def own_device(profile: Profile, allocation: Allocation) -> str:
    """The worker's device."""
    return (
        "cpu"
        if profile.device == "cpu"
        else own_gpu(allocation.local_rank, torch.cuda.device_count())
    )


def meeting(
    profile: Profile, allocation: Allocation, timeout_seconds: float
) -> AbstractContextManager[None]:
    """Inside, this process is one of the group of all workers of this start; see `joined`."""
    address = f"tcp://{profile.master_address or allocation.first_node}:{allocation.port}"
    device, (rank, world_size) = (
        own_device(profile, allocation),
        (allocation.rank, allocation.world_size),
    )
    return joined(device, timeout_seconds, address, rank, world_size, allocation.key)


def _here(job: Job, profile: Profile, allocation: Allocation) -> Job:
    """The job as this process does it. Its commit stays the snapshot's: the checkout around that
    goes on."""
    device = own_device(profile, allocation)
    kept = job.attempt.model_dump(include={"command", "git_commit", "git_diff_sha256"})
    kept |= {
        "attempt": allocation.attempt,
        "slurm": facts(allocation, job.folder) if allocation.rank == 0 else None,
    }
    made = new_attempt("slurm", backend_for(device), torch.device(device))
    return replace(job, device=device, attempt=made.model_copy(update=kept))


def facts(allocation: Allocation, folder: Path) -> dict[str, str]:
    """What an attempt's record says of the allocation: Slurm's variables, nodes, GPUs, driver,
    topology.

    `saved` is the step of the checkpoint that the run in this folder has when the job starts.
    """
    kept = ("SLURM_CLUSTER_NAME", "SLURM_JOB_", "SLURM_ARRAY_", "SLURM_RESTART", "SLURM_NTASKS", "SLURM_CPUS_PER_TASK",
            "SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES")  # fmt: skip
    found = {name: text for name, text in os.environ.items() if name.startswith(kept)}
    found |= {
        "job": allocation.job,
        "restart": str(allocation.restart),
        "saved": str(saved_step(folder) or 0),
    }
    found |= {"nodes": ",".join(submitit.JobEnvironment().hostnames)}
    found["gpus"] = (
        output_of("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader") or ""
    )
    found["topology"] = output_of("nvidia-smi", "topo", "-m") or ""
    return {name: text for name, text in found.items() if text}


def preflight(request: Request) -> None:
    """What each process of the job does: say a line of each check, until one fails, and at last
    that all is well."""
    host = os.environ.get("SLURMD_NODENAME") or platform.node()
    for check in checks_here(request, this_allocation()):
        print(machine.line_of(check, f" (on {host})"), flush=True)
        if not check.passed:
            sys.exit(1)  # which ends the others too, since srun is told so
    print(ALL_WELL, flush=True)


def checks_here(request: Request, here: Allocation) -> Iterator[Check]:
    """The checks of one process: its GPUs, its node's disk, the network, and for its node the
    data."""
    profile, device = request.profile, own_device(request.profile, here)
    if device != "cpu":
        yield from machine.check_gpus()
    if here.local_rank == 0:
        yield machine.check_writable("temporary files", Path(tempfile.gettempdir()))
    yield network_check(profile, here, device)
    if here.rank == 0:
        yield machine.check_results(request.plan, request.results, profile.array_parallelism)
    if here.local_rank == 0:
        yield machine.check_data(find_task(request.plan.runs[0].config.task.name), request.data)


def network_check(profile: Profile, here: Allocation, device: str) -> Check:
    """An all-reduce of all, through NCCL or gloo as in training."""
    names = ", ".join(name for _, name in socket.if_nameindex())
    advice = (
        f"look at network_interface in the profile, of which there are {names}, and at "
        "master_address"
    )
    try:
        prepare_thread(device)
        with meeting(profile, here, PATIENCE_SECONDS):
            print(f"an all-reduce begins; if that is the last word: {advice}", flush=True)
            measured = machine.all_reduce_bits_per_second(device)
    except SpecError as error:
        why = f"{error}; in the profile look at workers_per_node and at what [sbatch] asks for"
        return Check("a GPU for each worker", False, why)
    except (RuntimeError, OSError) as error:
        return Check("network", False, f"an all-reduce fails: {first_line(error)}; {advice}")
    workers = f"{profile.num_workers} workers on {profile.nodes} nodes"
    text = f"an all-reduce among {workers} gets {measured / 1e9:.3g} Gb/s a link"
    if promised := profile.link_bits_per_second:
        look = ", so look at network_interface, or ask the site" if measured < promised / 2 else ""
        text += f"; the profile says {promised / 1e9:g}{look}"
    return Check("network", True, text)
