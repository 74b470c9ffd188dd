"""Preflight: a job in the shape of a run, whose processes check nodes, network and data before the runs."""

from __future__ import annotations

import datetime
import json
import os
import platform
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]

from algorithms import CollectiveError
from harness.plan.effort import reading
from harness.plan.plan import Plan
from harness.records import store
from harness.records.store import Record
from harness.spec import SpecError
from harness.tasks.errors import DataError
from harness.tasks.task import Check, configured_task
from harness.workers.attempt import prepare_thread
from harness.workers.preflight import (
    READING_SECONDS,
    check_data,
    check_gpus,
    check_results,
    check_writable,
    failed_step,
    gpu_rate,
)
from harness.workers.process_group import joined_through
from slurm.allocation import Allocation, this_allocation
from slurm.campaign import CampaignError
from slurm.job import meet, own_device
from slurm.profile import Profile
from slurm.staging import check_archive, is_archive
from slurm.status import queued_jobs

PATIENCE_SECONDS = 120.0
"""How long the processes wait for each other, and for their first all-reduce."""

NETWORK_SECONDS = 100.0
"""When rank 0 gives that all-reduce up: before NCCL, which ends its process at PATIENCE_SECONDS without a word."""

SCAN_SECONDS = 900.0
"""How long the others wait for rank 0 to look through the data."""

PROBE_BYTES, REPEATS = {"cuda": 64_000_000, "cpu": 8_000_000}, 5
"""What is reduced, by kind of device: enough that latency hardly counts."""

POLL_SECONDS, ASK_SECONDS, LATE_SECONDS = 0.5, 5.0, 30.0
"""Between two looks for the answer, between two questions to squeue, which others ask too, and how much later than its
job an answer may arrive, over a network file system."""


@dataclass(frozen=True)
class PreflightTask:
    """What the job needs."""

    plan: Plan
    results: Path
    data: Path | None
    profile: Profile
    answer: Path


class CheckLine(Record):
    """One check."""

    what: str
    passed: bool
    detail: str


class Answer(Record):
    """preflight.json beside the job's log; `nodes` as Slurm writes them."""

    nodes: str
    lines: list[CheckLine]


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
    found = store.read_record(answer, Answer)
    failed = [f"{line.what}: {line.detail}" for line in found.lines if not line.passed]
    if failed:
        raise CampaignError(f"on the compute nodes {found.nodes}, preflight fails: {'; '.join(failed)}")
    for line in found.lines:
        print(f"ok   {line.what}: {line.detail}", flush=True)
    return True


def preflight(task: PreflightTask) -> None:
    """What each process of the job does. Ends it; rank 0 writes the answer, and ends with 1 where a check failed."""
    allocation = this_allocation()
    try:
        shared = meet(allocation, task.profile, PATIENCE_SECONDS)
        here = _Here(task, allocation, own_device(task.profile, allocation), shared)
        checks = _checks(here)
        here.leave()
    except (CollectiveError, dist.DistError) as error:
        checks = [Check("meeting", False, f"{error}; look at network_interface and master_address")]
        if allocation.rank:
            print(f"rank {allocation.rank}: {error}", flush=True)
            time.sleep(PATIENCE_SECONDS)  # As long as rank 0 may take to say so: the first that ends in bad ends all.
            sys.exit(1)
    if allocation.rank:
        sys.exit(0)
    _answer(task, checks)
    sys.exit(0 if _well(checks) else 1)


def _answer(task: PreflightTask, checks: Iterable[Check]) -> None:
    lines = [CheckLine(**check._asdict()) for check in checks]
    store.write_record(task.answer, Answer(nodes=os.environ.get("SLURM_JOB_NODELIST", ""), lines=lines))


