"""The record of a campaign, `campaign.json` in its folder: what was submitted, how, and as which jobs; and its lock."""

from __future__ import annotations

import datetime
import getpass
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.records import store
from harness.records.store import Record


class CampaignError(RuntimeError):
    """The command cannot go on, through no mistake in how it was called; the message is one sentence for the user."""


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


def add_submission(folder: Path, experiment: str, submission: Submission) -> None:
    """Write a submission down, before sbatch is asked."""
    campaign = read_campaign(folder) or Campaign(version=store.VERSION, experiment=experiment, submissions=[])
    submissions = [*campaign.submissions, submission]
    store.write_record(campaign_path(folder), campaign.model_copy(update={"submissions": submissions}))


def set_jobs(folder: Path, jobs: list[str]) -> None:
    """Write down what sbatch answered to the last submission; where it refused, so without jobs, that is taken back."""
    campaign = store.read_record(campaign_path(folder), Campaign)
    *before, last = campaign.submissions
    submissions = [*before, last.model_copy(update={"jobs": jobs})] if jobs else before
    store.write_record(campaign_path(folder), campaign.model_copy(update={"submissions": submissions}))


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
    """Hold the experiment's lock. It works on network file systems too, where locks of files may not.

    Raises:
        CampaignError: somebody has it. It is never taken from them, since on another machine they may be alive.
    """
    path = folder / "submit.lock"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        raise CampaignError(_whose(path)) from None
    with os.fdopen(descriptor, "w") as file:
        json.dump({"owner": owner(), "host": socket.gethostname(), "process": os.getpid(), "time": time.time()}, file)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _whose(path: Path) -> str:
    """Who has the lock, and what to do, in a sentence."""
    try:
        said = json.loads(path.read_text())
        who, host, process, age = said["owner"], said["host"], int(said["process"]), time.time() - said["time"]
    except (OSError, ValueError, LookupError, TypeError):
        return f"another submitter holds {path}, which does not say who; delete it if nobody is submitting"
    text = f"{who} on {host} (process {process}) has been submitting for {max(0, age):.0f} s and holds {path}"
    if host == socket.gethostname() and not Path(f"/proc/{process}").exists():
        return f"{text}; that process has ended: delete the file and call again"
    return f"{text}; wait, or delete the file if that process is gone"
