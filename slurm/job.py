"""What each process of a job does: of a run's job, and of the preflight's.

The preflight checks nodes, network and data before runs are submitted.
"""

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
from cser_bench.harness.records.endings import recorded_end
from cser_bench.harness.records.provenance import (
    new_attempt,
    output_of,
    slurm_variables,
)
from cser_bench.harness.records.state import saved_step
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.tasks.task import PreflightCheck, find_task
from cser_bench.harness.train.train import train
from cser_bench.harness.train.training import Job
from cser_bench.harness.workers import preflight as machine
from cser_bench.harness.workers.attempt import prepare_thread, recorded
from cser_bench.harness.workers.preflight import first_line
from cser_bench.harness.workers.process_group import (
    backend_for,
    from_rank_0,
    joined,
    own_gpu,
)
from cser_bench.harness.workers.processes import end_process
from cser_bench.slurm.campaign import Request
from cser_bench.slurm.profile import Profile
from cser_bench.slurm.requeue import (
    Allocation,
    NothingToDo,
    StopNotice,
    begin_attempt,
    begins,
    this_allocation,
)

STAY_SECONDS = 5.0
"""How long a worker that lost the others stays. Slurm ends all when it goes, and the one that caused
it must have said why by then."""

ALL_WELL = "all is well here"
"""What a process of the preflight says last, where no check has failed."""

PATIENCE_SECONDS = 100.0
"""Seconds that the processes wait for each other."""


def do_run(job: Job, profile: Profile) -> None:
    """Be one worker of the run, and end the process.

    Its exit code is 0 after a result, after a notice to stop, and where there is nothing to do.
    """
    # First of all: a warning before this would end the process.
    notice = StopNotice()
    allocation = this_allocation()
    job = _here(job, profile, allocation)
    prepare_thread(job.device)
    print(begins(allocation.attempt), flush=True)
    code = 0
    with ExitStack() as stack:
        to_do = True
        # Rank 0 alone holds the run's lock and its record; the others hear from it below.
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
            # This worker lost another one, which is the one that knows why.
            if kind == "communication":
                time.sleep(STAY_SECONDS)
            # A run that was asked to stop is no failure of the job's.
            if kind != "preempted":
                code = 1
    end_process(code)


def own_device(profile: Profile, allocation: Allocation) -> str:
    """Name the worker's device."""
    if profile.device == "cpu":
        return "cpu"
    return own_gpu(allocation.local_rank, torch.cuda.device_count())


def meeting(
    profile: Profile, allocation: Allocation, timeout_seconds: float
) -> AbstractContextManager[None]:
    """Join the group of all workers of this start, for as long as one is inside; see `joined`."""
    return joined(
        own_device(profile, allocation),
        timeout_seconds,
        f"tcp://{profile.master_address or allocation.first_node}:{allocation.port}",
        allocation.rank,
        allocation.world_size,
        allocation.key,
    )


def _here(job: Job, profile: Profile, allocation: Allocation) -> Job:
    """Return the job as this process does it."""
    device = own_device(profile, allocation)
    # The commit stays the snapshot's: the checkout around that goes on.
    kept = job.attempt.model_dump(include={"command", "git_commit", "git_diff_sha256"})
    kept["attempt"] = allocation.attempt
    # Rank 0's stand in the record; to gather them asks programs, which all workers would else do at once.
    if allocation.rank == 0:
        kept["slurm"] = facts(allocation, job.folder)
    attempt = new_attempt("slurm", backend_for(device), torch.device(device))
    return replace(job, device=device, attempt=attempt.model_copy(update=kept))


def facts(allocation: Allocation, folder: Path) -> dict[str, str]:
    """Gather what an attempt's record says of the allocation.

    That is Slurm's variables, the nodes, and of GPUs their names, driver and topology. `saved` is
    the step of the checkpoint that the run in this folder has when the job starts.
    """
    gpus = output_of(
        "nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"
    )
    gathered = slurm_variables() | {
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "job": allocation.job,
        "restart": str(allocation.restart),
        "saved": str(saved_step(folder) or 0),
        "nodes": ",".join(submitit.JobEnvironment().hostnames),
        "gpus": gpus or "",
        "topology": output_of("nvidia-smi", "topo", "-m") or "",
    }
    return {name: text for name, text in gathered.items() if text}


def preflight(request: Request) -> None:
    """Say a line of each check, until one fails, and at last that all is well."""
    host = os.environ.get("SLURMD_NODENAME") or platform.node()
    for check in checks_here(request, this_allocation()):
        print(machine.line_of(check, f" (on {host})"), flush=True)
        if not check.passed:
            sys.exit(1)  # which ends the others too, since srun is told so
    print(ALL_WELL, flush=True)


def checks_here(request: Request, here: Allocation) -> Iterator[PreflightCheck]:
    """Check for one process its GPUs and the network, and for its node the disk and the data."""
    profile = request.profile
    device = own_device(profile, here)
    if device != "cpu":
        yield from machine.check_gpus()
    # Once a node: all its processes see the same folder.
    if here.local_rank == 0:
        yield machine.check_writable("temporary files", Path(tempfile.gettempdir()))
    yield network_check(profile, here, device)
    if here.rank == 0:
        yield machine.check_results(
            request.plan, request.results, profile.array_parallelism
        )
    if here.local_rank == 0:
        yield machine.check_data(
            find_task(request.plan.runs[0].config.task.name), request.data
        )


def network_check(profile: Profile, here: Allocation, device: str) -> PreflightCheck:
    """Try an all-reduce among all workers, through NCCL or gloo as in training."""
    interfaces = ", ".join(name for _, name in socket.if_nameindex())
    advice = (
        f"look at network_interface in the profile, of which there are {interfaces}, and at "
        "master_address"
    )
    try:
        prepare_thread(device)
        with meeting(profile, here, PATIENCE_SECONDS):
            # Before it begins, as it may hang on a wrong interface.
            print(
                f"an all-reduce begins; if that is the last word: {advice}", flush=True
            )
            measured = machine.all_reduce_bits_per_second(device)
    except SpecError as error:
        why = f"{error}; in the profile look at workers_per_node and at what [sbatch] asks for"
        return PreflightCheck("a GPU for each worker", False, why)
    except (RuntimeError, OSError) as error:
        return PreflightCheck(
            "network", False, f"an all-reduce fails: {first_line(error)}; {advice}"
        )
    workers = f"{profile.num_workers} workers on {profile.nodes} nodes"
    text = f"an all-reduce among {workers} gets {measured / 1e9:.3g} Gb/s a link"
    if promised := profile.link_bits_per_second:
        text += f"; the profile says {promised / 1e9:g}"
        # So little points at another link than the one that the profile means.
        if measured < promised / 2:
            text += ", so look at network_interface, or ask the site"
    return PreflightCheck("network", True, text)
