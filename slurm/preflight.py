"""Preflight: a job in the shape of a run, whose processes check nodes, network and data before the runs."""

from __future__ import annotations

import datetime
import os
import platform
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]

from algorithms import CollectiveError
from harness.plan.plan import Plan
from harness.records import store
from harness.records.store import Record
from harness.spec import SpecError
from harness.tasks.errors import DataError
from harness.tasks.task import Check, configured_task
from harness.workers import preflight as on_one_machine
from harness.workers.attempt import prepare_thread
from harness.workers.process_group import joined_through
from slurm.allocation import Allocation, this_allocation
from slurm.campaign import CampaignError
from slurm.job import GRACE_SECONDS, meet, own_device
from slurm.profile import Profile
from slurm.staging import check_archive, is_archive
from slurm.status import queued_jobs

PATIENCE_SECONDS, SCAN_SECONDS = 120.0, 900.0
"""How long the processes wait for each other, and for rank 0 to look through the data."""

NETWORK_SECONDS = 100.0
"""When rank 0 gives the all-reduce up: before NCCL, which ends its process at PATIENCE_SECONDS without a word."""

PROBE_BYTES, REPEATS = {"cuda": 64_000_000, "cpu": 8_000_000}, 5
"""What is reduced, by kind of device: enough that latency hardly counts."""

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
    asked = seen = now = time.monotonic()
    ends = now + 60 * task.profile.preflight_wait_minutes
    while not all(file.exists() for file in files) and now - seen < LATE_SECONDS:
        if now > ends:
            return False
        time.sleep(POLL_SECONDS)
        now = time.monotonic()
        if now - asked > ASK_SECONDS:
            asked, queue = now, queued_jobs()
            seen = now if queue is None or job in queue else seen
    answers = [store.read_record(file, Answer) for file in files if file.exists()]
    found = merged(answers)
    if failed := [f"{check.what}: {check.detail}" for check in found if not check.passed]:
        raise CampaignError(f"preflight fails on the compute nodes: {'; '.join(failed)} (see {log})")
    if len(answers) < len(files):
        raise CampaignError(
            f"the preflight job {job} ended without an answer; if {log} is missing too, compute nodes do not see "
            f"{task.answers}: give --results a folder on a shared file system"
        )
    print(*(f"ok   {check.what}: {check.detail}" for check in found), sep="\n", flush=True)
    return True


def merged(answers: Sequence[Answer]) -> list[Check]:
    """The checks of all processes: of those that passed the lowest rank's; failures alike once, with their nodes."""
    passed: dict[str, Check] = {}
    failed: dict[Check, list[str]] = {}
    for answer in answers:
        for check in answer.checks:
            if check.passed:
                passed.setdefault(check.what, check)
            else:
                failed.setdefault(check, []).append(answer.host)
    everywhere = {answer.host for answer in answers}
    for check, hosts in failed.items():
        where = "" if set(hosts) == everywhere else f" (on {', '.join(dict.fromkeys(hosts))})"
        passed[str(check)] = check._replace(detail=check.detail + where)
    return list(passed.values())


def preflight(task: PreflightTask) -> None:
    """What each process of the job does. Ends it, rank 0's with 1 where a check failed anywhere."""
    here = _Here(task, this_allocation())
    try:
        here.store = meet(here.allocation, task.profile, PATIENCE_SECONDS)
        here.checks += _node_checks(here)
        if here.all_well("node"):
            timer = threading.Timer(NETWORK_SECONDS, _give_up, (here,))  # a backend may end its process without a word
            timer.start()
            here.checks += _network_checks(here)
            timer.cancel()
        here.store.set_timeout(datetime.timedelta(seconds=SCAN_SECONDS))
        here.checks += _data_checks(here)
        if here.all_well("data") and _reads_files(here):
            here.checks += _rates(here)
        here.answer()
        well = here.all_well("end")
    except (CollectiveError, dist.DistError) as error:
        here.checks.append(Check("meeting", False, f"{error}; look at network_interface and master_address"))
        here.answer()
        time.sleep(GRACE_SECONDS)  # the first that ends in bad ends all
        well = False
    if here.allocation.rank == 0:
        time.sleep(GRACE_SECONDS)  # whose store it is leaves last
    sys.exit(0 if well or here.allocation.rank else 1)


@dataclass
class _Here:
    """One of the job's processes, and what it found so far. `store` is shared by all who have met."""

    task: PreflightTask
    allocation: Allocation
    store: Store = field(default_factory=HashStore)
    checks: list[Check] = field(default_factory=list)

    @property
    def device(self) -> str:
        return own_device(self.task.profile, self.allocation)

    def all_well(self, when: str) -> bool:
        """Whether no process has a failed check so far; waits until all have asked."""
        self.store.set(f"{when} {self.allocation.rank}", "well" if all(each.passed for each in self.checks) else "bad")
        return all(self.store.get(f"{when} {rank}") == b"well" for rank in range(self.allocation.world_size))

    def answer(self) -> None:
        """Write down what was found."""
        host = os.environ.get("SLURMD_NODENAME") or platform.node()
        store.write_record(self.task.answers / f"{self.allocation.rank}.json", Answer(host=host, checks=self.checks))


