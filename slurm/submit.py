"""Submitting: what is missing of an experiment goes to Slurm as job arrays, once."""

import io
import re
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path

import torch
from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError

from cser_bench.harness.plan.forecast import next_stage_sentence
from cser_bench.harness.plan.show import show_plan
from cser_bench.harness.records.endings import tail_of
from cser_bench.harness.records.provenance import new_attempt, now, output_of
from cser_bench.harness.records.run_lock import locked
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.run import PlannedRun
from cser_bench.harness.tasks.task import find_task
from cser_bench.harness.train.training import Job
from cser_bench.harness.workers.prepare import (
    missing_runs,
    note_next_stage,
    write_experiment,
)
from cser_bench.slurm import campaign
from cser_bench.slurm.campaign import CampaignError, Request, Submission, log_of
from cser_bench.slurm.job import ALL_WELL, do_run, preflight
from cser_bench.slurm.profile import (
    array_parameters,
    preflight_minutes,
    preflight_parameters,
    python_of,
    sbatch_text,
)

LOCK_SECONDS = 5.0
"""Seconds to wait for another command that submits the same experiment."""

WAIT_SECONDS = 600.0
"""Seconds that the command waits for the preflight; afterwards the array waits for it in the queue."""

ASK_SECONDS = 2.0
"""Seconds between two looks at the preflight."""

LATE_SECONDS = 30.0
"""Seconds by which an answer may arrive later than its job ends, over a network file system."""

MAX_ARRAY_SIZE = 1001
"""Slurm's own limit of an array's size, for where the cluster's is not known."""


def check_num_workers(request: Request) -> None:
    """Raise SpecError where the profile does not fit the experiment."""
    profile = request.profile
    num_workers = request.plan.runs[0].config.num_workers
    if num_workers != profile.num_workers:
        raise SpecError(
            f"the profile {request.cluster} gives {profile.nodes} nodes x "
            f"{profile.workers_per_node} = {profile.num_workers} workers, {request.name} has "
            f"{num_workers}; change nodes or workers_per_node in it, or take another profile or "
            "variant"
        )


def left_to_submit(request: Request) -> list[PlannedRun]:
    """List the runs that are neither done nor queued or running.

    Raises:
        CampaignError: the queue does not answer, and runs that were submitted before may wait in
            it.
    """
    if (
        campaign.read_campaign(request.folder).submissions
        and campaign.queued_jobs() is None
    ):
        raise CampaignError(
            "squeue does not answer, so nobody knows which runs are queued; call again when it does"
        )
    # In the order in which they are to begin: seeds first.
    missing = missing_runs(request.plan, request.folder)
    states = [status.state for status in campaign.statuses(request.folder, missing)]
    return [
        run
        for run, state in zip(missing, states, strict=True)
        if state not in ("queued", "running")
    ]


def show(request: Request, num_runs: int) -> None:
    """Print the plan, its cost, and what of it is to be submitted, in order."""
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
    """Divide so many runs into arrays, none larger than the cluster's MaxArraySize."""
    config = output_of("scontrol", "show", "config") or ""
    largest = MAX_ARRAY_SIZE
    if limit := re.search(r"^MaxArraySize\s*=\s*(\d+)", config, re.MULTILINE):
        # 0 means that the cluster takes no arrays: each run is then a job of its own.
        largest = max(1, int(limit[1]))
    return [min(largest, num_runs - start) for start in range(0, num_runs, largest)]


def sbatch_texts(request: Request, num_runs: int) -> list[str]:
    """Make what sbatch would get: the preflight job where there is one, then the arrays."""
    profile = request.profile
    place = request.place()
    texts = []
    if request.preflight:
        parameters = preflight_parameters(profile, request.name, place)
        texts.append(sbatch_text(profile, place, parameters))
    parameters = array_parameters(profile, request.name, place)
    for size in array_sizes(num_runs):
        texts.append(sbatch_text(profile, place, parameters, size))
    return texts


def submit(request: Request) -> list[str]:
    """Submit what is left, and return the jobs' ids.

    Where the cluster takes no array of so many tasks there are several, each of which waits for the
    one before, so that no more runs are on at once than the profile says. Nothing is kept here that
    the records do not hold.

    Raises:
        BusyError: another submitter is at it.
        CampaignError: a node lacks what runs need, or sbatch refused.
    """
    lock = request.folder / "submit.lock"
    busy = (
        f"another command is submitting this experiment, and holds {lock}; wait for it"
    )
    with locked(lock, LOCK_SECONDS, busy):
        left = left_to_submit(request)
        if not left:
            return []
        # Before any job can begin: contrasts count as declared when this is written.
        write_experiment(request.plan, request.results)
        added = next_stage_sentence(
            request.plan, request.profile.link_bits_per_second or 0.0
        )
        note_next_stage(request.plan, request.results, added)
        if request.data is None:
            # Here, where there may be a network, so that jobs need not fetch it.
            find_task(request.plan.experiment.task).prepare(None)
        code = campaign.take_snapshot(request.place().code)
        try:
            # submitit repeats there what sbatch says
            with redirect_stderr(io.StringIO()):
                return _submit_all(request, code, left)
        except (FailedJobError, FailedSubmissionError) as error:
            lines = [
                line.removeprefix("sbatch: ").removeprefix("error: ")
                for line in str(error).splitlines()
                if line
            ]
            where = f"see whether Slurm is up (sinfo), and change the profile {request.cluster}"
            raise CampaignError(f"sbatch refused: {' '.join(lines)}; {where}") from None


