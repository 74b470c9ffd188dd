"""Looks, before a long experiment, at what would stop it: data, disk, GPUs.

There is one line per check.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from cser_bench.algorithms import CollectiveError
from cser_bench.harness.plan.plan import Plan
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.tasks import DataError
from cser_bench.harness.tasks.task import PreflightCheck, Task, find_task
from cser_bench.harness.train.checkpoint import GENERATIONS
from cser_bench.harness.workers.launch import Options, places, workers_of

PROBE_BYTES = 1_000_000
"""Written to a disk to see that it can be: more than what a full one may still take beside a file's
name."""

REDUCED_BYTES = {"cuda": 64_000_000, "cpu": 8_000_000}
"""Bytes of the all-reduce that is timed, by kind of device: enough that latency hardly counts."""

REPEATS = 5
"""Number of all-reduces that are timed."""


def checks(plan: Plan, options: Options) -> Iterator[PreflightCheck]:
    """Return the checks before a launch with these options, as they are made.

    Making them touches nothing but a temporary folder.
    """
    yield check_data(find_task(plan.runs[0].config.task.name), options.data)
    try:
        jobs = len(places(plan, options))
        suffice = PreflightCheck(
            "GPUs suffice", True, _use_of_gpus(plan, options, jobs)
        )
    except SpecError as error:
        # So that the disk is checked all the same, for one run.
        jobs = 1
        suffice = PreflightCheck("GPUs suffice", False, str(error))
    yield check_results(plan, options.results, jobs)
    if options.device != "cpu":
        yield from check_gpus()
        yield suffice


def _use_of_gpus(plan: Plan, options: Options, jobs: int) -> str:
    if workers_of(plan.runs[0].config, options) == "stacked":
        return f"each run is one process, {jobs} runs at once"
    return f"each worker has its own, {jobs} runs at once"


def line_of(check: PreflightCheck, where: str = "") -> str:
    """Return a check as a line of text, with `where` it was made if it failed."""
    if check.passed:
        return f"ok   {check.what}: {check.detail}"
    return f"FAIL {check.what}: {check.detail}{where}"


def check_data(task: Task, data: Path | None) -> PreflightCheck:
    """Check whether the task finds its data whole.

    Looked at are sums or counts of each split, and that samples of images decode.
    """
    try:
        task.prepare(data)
    except DataError as error:
        return PreflightCheck("data", False, str(error))
    return PreflightCheck(
        "data",
        True,
        f"{task.num_train:,} + {task.num_test:,} samples, found and verified",
    )


def first_line(error: Exception) -> str:
    """Return what an error says first, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def check_writable(what: str, folder: Path) -> PreflightCheck:
    """Check whether a file can be written where the folder is or would be made."""
    folder = _nearest(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".preflight-") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            # A write alone may stay in memory, where a full disk is not noticed.
            os.fsync(file.fileno())
    except OSError as error:
        return PreflightCheck(
            what,
            False,
            f"{folder} cannot be written to ({error.strerror}); make room or give permission",
        )
    return PreflightCheck(what, True, f"{folder} can be written to")


def check_results(plan: Plan, results: Path, jobs: int) -> PreflightCheck:
    """Check whether the folder of results can be written to, and has room for checkpoints.

    It needs room for those of the runs that go at once. Each has its generations, and beside them
    for a moment the one that is being written; a run that is done has none.
    """
    writable = check_writable("disk", results)
    if not writable.passed:
        return writable
    workers = max(run.config.num_workers for run in plan.runs)
    checkpoint = max(
        footprint.checkpoint_bytes for footprint in plan.footprints.values()
    )
    # `checkpoint` is one worker's part; stacked workers save all parts in one file.
    needed = (GENERATIONS + 1) * min(jobs, len(plan.runs)) * workers * checkpoint
    folder = _nearest(results)
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1e9:.1f} GB free in {folder}, checkpoints need up to {needed / 1e9:.1f} GB"
    if free > needed:
        return PreflightCheck("disk", True, detail)
    return PreflightCheck("disk", False, f"{detail}; make room or lower --jobs")


def _nearest(folder: Path) -> Path:
    """Return the folder, or where it is not there yet the nearest one above it."""
    return next(path for path in (folder, *folder.resolve().parents) if path.exists())


def check_gpus() -> Iterator[PreflightCheck]:
    """Check whether GPUs are there, and whether the installed torch computes on each."""
    if not torch.cuda.is_available():
        yield PreflightCheck(
            "GPUs",
            False,
            "torch sees none; check the driver with nvidia-smi, and that torch is a CUDA build",
        )
        return
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        built = f"a torch built for CUDA {torch.version.cuda}"
        try:
            # A build that lacks kernels for this GPU sees it, and fails at the first computation.
            torch.ones(1, device=f"cuda:{index}").add_(1).item()
        except RuntimeError as error:
            advice = (
                f"{built} does not compute on it; install one that does, as "
                "docs/first-gpu-day.md says"
            )
            yield PreflightCheck(
                f"GPU {index}", False, f"{name}: {first_line(error)}; {advice}"
            )
        else:
            yield PreflightCheck(f"GPU {index}", True, f"{built} computes on {name}")


def all_reduce_bits_per_second(device: str) -> float:
    """Return the bit/s that one link carries while all workers of the group reduce a vector.

    All workers must call it. A ring of n workers is assumed, whose links carry 2 (n - 1) / n of the
    vector. A tree, which NCCL may use for few bytes, would carry another share.
    """
    world_size = dist.get_world_size()
    num_bytes = REDUCED_BYTES[torch.device(device).type]
    # fp32: 4 bytes a number.
    numbers = torch.ones(num_bytes // 4, device=device)
    # NCCL connects the workers in the first one, so that is checked and not timed.
    dist.all_reduce(numbers)
    if not bool((numbers == world_size).all()):
        raise CollectiveError(
            f"{world_size} ones sum up to {numbers.min().item():g} to {numbers.max().item():g}"
        )
    started = time.perf_counter()
    for _ in range(REPEATS):
        dist.all_reduce(numbers)
    numbers[0].item()  # waits for a GPU
    seconds = time.perf_counter() - started
    return 2 * (world_size - 1) / world_size * 8 * num_bytes * REPEATS / seconds
