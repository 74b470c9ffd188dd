"""The record of a campaign, `results/<experiment>/campaign.json`: what was submitted, when, how, and as which jobs."""

from __future__ import annotations

import datetime
from pathlib import Path

from harness.records import store
from harness.records.store import Record


class Submission(Record):
    """One job array."""

    submitted_at: str
    """ISO 8601, UTC."""
    by: str
    cluster: str
    """Name of the profile, with its variant."""
    slurm_conf: str | None
    """What SLURM_CONF said, where it said anything: which Slurm was meant."""
    num_workers: int
    device: str
    data: str | None
    code: str
    """The snapshot."""
    git_commit: str | None
    git_diff_sha256: str | None
    jobs_folder: str
    """Where logs and pickles are."""
    runs: list[str]
    """Run id of each task of the array."""
    jobs: list[str]
    """Job id of each task, as Slurm writes it: 12_0, or 12 where there is one task only. Empty until sbatch answers."""

    def log_of(self, job: str) -> Path:
        """Where rank 0 of this job writes what it says."""
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
                place = submission.runs.index(run_id)
                return submission, submission.jobs[place] if submission.jobs else None
        return None


def campaign_path(folder: Path) -> Path:
    """The record's place in an experiment's folder."""
    return folder / "campaign.json"


def read_campaign(folder: Path) -> Campaign | None:
    """The campaign of the experiment in this folder, if there is one.

    Raises:
        RecordError: damaged, or of another version.
    """
    return store.read_optional(campaign_path(folder), Campaign)


def add_submission(folder: Path, experiment: str, submission: Submission) -> int:
    """Write a submission down, before sbatch is asked; returns its number."""
    campaign = read_campaign(folder) or Campaign(version=store.VERSION, experiment=experiment, submissions=[])
    submissions = [*campaign.submissions, submission]
    store.write_record(campaign_path(folder), campaign.model_copy(update={"submissions": submissions}))
    return len(submissions) - 1


def set_jobs(folder: Path, jobs: list[str]) -> None:
    """Write down what sbatch answered to the last submission; where it refused, so without jobs, that is taken back."""
    campaign = store.read_record(campaign_path(folder), Campaign)
    *before, last = campaign.submissions
    submissions = [*before, last.model_copy(update={"jobs": jobs})] if jobs else before
    store.write_record(campaign_path(folder), campaign.model_copy(update={"submissions": submissions}))


def now() -> str:
    """The present moment as records have it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
