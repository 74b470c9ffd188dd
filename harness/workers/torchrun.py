"""Runs a plan under `torchrun`, or what sets its variables: its processes are the workers, and do each run together."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import torch
import torch.distributed as dist

from algorithms import ProcessGroupCollectives
from harness.plan.plan import Plan
from harness.plan.rows import PlannedRun
from harness.records.provenance import new_attempt
from harness.records.run_lock import owned
from harness.spec import SpecError
from harness.workers.attempt import attempt_in_group, done_meanwhile, prepare_thread, recorded
from harness.workers.launch import Options, prepare
from harness.workers.process_group import device_groups, from_rank_0, joined
from harness.workers.stops import StopFlag, noticed


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
                    _do(by_id[run_id], plan, options, flag)


def _do(run: PlannedRun, plan: Plan, options: Options, flag: StopFlag) -> None:
    attempt = new_attempt("torchrun", dist.get_backend(), torch.device(options.device))
    job = options.job(plan, run, attempt, options.device)
    if not recorded(job, lambda: attempt_in_group(job, ProcessGroupCollectives(), flag.stop_requested)):
        flag.raise_if_asked()
        sys.exit(1)  # past the end of the group, which peers that hang would keep waiting
    if dist.get_rank() == 0:
        print(f"{run.row} seed {run.seed}: done", flush=True)
