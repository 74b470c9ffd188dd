"""Submitting: what is missing of an experiment and not in hand already goes to Slurm as job arrays, once."""

from __future__ import annotations

import io
import re
import shutil
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import torch
from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError

from harness.cli.show import show_plan
from harness.plan.plan import Plan
from harness.plan.rows import PlannedRun
from harness.records.provenance import new_attempt
from harness.records.run_lock import locked
from harness.spec import SpecError
from harness.tasks.task import find_task
from harness.workers.attempt import Job
from harness.workers.launch import missing_runs, write_experiment
from slurm.allocation import ask_slurm
from slurm.campaign import (
    CampaignError,
    Submission,
    campaign_path,
    now,
    put_submission,
    read_campaign,
    snapshot_path,
    take_snapshot,
)
from slurm.job import PreflightTask, do_run, preflight, wait_for_preflight
from slurm.profile import (
    Profile,
    SubmissionPaths,
    array_parameters,
    explain_refusal,
    preflight_minutes,
    preflight_parameters,
    python_of,
    sbatch_text,
)
from slurm.status import observe, queued_jobs

LOCK_SECONDS = 5.0
"""How long another command that submits the experiment is waited for."""

MAX_ARRAY_SIZE = 1001
"""Slurm's own limit of an array's size, for where the cluster's is not known."""


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
    def name(self) -> str:
        """The experiment's."""
        return self.plan.experiment.name

    @property
    def folder(self) -> Path:
        """The experiment's."""
        return self.results / self.name

    def place(self, code: Path) -> SubmissionPaths:
        """The places of the next submission's files."""
        number = len(read_campaign(self.folder).submissions)
        return SubmissionPaths(self.folder / "jobs" / f"{number:03d}", code, campaign_path(self.folder), number)


def check(request: Request) -> None:
    """Raises SpecError where the profile does not fit the experiment."""
    profile = request.profile
    for run in request.plan.runs:
        if run.config.num_workers != profile.num_workers:
            raise SpecError(
                f"the profile {request.cluster} gives {profile.nodes} nodes x {profile.tasks_per_node} = "
                f"{profile.num_workers} workers, {request.name} has {run.config.num_workers}; change nodes, "
                "gpus_per_node or workers_per_node in it, or take another profile or variant"
            )


def left_to_submit(request: Request) -> list[PlannedRun]:
    """The runs that are neither done nor queued or running."""
    in_hand = observe(request.folder, request.plan.experiment, queued_jobs()).in_hand()
    return [run for run in missing_runs(request.plan, request.folder) if run.run_id not in in_hand]


def show(request: Request, num_runs: int) -> None:
    """Print the plan, its cost, and what of it is to be submitted, in the order in which it would be."""
    profile = request.profile
    show_plan(request.plan, profile.link_bits_per_second or 0.0)
    others = len({run.run_id for run in request.plan.runs}) - num_runs
    if request.preflight and num_runs:
        print(f"first preflight, a job in the shape of a run, for {preflight_minutes(profile)} min at most")
    print(
        f"to submit on {request.cluster}: {num_runs} runs of {profile.nodes} nodes x {profile.tasks_per_node} workers, "
        f"at most {profile.array_parallelism} at once, {profile.time_limit_minutes} min each before they are requeued; "
        f"{others} others are done, queued or running"
    )


