"""Does the runs of a plan that are missing: several at once in processes of their own, or as torchrun's processes."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.distributed as dist

from algorithms import ProcessGroupCollectives
from algorithms.registry import baselines
from harness.plan.plan import Plan
from harness.plan.rows import PlannedRun
from harness.records import packs, store
from harness.records.experiment import Experiment
from harness.records.provenance import new_attempt
from harness.records.run_lock import owned
from harness.records.state import is_done, saved_step
from harness.records.store import Attempt
from harness.spec import RunConfig, SpecError
from harness.train import checkpoint
from harness.train.build import num_steps_of
from harness.workers.attempt import Job, attempt_in_group, done_meanwhile, num_cores, prepare_thread, recorded
from harness.workers.process_group import Workers, backend_for, device_groups, from_rank_0, joined
from harness.workers.processes import StopFlag, noticed
from harness.workers.progress import LaunchDisplay
from harness.workers.run_process import ActiveRun, Resources, close, start

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Options:
    """Infrastructure only: nothing here changes what is asked."""

    results: Path
    data: Path | None
    workers: Workers
    device: str
    jobs: int | None
    """Runs at once; None for as many as there are cores, or GPUs, for."""
    checkpoint_minutes: float
    timeout_seconds: float

    def job(self, plan: Plan, run: PlannedRun, attempt: Attempt, device: str, cores: tuple[int, ...] = ()) -> Job:
        """An attempt at a run with these options."""
        return Job(
            experiment=plan.experiment.name,
            folder=self.results / plan.experiment.name / run.run_id,
            run=run,
            attempt=attempt,
            data=self.data,
            device=device,
            cores=cores,
            checkpoint_minutes=self.checkpoint_minutes,
            timeout_seconds=self.timeout_seconds,
        )


def missing_runs(plan: Plan, folder: Path) -> list[PlannedRun]:
    """The runs without a valid result, in the plan's order, seeds first, so that early reports cover all rows.

    Rows of the second rule of selection come last.

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


def prepare(plan: Plan, results: Path) -> list[PlannedRun]:
    """Write experiment.json, clear up after processes that were killed just after a result, and say what is missing.

    Raises:
        OSError, RecordError, SpecError: as `write_experiment` and `missing_runs`.
    """
    folder = write_experiment(plan, results)
    missing = missing_runs(plan, folder)
    for run_id in {run.run_id for run in plan.runs} - {run.run_id for run in missing}:
        checkpoint.discard(folder / run_id / checkpoint.FOLDER)
    return missing


def write_experiment(plan: Plan, results: Path) -> Path:
    """Write experiment.json, if it says anything new, and return the experiment's folder.

    Raises:
        OSError: no permission, no space.
        RecordError: the folder belongs to another version.
        SpecError: it holds the experiment of another spec, whose report would be lost.
    """
    folder = results / plan.experiment.name
    path = folder / "experiment.json"
    written = store.read_optional(path, Experiment)
    if written is not None and _is_of_another_spec(written, plan.experiment):
        raise SpecError(
            f"{folder} holds the experiment {plan.experiment.name!r} of another spec (`{written.commands[0]}`); give "
            f"one of the two another name, or another folder by --results (or delete {path} if they are the same)"
        )
    if written != plan.experiment:
        store.write_record(path, plan.experiment)
    return folder


def _is_of_another_spec(written: Experiment, planned: Experiment) -> bool:
    """Whether it was planned from another file and has other runs: a spec may change, or be found by two names."""
    runs = [[row.runs for row in each.rows] for each in (written, planned)]
    return bool(written.commands) and written.commands[0] != planned.commands[0] and runs[0] != runs[1]


def launch(plan: Plan, options: Options, display: LaunchDisplay) -> int:
    """Do what is missing; return how many runs failed in this launch. Runs that another command is at are skipped.

    An interrupted launch leaves every run done, or ready to go on from its checkpoint.

    Raises:
        SpecError: the machine has too few GPUs, or the folder holds another experiment.
        Interrupted: by a signal; at the first one the runs have saved their state.
    """
    free = places(plan, options)
    pending = prepare(plan, options.results)
    with noticed() as flag:
        failures = _Launch(plan, options, pending, free, display, flag).go()
        flag.raise_if_asked()
    return failures


