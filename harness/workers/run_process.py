"""The processes of one run: started, asked to stop, ended, and what is said of a run that has no result."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass, replace
from typing import Any, Literal

from harness.records import store
from harness.records.recorder import end_by_watchdog, read_failure, tail_of, write_failure
from harness.records.run_lock import BusyError
from harness.records.state import is_done
from harness.records.store import FailureKind, Heartbeat, RecordError
from harness.workers.attempt import Job, attempt_as_rank, attempt_stacked, failure_kind
from harness.workers.process_group import Workers
from harness.workers.processes import Worker, WorkerProcesses, start_workers

EXIT_BUSY, EXIT_DISK = 3, 5
"""Exit codes of a run's process that leave no failure.json."""
LOG = "log.txt"
"""In the run's folder: what all its processes say."""
GRACE_SECONDS = 15.0
"""How long the other ranks of a run may go on after one has failed, to say what they know."""


@dataclass(frozen=True)
class Resources:
    """What a run has while it is on: its cores, and a device for each of its processes."""

    cores: tuple[int, ...]
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Unfinished:
    """Why a run that was on has no result.

    `stopped`: it was asked to, and saved its state. `skipped`: another command is at it.
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

    @property
    def name(self) -> str:
        return f"{self.job.run.row} seed {self.job.run.seed}"

    def heartbeat(self) -> Heartbeat | None:
        """The newest one of this attempt: there may be one that an attempt before has left."""
        with contextlib.suppress(RecordError):
            beat = store.read_optional(self.job.folder / "heartbeat.json", Heartbeat)
            return beat if beat is not None and beat.attempt == self.job.attempt.attempt else None
        return None

    def has_ended(self) -> bool:
        """Whether all of its processes have; when one fails the others get a time of grace."""
        codes = self.workers.exit_codes()
        self.was_killed |= -signal.SIGKILL in codes
        if all(code is not None for code in codes):
            return True
        if any(codes):
            self.failed_at = self.failed_at or time.monotonic()
            if time.monotonic() - self.failed_at > GRACE_SECONDS:
                self.workers.kill()
                return True
        return False


def start(job: Job, workers: Workers, place: Resources) -> ActiveRun:
    """Begin an attempt at a run."""
    job.folder.mkdir(parents=True, exist_ok=True)
    log = job.folder / LOG
    log_start = log.stat().st_size if log.exists() else 0
    arguments: list[tuple[Any, ...]] = [(job, workers)]
    if workers == "processes":
        devices = place.devices[: job.run.config.num_workers]
        arguments = [(replace(job, device=device), workers) for device in devices]
    return ActiveRun(job, place, start_workers(_attempt, arguments), log_start=log_start)


def _attempt(worker: Worker, job: Job, workers: Workers) -> None:
    """What a run's process does; everything it prints goes to the run's log."""
    try:
        with open(job.folder / LOG, "a", buffering=1) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            if workers == "processes":
                has_result = attempt_as_rank(job, worker.rank, worker.init_method, worker.stop_requested)
            else:
                has_result = attempt_stacked(job, worker.stop_requested)
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
    """Why the run has no result, or None. A process that died without a word gets a record too."""
    active.workers.close()
    codes, job = [code or 0 for code in active.workers.exit_codes()], active.job
    if not any(codes) or is_done(job.folder):
        return None
    if EXIT_BUSY in codes:
        return Unfinished("skipped", "another process is at this run; call again when it has ended")
    if EXIT_DISK in codes:
        return Unfinished("disk", f"{job.folder} cannot be written to; make room or give permission, and call again")
    path = job.folder / "failure.json"
    with contextlib.suppress(RecordError):
        failure = read_failure(job.folder, job.attempt.attempt)
        if failure is not None and failure.kind == "preempted":
            return Unfinished("stopped", failure.message)
        # Workers that lost the one that was killed know of no more than that.
        if failure is not None and not (active.was_killed and failure.kind == "communication"):
            return Unfinished(failure.kind, f"{failure.message} ({path})")
    kind, message = _death(active, codes)
    with contextlib.suppress(OSError):
        write_failure(job.folder, job.run.run_id, job.attempt.attempt, kind, message, "", is_last_word=True)
    return Unfinished(kind, f"{message} ({path})")


def _death(active: ActiveRun, codes: list[int]) -> tuple[FailureKind, str]:
    """Kind and words of a failure of which no worker could tell."""
    see = f"see {LOG} beside this record"
    if active.was_killed:
        return "oom", (
            "a process of the run was killed, by the system's memory guard or by hand; if it was the guard, use a "
            f"smaller batch or lower precision, or fewer runs at once; {see}"
        )
    said = tail_of(active.job.folder / LOG, active.log_start) if -signal.SIGABRT in codes else ""
    if found := end_by_watchdog(said):
        return found[0], f"{found[1]}; {see}"
    # Those that were killed were killed here, after one had ended otherwise.
    code = next((code for code in codes if code not in (0, -signal.SIGKILL)), -signal.SIGKILL)
    return "bug", f"the run's process ended with code {code}; {see}"
