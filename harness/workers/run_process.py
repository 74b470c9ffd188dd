"""The processes of one run: started, asked to stop, ended, and what is said of a run that has no result."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess

from harness.records import store
from harness.records.recorder import write_failure
from harness.records.run_lock import BusyError
from harness.records.state import is_done
from harness.records.store import Failure, Heartbeat, RecordError
from harness.workers import watchdog
from harness.workers.attempt import (
    Job,
    attempt_as_rank,
    attempt_in_threads,
    attempt_stacked,
    failure_kind,
    prepare_processes,
)
from harness.workers.devices import Workers
from harness.workers.stops import left_to_the_launcher

PRELOADED = ("harness.workers.attempt", "harness.workers.run_process", "harness.workers.preload", "torch._dynamo")
"""What a run's process needs; the last PyTorch would import, for a second, when it makes its first optimiser."""
EXIT_BUSY, EXIT_ORPHAN, EXIT_DISK = 3, 4, 5
"""Exit codes of a run's process that leave no failure.json."""
STOPPED = "stopped"
"""What is said of a run first that was asked to stop, and did."""
LOG = "log.txt"
"""In the run's folder: what all its processes say."""
GRACE_SECONDS = 15.0
"""How long the other ranks of a run may go on after one has failed, to say what they know."""


@dataclass(frozen=True)
class Place:
    """What a run has while it is on: its cores, and a device for each of its processes."""

    cores: tuple[int, ...]
    devices: tuple[str, ...]


@dataclass
class ActiveRun:
    """A run that is on, in processes of its own."""

    job: Job
    place: Place
    processes: list[BaseProcess] = field(default_factory=list)
    scratch: tempfile.TemporaryDirectory[str] | None = None
    started: float = field(default_factory=time.monotonic)
    failed_at: float | None = None
    was_killed: bool = False
    """By someone else: the system's memory guard, or by hand."""
    log_start: int = 0
    """Size of the run's log when the attempt began."""

    @property
    def name(self) -> str:
        return f"{self.job.run.row} seed {self.job.run.seed}"

    def heartbeat(self) -> Heartbeat | None:
        """The newest one of this attempt: there may be one that an attempt before has left."""
        with contextlib.suppress(RecordError):
            beat = store.read_optional(self.job.folder / "heartbeat.json", Heartbeat)
            return beat if beat is not None and beat.attempt == self.job.attempt.attempt else None
        return None

    def ask_to_stop(self) -> None:
        """Again and again, since a process that has just been made does not hear yet."""
        for process in self.processes:
            if process.exitcode is None:
                process.terminate()

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def has_ended(self) -> bool:
        """Whether all of its processes have; when one fails the others get a time of grace."""
        codes = [process.exitcode for process in self.processes]
        self.was_killed |= -signal.SIGKILL in codes
        if all(code is not None for code in codes):
            return True
        if any(codes):
            self.failed_at = self.failed_at or time.monotonic()
            if time.monotonic() - self.failed_at > GRACE_SECONDS:
                self.kill()
                return True
        return False


def process_context() -> ForkServerContext:
    """Processes forked from one that has torch loaded: each run is isolated, and starts at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["harness.workers.fork_server", *PRELOADED])
    prepare_processes()
    return context


def start(job: Job, workers: Workers, place: Place, context: ForkServerContext) -> ActiveRun:
    """Begin an attempt at a run."""
    job.folder.mkdir(parents=True, exist_ok=True)
    log = job.folder / LOG
    active = ActiveRun(job, place, log_start=log.stat().st_size if log.exists() else 0)
    name = job.run.run_id
    if workers != "processes":
        attempt = attempt_stacked if workers == "stacked" else attempt_in_threads
        active.processes.append(context.Process(target=_guarded, args=(attempt, job), name=name))
    else:
        active.scratch = tempfile.TemporaryDirectory(prefix="cser-bench-")
        init = f"file://{active.scratch.name}/rendezvous"
        for rank, device in zip(range(job.run.config.num_workers), place.devices, strict=False):
            arguments = (attempt_as_rank, replace(job, device=device), rank, init)
            active.processes.append(context.Process(target=_guarded, args=arguments, name=f"{name}-{rank}"))
    for process in active.processes:
        process.start()
    return active


def _guarded(attempt: Callable[..., bool], job: Job, *rest: object) -> None:
    """What a run's process does: everything it prints goes to the run's log, and it dies with the launcher."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    notice = left_to_the_launcher()
    try:
        with open(job.folder / LOG, "a", buffering=1) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            sys.exit(0 if attempt(job, *rest, notice.stop_requested) else 1)
    except BusyError:
        sys.exit(EXIT_BUSY)
    except OSError as error:
        # Not even the failure could be recorded: only the exit code can say it.
        sys.exit(EXIT_DISK if failure_kind(error) == "disk" else 1)


def _die_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(EXIT_ORPHAN)


def close(active: ActiveRun) -> str | None:
    """Why the run failed, in a sentence, or None. A process that died without a word gets a record too."""
    if active.scratch is not None:
        active.scratch.cleanup()
    codes, job = [process.exitcode or 0 for process in active.processes], active.job
    if not any(codes) or is_done(job.folder):
        return None
    if EXIT_BUSY in codes:
        return "another process is at this run; call again when it has ended"
    if EXIT_DISK in codes:
        return f"disk: {job.folder} cannot be written to; make room or give permission, and call again"
    path = job.folder / "failure.json"
    with contextlib.suppress(RecordError):
        failure = store.read_optional(path, Failure)
        own = failure is not None and failure.attempt == job.attempt.attempt
        # Workers that lost the one that was killed know of no more than that.
        if failure is not None and own and not (active.was_killed and failure.kind == "communication"):
            if failure.kind == "preempted":
                return f"{STOPPED}: {failure.message}"
            return f"{failure.kind}: {failure.message} ({path})"
    kind, message = _death(active, codes)
    with contextlib.suppress(OSError):
        write_failure(job.folder, job.run.run_id, job.attempt.attempt, kind, message, "", is_last_word=True)
    return f"{kind}: {message} ({path})"


def _death(active: ActiveRun, codes: list[int]) -> tuple[store.FailureKind, str]:
    """Kind and words of a failure of which no worker could tell."""
    see = f"see {LOG} beside this record"
    if active.was_killed:
        return "oom", (
            "a process of the run was killed, by the system's memory guard or by hand; if it was the guard, use a "
            f"smaller batch or lower precision, or fewer runs at once; {see}"
        )
    if -signal.SIGABRT in codes:
        found = watchdog.end_in(watchdog.tail_of(active.job.folder / LOG, active.log_start))
        if found is not None:
            return found[0], f"{found[1]}; {see}"
    # Those that were killed were killed here, after one had ended otherwise.
    code = next((code for code in codes if code not in (0, -signal.SIGKILL)), -signal.SIGKILL)
    return "bug", f"the run's process ended with code {code}; {see}"
