"""Preflight: a job in the shape of a run, whose processes check nodes, network and data before the runs."""

from __future__ import annotations

import os
import platform
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.plan.plan import Plan
from harness.records import store
from harness.records.store import Record
from harness.spec import SpecError
from harness.tasks.task import Check, find_task
from harness.workers import preflight as on_one_machine
from harness.workers.attempt import prepare_thread
from harness.workers.preflight import first_line
from slurm.allocation import Allocation, this_allocation
from slurm.campaign import CampaignError
from slurm.job import meeting, own_device
from slurm.profile import Profile
from slurm.status import queued_jobs

NETWORK = "network"
PATIENCE_SECONDS = 100.0
"""How long the processes wait for each other."""

WAIT_SECONDS = 600.0
"""How long the submitter waits for the job; then the array waits for it in the queue."""

POLL_SECONDS, ASK_SECONDS, LATE_SECONDS = 0.5, 5.0, 30.0
"""Between two looks for the answer, between two questions to squeue, which others ask too, and how much later than its
job an answer may arrive, over a network file system."""


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
        yield from on_one_machine.check_results(task.plan, task.results, task.profile.array_parallelism)
    if here.rank == 0 or (here.local_rank == 0 and not hasattr(configured, "measured_reading_rate")):
        yield on_one_machine.check_data(configured, task.data)
