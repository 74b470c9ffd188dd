"""Does the runs of a plan that are missing, several at once in processes of their own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from cser_bench.algorithms.baselines.ddp import DDP
from cser_bench.harness.cores import usable_cores
from cser_bench.harness.plan.plan import Plan
from cser_bench.harness.records import store
from cser_bench.harness.records.ending import ending_in
from cser_bench.harness.records.provenance import new_attempt
from cser_bench.harness.records.store import Attempt, Heartbeat
from cser_bench.harness.spec.run import PlannedRun, RunConfig
from cser_bench.harness.train.method import method_of
from cser_bench.harness.train.schedule import num_steps_of
from cser_bench.harness.train.training import Job
from cser_bench.harness.workers.attempt import (
    ActiveRun,
    Resources,
    Unfinished,
    close,
    start,
)
from cser_bench.harness.workers.prepare import prepare
from cser_bench.harness.workers.process_group import Workers, backend_for, device_groups
from cser_bench.harness.workers.processes import noticed

POLL_SECONDS = 0.1
PROGRESS_SECONDS = 1.0
"""Between two looks at the heartbeats of runs."""


@dataclass(frozen=True)
class Options:
    """Infrastructure only: nothing here changes what is asked."""

    results: Path
    data: Path | None
    workers: Workers | Literal["auto"]
    device: str
    jobs: int | None
    """Runs at once; None for as many as there are cores, or GPUs, for."""
    checkpoint_minutes: float
    timeout_seconds: float


def launch(
    plan: Plan,
    options: Options,
    say: Callable[[str], None] = print,
    progress: Callable[[float, float, str], None] = lambda done, total, what: None,
) -> int:
    """Do what is missing, but for runs that another command is at.

    Returns how many failed in this launch.

    Args:
        say: takes a sentence on each run that ended.
        progress: takes the steps that are done, those of all runs, and how many runs are done.

    How each run ended is said at once. An interrupted launch leaves every run done, or ready to go
    on from its checkpoint, and raises Interrupted.
    """
    queue = _Queue(plan, options, say)
    looked_at = -math.inf
    with noticed() as flag:
        try:
            while queue.pending or queue.active:
                queue.start()
                if time.monotonic() - looked_at >= PROGRESS_SECONDS:
                    looked_at = time.monotonic()
                    progress(*steps_of(plan, options.results, queue.left), queue.words)
                time.sleep(POLL_SECONDS)
                queue.close_ended()
                if flag.stop_requested():
                    queue.stop()
        finally:
            # After a whole launch there is none; an error must leave no process behind.
            for run in queue.active:
                run.workers.kill()
        # After the runs have saved their state: the exit code tells of the signal.
        flag.raise_if_asked()
    return queue.num_failures


class _Queue:
    """The runs of a launch: those that wait for a place, and those that are on.

    Attributes:
        free: places that no run has.
        num_done: runs that are done, those of earlier launches too.
        num_failures: runs that failed in this one.
    """

    def __init__(
        self, plan: Plan, options: Options, say: Callable[[str], None]
    ) -> None:
        self.free = places(plan, options)
        self.pending = prepare(plan, options.results)
        self.active: list[ActiveRun] = []
        self.num_done = len(plan.by_id) - len(self.pending)
        self.num_failures = 0
        self._plan = plan
        self._options = options
        self._say = say
        self._is_stopping = False

    @property
    def left(self) -> list[PlannedRun]:
        """The runs that are not done yet."""
        return [*(run.job.run for run in self.active), *self.pending]

    @property
    def words(self) -> str:
        """How many runs are done, and on."""
        total = len(self._plan.by_id)
        return f"{self.num_done} of {total} runs done, {len(self.active)} on"

    def start(self) -> None:
        """Start runs in order, as far as there are places."""
        while self.pending and self.free:
            run = self.pending.pop(0)
            self.active.append(
                _started(run, self.free.pop(0), self._plan, self._options)
            )

    def close_ended(self) -> None:
        """Record how runs ended, say it, and free their places."""
        for ended in [run for run in self.active if run.has_ended()]:
            self.active.remove(ended)
            self.free.append(ended.place)
            unfinished = close(ended)
            if unfinished is None:
                self.num_done += 1
            # Also one that somebody else asked to stop: what is left without a failure is taken by
            # the caller for another command's.
            elif unfinished.kind != "skipped":
                self.num_failures += 1
            verdict = _verdict(ended.job, unfinished)
            self._say(f"[{self.num_done}/{len(self._plan.by_id)}] {verdict}")

    def stop(self) -> None:
        """Start no more runs, and ask those that are on to save their state and end."""
        if not self._is_stopping:
            self._say(
                "stopping: the runs that are on save their state at their next step; again to end "
                "at once"
            )
        self._is_stopping = True
        self.pending.clear()
        # A process that has just been made does not hear yet, so they are asked again each time.
        for run in self.active:
            run.workers.ask_to_stop()


def steps_of(plan: Plan, results: Path, left: Sequence[PlannedRun]) -> tuple[int, int]:
    """Return the steps that a plan's runs have taken, and those of all its runs.

    A run that is left has taken as many as its newest heartbeat says, any other one all of its own.
    """
    steps = {run_id: num_steps_of(run.config)[1] for run_id, run in plan.by_id.items()}
    total = sum(steps.values())
    done = total
    for run in left:
        folder = results / plan.experiment.name / run.run_id
        beat = store.read_if_whole(folder / "heartbeat.json", Heartbeat)
        # Without a heartbeat it has not begun: none of its steps is taken.
        done -= steps[run.run_id] - (beat.step if beat else 0)
    return done, total


def _verdict(job: Job, unfinished: Unfinished | None) -> str:
    """Say how a run ended, in a line."""
    name = f"{job.run.row} seed {job.run.seed}"
    if unfinished is None:
        return f"{name}: {ending_in(job.folder)}"
    if unfinished.is_failure:
        return f"{name}: FAILED, {unfinished}"
    return f"{name}: {unfinished}"


def _started(
    run: PlannedRun, place: Resources, plan: Plan, options: Options
) -> ActiveRun:
    workers = workers_of(run.config, options)
    # Of several processes each gets its own in `start`.
    device = place.devices[0]
    backend = backend_for(device) if workers == "processes" else workers
    attempt = new_attempt(workers, backend, torch.device(device))
    return start(
        job_of(run, attempt, device, place.cores, plan, options), workers, place
    )


def job_of(
    run: PlannedRun,
    attempt: Attempt,
    device: str,
    cores: tuple[int, ...],
    plan: Plan,
    options: Options,
) -> Job:
    """Return what the processes of a run are sent."""
    return Job(
        experiment=plan.experiment.name,
        folder=options.results / plan.experiment.name / run.run_id,
        run=run,
        attempt=attempt,
        data=options.data,
        device=device,
        cores=cores,
        checkpoint_minutes=options.checkpoint_minutes,
        timeout_seconds=options.timeout_seconds,
    )


def places(plan: Plan, options: Options) -> list[Resources]:
    """Return a place for each of the runs that go at once.

    GPUs are shared only where the user wants more runs than they give.

    Raises SpecError where the machine has too few GPUs for one run.
    """
    # Numbers of workers, of which each needs a device.
    in_processes = [
        run.config.num_workers
        for run in plan.runs
        if workers_of(run.config, options) == "processes"
    ]
    # A place must do for each run of the plan; stacked workers are one process.
    num_processes = max(in_processes, default=1)
    groups = device_groups(options.device, num_processes, torch.cuda.device_count())
    cores = usable_cores()
    jobs = options.jobs
    if not jobs:
        # A stacked run computes in one thread, so more runs than cores would only take turns.
        jobs = len(cores) if options.device == "cpu" else len(groups)
    # As many cores for each run, and shared ones where there are more runs.
    shares = [
        tuple(cores[job::jobs]) or (cores[job % len(cores)],) for job in range(jobs)
    ]
    return [
        Resources(share, groups[number % len(groups)])
        for number, share in enumerate(shares)
    ]


def workers_of(config: RunConfig, options: Options) -> Workers:
    """Return how the run's workers go: a baseline's as processes.

    "auto" stands for processes where each can have a GPU.
    """
    if issubclass(method_of(config), DDP):
        return "processes"
    if options.workers != "auto":
        return options.workers
    if options.device == "cuda" and torch.cuda.device_count() >= config.num_workers:
        return "processes"
    return "stacked"