def array_sizes(num_runs: int) -> list[int]:
    """The sizes of the arrays that so many runs need, as a cluster takes no array of more than MaxArraySize tasks."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask_slurm("scontrol", "show", "config") or "", re.MULTILINE)
    largest = max(1, int(found[1]) if found else MAX_ARRAY_SIZE)
    return [min(largest, num_runs - start) for start in range(0, num_runs, largest)]


def sbatch_texts(request: Request, num_runs: int) -> list[str]:
    """What sbatch would get, in this order: the preflight job where there is one, and the arrays."""
    profile, name, place = request.profile, request.name, request.place(snapshot_path(request.folder / "code"))
    first = [sbatch_text(profile, place, preflight_parameters(profile, name, place))] if request.preflight else []
    array = array_parameters(profile, name, place)
    return [*first, *(sbatch_text(profile, place, array, size) for size in array_sizes(num_runs))]


def submit(request: Request) -> list[str]:
    """Submit what is left and return the jobs' ids; nothing is kept here that the records do not hold.

    Where the cluster takes no array of so many tasks there are several, each of which waits for the one before, so
    that no more runs are on at once than the profile says.

    Raises:
        BusyError: another submitter is at it.
        CampaignError: a compute node lacks what runs need, or sbatch refused.
    """
    lock = request.folder / "submit.lock"
    with locked(lock, LOCK_SECONDS, f"another command is submitting this experiment, and holds {lock}; wait for it"):
        left, jobs = left_to_submit(request), list[str]()
        if not left:
            return []
        write_experiment(request.plan, request.results)
        if request.data is None:
            # Here, where there may be a network, so that jobs need not fetch it.
            find_task(request.plan.experiment.task).prepare(None)
        code = take_snapshot(request.folder / "code")
        try:
            with redirect_stderr(io.StringIO()):  # submitit repeats there what sbatch says
                after = _preflight(request, code) if request.preflight else []
                for size in array_sizes(len(left)):
                    before = [f"afterany:{jobs[-1].split('_')[0]}"] if jobs else []
                    runs, left = left[:size], left[size:]
                    jobs += _submit_array(request, code, runs, *after, *before)
        except (FailedJobError, FailedSubmissionError) as error:
            raise CampaignError(explain_refusal(str(error), request.cluster)) from None
        return jobs


def _preflight(request: Request, code: Path) -> list[str]:
    """Check from the compute nodes; returns what the array must wait for where that has not ended in time."""
    profile, place = request.profile, request.place(code)
    answers = place.jobs / "preflight"
    shutil.rmtree(answers, ignore_errors=True)
    answers.mkdir(parents=True)
    executor = SlurmExecutor(folder=place.jobs, python=python_of(profile))
    executor.update_parameters(**preflight_parameters(profile, request.name, place))
    task = PreflightTask(request.plan, request.results, request.data, profile, answers)
    job = str(executor.submit(preflight, task).job_id)
    print(f"preflight: job {job} checks nodes, network and data in the shape of a run", flush=True)
    if wait_for_preflight(job, task, place.jobs / f"{job}_0_log.out"):
        print("preflight: all well", flush=True)
        return []
    print(f"preflight: job {job} still waits; the array is submitted to start after it, if all is well", flush=True)
    return [f"afterok:{job}"]


def _submit_array(request: Request, code: Path, runs: list[PlannedRun], *after: str) -> list[str]:
    profile, place = request.profile, request.place(code)
    submission = Submission(
        submitted_at=now(),
        cluster=request.cluster,
        num_workers=profile.num_workers,
        device=profile.device,
        data=None if request.data is None else str(request.data),
        code=str(code),
        jobs_folder=str(place.jobs),
        runs=[run.run_id for run in runs],
        jobs=[],
    )
    attempt = new_attempt("slurm", "", torch.device("cpu")).model_copy(update={"command": request.command})
    limits = {"checkpoint_minutes": profile.checkpoint_minutes, "timeout_seconds": profile.timeout_seconds}
    given = [
        Job(request.name, request.folder / run.run_id, run, attempt, request.data, profile.device, (), **limits)
        for run in runs
    ]
    executor = SlurmExecutor(folder=place.jobs, python=python_of(profile))
    executor.update_parameters(**array_parameters(profile, request.name, place, *after))
    put_submission(request.folder, place.submission, submission)  # jobs may start before sbatch returns
    jobs: list[str] = []
    try:
        jobs = [str(job.job_id) for job in executor.map_array(do_run, given, [profile] * len(given))]
    finally:
        submitted = submission.model_copy(update={"jobs": jobs}) if jobs else None
        put_submission(request.folder, place.submission, submitted)
    return jobs
