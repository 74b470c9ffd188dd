"""A campaign of jobs: its record, the code that its jobs run, and how far it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cser_bench.harness.places import OURS, PACKAGE, PROGRAM
from cser_bench.harness.records import store
from cser_bench.harness.records.provenance import ROOMS, output_of
from cser_bench.harness.records.state import RunStatus, Submitted, status_of
from cser_bench.harness.records.store import Record
from cser_bench.slurm.profile import Profile, SubmissionPaths

if TYPE_CHECKING:
    from cser_bench.harness.plan.plan import Plan  # which loads torch
    from cser_bench.harness.spec.run import PlannedRun

WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")
"""State of a waiting job in squeue."""

NAME = "campaign.json"
"""Name of the record's file in an experiment's folder."""


class CampaignError(RuntimeError):
    """The command cannot go on, through no mistake in how it was called.

    The message is one sentence for the user.
    """

    exit_code = 1


class Submission(Record):
    """One job array: when it was submitted (ISO 8601, UTC), and how.

    Attributes:
        cluster: the profile with its variant.
        jobs_folder: where sources, logs and pickles are.
        runs: of each task, the run's id.
        jobs: of each task, the job's id as Slurm writes it: 12_0, or 12 where there is one task
            only. Empty until sbatch answers.
        stage: the stage of the experiment that was asked for; None for all of it.
    """

    submitted_at: str
    cluster: str
    data: str | None
    jobs_folder: str
    runs: list[str]
    jobs: list[str]
    stage: str | None = None


def log_of(jobs_folder: Path, job: str, rank: int = 0) -> Path:
    """Return the file to which a rank of a job writes what it says; submitit names it."""
    return jobs_folder / f"{job}_{rank}_log.out"


def logs_of(jobs_folder: Path, job: str) -> list[Path]:
    """Return the logs that there are of a job, of all its ranks."""
    return sorted(jobs_folder.glob(f"{job}_*_log.out"))


class Campaign(Record):
    """The file campaign.json."""

    version: int
    experiment: str
    submissions: list[Submission]

    def latest(self, run_id: str) -> tuple[Submission, str | None] | None:
        """Return the last submission of a run, and its job; None where it was never submitted."""
        for submission in reversed(self.submissions):
            if run_id not in submission.runs:
                continue
            if not submission.jobs:
                return submission, None
            return submission, submission.jobs[submission.runs.index(run_id)]
        return None


def read_campaign(folder: Path) -> Campaign:
    """Read the campaign of the experiment in this folder; without submissions if there is none."""
    campaign = store.read_optional(folder / NAME, Campaign)
    if campaign is None:
        return Campaign(version=store.VERSION, experiment=folder.name, submissions=[])
    return campaign


@dataclass(frozen=True)
class Request:
    """The runs of a plan on a cluster. Paths are absolute, since jobs start elsewhere."""

    plan: Plan
    results: Path
    data: Path | None
    cluster: str
    profile: Profile
    preflight: bool

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.plan.experiment.name

    @property
    def folder(self) -> Path:
        """The experiment's folder."""
        return self.results / self.name

    def place(self, code: Path | None = None) -> SubmissionPaths:
        """Name the places of the next submission's files.

        Args:
            code: where its sources are; by default it gets a copy of its own.
        """
        # Counted from 0, so this is the next one's.
        number = len(read_campaign(self.folder).submissions)
        jobs = self.folder / "jobs" / f"{number:03d}"
        return SubmissionPaths(jobs, code or jobs / "code", self.folder / NAME, number)


def statuses(folder: Path, runs: Iterable[PlannedRun]) -> list[RunStatus]:
    """Judge each of these runs by its records, and by the queue where it was submitted."""
    campaign = read_campaign(folder)
    queue: dict[str, str] | None = {}
    if campaign.submissions:
        # Before the records are read: a job that is not in it has written all that it will.
        queue = queued_jobs()
    unique = {run.run_id: run for run in runs}
    return [
        status_of(
            folder / run_id, run.row, run.seed, submitted(campaign, run_id, queue)
        )
        for run_id, run in unique.items()
    ]


def submitted(
    campaign: Campaign, run_id: str, queue: dict[str, str] | None
) -> Submitted | None:
    """Look the last job of a run up in the queue; None where the run was never submitted.

    Args:
        queue: by job, what squeue says of it; None where squeue did not answer.
    """
    latest = campaign.latest(run_id)
    if latest is None:
        return None
    submission, job = latest
    log = None
    if job is not None:
        log = str(log_of(Path(submission.jobs_folder), job))
    if queue is None:
        return Submitted(job, log, None)
    return Submitted(job, log, _place_in(queue, job))


def _place_in(
    queue: dict[str, str], job: str | None
) -> Literal["nameless", "waits", "runs", "gone"]:
    """Say where a job is; one of which sbatch never answered has no name to look for."""
    if job is None:
        return "nameless"
    if job not in queue:
        return "gone"
    if queue[job] in WAITING:
        return "waits"
    # Also in CONFIGURING, COMPLETING and the like: such a job must not be submitted again.
    return "runs"


def queued_jobs() -> dict[str, str] | None:
    """Ask for the state (PENDING, RUNNING, ...) of each of the user's jobs, by its id, as 12_0.

    None where squeue does not answer, which is not the same as an empty queue.
    """
    # Without --array tasks that wait share a line, as 12_[0-5], and none is found by its id.
    listed = output_of("squeue", "--me", "--array", "--noheader", "--format=%i|%T")
    if listed is None:
        return None
    return dict(line.split("|", 1) for line in listed.splitlines())


def put_submission(folder: Path, number: int, submission: Submission | None) -> None:
    """Write down the last submission, which has this number.

    Args:
        submission: None takes it back, as where sbatch refused.
    """
    campaign = read_campaign(folder)
    # Cut there, as the same submission is written twice: without its jobs, and with them.
    submissions = campaign.submissions[:number]
    if submission is not None:
        submissions.append(submission)
    store.write_record(
        folder / NAME, campaign.model_copy(update={"submissions": submissions})
    )


def take_snapshot(folder: Path) -> Path:
    """Copy our package to this folder, and return it."""
    # A submission that was refused may have left a copy.
    shutil.rmtree(folder, ignore_errors=True)
    package = folder / PACKAGE
    ignored = shutil.ignore_patterns("__pycache__")
    # From where they lie: in a checkout without links our package does not have them.
    for room in ROOMS:
        shutil.copytree(PROGRAM / room, package / room, ignore=ignored)
    for module in (OURS / PACKAGE).glob("*.py"):
        shutil.copy(module, package)
    return folder
