"""Does the runs of a plan that are missing, one after another, as torchrun's processes."""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cser_bench.algorithms import ProcessGroupCollectives
from cser_bench.harness.plan.plan import Plan
from cser_bench.harness.records.ending import ending_in
from cser_bench.harness.records.provenance import new_attempt
from cser_bench.harness.records.run_lock import owned
from cser_bench.harness.records.state import is_done
from cser_bench.harness.records.store import Attempt
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.train.train import train
from cser_bench.harness.workers.attempt import prepare_thread, recorded
from cser_bench.harness.workers.launch import Options, job_of
from cser_bench.harness.workers.prepare import prepare
from cser_bench.harness.workers.process_group import (
    device_groups,
    done_by_rank_0,
    from_rank_0,
    joined,
    launched,
)
from cser_bench.harness.workers.processes import (
    WorkerError,
    noticed,
    stop_with_launcher,
)


def run_under_torchrun(plan: Plan, options: Options) -> None:
    """Do what is missing as one of the processes that torchrun has started.

    What sets the same variables will do in its place.

    A failure ends the process, and so the whole group, as its members may hang. Raises SpecError
    for another number of processes than of workers, no place to meet, or, on all of them, ranks
    that were not given the same; BusyError, on all of them,
    where another command is at a run; CollectiveError where another process is lost between two
    runs; Interrupted.
    """
    device = _device_here(plan, options)
    prepare_thread(device)
    with (
        noticed(second_ends=False) as flag,
        joined(device, options.timeout_seconds, "env://", given=_given(plan, options)),
    ):
        # By a variable of torchrun's alone: a shell that starts workers may end before them.
        if "TORCHELASTIC_RUN_ID" in os.environ:
            stop_with_launcher()
        attempt = _common_attempt(device)
        # Rank 0 says what is missing: others may see its records later.
        missing_ids = done_by_rank_0(
            lambda: [run.run_id for run in prepare(plan, options.results)]
        )
        runs = plan.by_id
        for run_id in missing_ids:
            # Who started this process has bound it to cores, or has not.
            job = job_of(runs[run_id], attempt, device, (), plan, options)
            with ExitStack() as lock:
                if not done_by_rank_0(partial(_taken, job.folder, lock)):
                    continue
                work = partial(
                    train, job, ProcessGroupCollectives(), flag.stop_requested
                )
                # Every rank comes here in time: one that lost a peer fails in the next collective.
                if not recorded(job, work):
                    flag.raise_if_asked()
                    # An exception leaves the group as it is: its end would wait for peers.
                    raise WorkerError("the run failed, as is said above")
            # torchrun mixes what its processes print, so one speaks for all.
            if dist.get_rank() == 0:
                ending = ending_in(job.folder)
                print(f"{job.run.row} seed {job.run.seed}: {ending}", flush=True)


def _device_here(plan: Plan, options: Options) -> str:
    """Return this process's device.

    Raises SpecError: the launcher set no place to meet, or started another number of processes than
    the experiment has workers.
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
    # The group is one for all runs, so they must agree on its size.
    wanted = {run.config.num_workers for run in plan.runs}
    if wanted != {here.world_size}:
        raise SpecError(
            f"the launcher started {here.world_size} processes, the experiment has "
            f"{sorted(wanted)} workers"
        )
    # The processes of a host are one group; a second one would be of another run at once.
    [devices, *_] = device_groups(
        options.device, here.local_world_size, torch.cuda.device_count()
    )
    return devices[here.local_rank]


def _given(plan: Plan, options: Options) -> dict[str, Any]:
    """Return what all ranks must have been given alike."""
    runs = {
        f"run {run.row} seed {run.seed}": run.config.model_dump(mode="json")
        for run in plan.runs
    }
    return {"experiment": plan.experiment.name, "--device": options.device, **runs}


def _common_attempt(device: str) -> Attempt:
    """Return this process's attempt, by the name that all ranks have for it."""
    attempt = new_attempt("torchrun", dist.get_backend(), torch.device(device))
    # What ranks save under different names never makes a whole checkpoint.
    return attempt.model_copy(update={"attempt": from_rank_0(attempt.attempt)})


def _taken(folder: Path, lock: ExitStack) -> bool:
    """Hold the run's lock until `lock` ends, and say whether the run is still to do.

    Raises BusyError as `owned` does.
    """
    lock.enter_context(owned(folder))
    return not is_done(folder)
