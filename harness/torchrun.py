"""Runs a plan under `torchrun`: its processes are the workers, and take one run after the other together."""

from __future__ import annotations

import datetime
import os
import traceback

import torch
import torch.distributed as dist

from algorithms import ProcessGroupCollectives
from harness.attempt import (
    Job,
    attempt_in_group,
    backend_for,
    failure_kind,
    failure_sentence,
    owned_by_rank_0,
    prepare_thread,
)
from harness.launch import Options, missing_runs, write_experiment
from harness.plan import Plan, PlannedRun
from harness.provenance import new_attempt
from harness.recorder import write_failure
from harness.spec import SpecError


def run_under_torchrun(plan: Plan, options: Options) -> int:
    """Do the missing runs; returns 0. A failure ends the whole group, since its other members may hang.

    Raises:
        SpecError: torchrun started another number of processes than the experiment has workers.
        BusyError: another process is at one of the runs.
    """
    world_size = int(os.environ["WORLD_SIZE"])
    wanted = {run.config.num_workers for run in plan.runs}
    if wanted != {world_size}:
        raise SpecError(f"torchrun started {world_size} processes, the experiment has {sorted(wanted)} workers")
    if options.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    prepare_thread()
    timeout = datetime.timedelta(seconds=options.timeout_seconds)
    dist.init_process_group(backend_for(options.device), timeout=timeout)
    try:
        for run in _agreed_runs(plan, options):
            with owned_by_rank_0(options.results / plan.experiment.name / run.run_id, dist.get_rank()):
                _do(run, plan, options)
    finally:
        dist.destroy_process_group()
    return 0


def _agreed_runs(plan: Plan, options: Options) -> list[PlannedRun]:
    """Rank 0 says what is missing: others may see its records later."""
    runs: list[object] = [None]
    if dist.get_rank() == 0:
        runs = [[run.run_id for run in missing_runs(plan, write_experiment(plan, options.results))]]
    dist.broadcast_object_list(runs)
    by_id = {run.run_id: run for run in plan.runs}
    assert isinstance(runs[0], list)
    return [by_id[run_id] for run_id in runs[0]]


def _do(run: PlannedRun, plan: Plan, options: Options) -> None:
    job = Job(
        experiment=plan.experiment.name,
        folder=options.results / plan.experiment.name / run.run_id,
        run=run,
        attempt=new_attempt("torchrun", dist.get_backend(), torch.device(options.device)),
        data=options.data,
        device=options.device,
        cores=(),
        checkpoint_minutes=options.checkpoint_minutes,
        timeout_seconds=options.timeout_seconds,
    )
    try:
        attempt_in_group(job, ProcessGroupCollectives())
    except Exception as error:
        trace = traceback.format_exc()
        write_failure(job.folder, run.run_id, job.attempt.attempt, failure_kind(error), failure_sentence(error), trace)
        raise
    if dist.get_rank() == 0:
        print(f"{run.row} seed {run.seed}: done", flush=True)
