"""What each process of a job does: of a run's, and of the preflight's, which checks nodes, network and data before."""

from __future__ import annotations

import os
import platform
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import submitit
import torch

from algorithms import ProcessGroupCollectives
from harness.plan.plan import Plan
from harness.records import store
from harness.records.provenance import new_attempt, output_of
from harness.records.recorder import SupersededError, write_failure
from harness.records.store import Record
from harness.spec import SpecError
from harness.tasks.task import Check, find_task
from harness.train.training import Preempted
from harness.workers import preflight as on_one_machine
from harness.workers.attempt import Job, attempt_in_group, prepare_thread, recorded
from harness.workers.preflight import first_line
from harness.workers.process_group import backend_for, from_rank_0, joined, own_gpu
from slurm.allocation import Allocation, StopNotice, this_allocation
from slurm.campaign import CampaignError
from slurm.profile import Profile
from slurm.requeue import NothingToDo, begin_attempt, begins, recorded_end
from slurm.status import queued_jobs

GRACE_SECONDS = 5.0
"""How long a worker that lost the others stays, so that the one that caused it can say why before Slurm ends all."""

NETWORK = "network"
PATIENCE_SECONDS = 100.0
"""How long the processes wait for each other."""

WAIT_SECONDS = 600.0
"""How long the submitter waits for the job; then the array waits for it in the queue."""

POLL_SECONDS, ASK_SECONDS, LATE_SECONDS = 0.5, 5.0, 30.0
"""Between two looks for the answer, between two questions to squeue, which others ask too, and how much later than its
job an answer may arrive, over a network file system."""


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


@dataclass(frozen=True)
class PreflightTask:
    """What the job needs. Each of its processes leaves its answer in the folder `answers`."""

    plan: Plan
    results: Path
    data: Path | None
    profile: Profile
    answers: Path


class Answer(Record):
    """What one process found, in a file named by its rank; `host`: its node."""

    host: str
    checks: list[Check]


def wait_for_preflight(job: str, task: PreflightTask, log: Path) -> bool:
    """Whether the job found all well; False where it has not begun in time, which is no bad sign.

    Raises:
        CampaignError: a check failed, or the job ended without an answer.
    """
    files = [task.answers / f"{rank}.json" for rank in range(task.profile.num_workers)]
    began = asked = seen = now = time.monotonic()
    while not all(file.exists() for file in files) and now - seen < LATE_SECONDS:
        if now - began > WAIT_SECONDS:
            return False
        time.sleep(POLL_SECONDS)
        now = time.monotonic()
        if now - asked > ASK_SECONDS:
            asked, queue = now, queued_jobs()
            seen = now if queue is None or job in queue else seen
    answers = [store.read_record(file, Answer) for file in files if file.exists()]
    if failed := failures(answers):
        raise CampaignError(f"preflight fails on the compute nodes: {'; '.join(failed)} (see {log})")
    if len(answers) < len(files):
        raise CampaignError(
            f"the preflight job {job} ended without an answer; see {log}. If that is missing too, compute nodes do not "
            f"see {task.answers}: give --results a folder on a shared file system"
        )
    passed: dict[str, str] = {}
    for check in (each for answer in answers for each in answer.checks):
        passed.setdefault(check.what, check.detail)
    print(*(f"ok   {what}: {detail}" for what, detail in passed.items()), sep="\n", flush=True)
    return True


def failures(answers: Sequence[Answer]) -> list[str]:
    """What failed, a sentence each, with the nodes where it is so on some of them only."""
    hosts: dict[Check, list[str]] = {}
    for answer in answers:
        for check in answer.checks:
            # One process that the network fails makes others fail otherwise.
            known = check.what == NETWORK and NETWORK in (each.what for each in hosts)
            if not check.passed and not known:
                hosts.setdefault(check, []).append(answer.host)
    everywhere = {answer.host for answer in answers}
    return [
        f"{check.what}: {check.detail}" + ("" if set(on) == everywhere else f" (on {', '.join(dict.fromkeys(on))})")
        for check, on in hosts.items()
    ]


def preflight(task: PreflightTask) -> None:
    """What each process of the job does: check in turn, until something is wrong, and leave an answer.

    All meet for the network, so that all read at the same time right after. Rank 0 then looks at the data for all.
    """
    here = this_allocation()
    found = list(_node_checks(task, here))
    for checks in (_network_checks, _reading_checks):
        if all(check.passed for check in found):
            found += checks(task, here)
    found += _data_checks(task, here)
    host = os.environ.get("SLURMD_NODENAME") or platform.node()
    store.write_record(task.answers / f"{here.rank}.json", Answer(host=host, checks=found))
    # Rank 0 answers last, and of the others none ends in bad, which would end all before they have answered.
    sys.exit(0 if here.rank or all(check.passed for check in found) else 1)


def _node_checks(task: PreflightTask, here: Allocation) -> Iterator[Check]:
    """Each process of its GPUs, and one of a node of its disk."""
    if task.profile.device != "cpu":
        yield from on_one_machine.check_gpus()
    if here.local_rank == 0:
        yield on_one_machine.check_writable("temporary files", Path(tempfile.gettempdir()))


def _network_checks(task: PreflightTask, here: Allocation) -> Iterator[Check]:
    """An all-reduce of all, through NCCL or gloo as in training."""
    device = own_device(task.profile, here)
    names = ", ".join(name for _, name in socket.if_nameindex())
    advice = f"look at network_interface in the profile, of which there are {names}, and at master_address"
    try:
        prepare_thread(device)
        with meeting(task.profile, here, PATIENCE_SECONDS):
            print(f"an all-reduce begins; if that is the last word: {advice}", flush=True)
            measured = on_one_machine.all_reduce_bits_per_second(device)
    except SpecError as error:
        yield Check("a GPU for each worker", False, f"{error}; in the profile look at gpus_per_node and gpu_request")
    except (RuntimeError, OSError) as error:
        yield Check(NETWORK, False, f"an all-reduce fails: {first_line(error)}; {advice}")
    else:
        yield Check(NETWORK, True, rate_in_words(measured, task.profile))


def rate_in_words(measured: float, profile: Profile) -> str:
    """An all-reduce's bits per second on a link, beside what the profile says of a node's."""
    workers, promised = f"{profile.num_workers} workers on {profile.nodes} nodes", profile.link_bits_per_second
    text = f"an all-reduce among {workers} gets {measured / 1e9:.3g} Gb/s a link"
    if promised is None:
        return text
    advice = ", so look at network_interface, or ask the site" if measured < promised / 2 else ""
    return f"{text}; the profile says {promised / 1e9:g}{advice}"


def _reading_checks(task: PreflightTask, here: Allocation) -> Iterator[Check]:
    """How fast this process reads images beside what its GPU takes, while all do."""
    config, device = task.plan.runs[0].config, own_device(task.profile, here)
    yield from on_one_machine.check_reading(config, task.data, device, task.profile.cpus_per_worker)


def _data_checks(task: PreflightTask, here: Allocation) -> Iterator[Check]:
    """Rank 0 for all, and one of each node where that is quick: folders of files are looked through once."""
    configured = find_task(task.plan.runs[0].config.task.name)
    if here.rank == 0:
        yield on_one_machine.check_results(task.plan, task.results, task.profile.array_parallelism)
    if here.rank == 0 or (here.local_rank == 0 and not hasattr(configured, "measured_reading_rate")):
        yield on_one_machine.check_data(configured, task.data)
