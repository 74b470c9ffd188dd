"""What a campaign keeps in the experiment's folder: its record `campaign.json`, and the code that its jobs run."""

from __future__ import annotations

import datetime
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from harness.cli.exits import OURS
from harness.records import store
from harness.records.store import Record

PACKAGES = ("algorithms", "harness", "report", "slurm")


class CampaignError(RuntimeError):
    """The command cannot go on, through no mistake in how it was called; the message is one sentence for the user."""

    exit_code = 1


class Submission(Record):
    """One job array: when it was submitted (ISO 8601, UTC), and how.

    `cluster` is the profile with its variant, `code` the snapshot, `jobs_folder` where logs and pickles are. Of each
    task, `runs` has the run's id, and `jobs` the job's as Slurm writes it: 12_0, or 12 where there is one task only; it
    is empty until sbatch answers.
    """

    submitted_at: str
    cluster: str
    num_workers: int
    device: str
    data: str | None
    code: str
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
                return submission, submission.jobs[submission.runs.index(run_id)] if submission.jobs else None
        return None


def campaign_path(folder: Path) -> Path:
    """The record's place in an experiment's folder."""
    return folder / "campaign.json"


def read_campaign(folder: Path) -> Campaign:
    """The campaign of the experiment in this folder, with no submissions where there is none yet.

    Raises:
        RecordError: damaged, or of another version.
    """
    found = store.read_optional(campaign_path(folder), Campaign)
    return found or Campaign(version=store.VERSION, experiment=folder.name, submissions=[])


def put_submission(folder: Path, number: int, submission: Submission | None) -> None:
    """Write the last submission, which has this number, down; None takes it back, as where sbatch refused."""
    campaign = read_campaign(folder)
    submissions = [*campaign.submissions[:number], *([submission] if submission else [])]
    store.write_record(campaign_path(folder), campaign.model_copy(update={"submissions": submissions}))


def now() -> str:
    """The present moment as records have it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def snapshot_path(folder: Path) -> Path:
    """The place of a snapshot of the code as it is now: below `folder`, named by a digest of what is in it."""
    digest = hashlib.sha256()
    for path in _sources():
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(OURS)}\0{content}\n".encode())
    return folder / digest.hexdigest()[:12]


def take_snapshot(folder: Path) -> Path:
    """Copy the packages to `snapshot_path`, unless they are there, and return it: what a queued job will run.

    Raises:
        OSError: no space, no permission.
    """
    target, unfinished = snapshot_path(folder), folder / ".unfinished"
    if not target.exists():
        shutil.rmtree(unfinished, ignore_errors=True)
        for path in _sources():
            copy = unfinished / path.relative_to(OURS)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        unfinished.rename(target)
    return target


def _sources() -> Iterator[Path]:
    """The files of our packages, but for `harness/shipped`, a link to the results, which jobs do not need."""
    for package in PACKAGES:
        for path in sorted((OURS / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and "shipped" not in path.parts:
                yield path
