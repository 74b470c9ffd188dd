"""Submitting: what is missing of an experiment and not in hand already goes to Slurm as job arrays,
once."""

import io
import re
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path

import torch
from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError

from cser_bench.harness.plan.show import show_plan
from cser_bench.harness.records.provenance import new_attempt, now, output_of
from cser_bench.harness.records.recorder import tail_of
from cser_bench.harness.records.run_lock import locked
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.run import PlannedRun
from cser_bench.harness.tasks.task import find_task
from cser_bench.harness.train.training import Job
from cser_bench.harness.workers.launch import missing_runs, write_experiment
from cser_bench.slurm import campaign
from cser_bench.slurm.campaign import CampaignError, Request, Submission
from cser_bench.slurm.job import ALL_WELL, do_run, preflight
from cser_bench.slurm.profile import (
    array_parameters,
    preflight_minutes,
    preflight_parameters,
    python_of,
    sbatch_text,
)

LOCK_SECONDS = 5.0
"""How long another command that submits the experiment is waited for."""

WAIT_SECONDS = 600.0
"""How long the preflight is waited for; then the array waits for it in the queue."""

ASK_SECONDS, LATE_SECONDS = 2.0, 30.0
"""Between two questions, and how much later than its job an answer may arrive, over a network file
system."""

MAX_ARRAY_SIZE = 1001
"""Slurm's own limit of an array's size, for where the cluster's is not known."""


def check(request: Request) -> None:
    """Raises SpecError where the profile does not fit the experiment."""
    profile, num_workers = request.profile, request.plan.runs[0].config.num_workers
    if num_workers != profile.num_workers:
        raise SpecError(
            f"the profile {request.cluster} gives {profile.nodes} nodes x "
            f"{profile.workers_per_node} = {profile.num_workers} workers, {request.name} has "
            f"{num_workers}; change nodes or workers_per_node in it, or take another profile or "
            "variant"
        )


def left_to_submit(request: Request) -> list[PlannedRun]:
    """The runs that are neither done nor queued or running.

    Raises CampaignError: the queue does not answer, and runs that were submitted before may wait in
    it.
    """
    if campaign.read_campaign(request.folder).submissions and campaign.queued_jobs() is None:
        raise CampaignError(
            "squeue does not answer, so nobody knows which runs are queued; call again when it does"
        )
    missing = missing_runs(request.plan, request.folder)
    there = zip(missing, campaign.statuses(request.folder, missing), strict=True)
    return [run for run, status in there if status.state not in ("queued", "running")]


def show(request: Request, num_runs: int) -> None:
    """Print the plan, its cost, and what of it is to be submitted, in the order in which it would
    be."""
    profile = request.profile
    show_plan(request.plan, profile.link_bits_per_second or 0.0)
    others = len(request.plan.by_id) - num_runs
    if request.preflight and num_runs:
        print(
            f"first preflight, a job in the shape of a run, for {preflight_minutes(profile)} min "
            "at most"
        )
    print(
        f"to submit on {request.cluster}: {num_runs} runs of {profile.nodes} nodes x "
        f"{profile.workers_per_node} workers, at most {profile.array_parallelism} at once, "
        f"{profile.time_limit_minutes} min each before they are requeued; {others} others are "
        "done, queued or running"
    )


def array_sizes(num_runs: int) -> list[int]:
    """The sizes of the arrays that so many runs need, as a cluster takes no array of more than
    MaxArraySize tasks."""
    found = re.search(
        r"^MaxArraySize\s*=\s*(\d+)", output_of("scontrol", "show", "config") or "", re.MULTILINE
    )
    largest = max(1, int(found[1]) if found else MAX_ARRAY_SIZE)
    return [min(largest, num_runs - start) for start in range(0, num_runs, largest)]


def sbatch_texts(request: Request, num_runs: int) -> list[str]:
    """What sbatch would get, in this order: the preflight job where there is one, and the
    arrays."""
    profile, name, place = request.profile, request.name, request.place()
    first = (
        [sbatch_text(profile, place, preflight_parameters(profile, name, place))]
        if request.preflight
        else []
    )
    array = array_parameters(profile, name, place)
    return [*first, *(sbatch_text(profile, place, array, size) for size in array_sizes(num_runs))]


