"""One attempt at one run: with all workers stacked in this process, or as one rank of a process group."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from algorithms import Collectives, ProcessGroupCollectives, StackedCollectives
from algorithms.registry import methods
from harness.plan.rows import PlannedRun
from harness.records.recorder import Recorder, write_failure
from harness.records.run_lock import owned
from harness.records.state import is_done
from harness.records.store import VERSION, Attempt, RunFile
from harness.tasks.task import Samples, find_task
from harness.train import checkpoint
from harness.train.build import MemoryFormat, build_model, format_of, lay_out, use_device
from harness.train.train import train
from harness.train.training import Checkpoints, Preempted, Work
from harness.workers.failures import failure_kind, sentence
from harness.workers.preload import load_samples
from harness.workers.process_group import from_rank_0, joined

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

    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder / checkpoint.FOLDER, 60 * self.checkpoint_minutes, self.attempt.attempt)


def attempt_stacked(job: Job, stop_requested: StopRequested | None = None) -> bool:
    """Do the run with all workers stacked in this thread; True if it has a result. `stop_requested`: see `Work`.

    Raises:
        BusyError: another process is at this run.
    """

    def work() -> None:
        if is_done(job.folder):  # by another command, while this one waited
            return
        prepare_thread(job.device)
        samples, model = _samples_and_model(job)
        collectives, recorder = StackedCollectives(job.run.config.num_workers), job.recorder(format_of(model))
        train(Work(job.run.config, model, samples, collectives, recorder, job.checkpoints(), stop_requested))

    os.sched_setaffinity(0, job.cores)
    with owned(job.folder):
        return recorded(job, work)


def _samples_and_model(job: Job) -> tuple[Samples, nn.Module]:
    config = job.run.config
    samples = load_samples(config.task, job.data, job.device)
    model = build_model(config.model, find_task(config.task.name), config.seed, torch.device(job.device))
    lay_out(model, methods()[config.algorithm].needs_contiguous)
    return samples, model


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
    samples, model = _samples_and_model(job)
    recorder = job.recorder(format_of(model)) if collectives.rank == 0 else None
    train(Work(job.run.config, model, samples, collectives, recorder, job.checkpoints(), stop_requested))


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
    except Preempted as stop:
        print(f"{job.run.row} seed {job.run.seed}: {stop}", flush=True)
        write_failure(job.folder, job.run.run_id, job.attempt.attempt, "preempted", str(stop), "")
    except Exception as error:
        trace = "".join(traceback.format_exception(error))
        print(trace, flush=True)
        write_failure(job.folder, job.run.run_id, job.attempt.attempt, failure_kind(error), sentence(error), trace)
    return False


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