@dataclass(frozen=True)
class _Here:
    """One of the job's processes. `store` is shared by all."""

    task: PreflightTask
    allocation: Allocation
    device: str
    store: Store

    def everyone(self, what: str, value: Any) -> list[Any]:
        """What each process says, plain data in the order of ranks; all must ask."""
        self.store.set(f"{what} of {self.allocation.rank}", json.dumps(value))
        return [json.loads(self.store.get(f"{what} of {rank}")) for rank in range(self.allocation.world_size)]

    def leave(self) -> None:
        """Rank 0, whose store it is, leaves last."""
        if self.allocation.rank:
            self.store.set(f"left {self.allocation.rank}", "")
        else:
            self.store.wait([f"left {rank}" for rank in range(1, self.allocation.world_size)])

    def checked(self, what: str, hosts: Sequence[str], checks: Iterable[Check]) -> list[Check]:
        """The checks of all processes together; all must ask."""
        said = self.everyone(what, list(checks))
        return merged([[Check(*each) for each in found] for found in said], hosts)


def merged(found: Sequence[Sequence[Check]], hosts: Sequence[str]) -> list[Check]:
    """The checks of all processes, by which `hosts` are in order: those alike once, and failures with their nodes."""
    seen: dict[Check, list[str]] = {}
    for checks, host in zip(found, hosts, strict=True):
        for check in checks:
            seen.setdefault(check, []).append(host)
    return [
        check
        if check.passed or set(nodes) == set(hosts)
        else Check(check.what, False, f"{check.detail} (on {', '.join(dict.fromkeys(nodes))})")
        for check, nodes in seen.items()
    ]


def _well(checks: Iterable[Check]) -> bool:
    return all(check.passed for check in checks)


def _checks(here: _Here) -> list[Check]:
    """All that is found, the same in each process; what they do together comes in the same order in all."""
    here.store.set_timeout(datetime.timedelta(seconds=PATIENCE_SECONDS))
    hosts = here.everyone("host", os.environ.get("SLURMD_NODENAME") or platform.node())
    checks = here.checked("node", hosts, _node_checks(here))
    if _well(checks):
        with _given_up_in_time(here, checks):
            checks += here.checked("network", hosts, _network_checks(here, len(set(hosts))))
    here.store.set_timeout(datetime.timedelta(seconds=SCAN_SECONDS))
    checks += here.checked("data", hosts, _data_checks(here))
    if _well(checks) and _reads_files(here):
        checks += _rates(here, hosts)
    return checks


def _node_checks(here: _Here) -> Iterator[Check]:
    """Each process of its GPUs, and one of a node of its disks."""
    scratch = here.task.profile.scratch
    if here.device != "cpu":
        yield from check_gpus()
    if here.allocation.local_rank == 0:
        yield check_writable("temporary files", Path(tempfile.gettempdir()))
        if scratch:
            yield check_writable("scratch", Path(os.path.expandvars(scratch)))


