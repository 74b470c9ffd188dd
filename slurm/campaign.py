"""What a campaign keeps in the experiment's folder: its record `campaign.json`, its lock, the code of its jobs."""

from __future__ import annotations

import datetime
import getpass
import hashlib
import importlib
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from harness.records import store
from harness.records.run_lock import BusyError, locked
from harness.records.store import Record

PACKAGES = ("algorithms", "harness", "report", "slurm")


class CampaignError(RuntimeError):
    """The command cannot go on, through no mistake in how it was called; the message is one sentence for the user."""

    exit_code = 1


class Submission(Record):
    """One job array: when (ISO 8601, UTC) and by whom it was submitted, and how.

    `cluster` is the profile with its variant, `slurm_conf` what SLURM_CONF said, where it did, `code` the snapshot,
    `jobs_folder` where logs and pickles are. Of each task, `runs` has the run's id, and `jobs` the job's as Slurm
    writes it: 12_0, or 12 where there is one task only; it is empty until sbatch answers.
    """

    submitted_at: str
    by: str
    cluster: str
    slurm_conf: str | None
    num_workers: int
    device: str
    data: str | None
    code: str
    git_commit: str | None
    git_diff_sha256: str | None
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


def read_campaign(folder: Path) -> Campaign | None:
    """The campaign of the experiment in this folder, if there is one.

    Raises:
        RecordError: damaged, or of another version.
    """
    return store.read_optional(campaign_path(folder), Campaign)


def put_submission(folder: Path, experiment: str, number: int, submission: Submission | None) -> None:
    """Write the last submission, which has this number, down; None takes it back, as where sbatch refused."""
    campaign = read_campaign(folder)
    submissions = [*(campaign.submissions[:number] if campaign else []), *([submission] if submission else [])]
    record = Campaign(version=store.VERSION, experiment=experiment, submissions=submissions)
    store.write_record(campaign_path(folder), record)


def now() -> str:
    """The present moment as records have it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def owner() -> str:
    """The user's name, or number where there is none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())


@contextmanager
def submit_lock(folder: Path) -> Iterator[None]:
    """Hold the experiment's lock, which the system takes back from a process that is killed.

    Raises:
        CampaignError: another submitter has it.
    """
    path = folder / "submit.lock"
    busy = f"another command is submitting this experiment, and holds {path}; wait for it"
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path, 0.0, busy))
        except BusyError as error:
            raise CampaignError(str(error)) from None
        yield


def snapshot_path(folder: Path) -> Path:
    """The place of a snapshot of the code as it is now: below `folder`, named by a digest of what is in it."""
    digest = hashlib.sha256()
    for package, root in _packages().items():
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{package / path.relative_to(root)}\0{content}\n".encode())
    return folder / digest.hexdigest()[:12]


def take_snapshot(folder: Path) -> Path:
    """Copy the packages to `snapshot_path`, unless they are there, and return it: what a queued job will run.

    Raises:
        OSError: no space, no permission.
    """
    target, unfinished = snapshot_path(folder), folder / ".unfinished"
    if not target.exists():
        shutil.rmtree(unfinished, ignore_errors=True)
        for package, root in _packages().items():
            # harness/shipped is a link to the results, which jobs do not need.
            shutil.copytree(root, unfinished / package, ignore=shutil.ignore_patterns("__pycache__", "shipped"))
        unfinished.rename(target)
    return target


def _packages() -> dict[Path, Path]:
    return {Path(name): Path(str(importlib.import_module(name).__file__)).parent for name in PACKAGES}
