"""Does the runs of a plan that are missing, several at once, each in a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

import torch

from harness import packs, store
from harness.attempt import (
    BusyError,
    Job,
    attempt_as_rank,
    attempt_in_threads,
    attempt_stacked,
    failure_kind,
    num_cores,
    prepare_processes,
)
from harness.devices import Workers, device_groups
from harness.plan import Plan, PlannedRun
from harness.preload import announce
from harness.process_group import backend_for
from harness.provenance import new_attempt
from harness.recorder import write_failure
from harness.spec import RunConfig
from harness.store import Failure, RecordError

POLL_SECONDS = 0.1
EXIT_BUSY, EXIT_ORPHAN, EXIT_DISK = 3, 4, 5
"""Exit codes of a run's process that leave no failure.json."""
HOPELESS = ("disk:", "data:")
"""Failures that every other run would meet too: nothing more is started."""
GRACE_SECONDS = 15.0
"""How long the other ranks of a run may go on after one has failed, to say what they know."""


@dataclass(frozen=True)
class Options:
    """Infrastructure only: nothing here changes a result."""

    results: Path
    data: Path | None
    workers: Workers
    device: str
    jobs: int | None
    """Runs at once; None for as many as there are cores, or GPUs, for."""
    checkpoint_minutes: float
    timeout_seconds: float


class Display(Protocol):
    """Shows how a launch gets on."""

    def update(self, done: int, total: int, active: dict[str, Path]) -> None:
        """`active`: the folders of the runs that are on, by their names for people."""

    def ended(self, name: str, failure: str | None) -> None:
        """A run has ended; `failure` says why it has no result, None if it has one."""


@dataclass(frozen=True)
class Place:
    """What a run has while it is on: its cores, and a device for each of its processes."""

    cores: tuple[int, ...]
    devices: tuple[str, ...]


@dataclass
class _Active:
    run: PlannedRun
    folder: Path
    attempt: str
    processes: list[BaseProcess]
    place: Place
    failed_at: float | None = None
    was_killed: bool = False
    """By someone else: the system's memory guard, or by hand."""

    @property
    def name(self) -> str:
        return f"{self.run.row} seed {self.run.seed}"

    scratch: tempfile.TemporaryDirectory[str] | None = field(default=None)


def missing_runs(plan: Plan, folder: Path) -> list[PlannedRun]:
    """The runs without a valid result, in the plan's order, seeds first, so that early reports cover all rows.

    Raises:
        RecordError: a result is damaged or of another version, or the experiment's pack is not usable.
    """
    packs.read_pack(folder)
    order = {run.run_id: number for number, run in enumerate(plan.runs)}
    seeds = {seed: number for number, seed in enumerate(plan.experiment.seeds)}
    missing = [run for run in plan.runs if not is_done(folder / run.run_id)]
    unique = {run.run_id: run for run in missing}
    return sorted(unique.values(), key=lambda run: (seeds.get(run.seed, 0), order[run.run_id]))


def is_done(folder: Path) -> bool:
    """Whether the run of this folder has a valid result, in the folder or packed."""
    return packs.read_result(folder) is not None


def write_experiment(plan: Plan, results: Path) -> Path:
    """Write experiment.json, if it says anything new, and return the experiment's folder.

    Raises:
        OSError: no permission, no space.
        RecordError: the folder belongs to another version.
    """
    folder = results / plan.experiment.name
    path = folder / "experiment.json"
    if store.read_optional(path, store.Experiment) != plan.experiment:
        store.write_record(path, plan.experiment)
    return folder


def launch(plan: Plan, options: Options, display: Display) -> int:
    """Do what is missing; return how many runs failed in this launch.

    An interrupted launch leaves every run done, or ready to go on from its checkpoint.

    Raises:
        SpecError: the machine has too few GPUs.
    """
    free = places(plan, options)
    folder = write_experiment(plan, options.results)
    pending = missing_runs(plan, folder)
    total = len({run.run_id for run in plan.runs})
    if pending:
        announce(pending[0].config.task, options.data, options.device)
    context = _context()
    active: list[_Active] = []
    failures, done = 0, total - len(pending)
    try:
        while pending or active:
            while pending and free:
                active.append(_start(pending.pop(0), plan.experiment.name, folder, options, context, free.pop(0)))
            display.update(done, total, {each.name: each.folder for each in active})
            time.sleep(POLL_SECONDS)
            for each in [each for each in active if _has_ended(each)]:
                active.remove(each)
                free.append(each.place)
                failure = _close(each)
                done, failures = done + (failure is None), failures + (failure is not None)
                display.ended(each.name, failure)
                # What is wrong with a run's own folder is no other run's affair.
                own = failure is not None and failure.startswith(f"data: {each.folder}")
                if failure is not None and failure.startswith(HOPELESS) and not own:
                    pending.clear()
    finally:
        for each in active:
            _kill(each)
    display.update(done, total, {})
    return failures


def _context() -> multiprocessing.context.ForkServerContext:
    """Processes forked from one that has torch loaded: each run is isolated, and starts at once."""
    context = multiprocessing.get_context("forkserver")
    # The last is what PyTorch would import, for a second, when a process makes its first optimiser.
    context.set_forkserver_preload(["harness.attempt", "harness.launch", "harness.preload", "torch._dynamo"])
    prepare_processes()
    return context