def _submit_all(request: Request, code: Path, runs: list[PlannedRun]) -> list[str]:
    """Submit the preflight, then the arrays, each after the one before; return the arrays' jobs."""
    after = []
    if request.preflight:
        after = _preflight(request, code)
    jobs: list[str] = []
    # The place among `runs` of the next array's first run.
    first = 0
    for size in array_sizes(len(runs)):
        before = []
        if jobs:
            last_array, _, _ = jobs[-1].partition("_")
            # After any end: runs that fail in one array must not keep the next one from starting.
            before = [f"afterany:{last_array}"]
        jobs += _submit_array(
            request, code, runs[first : first + size], *after, *before
        )
        first += size
    return jobs


def _preflight(request: Request, code: Path) -> list[str]:
    """Check from the compute nodes.

    Returns:
        What the array must wait for, where the job has not ended in time.
    """
    profile = request.profile
    place = request.place(code)
    executor = SlurmExecutor(folder=place.jobs, python=python_of(profile))
    executor.update_parameters(**preflight_parameters(profile, request.name, place))
    job = str(executor.submit(preflight, request).job_id)
    print(
        f"preflight: job {job} checks nodes, network and data in the shape of a run",
        flush=True,
    )
    logs = [log_of(place.jobs, job, rank) for rank in range(profile.num_workers)]
    if wait_for_preflight(job, logs):
        print("preflight: all well", flush=True)
        return []
    print(
        f"preflight: job {job} still waits; the array is submitted to start after it, if all is "
        "well",
        flush=True,
    )
    return [f"afterok:{job}"]


def wait_for_preflight(job: str, logs: Sequence[Path]) -> bool:
    """Wait for the job, whose ranks have these logs, to find all well.

    Returns:
        False where it has not in time, which is no bad sign: it may still be queued.

    Raises:
        CampaignError: a check failed, or the job ended without an answer.
    """
    began = time.monotonic()
    last_seen = began
    while True:
        # The queue first: a job that has left it by then has written all that it will write.
        queue = campaign.queued_jobs()
        texts = [tail_of(log).splitlines() for log in logs]
        lines = _one_of_each_check(texts)
        # One rank that fails is enough, and all must have ended well.
        if failed := [line for what, line in lines.items() if what.startswith("FAIL ")]:
            raise CampaignError(
                f"preflight fails on the compute nodes: {'; '.join(failed)} (see {logs[0]})"
            )
        if all(ALL_WELL in text for text in texts):
            passed = [line for what, line in lines.items() if what.startswith("ok ")]
            print(*passed, sep="\n", flush=True)
            return True
        now = time.monotonic()
        # That squeue does not answer is no sign that the job has gone.
        if queue is None or job in queue:
            last_seen = now
        if now - last_seen > LATE_SECONDS:
            raise CampaignError(
                f"the preflight job {job} ended without an answer; see {logs[0]}. If that is "
                f"missing too, compute nodes do not see {logs[0].parent}: give --results a folder "
                "on a shared file system"
            )
        if now - began > WAIT_SECONDS:
            return False
        time.sleep(ASK_SECONDS)


def _one_of_each_check(texts: Sequence[list[str]]) -> dict[str, str]:
    """Pick one line of each check, by what comes before its colon.

    It is the first rank's, of those that have one.
    """
    lines = {}
    # Backwards, so that the line that is put in last, and stays, is the first rank's.
    for text in reversed(texts):
        for line in text:
            lines[line.partition(":")[0]] = line
    return lines


def _submit_array(
    request: Request, code: Path, runs: list[PlannedRun], *after: str
) -> list[str]:
    """Submit an array of runs after other jobs, and return its jobs' ids."""
    profile = request.profile
    place = request.place(code)
    data = None
    if request.data is not None:
        data = str(request.data)
    submission = Submission(
        submitted_at=now(),
        cluster=request.cluster,
        data=data,
        jobs_folder=str(place.jobs),
        runs=[run.run_id for run in runs],
        jobs=[],
        stage=request.plan.stage,
    )
    given = _jobs_of(request, runs)
    executor = SlurmExecutor(folder=place.jobs, python=python_of(profile))
    executor.update_parameters(**array_parameters(profile, request.name, place, *after))
    # Before sbatch is called, as jobs may start before it returns.
    campaign.put_submission(request.folder, place.submission, submission)
    try:
        submitted = executor.map_array(do_run, given, [profile] * len(given))
    # Also after Ctrl-C: else the record would hold a submission that sbatch never answered.
    except BaseException:
        campaign.put_submission(request.folder, place.submission, None)
        raise
    # Only with its jobs' ids can a submission be looked up in the queue.
    jobs = [str(job.job_id) for job in submitted]
    named = submission.model_copy(update={"jobs": jobs})
    campaign.put_submission(request.folder, place.submission, named)
    return jobs


def _jobs_of(request: Request, runs: list[PlannedRun]) -> list[Job]:
    """Return what each task of an array is given, pickled, to do."""
    # What is known where the command was typed; a job's processes fill in the rest.
    attempt = new_attempt("slurm", "", torch.device("cpu"))
    return [
        Job(
            experiment=request.name,
            folder=request.folder / run.run_id,
            run=run,
            attempt=attempt,
            data=request.data,
            device=request.profile.device,
            cores=(),
            checkpoint_minutes=request.profile.checkpoint_minutes,
            timeout_seconds=request.profile.timeout_seconds,
        )
        for run in runs
    ]
