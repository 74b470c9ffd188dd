"""What is to be submitted: whether it can be, what of it is left to do, and the user's consent."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from harness.cli.show import show_plan
from harness.plan.effort import Site
from harness.plan.plan import Plan, PlannedRun
from harness.spec import SpecError
from harness.workers.launch import missing_runs
from slurm.campaign import read_campaign
from slurm.local.cluster import default_folder, is_running
from slurm.profile import Profile
from slurm.queue import queued_jobs
from slurm.script import preflight_minutes
from slurm.staging import is_archive
from slurm.status import observe


@dataclass(frozen=True)
class Request:
    """The runs of a plan on a cluster. Paths are absolute, since jobs start elsewhere."""

    plan: Plan
    results: Path
    data: Path | None
    cluster: str
    profile: Profile
    command: str
    preflight: bool

    @property
    def folder(self) -> Path:
        """The experiment's."""
        return self.results / self.plan.experiment.name


def check(request: Request) -> None:
    """Raises SpecError where the profile does not fit the experiment or its data."""
    profile = request.profile
    for run in request.plan.runs:
        if run.config.num_workers != profile.num_workers:
            raise SpecError(
                f"the profile {request.cluster} gives {profile.nodes} nodes x {profile.tasks_per_node} = "
                f"{profile.num_workers} workers, {request.plan.experiment.name} has {run.config.num_workers}; change "
                "nodes, gpus_per_node or workers_per_node in it, or take another profile or variant"
            )
    if is_archive(request.data) and not profile.scratch:
        raise SpecError(
            f"{request.data} is an archive, and the profile {request.cluster} has no scratch, a folder on each "
            "node's own disk to extract it to; add it, or give the folder with the data"
        )


def left_to_submit(request: Request) -> list[PlannedRun]:
    """The runs that are neither done nor queued or running."""
    missing = missing_runs(request.plan, request.folder)
    status = observe(request.folder, request.plan.experiment, read_campaign(request.folder), queued_jobs())
    in_hand = status.in_hand()
    return [run for run in missing if run.run_id not in in_hand]


def find_slurm(cluster: str, profile: Profile) -> None:
    """Have sbatch mean the profile's Slurm. Raises SpecError where there is none here, with what to do."""
    if profile.local and "SLURM_CONF" not in os.environ:
        if not is_running():
            raise SpecError(f"the Slurm of the profile {cluster} is not up; python slurm/local/cluster.py start")
        os.environ["SLURM_CONF"] = str(default_folder() / "etc" / "slurm.conf")
    for command in ("sbatch", "srun"):
        if shutil.which(command) is None:
            raise SpecError(
                f"{command} is not on the path: call this on a login node of the cluster, or load its Slurm module "
                "(--dry-run needs none)"
            )


def show(request: Request, num_runs: int) -> None:
    """Print the plan, its cost, and what of it is to be submitted, in the order in which it would be."""
    profile = request.profile
    show_plan(request.plan, Site(profile.cpus_per_worker, profile.link_bits_per_second))
    others = len({run.run_id for run in request.plan.runs}) - num_runs
    if request.preflight and num_runs:
        print(f"first a job in the shape of a run looks, for {preflight_minutes(profile)} min at most")
    print(
        f"to submit on {request.cluster}: {num_runs} runs of {profile.nodes} nodes x {profile.tasks_per_node} workers, "
        f"at most {profile.array_parallelism} at once, {profile.time_limit_minutes} min each before they are requeued; "
        f"{others} others are done, queued or running"
    )


def confirm(request: Request, num_runs: int, yes: bool) -> bool:
    """Show what is to be submitted, and ask; True if it may go on.

    Raises:
        SpecError: there is nobody to ask.
    """
    show(request, num_runs)
    if yes:
        return True
    if not sys.stdin.isatty():
        raise SpecError("nobody is here to confirm: give --yes (make: YES=1)")
    return input("submit? [y/N] ").strip().lower() in ("y", "yes")