def submit(request: Request) -> list[str]:
    """Submit what is left and return the jobs' ids; nothing is kept here that the records do not
    hold.

    Where the cluster takes no array of so many tasks there are several, each of which waits for the
    one before, so that no more runs are on at once than the profile says.

    Raises BusyError: another submitter is at it; CampaignError: a node lacks what runs need, or
    sbatch refused.
    """
    lock = request.folder / "submit.lock"
    with locked(
        lock,
        LOCK_SECONDS,
        f"another command is submitting this experiment, and holds {lock}; wait for it",
    ):
        left, jobs = left_to_submit(request), list[str]()
        if not left:
            return []
        write_experiment(request.plan, request.results)
        if request.data is None:
            # Here, where there may be a network, so that jobs need not fetch it.
            find_task(request.plan.experiment.task).prepare(None)
        code = campaign.take_snapshot(request.place().code)
        try:
            with redirect_stderr(io.StringIO()):  # submitit repeats there what sbatch says
                after = _preflight(request, code) if request.preflight else []
                for size in array_sizes(len(left)):
                    before = [f"afterany:{jobs[-1].split('_')[0]}"] if jobs else []
                    runs, left = left[:size], left[size:]
                    jobs += _submit_array(request, code, runs, *after, *before)
        except (FailedJobError, FailedSubmissionError) as error:
            lines = [
                line.removeprefix("sbatch: ").removeprefix("error: ")
                for line in str(error).splitlines()
                if line
            ]
            where = f"see whether Slurm is up (sinfo), and change the profile {request.cluster}"
            raise CampaignError(f"sbatch refused: {' '.join(lines)}; {where}") from None
        return jobs


def _preflight(request: Request, code: Path) -> list[str]:
    """Check from the compute nodes; returns what the array must wait for where that has not ended
    in time."""
    profile, place = request.profile, request.place(code)
    executor = SlurmExecutor(folder=place.jobs, python=python_of(profile))
    executor.update_parameters(**preflight_parameters(profile, request.name, place))
    job = str(executor.submit(preflight, request).job_id)
    print(f"preflight: job {job} checks nodes, network and data in the shape of a run", flush=True)
    if wait_for_preflight(
        job, [place.jobs / f"{job}_{rank}_log.out" for rank in range(profile.num_workers)]
    ):
        print("preflight: all well", flush=True)
        return []
    print(
        f"preflight: job {job} still waits; the array is submitted to start after it, if all is "
        "well",
        flush=True,
    )
    return [f"afterok:{job}"]


def wait_for_preflight(job: str, logs: Sequence[Path]) -> bool:
    """Whether the job, whose ranks have these logs, found all well; False where it has not in time:
    no bad sign.

    Raises CampaignError: a check failed, or the job ended without an answer.
    """
    began = seen = time.monotonic()
    while True:
        queue, said = campaign.queued_jobs(), [tail_of(log).splitlines() for log in logs]
        lines = {line.partition(":")[0]: line for each in reversed(said) for line in each}
        if failed := [line for what, line in lines.items() if what.startswith("FAIL ")]:
            raise CampaignError(
                f"preflight fails on the compute nodes: {'; '.join(failed)} (see {logs[0]})"
            )
        if all(ALL_WELL in each for each in said):
            print(
                *(line for what, line in lines.items() if what.startswith("ok ")),
                sep="\n",
                flush=True,
            )
            return True
        now = time.monotonic()
        seen = now if queue is None or job in queue else seen
        if now - seen > LATE_SECONDS:
            raise CampaignError(
                f"the preflight job {job} ended without an answer; see {logs[0]}. If that is "
                f"missing too, compute nodes do not see {logs[0].parent}: give --results a folder "
                "on a shared file system"
            )
        if now - began > WAIT_SECONDS:
            return False
        time.sleep(ASK_SECONDS)


def _submit_array(request: Request, code: Path, runs: list[PlannedRun], *after: str) -> list[str]:
    profile, place = request.profile, request.place(code)
    submission = Submission(
        submitted_at=now(),
        cluster=request.cluster,
        data=None if request.data is None else str(request.data),
        jobs_folder=str(place.jobs),
        runs=[run.run_id for run in runs],
        jobs=[],
    )
    attempt = new_attempt("slurm", "", torch.device("cpu"))
    limits = {
        "checkpoint_minutes": profile.checkpoint_minutes,
        "timeout_seconds": profile.timeout_seconds,
    }
    given = [
        Job(
            request.name,
            request.folder / run.run_id,
            run,
            attempt,
            request.data,
            profile.device,
            (),
            **limits,
        )
        for run in runs
    ]
    executor = SlurmExecutor(folder=place.jobs, python=python_of(profile))
    executor.update_parameters(**array_parameters(profile, request.name, place, *after))
    campaign.put_submission(
        request.folder, place.submission, submission
    )  # jobs may start before sbatch returns
    jobs: list[str] = []
    try:
        jobs = [
            str(job.job_id) for job in executor.map_array(do_run, given, [profile] * len(given))
        ]
    finally:
        submitted = submission.model_copy(update={"jobs": jobs}) if jobs else None
        campaign.put_submission(request.folder, place.submission, submitted)
    return jobs
