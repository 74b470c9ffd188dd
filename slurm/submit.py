"""Submitting: what is missing of an experiment and not in hand already goes to Slurm as a job array, once."""

from __future__ import annotations

import io
import os
import subprocess
import tempfile
from contextlib import redirect_stderr
from pathlib import Path

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError

from harness.plan.plan import PlannedRun
from harness.records.provenance import code_version
from harness.tasks.task import find_task
from harness.workers.launch import write_experiment
from slurm.campaign import Submission, add_submission, campaign_path, now, read_campaign, set_jobs
from slurm.errors import CampaignError
from slurm.job import RunTask, do_run
from slurm.lock import owner, submit_lock
from slurm.look import Look
from slurm.preflight import submit_preflight, wait_for_preflight
from slurm.refusals import explain_refusal
from slurm.request import Request, left_to_submit
from slurm.script import SubmissionPaths, array_parameters, array_text, preflight_parameters, preflight_text, python_of
from slurm.snapshot import snapshot_path, take_snapshot


def sbatch_texts(request: Request, num_runs: int) -> list[str]:
    """What sbatch would get, in this order: the preflight job where there is one, and the array."""
    name, place = request.plan.experiment.name, _place(request, snapshot_path(request.folder / "code"))
    first = [preflight_text(request.profile, name, place)] if request.preflight else []
    return [*first, array_text(request.profile, name, place, num_runs)]


def submit(request: Request) -> list[str]:
    """Submit what is left and return the jobs' ids; nothing is kept here that the records do not hold.

    Raises:
        CampaignError: another submitter is at it, a compute node lacks what runs need, or sbatch refused.
    """
    with submit_lock(request.folder):
        left = left_to_submit(request)
        if not left:
            return []
        write_experiment(request.plan, request.results)
        if request.data is None:
            # Here, where there may be a network, so that jobs need not fetch it.
            find_task(request.plan.experiment.task).prepare(None)
        place = _place(request, take_snapshot(request.folder / "code"))
        try:
            with redirect_stderr(io.StringIO()):  # submitit repeats there what sbatch says
                if request.preflight:
                    _ask_whether_refused(request, place, len(left))
                after = _preflight(request, place) if request.preflight else None
                return _submit_array(request, place, left, after)
        except (FailedJobError, FailedSubmissionError) as error:
            raise CampaignError(explain_refusal(str(error), request.cluster)) from None


def _place(request: Request, code: Path) -> SubmissionPaths:
    campaign = read_campaign(request.folder)
    number = len(campaign.submissions) if campaign else 0
    return SubmissionPaths(request.folder / "jobs" / f"{number:03d}", code, campaign_path(request.folder), number)


def _ask_whether_refused(request: Request, place: SubmissionPaths, num_runs: int) -> None:
    """Have sbatch judge the array, without submitting it, before time goes into the look. Raises FailedJobError."""
    text = array_text(request.profile, request.plan.experiment.name, place, num_runs)
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as script:
        script.write(text)
        script.flush()
        done = subprocess.run(["sbatch", "--test-only", script.name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise FailedJobError(done.stderr)


def _preflight(request: Request, place: SubmissionPaths) -> str | None:
    """Look from the compute nodes; returns the job to wait for where it has not ended in time."""
    name, profile = request.plan.experiment.name, request.profile
    place.jobs.mkdir(parents=True, exist_ok=True)
    answer = place.jobs / "preflight.json"
    answer.unlink(missing_ok=True)
    executor = SlurmExecutor(folder=place.jobs, python=python_of(profile))
    executor.update_parameters(**preflight_parameters(profile, name, place))
    job = submit_preflight(executor, Look(request.plan, request.results, request.data, profile, answer))
    print(f"preflight: job {job} looks at nodes, network and data in the shape of a run", flush=True)
    if wait_for_preflight(job, answer, place.jobs / f"{job}_0_log.out", profile.preflight_wait_minutes):
        print("preflight: all well", flush=True)
        return None
    print(f"preflight: job {job} still waits; the array is submitted to start after it, if all is well", flush=True)
    return job


def _submit_array(request: Request, place: SubmissionPaths, runs: list[PlannedRun], after: str | None) -> list[str]:
    name, (commit, diff) = request.plan.experiment.name, code_version()
    submission = Submission(
        submitted_at=now(),
        by=owner(),
        cluster=request.cluster,
        slurm_conf=os.environ.get("SLURM_CONF"),
        num_workers=request.profile.num_workers,
        device=request.profile.device,
        data=None if request.data is None else str(request.data),
        code=str(place.code),
        git_commit=commit,
        git_diff_sha256=diff,
        jobs_folder=str(place.jobs),
        runs=[run.run_id for run in runs],
        jobs=[],
    )
    number = add_submission(request.folder, name, submission)
    assert number == place.submission, "nobody else submits while the lock is held"
    executor = SlurmExecutor(folder=place.jobs, python=python_of(request.profile))
    executor.update_parameters(**array_parameters(request.profile, name, place, after))
    try:
        tasks = [_task(request, run, commit, diff) for run in runs]
        jobs = [str(job.job_id) for job in executor.map_array(do_run, tasks)]
    except (FailedJobError, FailedSubmissionError):
        set_jobs(request.folder, [])
        raise
    set_jobs(request.folder, jobs)
    return jobs


def _task(request: Request, run: PlannedRun, commit: str | None, diff: str | None) -> RunTask:
    return RunTask(
        experiment=request.plan.experiment.name,
        folder=request.folder / run.run_id,
        run=run,
        profile=request.profile,
        data=request.data,
        command=request.command,
        git_commit=commit,
        git_diff_sha256=diff,
    )
