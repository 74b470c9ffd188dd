"""A campaign: its record `campaign.json` in the experiment's folder, the code that its jobs run,
and how far it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cser_bench.harness.places import OURS, PACKAGE
from cser_bench.harness.records import store
from cser_bench.harness.records.provenance import output_of
from cser_bench.harness.records.state import RunStatus, Submitted, status_of
from cser_bench.harness.records.store import Record
from cser_bench.slurm.profile import Profile, SubmissionPaths

if TYPE_CHECKING:
    from cser_bench.harness.plan.plan import Plan  # which loads torch
    from cser_bench.harness.spec.run import PlannedRun

WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")
"""What squeue says of a job that waits."""

NAME = "campaign.json"
"""The record's, in an experiment's folder."""


class CampaignError(RuntimeError):
    """The command cannot go on, through no mistake in how it was called; the message is one
    sentence for the user."""

    exit_code = 1


class Submission(Record):
    """One job array: when it was submitted (ISO 8601, UTC), and how.

    `cluster` is the profile with its variant, `jobs_folder` where sources, logs and pickles are. Of
    each task, `runs` has the run's id, and `jobs` the job's as Slurm writes it: 12_0, or 12 where
    there is one task only; it is empty until sbatch answers.
    """

    submitted_at: str
    cluster: str
    data: str | None
    jobs_folder: str
    runs: list[str]
    jobs: list[str]

    def log_of(self, job: str) -> Path:
        """The file to which rank 0 of this job writes what it says."""
        return Path(self.jobs_folder) / f"{job}_0_log.out"


class Campaign(Record):
    """campaign.json."""

    version: int
    experiment: str
    submissions: list[Submission]

    def latest(self, run_id: str) -> tuple[Submission, str | None] | None:
        """The last submission of a run, and its job; None where it was never submitted."""
        for submission in reversed(self.submissions):
            if run_id in submission.runs:
                return submission, submission.jobs[
                    submission.runs.index(run_id)
                ] if submission.jobs else None
        return None


def read_campaign(folder: Path) -> Campaign:
    """The campaign of the experiment in this folder, with no submissions where there is none
    yet."""
    found = store.read_optional(folder / NAME, Campaign)
    return found or Campaign(version=store.VERSION, experiment=folder.name, submissions=[])


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
        """The experiment's."""
        return self.plan.experiment.name

    @property
    def folder(self) -> Path:
        """The experiment's."""
        return self.results / self.name

    def place(self, code: Path | None = None) -> SubmissionPaths:
        """The places of the next submission's files; by default it has a copy of the sources of its
        own."""
        number = len(read_campaign(self.folder).submissions)
        jobs = self.folder / "jobs" / f"{number:03d}"
        return SubmissionPaths(jobs, code or jobs / "code", self.folder / NAME, number)


def statuses(folder: Path, runs: Iterable[PlannedRun]) -> list[RunStatus]:
    """The state of each of these runs of an experiment's folder, by their records, and by the queue
    if submitted."""
    campaign = read_campaign(folder)
    queue = queued_jobs() if campaign.submissions else {}
    unique = {run.run_id: run for run in runs}
    return [
        status_of(folder / key, run.row, run.seed, submitted(campaign, key, queue))
        for key, run in unique.items()
    ]


def submitted(campaign: Campaign, run_id: str, queue: dict[str, str] | None) -> Submitted | None:
    """What squeue, if it answered, says of the last job of a run; None where it was never
    submitted."""
    submission, job = campaign.latest(run_id) or (None, None)
    if submission is None:
        return None
    if job is None:
        return Submitted(None, None, None if queue is None else "nameless")
    return Submitted(
        job, str(submission.log_of(job)), None if queue is None else _place_in(queue, job)
    )


def _place_in(queue: dict[str, str], job: str) -> Literal["waits", "runs", "gone"]:
    if job not in queue:
        return "gone"
    return "waits" if queue[job] in WAITING else "runs"


def queued_jobs() -> dict[str, str] | None:
    """State (PENDING, RUNNING, ...) of each of the user's jobs in the queue by its id, such as
    12_0.

    None where squeue does not answer, which is not the same as an empty queue.
    """
    said = output_of("squeue", "--me", "--array", "--noheader", "--format=%i|%T")
    return None if said is None else dict(line.split("|", 1) for line in said.splitlines())


def put_submission(folder: Path, number: int, submission: Submission | None) -> None:
    """Write the last submission, which has this number, down; None takes it back, as where sbatch
    refused."""
    campaign = read_campaign(folder)
    submissions = [*campaign.submissions[:number], *([submission] if submission else [])]
    store.write_record(folder / NAME, campaign.model_copy(update={"submissions": submissions}))


def take_snapshot(folder: Path) -> Path:
    """Copy our package to this folder, over what a submission that was refused has left, and return
    it."""
    shutil.rmtree(folder, ignore_errors=True)
    ignored = shutil.ignore_patterns(
        "__pycache__", "shipped"
    )  # `shipped` is a link to results, which jobs do not need
    shutil.copytree(OURS / PACKAGE, folder / PACKAGE, ignore=ignored)
    return folder