def _give_up(here: _Here) -> None:
    said = f"an all-reduce did not end within {NETWORK_SECONDS:g} s; {_interfaces()}"
    here.checks.append(Check("network", False, said))
    here.answer()
    time.sleep(GRACE_SECONDS)
    os._exit(1)


def _interfaces() -> str:
    names = ", ".join(name for _, name in socket.if_nameindex())
    return f"look at network_interface in the profile, of which there are {names}; `lo` leads no node to another"


def _node_checks(here: _Here) -> Iterator[Check]:
    """Each process of its GPUs, and one of a node of its disks."""
    scratch = here.task.profile.scratch
    if here.device != "cpu":
        yield from on_one_machine.check_gpus()
    if here.allocation.local_rank == 0:
        yield on_one_machine.check_writable("temporary files", Path(tempfile.gettempdir()))
        if scratch:
            yield on_one_machine.check_writable("scratch", Path(os.path.expandvars(scratch)))


def _network_checks(here: _Here) -> Iterator[Check]:
    """An all-reduce of all, through NCCL or gloo as in training."""
    world_size, promised = here.allocation.world_size, here.task.profile.link_bits_per_second
    try:
        prepare_thread(here.device)
        with joined_through(here.store, here.device, PATIENCE_SECONDS, here.allocation.rank, world_size):
            measured = _all_reduce_bits_per_second(here.device)
    except SpecError as error:
        yield Check("a GPU for each worker", False, f"{error}; in the profile look at gpus_per_node and gpu_request")
    except (RuntimeError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        yield Check("network", False, f"an all-reduce fails: {first}; {_interfaces()}")
    else:
        yield Check("network", True, rate_in_words(measured, promised, world_size, here.task.profile.nodes))


def _all_reduce_bits_per_second(device: str) -> float:
    """What one link carries while all workers of the group reduce a vector: 2 (n - 1) / n of it, as in a ring.

    All must call it. A tree, which NCCL may take for few bytes, would carry another share.

    Raises:
        CollectiveError: the sum is wrong.
        RuntimeError: a backend's error, as where the others cannot be reached.
    """
    world_size, num_bytes = dist.get_world_size(), PROBE_BYTES[torch.device(device).type]
    numbers = torch.ones(num_bytes // 4, device=device)
    dist.all_reduce(numbers)
    if not bool((numbers == world_size).all()):
        raise CollectiveError(f"{world_size} ones sum up to {numbers.min().item():g} to {numbers.max().item():g}")
    seconds = -time.perf_counter()
    for _ in range(REPEATS):
        dist.all_reduce(numbers)
    numbers[0].item()  # waits for a GPU
    seconds += time.perf_counter()
    return 2 * (world_size - 1) / world_size * 8 * num_bytes * REPEATS / seconds


def rate_in_words(measured: float, promised: float | None, num_workers: int, num_nodes: int) -> str:
    """An all-reduce's rate beside what the profile says of a node's link; bits per second."""
    text = f"an all-reduce among {num_workers} workers on {num_nodes} nodes gets {measured / 1e9:.3g} Gb/s a link"
    if promised is None:
        return text
    advice = ", so look at network_interface, or ask the site" if measured < promised / 2 else ""
    return f"{text}; the profile says {promised / 1e9:g}{advice}"


def _reads_files(here: _Here) -> bool:
    """Whether training opens the data's files one by one, from where it lies."""
    task = configured_task(here.task.plan.runs[0].config.task)
    return hasattr(task, "measured_opening_rate") and not is_archive(here.task.data)


def _data_checks(here: _Here) -> Iterator[Check]:
    """Rank 0 for all, and one of each node where that is quick: folders of files are looked through once."""
    task, data, rank = here.task, here.task.data, here.allocation.rank
    if rank == 0:
        yield from on_one_machine.check_results(task.plan, task.results, task.profile.array_parallelism)
    if here.allocation.local_rank or (rank and _reads_files(here)):
        return
    if is_archive(data):
        yield check_archive(data, task.profile.scratch or "")
    else:
        yield from on_one_machine.check_data(configured_task(task.plan.runs[0].config.task), data)


def _rates(here: _Here) -> Iterator[Check]:
    """How fast this process opens the data's files, and reads images beside what its GPU takes, while all do."""
    config, data, cores, opened = here.task.plan.runs[0].config, here.task.data, here.task.profile.cpus_per_worker, 0.0
    task: Any = configured_task(config.task)
    with suppress(DataError):  # which the check says, too
        opened = task.measured_opening_rate(data, on_one_machine.READING_SECONDS)
    num_workers = here.allocation.world_size
    yield Check("opening files", True, f"{num_workers} workers at once open about {num_workers * opened:,.0f} files/s")
    yield from on_one_machine.check_reading(config, data, here.device, cores)
