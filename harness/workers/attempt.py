"""One attempt at one run, in a process or a group of them.

Here it is begun, asked to stop and ended, and here is told why it has no result.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist

from cser_bench.algorithms import (
    CollectiveError,
    ProcessGroupCollectives,
    StackedCollectives,
)
from cser_bench.harness.cores import bind_to
from cser_bench.harness.records.endings import (
    end_of_processes,
    is_cause,
    read_failure,
    tail_of,
    write_failure,
)
from cser_bench.harness.records.recorder import SupersededError
from cser_bench.harness.records.run_lock import BusyError, owned
from cser_bench.harness.records.state import is_done
from cser_bench.harness.records.store import FailureKind, RecordError
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.tasks import DataError
from cser_bench.harness.train.build import use_device
from cser_bench.harness.train.checkpoint import CheckpointError
from cser_bench.harness.train.train import train
from cser_bench.harness.train.training import Job, Preempted, StopRequested
from cser_bench.harness.workers.process_group import Workers, from_rank_0, joined
from cser_bench.harness.workers.processes import Worker, WorkerProcesses, start_workers

NO_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""What torch and the libraries under it say in plain RuntimeErrors."""

NO_PEER = "gloo/transport/"
"""In every error of gloo's connections, whatever it says. Most arise in a collective, which names
them; those of an all-reduce that DistributedDataParallel makes by itself come out of a backward
pass."""

NO_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""Errors of a file system that has no room, or gives no permission."""

EXIT_BUSY = 3
EXIT_DISK = 5
"""Exit codes of a run's process that leave no failure.json."""
LOG = "log.txt"
"""In the run's folder: what all its processes say."""
AFTER_FAILURE_SECONDS = 15.0
"""How long the other ranks of a run may go on after one has failed, to say what they know."""


def attempt_stacked(job: Job, stop_requested: StopRequested | None = None) -> bool:
    """Do the run with all workers stacked in this thread; return whether it has a result.

    Raises BusyError as `owned` does.
    """

    def work() -> None:
        if not is_done(job.folder):  # by another command, while this one waited
            prepare_thread(job.device)
            train(job, StackedCollectives(job.run.config.num_workers), stop_requested)

    # Before torch starts threads, which keep the cores that they were made with.
    bind_to(job.cores)
    with owned(job.folder):
        return recorded(job, work)


def attempt_as_rank(
    job: Job, rank: int, init_method: str, stop_requested: StopRequested | None = None
) -> bool:
    """Do the run as worker `rank` of a new group; return whether it has a result.

    Raises BusyError as `owned` does.
    """

    def work() -> None:
        prepare_thread(job.device)
        with joined(
            job.device,
            job.timeout_seconds,
            init_method,
            rank,
            job.run.config.num_workers,
        ):
            # Another command may have done it while the lock was waited for: rank 0, which has it,
            # looks for all.
            if not from_rank_0(rank == 0 and is_done(job.folder)):
                train(job, ProcessGroupCollectives(), stop_requested)

    # Before the group is joined, so that two launches never have workers in training at once.
    with owned(job.folder, rank):
        return recorded(job, work)


def prepare_thread(device: str = "cpu") -> None:
    """Have this worker compute in one thread, without denormal numbers, and on its device.

    With one thread per worker sums do not depend on the number of cores.
    """
    torch.set_num_threads(1)
    # Sums of tiny numbers would else take many times as long on some CPUs.
    torch.set_flush_denormal(True)
    use_device(device)


def recorded(job: Job, work: Callable[[], None]) -> bool:
    """Do the work, and return whether it went well.

    An exception becomes failure.json, and the answer is False.
    """
    try:
        work()
        return True
    except Exception as error:
        # Their messages say all that a user can act on.
        is_sentence = isinstance(error, Preempted | SupersededError | CheckpointError)
        trace = "" if is_sentence else "".join(traceback.format_exception(error))
        print(trace or f"{job.run.row} seed {job.run.seed}: {error}", flush=True)
        write_failure(
            job.folder,
            job.run.run_id,
            job.attempt.attempt,
            failure_kind(error),
            sentence(error),
            trace,
        )
    return False


def failure_kind(error: BaseException) -> FailureKind:
    """Return what kind of failure an exception is.

    Records have it, and so has the decision to try again.
    """
    no_memory = any(words in str(error) for words in NO_MEMORY)
    # First, as torch raises some of these as plain RuntimeErrors, which would pass for bugs below.
    if no_memory or isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "oom"
    if isinstance(error, Preempted):
        return "preempted"
    # Each worker that lost a peer says so; what happened to the peer is told by the peer, or by
    # nobody.
    from_gloo = isinstance(error, RuntimeError) and NO_PEER in str(error)
    if from_gloo or isinstance(error, CollectiveError | dist.DistError):
        return "communication"
    if isinstance(error, DataError | CheckpointError | RecordError | SpecError):
        return "data"
    if isinstance(error, OSError) and error.errno in NO_DISK:
        return "disk"
    return "bug"


