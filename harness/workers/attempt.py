"""One attempt at one run: with all workers stacked in this process, or as one rank of a group; and why it failed."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from algorithms import CollectiveError, Collectives, ProcessGroupCollectives, StackedCollectives
from harness.plan.rows import PlannedRun
from harness.records.recorder import Recorder, write_failure
from harness.records.run_lock import owned
from harness.records.state import is_done
from harness.records.store import VERSION, Attempt, FailureKind, RecordError, RunFile
from harness.spec import SpecError
from harness.tasks import DataError
from harness.tasks.task import find_task
from harness.train import checkpoint
from harness.train.build import MemoryFormat, format_of, trainable, use_device
from harness.train.checkpoint import CheckpointError
from harness.train.train import train
from harness.train.training import Preempted, Work
from harness.workers.process_group import from_rank_0, joined

StopRequested = Callable[[], bool]

NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch and the libraries under it say in plain RuntimeErrors."""

NO_PEER = "gloo/transport/"
"""In every error of gloo's connections, whatever it says. Most arise in a collective, which names them; those of an
all-reduce that DistributedDataParallel makes by itself come out of a backward pass."""


@dataclass(frozen=True)
class Job:
    """All that an attempt needs; plain data, so that it can be sent to another process."""

    experiment: str
    folder: Path
    run: PlannedRun
    attempt: Attempt
    data: Path | None
    device: str
    """"cpu", or the GPU of this process: "cuda:0"."""
    cores: tuple[int, ...]
    """Cores that a run of stacked workers keeps to; it would else wander, and leave its caches behind."""
    checkpoint_minutes: float
    timeout_seconds: float

    def recorder(self, memory_format: MemoryFormat = "contiguous") -> Recorder:
        """The writer of this attempt's records, with its model in that format."""
        run = RunFile(
            version=VERSION,
            run_id=self.run.run_id,
            experiment=self.experiment,
            row=self.run.row,
            seed=self.run.seed,
            config=self.run.config.model_dump(mode="json"),
            attempts=[],
        )
        return Recorder(self.folder, run, self.attempt.model_copy(update={"memory_format": memory_format}))


def attempt_stacked(job: Job, stop_requested: StopRequested | None = None) -> bool:
    """Do the run with all workers stacked in this thread; True if it has a result. `stop_requested`: see `Work`.

    Raises:
        BusyError: another process is at this run.
    """

    def work() -> None:
        if not is_done(job.folder):  # by another command, while this one waited
            prepare_thread(job.device)
            attempt_in_group(job, StackedCollectives(job.run.config.num_workers), stop_requested)

    os.sched_setaffinity(0, job.cores)
    with owned(job.folder):
        return recorded(job, work)


def attempt_as_rank(job: Job, rank: int, init_method: str, stop_requested: StopRequested | None = None) -> bool:
    """Do the run as worker `rank` of a new process group; True if it has a result. `stop_requested`: see `Work`.

    Raises:
        BusyError: another process is at this run.
    """

    def work() -> None:
        prepare_thread(job.device)
        with joined(job.device, job.timeout_seconds, init_method, rank, job.run.config.num_workers):
            if not done_meanwhile(job.folder, rank):
                attempt_in_group(job, ProcessGroupCollectives(), stop_requested)

    with owned(job.folder, rank):
        return recorded(job, work)


def done_meanwhile(folder: Path, rank: int) -> bool:
    """Whether another command did the run while its lock was waited for: rank 0, which has it, looks for all."""
    return from_rank_0(rank == 0 and is_done(folder))


def attempt_in_group(job: Job, collectives: Collectives, stop_requested: StopRequested | None = None) -> None:
    """Train as one worker of a group that stands already. `stop_requested`: see `Work`; what is raised: see `train`."""
    train(work_of(job, collectives, stop_requested))


def work_of(job: Job, collectives: Collectives, stop_requested: StopRequested | None = None) -> Work:
    """What the workers at this end do, with their data and model loaded."""
    config, device = job.run.config, torch.device(job.device)
    samples = find_task(config.task.name).load(job.data, config.task, device)
    model = trainable(config, device)
    recorder = job.recorder(format_of(model)) if collectives.rank == 0 else None
    folder, seconds = job.folder / checkpoint.FOLDER, 60 * job.checkpoint_minutes
    return Work(config, model, samples, collectives, recorder, folder, seconds, job.attempt.attempt, stop_requested)


def prepare_thread(device: str = "cpu") -> None:
    """One thread of arithmetic per worker, so that sums do not depend on the number of cores; no denormal numbers."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    use_device(device)


def recorded(job: Job, work: Callable[[], None]) -> bool:
    """Do the work; an exception becomes failure.json, and False."""
    try:
        work()
        return True
    except Exception as error:
        stopped = isinstance(error, Preempted)
        trace = "" if stopped else "".join(traceback.format_exception(error))
        print(trace or f"{job.run.row} seed {job.run.seed}: {error}", flush=True)
        write_failure(job.folder, job.run.run_id, job.attempt.attempt, failure_kind(error), sentence(error), trace)
    return False


def failure_kind(error: BaseException) -> FailureKind:
    """What kind of failure an exception is, for records and for the decision to try again."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in NO_MEMORY):
        return "oom"
    if isinstance(error, Preempted):
        return "preempted"
    from_gloo = isinstance(error, RuntimeError) and NO_PEER in str(error)
    if from_gloo or isinstance(error, CollectiveError | dist.DistError):
        return "communication"
    if isinstance(error, DataError | CheckpointError | RecordError | SpecError):
        return "data"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        return "disk"
    return "bug"


def sentence(error: BaseException) -> str:
    """What an exception says, and what to do where that is known."""
    kind = failure_kind(error)
    if kind == "disk" and isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {error.filename}; make room or give permission, and call again"
    advice = "; use a smaller batch or lower precision" if kind == "oom" else ""
    return f"{str(error) or type(error).__name__}{advice}"


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
