"""Runs a plan under `torchrun`: its processes are the workers, and take one run after the other together."""

from __future__ import annotations

import os
import signal
import traceback
from dataclasses import replace

import torch
import torch.distributed as dist

from algorithms import ProcessGroupCollectives
from harness.plan.plan import Plan
from harness.plan.rows import PlannedRun
from harness.records.provenance import new_attempt
from harness.records.recorder import write_failure
from harness.records.run_lock import owned_by_rank_0
from harness.spec import SpecError
from harness.train.training import Preempted
from harness.workers.attempt import attempt_in_group, done_meanwhile, failure_kind, prepare_thread, sentence
from harness.workers.devices import device_groups
from harness.workers.launch import Options, discard_leftovers, missing_runs, write_experiment
from harness.workers.process_group import from_rank_0, joined
from harness.workers.stops import Interrupted, StopFlag, noticed


def run_under_torchrun(plan: Plan, options: Options) -> int:
    """Do the missing runs; returns 0. A failure ends the whole group, since its other members may hang.

    Raises:
        SpecError: torchrun started another number of processes than the experiment has workers, more of them on a
            machine than it has GPUs, or two with the same GPU.
        BusyError: another process is at one of the runs.
        Interrupted: by a signal, after the run that was on has saved its state.
    """
    world_size = int(os.environ["WORLD_SIZE"])
    wanted = {run.config.num_workers for run in plan.runs}
    if wanted != {world_size}:
        raise SpecError(f"torchrun started {world_size} processes, the experiment has {sorted(wanted)} workers")
    local_devices = device_groups(options.device, int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count())[0]
    options = replace(options, device=local_devices[int(os.environ["LOCAL_RANK"])])
    prepare_thread(options.device)
    with noticed(echoes=True) as notice, joined(options.device, options.timeout_seconds, "env://"):
        for run in _agreed_runs(plan, options):
            folder = options.results / plan.experiment.name / run.run_id
            with owned_by_rank_0(folder, dist.get_rank()):
                if not done_meanwhile(folder, dist.get_rank()):
                    _do(run, plan, options, notice)
    return 0


def _agreed_runs(plan: Plan, options: Options) -> list[PlannedRun]:
    """Rank 0 says what is missing: others may see its records later."""
    missing: list[str] = []
    if dist.get_rank() == 0:
        folder = write_experiment(plan, options.results)
        discard_leftovers(plan, folder)
        missing = [run.run_id for run in missing_runs(plan, folder)]
    by_id = {run.run_id: run for run in plan.runs}
    return [by_id[run_id] for run_id in from_rank_0(missing)]


def _do(run: PlannedRun, plan: Plan, options: Options, notice: StopFlag) -> None:
    attempt = new_attempt("torchrun", dist.get_backend(), torch.device(options.device))
    job = options.job(plan, run, attempt, options.device)
    try:
        attempt_in_group(job, ProcessGroupCollectives(), notice.stop_requested)
    except Preempted as stop:
        if dist.get_rank() == 0:
            write_failure(job.folder, run.run_id, job.attempt.attempt, "preempted", str(stop), "")
            print(f"{run.row} seed {run.seed}: {stop}", flush=True)
        notice.raise_if_asked()
        raise Interrupted(signal.SIGTERM) from None  # another rank's
    except Exception as error:
        trace = traceback.format_exc()
        write_failure(job.folder, run.run_id, job.attempt.attempt, failure_kind(error), sentence(error), trace)
        raise
    if dist.get_rank() == 0:
        print(f"{run.row} seed {run.seed}: done", flush=True)