@dataclass
class _Launch:
    """The runs of a launch: those to come, those that are on, and the steps that each still has before it."""

    plan: Plan
    options: Options
    pending: list[PlannedRun]
    free: list[Resources]
    display: LaunchDisplay
    flag: StopFlag
    active: list[ActiveRun] = field(default_factory=list)
    failures: int = 0
    asked: bool = False

    def __post_init__(self) -> None:
        self.total = len({run.run_id for run in self.plan.runs})
        self.done = self.total - len(self.pending)
        folder = self.options.results / self.plan.experiment.name
        self.steps_left = {
            run.run_id: num_steps_of(run.config)[1] - (saved_step(folder / run.run_id) or 0) for run in self.pending
        }
        self.num_steps = sum(self.steps_left.values())

    def go(self) -> int:
        """Start runs where there is room, until all have ended; returns how many failed."""
        try:
            while self.pending or self.active:
                while self.pending and self.free:
                    self.active.append(self._start(self.pending.pop(0), self.free.pop(0)))
                self._show()
                time.sleep(POLL_SECONDS)
                self._close_ended()
                if self.flag.stop_requested():
                    self._ask_to_stop()
        finally:
            for each in self.active:
                each.workers.kill()
        self._show()
        return self.failures

    def _start(self, run: PlannedRun, place: Resources) -> ActiveRun:
        workers = workers_of(run.config, self.options)
        backend = backend_for(self.options.device) if workers == "processes" else workers
        attempt = new_attempt(workers, backend, torch.device(place.devices[0]))
        return start(self.options.job(self.plan, run, attempt, place.devices[0], place.cores), workers, place)

    def _show(self) -> None:
        beats = {each.name: each.heartbeat() for each in self.active}
        for each, beat in zip(self.active, beats.values(), strict=True):
            if beat is not None:
                self.steps_left[each.job.run.run_id] = beat.num_steps - beat.step
        self.display.update(beats, self.num_steps, sum(self.steps_left.values()))

    def _close_ended(self) -> None:
        for each in [each for each in self.active if each.has_ended()]:
            self.active.remove(each)
            self.free.append(each.place)
            unfinished = close(each)
            del self.steps_left[each.job.run.run_id]
            self.done += unfinished is None
            self.failures += unfinished is not None and unfinished.kind != "skipped"
            self.display.ended(each.name, unfinished, f"{self.done}/{self.total}")

    def _ask_to_stop(self) -> None:
        if not self.asked:
            self.display.say("stopping: the runs that are on save their state at their next step; again to end at once")
        self.asked = True
        self.pending.clear()
        for each in self.active:
            each.workers.ask_to_stop()


def places(plan: Plan, options: Options) -> list[Resources]:
    """A place for each of the runs that go at once; GPUs are shared only where the user wants more runs than they give.

    Raises:
        SpecError: the machine has too few GPUs for one run.
    """
    num_processes = 1
    for run in plan.runs:
        if workers_of(run.config, options) == "processes":
            num_processes = max(num_processes, run.config.num_workers)
            _check_gpus(run, options.device)
    groups = device_groups(options.device, num_processes, torch.cuda.device_count())
    jobs = options.jobs or (num_cores() if options.device == "cpu" else len(groups))
    cores = sorted(os.sched_getaffinity(0))
    # As many cores for each run, and shared ones where there are more runs.
    shares = [tuple(cores[job::jobs]) or (cores[job % len(cores)],) for job in range(jobs)]
    return [Resources(share, groups[number % len(groups)]) for number, share in enumerate(shares)]


def _check_gpus(run: PlannedRun, device: str) -> None:
    """A baseline cannot share a GPU, as stacked workers do."""
    num_gpus, num_workers = torch.cuda.device_count(), run.config.num_workers
    if run.config.algorithm in baselines() and device != "cpu" and num_gpus < num_workers:
        raise SpecError(
            f"row {run.row}: the {num_workers} workers of {run.config.algorithm} are processes, which need a GPU each; "
            f"torch sees {num_gpus}. Take {num_workers} GPUs (torchrun, Slurm), --device cpu, or the row out"
        )


def workers_of(config: RunConfig, options: Options) -> Workers:
    """How the run's workers go: a baseline's always as processes."""
    return "processes" if config.algorithm in baselines() else options.workers


def run_under_torchrun(plan: Plan, options: Options) -> None:
    """Do the missing runs. A failure ends the process, and so the whole group, as its members may hang.

    Raises:
        SpecError: another number of processes was started than the experiment has workers, more of them on a machine
            than it has GPUs, two with the same GPU, or without a word where they meet.
        BusyError: another process is at one of the runs.
        Interrupted: by a signal, after the run that was on has saved its state.
    """
    world_size = int(os.environ["WORLD_SIZE"])
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise SpecError(
            f"RANK and WORLD_SIZE are set, {' and '.join(missing)} not; set all four, or none for a run here"
        )
    wanted = {run.config.num_workers for run in plan.runs}
    if wanted != {world_size}:
        raise SpecError(f"the launcher started {world_size} processes, the experiment has {sorted(wanted)} workers")
    local_devices = device_groups(
        options.device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    )[0]
    options = replace(options, device=local_devices[int(os.environ.get("LOCAL_RANK", "0"))])
    prepare_thread(options.device)
    with noticed(second_ends=False) as flag, joined(options.device, options.timeout_seconds, "env://"):
        rank, by_id = dist.get_rank(), {run.run_id: run for run in plan.runs}
        # Rank 0 says what is missing: others may see its records later.
        for run_id in from_rank_0([run.run_id for run in prepare(plan, options.results)] if rank == 0 else []):
            folder = options.results / plan.experiment.name / run_id
            with owned(folder, rank):
                if not done_meanwhile(folder, rank):
                    _do_together(by_id[run_id], plan, options, flag)


def _do_together(run: PlannedRun, plan: Plan, options: Options, flag: StopFlag) -> None:
    attempt = new_attempt("torchrun", dist.get_backend(), torch.device(options.device))
    job = options.job(plan, run, attempt, options.device)
    if not recorded(job, lambda: attempt_in_group(job, ProcessGroupCollectives(), flag.stop_requested)):
        flag.raise_if_asked()
        sys.exit(1)  # past the end of the group, which peers that hang would keep waiting
    if dist.get_rank() == 0:
        print(f"{run.row} seed {run.seed}: done", flush=True)