def places(plan: Plan, options: Options) -> list[Place]:
    """A place for each of the runs that go at once; GPUs are shared only where the user wants more runs than they give.

    Raises:
        SpecError: the machine has too few GPUs for one run.
    """
    num_processes = 1 if options.workers != "processes" else max(run.config.num_workers for run in plan.runs)
    groups = device_groups(options.device, num_processes, torch.cuda.device_count())
    jobs = options.jobs or (num_cores() if options.device == "cpu" else len(groups))
    shares = _shares(sorted(os.sched_getaffinity(0)), jobs)
    return [Place(cores, groups[number % len(groups)]) for number, cores in enumerate(shares)]


def _shares(cores: list[int], jobs: int) -> list[tuple[int, ...]]:
    """The cores of each of the runs that go at once: as many for each, and shared where there are more runs."""
    return [tuple(cores[job::jobs]) or (cores[job % len(cores)],) for job in range(jobs)]


def _start(
    run: PlannedRun,
    experiment: str,
    folder: Path,
    options: Options,
    context: multiprocessing.context.ForkServerContext,
    place: Place,
) -> _Active:
    workers = workers_of(run.config, options)
    backend = backend_for(options.device) if workers == "processes" else workers
    job = Job(
        experiment=experiment,
        folder=folder / run.run_id,
        run=run,
        attempt=new_attempt(workers, backend, torch.device(place.devices[0])),
        data=options.data,
        device=place.devices[0],
        cores=place.cores,
        checkpoint_minutes=options.checkpoint_minutes,
        timeout_seconds=options.timeout_seconds,
    )
    job.folder.mkdir(parents=True, exist_ok=True)
    active = _Active(run, job.folder, job.attempt.attempt, [], place)
    if workers != "processes":
        attempt = attempt_stacked if workers == "stacked" else attempt_in_threads
        active.processes.append(context.Process(target=_guarded, args=(attempt, job), name=run.run_id))
    else:
        active.scratch = tempfile.TemporaryDirectory(prefix="cser-bench-")
        init = f"file://{active.scratch.name}/rendezvous"
        for rank, device in zip(range(run.config.num_workers), place.devices, strict=False):
            arguments = (attempt_as_rank, replace(job, device=device), rank, init)
            active.processes.append(context.Process(target=_guarded, args=arguments, name=f"{run.run_id}-{rank}"))
    for process in active.processes:
        process.start()
    return active


def workers_of(config: RunConfig, options: Options) -> Workers:
    """How the run's workers go; with fp16 each has a loss scale of its own, so they cannot be stacked."""
    return "threads" if options.workers == "stacked" and config.precision == "fp16" else options.workers


def _guarded(attempt: Callable[..., bool], job: Job, *rest: object) -> None:
    """What a run's process does: everything it prints goes to the run's log, and it dies with the launcher."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    try:
        with open(job.folder / "log.txt", "a", buffering=1) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            sys.exit(0 if attempt(job, *rest) else 1)
    except BusyError:
        sys.exit(EXIT_BUSY)
    except OSError as error:
        # Not even the failure could be recorded: only the exit code can say it.
        sys.exit(EXIT_DISK if failure_kind(error) == "disk" else 1)


def _die_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(EXIT_ORPHAN)


def _has_ended(active: _Active) -> bool:
    """Whether all of a run's processes have; when one fails the others get a time of grace."""
    codes = [process.exitcode for process in active.processes]
    active.was_killed |= -signal.SIGKILL in codes
    if all(code is not None for code in codes):
        return True
    if any(codes):
        active.failed_at = active.failed_at or time.monotonic()
        if time.monotonic() - active.failed_at > GRACE_SECONDS:
            _kill(active)
            return True
    return False


def _kill(active: _Active) -> None:
    for process in active.processes:
        process.kill()
    for process in active.processes:
        process.join()


def _close(active: _Active) -> str | None:
    """Why the run failed, in a sentence, or None. A process that died without a word gets a record too."""
    if active.scratch is not None:
        active.scratch.cleanup()
    codes = [process.exitcode or 0 for process in active.processes]
    if not any(codes) or is_done(active.folder):
        return None
    if EXIT_BUSY in codes:
        return "another process is at this run; call again when it has ended"
    if EXIT_DISK in codes:
        return f"disk: {active.folder} cannot be written to; make room or give permission, and call again"
    path = active.folder / "failure.json"
    with contextlib.suppress(RecordError):
        failure = store.read_optional(path, Failure)
        own = failure is not None and failure.attempt == active.attempt
        # Workers that lost the one that was killed know of no more than that.
        if failure is not None and own and not (active.was_killed and failure.kind == "communication"):
            return f"{failure.kind}: {failure.message} ({path})"
    kind, message = _death(next(code for code in codes if code), active.was_killed)
    with contextlib.suppress(OSError):
        write_failure(active.folder, active.run.run_id, active.attempt, kind, message, "")
    return f"{kind}: {message} ({path})"


def _death(code: int, was_killed: bool) -> tuple[store.FailureKind, str]:
    """Kind and words of a failure of which no worker could tell."""
    if was_killed:
        return "oom", (
            "a process of the run was killed, by the system's memory guard or by hand; if it was the guard, use a "
            "smaller batch or lower precision, or fewer runs at once; see log.txt beside this record"
        )
    return "bug", f"the run's process ended with code {code}; see log.txt beside this record"


def active_heartbeats(active: dict[str, Path]) -> Iterator[tuple[str, store.Heartbeat]]:
    """The newest heartbeat of each run that has one, with the run's name."""
    for name, folder in active.items():
        with contextlib.suppress(RecordError):
            heartbeat = store.read_optional(folder / "heartbeat.json", store.Heartbeat)
            if heartbeat is not None:
                yield name, heartbeat