def sentence(error: BaseException) -> str:
    """Return what an exception says, and what to do where that is known."""
    kind = failure_kind(error)
    if kind == "disk" and isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {error.filename}; make room or give permission, and call again"
    advice = "; use a smaller batch or lower precision" if kind == "oom" else ""
    return f"{str(error) or type(error).__name__}{advice}"


@dataclass(frozen=True)
class Resources:
    """What a run has while it is on: its cores, and a device for each of its processes."""

    cores: tuple[int, ...]
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Unfinished:
    """Why a run that was on has no result.

    It was `stopped`, and saved its state, or another command is at it.
    """

    kind: FailureKind | Literal["stopped", "skipped"]
    message: str

    @property
    def is_failure(self) -> bool:
        return self.kind not in ("stopped", "skipped")

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


@dataclass
class ActiveRun:
    """A run that is on, in processes of its own."""

    job: Job
    place: Resources
    workers: WorkerProcesses
    failed_at: float | None = None
    was_killed: bool = False
    """Someone else did: the system's memory guard, or by hand."""
    log_start: int = 0
    """Size of the run's log when the attempt began."""

    def has_ended(self) -> bool:
        """Say whether all of the run's processes have ended.

        When one fails the others get a time of grace.
        """
        codes = self.workers.exit_codes()
        # Before the `kill` below, which gives the ones that were only waiting the same code.
        self.was_killed |= -signal.SIGKILL in codes
        if all(code is not None for code in codes):
            return True
        if any(codes):
            self.failed_at = self.failed_at or time.monotonic()
            if time.monotonic() - self.failed_at > AFTER_FAILURE_SECONDS:
                self.workers.kill()
                return True
        return False


def start(job: Job, workers: Workers, place: Resources) -> ActiveRun:
    """Begin an attempt at a run."""
    job.folder.mkdir(parents=True, exist_ok=True)
    log = job.folder / LOG
    # Attempts add to one log; what an earlier one said must not explain how this one ended.
    log_start = log.stat().st_size if log.exists() else 0
    arguments: list[tuple[Any, ...]] = [(job, workers)]
    if workers == "processes":
        devices = place.devices[: job.run.config.num_workers]
        arguments = [(replace(job, device=device), workers) for device in devices]
    return ActiveRun(
        job, place, start_workers(_attempt, arguments), log_start=log_start
    )


def _attempt(worker: Worker, job: Job, workers: Workers) -> None:
    """Do what a run's process does; everything it prints goes to the run's log."""
    try:
        with open(job.folder / LOG, "a", buffering=1) as log:
            # By number, so that what gloo and NCCL print past Python goes there too.
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            if workers == "processes":
                has_result = attempt_as_rank(
                    job, worker.rank, worker.init_method, worker.stop_requested
                )
            else:
                has_result = attempt_stacked(job, worker.stop_requested)
            # No Exception, so it passes all handlers up to the process's end, torch's too.
            sys.exit(0 if has_result else 1)
    except BusyError:
        sys.exit(EXIT_BUSY)
    except OSError as error:
        # Not even the failure could be recorded: only the exit code can say it.
        sys.exit(EXIT_DISK if failure_kind(error) == "disk" else 1)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def close(active: ActiveRun) -> Unfinished | None:
    """Say why the run has no result, or return None where it has one.

    A failure that no worker recorded, as a killed one cannot, is recorded here.
    """
    active.workers.close()
    codes = [code or 0 for code in active.workers.exit_codes()]
    job = active.job
    # A worker can fail with the result already written, as at the end of its group.
    if not any(codes) or is_done(job.folder):
        return None
    # Before failure.json is looked for: this attempt never began, so nothing there is of it.
    if EXIT_BUSY in codes:
        return Unfinished(
            "skipped", "another process is at this run; call again when it has ended"
        )
    if EXIT_DISK in codes:
        return Unfinished(
            "disk",
            f"{job.folder} cannot be written to; make room or give permission, and call again",
        )
    path = job.folder / "failure.json"
    # A damaged record tells nothing, and is written anew below.
    with contextlib.suppress(RecordError):
        failure = read_failure(job.folder, job.attempt.attempt)
        if failure is not None and failure.kind == "preempted":
            return Unfinished("stopped", failure.message)
        # Workers that lost the one that was killed know of no more than that.
        if failure is not None and (is_cause(failure.kind) or not active.was_killed):
            return Unfinished(failure.kind, f"{failure.message} ({path})")
    kind, message = _death(active, codes)
    # Where the disk is full, what is returned is all that is told.
    with contextlib.suppress(OSError):
        write_failure(
            job.folder,
            job.run.run_id,
            job.attempt.attempt,
            kind,
            message,
            "",
            is_last_word=True,
        )
    return Unfinished(kind, f"{message} ({path})")


def _death(active: ActiveRun, codes: list[int]) -> tuple[FailureKind, str]:
    """Return kind and message of a failure that no worker could record."""
    log = tail_of(active.job.folder / LOG, active.log_start)
    kind, words = end_of_processes(active.was_killed, codes, log)
    return kind, f"{words}; see {LOG} in this record's folder"