def _network_checks(here: _Here, num_nodes: int) -> Iterator[Check]:
    """An all-reduce of all, through NCCL or gloo as in training."""
    rank, world_size = here.allocation.rank, here.allocation.world_size
    try:
        prepare_thread(here.device)
        with joined_through(here.store, here.device, PATIENCE_SECONDS, rank, world_size):
            measured = _all_reduce_bits_per_second(here.device)
    except SpecError as error:
        yield Check("a GPU for each worker", False, f"{error}; in the profile look at gpus_per_node and gpu_request")
    except (RuntimeError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        yield Check("network", False, f"an all-reduce fails: {first}; {_interfaces()}")
    else:
        if rank == 0:
            promised = here.task.profile.link_bits_per_second
            yield Check("network", True, rate_in_words(measured, promised, world_size, num_nodes))


def _interfaces() -> str:
    names = ", ".join(name for _, name in socket.if_nameindex())
    return f"look at network_interface in the profile, of which there are {names}; `lo` leads no node to another"


@contextmanager
def _given_up_in_time(here: _Here, before: Sequence[Check]) -> Iterator[None]:
    """Inside, rank 0 answers and ends the job if it takes too long: a backend that waits may end without a word."""

    def give_up() -> None:
        said = f"an all-reduce did not end within {NETWORK_SECONDS:g} s; {_interfaces()}"
        _answer(here.task, [*before, Check("network", False, said)])
        os._exit(1)

    timer = threading.Timer(NETWORK_SECONDS, give_up)
    if here.allocation.rank == 0:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _all_reduce_bits_per_second(device: str) -> float:
    """What one link carries while all workers of the group reduce a vector: 2 (n - 1) / n of it, as in a ring.

    All must call it. A tree, which NCCL may take for few bytes, would carry another share.

    Raises:
        CollectiveError: the sum is wrong.
        RuntimeError: a backend's error, as where the others cannot be reached.
    """
    world_size, kind = dist.get_world_size(), torch.device(device).type
    numbers = torch.ones(PROBE_BYTES[kind] // 4, device=device)
    dist.all_reduce(numbers)
    if not bool((numbers == world_size).all()):
        raise CollectiveError(f"{world_size} ones sum up to {numbers.min().item():g} to {numbers.max().item():g}")
    seconds = -time.perf_counter()
    for _ in range(REPEATS):
        dist.all_reduce(numbers)
    numbers[0].item()  # waits for a GPU
    seconds += time.perf_counter()
    return 2 * (world_size - 1) / world_size * 8 * PROBE_BYTES[kind] * REPEATS / seconds


def rate_in_words(measured: float, promised: float | None, num_workers: int, num_nodes: int) -> str:
    """An all-reduce's rate beside what the profile says of a node's link; bits per second."""
    text = f"an all-reduce among {num_workers} workers on {num_nodes} nodes gets {measured / 1e9:.3g} Gb/s a link"
    if promised is None:
        return text
    text += f"; the profile says {promised / 1e9:g}"
    return f"{text}, so look at network_interface, or ask the site" if measured < promised / 2 else text


def _reads_files(here: _Here) -> bool:
    """Whether training opens the data's files one by one, from where it lies."""
    task = configured_task(here.task.plan.runs[0].config.task)
    return hasattr(task, "measured_opening_rate") and not is_archive(here.task.data)


def _data_checks(here: _Here) -> Iterator[Check]:
    """Rank 0 for all, and one of each node where that is quick: folders of files are looked through once."""
    task, data, rank = here.task, here.task.data, here.allocation.rank
    if rank == 0:
        yield from check_results(task.plan, task.results, task.profile.array_parallelism)
    if here.allocation.local_rank or (rank and _reads_files(here)):
        return
    if is_archive(data):
        yield check_archive(data, task.profile.scratch or "")
    else:
        yield from check_data(configured_task(task.plan.runs[0].config.task), data)


def _rates(here: _Here, hosts: Sequence[str]) -> list[Check]:
    """How fast all together open the data's files, and each reads images, beside what its GPU takes."""
    config, data = here.task.plan.runs[0].config, here.task.data
    task: Any = configured_task(config.task)
    opened, rate, readers, taken, failed = 0.0, 0.0, 1, None, []
    try:
        taken = gpu_rate(config, here.device)
    except RuntimeError as error:
        failed.append(failed_step(error))
    here.everyone("ready to read", None)
    try:
        opened = task.measured_opening_rate(data, READING_SECONDS)
        rate, readers = task.measured_reading_rate(data, READING_SECONDS)
    except DataError as error:
        failed.append(Check("data", False, str(error)))
    if failed := here.checked("reading", hosts, failed):
        return failed
    said = here.everyone("rates", [opened, rate, readers, taken])
    _, rate, readers, taken = min(said, key=lambda each: float(each[1]))
    wanted = f"; their GPUs take {sum(each[3] for each in said):,.0f} images/s" if taken else ""
    opened = sum(each[0] for each in said)
    return [
        Check("opening files", True, f"{len(said)} workers at once open and read {opened:,.0f} files/s{wanted}"),
        Check("reading", True, reading(rate / readers, readers, taken)),
    ]
