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
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

import torch

from harness import packs, store
from harness.attempt import (
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
from harness.run_lock import BusyError
from harness.spec import RunConfig, SpecError
from harness.state import is_done
from harness.stops import Notice, left_to_the_launcher, noticed
from harness.store import Failure, Heartbeat, RecordError
from harness.time_left import TimeLeft, expected_step_seconds

POLL_SECONDS = 0.1
PRELOADED = ("harness.attempt", "harness.launch", "harness.preload", "torch._dynamo")
"""What a run's process needs; the last PyTorch would import, for a second, when it makes its first optimiser."""
EXIT_BUSY, EXIT_ORPHAN, EXIT_DISK = 3, 4, 5
"""Exit codes of a run's process that leave no failure.json."""
STOPPED = "stopped"
"""What is said of a run first that was asked to stop, and did."""
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


@dataclass(frozen=True)
class Progress:
    """How far a launch is. `active`: the newest heartbeat of each run that is on, by its name for people."""

    done: int
    total: int
    active: dict[str, Heartbeat | None]
    seconds_left: float | None
    """Of the whole launch; None where nothing is known yet."""


class Display(Protocol):
    """Shows how a launch gets on."""

    def update(self, progress: Progress) -> None: ...

    def ended(self, name: str, failure: str | None) -> None:
        """A run has ended; `failure` says why it has no result, None if it has one."""

    def say(self, sentence: str) -> None:
        """Something that concerns all runs."""


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
    started: float = field(default_factory=time.monotonic)
    failed_at: float | None = None
    was_killed: bool = False
    """By someone else: the system's memory guard, or by hand."""

    @property
    def name(self) -> str:
        return f"{self.run.row} seed {self.run.seed}"

    scratch: tempfile.TemporaryDirectory[str] | None = field(default=None)

    def heartbeat(self) -> Heartbeat | None:
        """The newest one of this attempt: there may be one that an attempt before has left."""
        with contextlib.suppress(RecordError):
            beat = store.read_optional(self.folder / "heartbeat.json", Heartbeat)
            return beat if beat is not None and beat.attempt == self.attempt else None
        return None

    def ask_to_stop(self) -> None:
        """Again and again, since a process that has just been made does not hear yet."""
        for process in self.processes:
            if process.exitcode is None:
                process.terminate()


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
    second = {row.row for row in plan.experiment.rows if row.rule == "training_loss"}
    return sorted(unique.values(), key=lambda run: (run.row in second, seeds.get(run.seed, 0), order[run.run_id]))


def write_experiment(plan: Plan, results: Path) -> Path:
    """Write experiment.json, if it says anything new, and return the experiment's folder.

    Raises:
        OSError: no permission, no space.
        RecordError: the folder belongs to another version.
        SpecError: it holds the experiment of another spec, whose report would be lost.
    """
    folder = results / plan.experiment.name
    path = folder / "experiment.json"
    written = store.read_optional(path, store.Experiment)
    if written is not None and _is_of_another_spec(written, plan.experiment):
        raise SpecError(
            f"{folder} holds the experiment {plan.experiment.name!r} of another spec (`{written.commands[0]}`); give "
            f"one of the two another name, or another folder by --results (or delete {path} if they are the same)"
        )
    if written != plan.experiment:
        store.write_record(path, plan.experiment)
    return folder


def _is_of_another_spec(written: store.Experiment, planned: store.Experiment) -> bool:
    """Whether it was planned from another file and has other runs: a spec may change, or be found by two names."""
    runs = [[row.runs for row in each.rows] for each in (written, planned)]
    return bool(written.commands) and written.commands[0] != planned.commands[0] and runs[0] != runs[1]


def launch(plan: Plan, options: Options, display: Display) -> int:
    """Do what is missing; return how many runs failed in this launch.

    An interrupted launch leaves every run done, or ready to go on from its checkpoint.

    Raises:
        SpecError: the machine has too few GPUs, or the folder holds another experiment.
        Interrupted: by a signal; at the first one the runs have saved their state.
    """
    free = places(plan, options)
    folder = write_experiment(plan, options.results)
    pending = missing_runs(plan, folder)
    if pending:
        announce(pending[0].config.task, options.data, options.device)
    with noticed() as notice:
        failures = _Launch(plan, options, folder, pending, free, display, notice).go()
        notice.raise_if_asked()
    return failures


class _Launch:
    """The runs of a launch: those to come, those that are on, and what is known of the time that they take."""

    def __init__(
        self,
        plan: Plan,
        options: Options,
        folder: Path,
        pending: list[PlannedRun],
        free: list[Place],
        display: Display,
        notice: Notice,
    ) -> None:
        self.plan, self.options, self.folder = plan, options, folder
        self.pending, self.free, self.active = pending, free, list[_Active]()
        self.display, self.notice = display, notice
        self.total = len({run.run_id for run in plan.runs})
        self.failures, self.done = 0, self.total - len(pending)
        self.asked = False
        self.time_left = TimeLeft(min(len(free), len(pending)))

    def go(self) -> int:
        """Start runs where there is room, until all have ended; returns how many failed."""
        context = _context()
        try:
            while self.pending or self.active:
                while self.pending and self.free:
                    run, place = self.pending.pop(0), self.free.pop(0)
                    name = self.plan.experiment.name
                    self.active.append(_start(run, name, self.folder, self.options, context, place))
                if self.time_left.expected is None:  # while the first processes load what they need
                    self._show()
                    self.time_left.expected = self._expected()
                self._show()
                time.sleep(POLL_SECONDS)
                self._close_ended()
                if self.notice.stop_requested():
                    self._ask_to_stop()
        finally:
            for each in self.active:
                _kill(each)
        self._show()
        return self.failures

    def _expected(self) -> dict[str, float]:
        runs, cores = [*self.pending, *(each.run for each in self.active)], len(self.active[0].place.cores)
        return expected_step_seconds(runs, self.options.device, self.options.workers, cores)

    def _show(self) -> None:
        beats = [(each, each.heartbeat()) for each in self.active]
        reason = self.time_left.update(self.pending, [(each.run, beat) for each, beat in beats])
        if reason is not None:
            self.display.say(reason)
        active = {each.name: beat for each, beat in beats}
        self.display.update(Progress(self.done, self.total, active, self.time_left.seconds))

    def _close_ended(self) -> None:
        for each in [each for each in self.active if _has_ended(each)]:
            self.active.remove(each)
            self.free.append(each.place)
            failure = _close(each)
            if failure is None:
                self.done += 1
                self.time_left.ended(each.run, time.monotonic() - each.started)
            self.failures += failure is not None
            self.display.ended(each.name, failure)
            # What is wrong with a run's own folder is no other run's affair.
            own = failure is not None and failure.startswith(f"data: {each.folder}")
            if failure is not None and failure.startswith(HOPELESS) and not own:
                self.pending.clear()

    def _ask_to_stop(self) -> None:
        if not self.asked:
            self.display.say("stopping: the runs that are on save their state at their next step; again to end at once")
        self.asked = True
        self.pending.clear()
        for each in self.active:
            each.ask_to_stop()


def _context() -> multiprocessing.context.ForkServerContext:
    """Processes forked from one that has torch loaded: each run is isolated, and starts at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["harness.fork_server", *PRELOADED])
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
    notice = left_to_the_launcher()
    try:
        with open(job.folder / "log.txt", "a", buffering=1) as log:
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
            if failure.kind == "preempted":
                return f"{STOPPED}: {failure.message}"
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
