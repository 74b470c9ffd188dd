"""Does the runs of a plan that are missing.

Several go at once in processes of their own, or one after another as torchrun's processes.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from cser_bench.algorithms import ProcessGroupCollectives
from cser_bench.algorithms.baselines.ddp import DDP
from cser_bench.harness.cores import usable_cores
from cser_bench.harness.measures.declared import (
    is_without_verdict,
    run_files,
    seen_in_words,
    seen_runs,
    starts_of,
    with_dates,
)
from cser_bench.harness.plan.plan import Plan
from cser_bench.harness.records import packs, store
from cser_bench.harness.records.experiment import Experiment
from cser_bench.harness.records.provenance import new_attempt, now
from cser_bench.harness.records.run_lock import owned
from cser_bench.harness.records.state import is_done
from cser_bench.harness.records.store import Attempt, Heartbeat
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.run import PlannedRun, RunConfig
from cser_bench.harness.train import checkpoint
from cser_bench.harness.train.build import num_steps_of
from cser_bench.harness.train.methods import method_of
from cser_bench.harness.train.train import train
from cser_bench.harness.train.training import Job
from cser_bench.harness.workers.attempt import (
    ActiveRun,
    Resources,
    Unfinished,
    close,
    prepare_thread,
    recorded,
    start,
)
from cser_bench.harness.workers.process_group import (
    Workers,
    backend_for,
    device_groups,
    done_by_rank_0,
    from_rank_0,
    joined,
    launched,
)
from cser_bench.harness.workers.processes import noticed, stop_with_launcher

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


def missing_runs(plan: Plan, folder: Path) -> list[PlannedRun]:
    """Return the runs without a result, seeds first, so that early reports cover all rows.

    Those of the second rule come last.
    """
    packs.read_pack(folder)  # A damaged one is said, also where no run is asked for.
    seeds = {seed: number for number, seed in enumerate(plan.experiment.seeds)}
    missing = [
        run for run_id, run in plan.by_id.items() if not is_done(folder / run_id)
    ]
    second = {row.row for row in plan.experiment.rows if row.rule == "training_loss"}
    return sorted(missing, key=lambda run: (run.row in second, seeds.get(run.seed, 0)))


def prepare(plan: Plan, results: Path) -> list[PlannedRun]:
    """Write experiment.json, and return the runs that are missing.

    What processes that were killed just after a result left behind is cleared up.
    """
    folder = write_experiment(plan, results)
    missing = missing_runs(plan, folder)
    for run_id in plan.by_id.keys() - {run.run_id for run in missing}:
        checkpoint.discard(folder / run_id / checkpoint.FOLDER)
    return missing


def write_experiment(plan: Plan, results: Path) -> Path:
    """Write experiment.json, if it says anything new, and return the experiment's folder.

    Contrasts that it did not have are declared by that; those that come too late for a verdict are
    named.

    Raises SpecError where it holds the experiment of another spec, whose report would be lost.
    """
    folder = results / plan.experiment.name
    path = folder / "experiment.json"
    written = store.read_optional(path, Experiment)
    if written is not None and _is_of_another_spec(written, plan.experiment):
        raise SpecError(
            f"{folder} holds the experiment {plan.experiment.name!r} of another spec "
            f"(`{written.commands[0]}`); give one of the two another name, or another folder by "
            f"--results (or delete {path} if they are the same: contrasts then count as declared "
            "anew)"
        )
    declared_at = now()
    experiment = with_dates(plan.experiment, written, declared_at)
    if written is not None:
        experiment = experiment.model_copy(update={"next_stage": written.next_stage})
    if written != experiment:
        store.write_record(path, experiment)
        _name_late_contrasts(experiment, declared_at, folder)
    return folder


def _name_late_contrasts(
    experiment: Experiment, declared_at: str, folder: Path
) -> None:
    """Print the contrasts declared at this time that get no verdict.

    Runs of both their rows had begun before.
    """
    new = [
        contrast
        for contrast in experiment.contrasts or []
        if contrast.declared_at == declared_at
    ]
    if not new:
        return
    starts = starts_of(run_files(folder))
    runs = {row.row: row.runs.values() for row in experiment.rows}
    for contrast in new:
        seen = seen_runs(contrast, runs[contrast.row], runs[contrast.reference], starts)
        if is_without_verdict(contrast, seen):
            print(
                f"{experiment.name}: the {contrast.kind} of {contrast.row} to {contrast.reference} "
                f"is declared {seen_in_words(seen)}: it gets an interval and no verdict"
            )


def note_next_stage(plan: Plan, results: Path, added: str | None) -> None:
    """Write into experiment.json what the next stage adds, for reports; None where there is none."""
    path = results / plan.experiment.name / "experiment.json"
    written = store.read_record(path, Experiment)
    if written.next_stage != added:
        store.write_record(path, written.model_copy(update={"next_stage": added}))


def _is_of_another_spec(written: Experiment, planned: Experiment) -> bool:
    """Say whether the written experiment was planned from another file and has other runs.

    One of the two is not enough: a spec may change, or be found by two names.
    """
    if not written.commands or written.commands[0] == planned.commands[0]:
        return False
    return [row.runs for row in written.rows] != [row.runs for row in planned.rows]


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
    free = places(plan, options)
    pending = prepare(plan, options.results)
    active: list[ActiveRun] = []
    total = len(plan.by_id)
    num_done = total - len(pending)
    num_failures = 0
    stop_was_said = False
    looked_at = -math.inf
    with noticed() as flag:
        try:
            while pending or active:
                while pending and free:
                    active.append(_started(pending.pop(0), free.pop(0), plan, options))
                if time.monotonic() - looked_at >= PROGRESS_SECONDS:
                    looked_at = time.monotonic()
                    left = [*(run.job.run for run in active), *pending]
                    on = f"{num_done} of {total} runs done, {len(active)} on"
                    progress(*steps_of(plan, options.results, left), on)
                time.sleep(POLL_SECONDS)
                for ended in [run for run in active if run.has_ended()]:
                    active.remove(ended)
                    free.append(ended.place)
                    unfinished = close(ended)
                    if unfinished is None:
                        num_done += 1
                    # Also one that somebody else asked to stop: what is left without a failure is
                    # taken by the caller for another command's.
                    elif unfinished.kind != "skipped":
                        num_failures += 1
                    say(f"[{num_done}/{total}] {_verdict(ended.job.run, unfinished)}")
                if flag.stop_requested():
                    if not stop_was_said:
                        say(
                            "stopping: the runs that are on save their state at their next step; "
                            "again to end at once"
                        )
                    stop_was_said = True
                    pending.clear()
                    # A process that has just been made does not hear yet, so they are asked again.
                    for run in active:
                        run.workers.ask_to_stop()
        finally:
            for run in active:
                run.workers.kill()
        flag.raise_if_asked()
    return num_failures


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
        done -= steps[run.run_id] - (beat.step if beat else 0)
    return done, total


def _verdict(run: PlannedRun, unfinished: Unfinished | None) -> str:
    """Say how a run ended, in a line."""
    name = f"{run.row} seed {run.seed}"
    if unfinished is None:
        return f"{name}: done"
    if unfinished.is_failure:
        return f"{name}: FAILED, {unfinished}"
    return f"{name}: {unfinished}"


def _started(
    run: PlannedRun, place: Resources, plan: Plan, options: Options
) -> ActiveRun:
    workers = workers_of(run.config, options)
    device = place.devices[0]
    backend = backend_for(device) if workers == "processes" else workers
    attempt = new_attempt(workers, backend, torch.device(device))
    return start(_job(run, attempt, device, place.cores, plan, options), workers, place)


def _job(
    run: PlannedRun,
    attempt: Attempt,
    device: str,
    cores: tuple[int, ...],
    plan: Plan,
    options: Options,
) -> Job:
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


def run_under_torchrun(plan: Plan, options: Options) -> None:
    """Do what is missing as one of the processes that torchrun has started.

    What sets the same variables will do in its place.

    A failure ends the process, and so the whole group, as its members may hang. Raises SpecError
    for another number of processes than of workers, or no place to meet; BusyError, on all of them,
    where another command is at a run; CollectiveError where another process is lost between two
    runs; Interrupted.
    """
    missing = [
        name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ
    ]
    if missing:
        raise SpecError(
            f"RANK and WORLD_SIZE are set, {' and '.join(missing)} not; set all four, or none for "
            "a run here"
        )
    here = launched()
    wanted = {run.config.num_workers for run in plan.runs}
    if wanted != {here.world_size}:
        raise SpecError(
            f"the launcher started {here.world_size} processes, the experiment has "
            f"{sorted(wanted)} workers"
        )
    [devices, *_] = device_groups(
        options.device, here.local_world_size, torch.cuda.device_count()
    )
    device = devices[here.local_rank]
    runs = plan.by_id
    prepare_thread(device)
    with (
        noticed(second_ends=False) as flag,
        joined(device, options.timeout_seconds, "env://"),
    ):
        # By a variable of torchrun's alone: a shell that starts workers may end before them.
        if "TORCHELASTIC_RUN_ID" in os.environ:
            stop_with_launcher()
        attempt = new_attempt("torchrun", dist.get_backend(), torch.device(device))
        # One name for all: what ranks save under different names never makes a whole checkpoint.
        attempt = attempt.model_copy(update={"attempt": from_rank_0(attempt.attempt)})
        # Rank 0 says what is missing: others may see its records later.
        missing_ids = done_by_rank_0(
            lambda: [run.run_id for run in prepare(plan, options.results)]
        )
        for run_id in missing_ids:
            job = _job(
                runs[run_id],
                attempt,
                device,
                # Who started this process has bound it to cores, or has not.
                (),
                plan,
                options,
            )
            with ExitStack() as lock:
                if not done_by_rank_0(partial(_taken, job.folder, lock)):
                    continue
                work = partial(
                    train, job, ProcessGroupCollectives(), flag.stop_requested
                )
                if not recorded(job, work):
                    flag.raise_if_asked()
                    # Past the end of the group, which peers that hang would keep waiting.
                    sys.exit(1)
            if dist.get_rank() == 0:
                print(f"{job.run.row} seed {job.run.seed}: done", flush=True)


def _taken(folder: Path, lock: ExitStack) -> bool:
    """Hold the run's lock until `lock` ends, and say whether the run is still to do.

    Raises BusyError as `owned` does.
    """
    lock.enter_context(owned(folder))
    return not is_done(folder)


def places(plan: Plan, options: Options) -> list[Resources]:
    """Return a place for each of the runs that go at once.

    GPUs are shared only where the user wants more runs than they give.

    Raises SpecError where the machine has too few GPUs for one run.
    """
    in_processes = [
        run.config.num_workers
        for run in plan.runs
        if workers_of(run.config, options) == "processes"
    ]
    num_processes = max(in_processes, default=1)
    groups = device_groups(options.device, num_processes, torch.cuda.device_count())
    cores = usable_cores()
    jobs = options.jobs
    if not jobs:
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
