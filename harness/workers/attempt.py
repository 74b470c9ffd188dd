"""One attempt at one run: stacked in one thread, by threads of this process, or as one rank of a process group."""

from __future__ import annotations

import copy
import errno
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from algorithms import CollectiveError, Collectives, ProcessGroupCollectives, StackedCollectives, run_workers
from harness.plan.plan import PlannedRun
from harness.records.recorder import Recorder, write_failure
from harness.records.run_lock import owned, owned_by_rank_0
from harness.records.state import is_done
from harness.records.store import VERSION, Attempt, FailureKind, RecordError, RunFile
from harness.spec import SpecError
from harness.tasks.errors import DataError
from harness.tasks.task import Samples, find_task
from harness.train import checkpoint
from harness.train.build import build_model
from harness.train.checkpoint import CheckpointError
from harness.train.memory_format import MemoryFormat, Wanted, lay_out
from harness.train.stacked import replicas_of
from harness.train.train import train
from harness.train.work import Checkpoints, Preempted, Work
from harness.workers.preload import load_samples
from harness.workers.process_group import from_rank_0, joined

ACTIVE_ON_A_GPU = 2
"""Workers as threads on one GPU that are in a step at once: the second keeps it busy while the first waits for data or
looks at a result, and more would only hold more activations."""

StopRequested = Callable[[], bool]


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
    """Cores that a run of threads keeps to, a worker on each: they would else wander, and leave their caches behind."""
    checkpoint_minutes: float
    timeout_seconds: float
    memory_format: Wanted = "auto"
    cuda_graphs: bool = False

    def recorder(self, memory_format: MemoryFormat = "contiguous") -> Recorder:
        """Of this attempt, with its model in that format."""
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

    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder / checkpoint.FOLDER, 60 * self.checkpoint_minutes, self.attempt.attempt)


def attempt_in_threads(job: Job, stop_requested: StopRequested | None = None) -> bool:
    """Do the run with all workers as threads of this process; True if it has a result. `stop_requested`: see `Work`.

    Raises:
        BusyError: another process is at this run.
    """
    return _attempt_here(job, stop_requested, _train_threads)


def attempt_stacked(job: Job, stop_requested: StopRequested | None = None) -> bool:
    """Do the run with all workers stacked in this thread; True if it has a result. `stop_requested`: see `Work`.

    Raises:
        BusyError: another process is at this run.
    """
    return _attempt_here(job, stop_requested, _train_stacked)


def _attempt_here(job: Job, stop_requested: StopRequested | None, train_all: Callable[..., None]) -> bool:
    def work() -> None:
        if not is_done(job.folder):  # by another command, while this one waited
            prepare_thread(job.device)
            train_all(job, *_samples_and_model(job), stop_requested)

    os.sched_setaffinity(0, job.cores)
    with owned(job.folder):
        return recorded(job, work)


def _samples_and_model(job: Job) -> tuple[Samples, nn.Module]:
    config = job.run.config
    samples = load_samples(config.task, job.data, job.device)
    return samples, build_model(config.model, find_task(config.task.name), config.seed, torch.device(job.device))


def _train_threads(job: Job, samples: Samples, model: nn.Module, stop_requested: StopRequested | None) -> None:
    config, recorder = job.run.config, job.recorder(lay_out(model, job.memory_format))

    def worker(collectives: Collectives) -> None:
        prepare_thread(job.device)
        own = recorder if collectives.rank == 0 else None
        own_model, checkpoints = copy.deepcopy(model), job.checkpoints()
        train(Work(config, own_model, samples, collectives, own, checkpoints, stop_requested, job.cuda_graphs))

    max_active = len(job.cores) if job.device == "cpu" else ACTIVE_ON_A_GPU
    run_workers(worker, config.num_workers, job.timeout_seconds, max_active)


def _train_stacked(job: Job, samples: Samples, model: nn.Module, stop_requested: StopRequested | None) -> None:
    config, recorder = job.run.config, job.recorder(lay_out(model, job.memory_format))
    replicas, collectives = replicas_of(model, config.num_workers), StackedCollectives(config.num_workers)
    work = Work(config, replicas, samples, collectives, recorder, job.checkpoints(), stop_requested, job.cuda_graphs)
    train(work)


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

    with owned_by_rank_0(job.folder, rank):
        return recorded(job, work)


def done_meanwhile(folder: Path, rank: int) -> bool:
    """Whether another command did the run while its lock was waited for: rank 0, which has it, looks for all."""
    return from_rank_0(rank == 0 and is_done(folder))


def attempt_in_group(job: Job, collectives: Collectives, stop_requested: StopRequested | None = None) -> None:
    """Train as one worker of a group that stands already. `stop_requested`: see `Work`; what is raised: see `train`."""
    samples, model = _samples_and_model(job)
    memory_format = lay_out(model, job.memory_format)
    recorder = job.recorder(memory_format) if collectives.rank == 0 else None
    train(Work(job.run.config, model, samples, collectives, recorder, job.checkpoints(), stop_requested))


def prepare_thread(device: str = "cpu") -> None:
    """One thread of arithmetic per worker, so that sums do not depend on the number of cores; no denormal numbers."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    use_device(device)


def use_device(device: str) -> None:
    """Make a GPU this thread's own, and fp32 on it fp32, where cuDNN would round to 10 bits (TF32).

    Batches of a run are of one shape, so cuDNN may try its algorithms on it once and keep the fastest.
    """
    if device != "cpu":
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = True


def recorded(job: Job, work: Callable[[], None]) -> bool:
    """Do the work; an exception becomes failure.json, and False."""
    try:
        work()
        return True
    except Preempted as stop:
        write_failure(job.folder, job.run.run_id, job.attempt.attempt, "preempted", str(stop), "")
    except Exception as error:
        trace = "".join(traceback.format_exception(error))
        print(trace, flush=True)
        write_failure(job.folder, job.run.run_id, job.attempt.attempt, failure_kind(error), sentence(error), trace)
    return False


NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch and the libraries under it say in plain RuntimeErrors."""

NO_PEER = "gloo/transport/"
"""In every error of gloo's connections, whatever it says. Most arise in a collective, which names them; those of an
all-reduce that DistributedDataParallel makes by itself come out of a backward pass."""


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
    advice = "; use a smaller batch or lower precision" if failure_kind(error) == "oom" else ""
    return f"{str(error) or type(error).__name__}{advice}"


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
