"""How far a campaign is: the state of every run, totals, GPU-hours spent and left; what squeue and sacct say."""

from __future__ import annotations

import datetime
import os
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

from tabulate import tabulate

from harness.records import packs, store
from harness.records.experiment import Experiment, read_experiment
from harness.records.state import State, Submitted, judge, look
from harness.records.store import RunFile
from slurm.campaign import Campaign, Submission, read_campaign
from slurm.starts import ALWAYS, COUNTED

ANSWER_SECONDS = 20
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")


@dataclass(frozen=True)
class RunStatus:
    """One run, as `status` shows it."""

    run_id: str
    row: str
    seed: int
    state: State
    detail: str
    attempts: int
    job: str | None
    log: str | None
    failure: str | None
    """Kind of the latest failure, where there is no result."""
    step: int | None
    num_steps: int
    epoch: float | None
    images_per_second: float | None
    seconds_left: float | None
    seconds_spent: float


@dataclass(frozen=True)
class CampaignStatus:
    """All runs of an experiment. Hours are those of one worker: a GPU, or a process on a CPU."""

    experiment: str
    title: str
    device: str
    queue_answers: bool
    runs: list[RunStatus]
    worker_hours_spent: float
    worker_hours_left: float | None
    """None while nothing is known of how long a run takes."""

    @property
    def totals(self) -> dict[str, int]:
        """Number of runs in each state."""
        counts = Counter(run.state for run in self.runs)
        return {state: counts[state] for state in get_args(State)}

    def in_hand(self) -> set[str]:
        """Ids of the runs that are queued or running."""
        return {run.run_id for run in self.runs if run.state in ("queued", "running")}


def campaign_status(folder: Path) -> CampaignStatus:
    """Read the records of the experiment in this folder, and ask Slurm's queue.

    Raises:
        RecordError: no experiment there, or a damaged record.
    """
    experiment, campaign = read_experiment(folder), read_campaign(folder)
    return observe(folder, experiment, campaign, queued_jobs(slurm_conf_of(campaign)))


def slurm_conf_of(campaign: Campaign | None) -> str | None:
    """Which Slurm the campaign was last submitted to."""
    return campaign.submissions[-1].slurm_conf if campaign and campaign.submissions else None


def observe(
    folder: Path, experiment: Experiment, campaign: Campaign | None, queue: dict[str, str] | None
) -> CampaignStatus:
    """As `campaign_status`, with what squeue said: a state by job, or None where it did not answer."""
    runs: dict[str, RunStatus] = {}
    for row in experiment.rows:
        for seed, run_id in row.runs.items():
            submission, job = (campaign.latest(run_id) if campaign else None) or (None, None)
            hint = submitted(submission, job, queue)
            log = submission.log_of(job) if submission and job else None
            status = _run_status(folder / run_id, row.row, int(seed), row.num_steps, hint)
            runs.setdefault(run_id, replace(status, job=job, log=str(log) if log else None))
    runs = _with_hints(runs, slurm_conf_of(campaign))
    last = campaign.submissions[-1] if campaign and campaign.submissions else None
    num_workers = last.num_workers if last else 1
    left = _seconds_left(list(runs.values()))
    return CampaignStatus(
        experiment=experiment.name,
        title=experiment.title,
        device=last.device if last else "cpu",
        queue_answers=queue is not None,
        runs=list(runs.values()),
        worker_hours_spent=sum(run.seconds_spent for run in runs.values()) * num_workers / 3600,
        worker_hours_left=None if left is None else left * num_workers / 3600,
    )


def _run_status(folder: Path, row: str, seed: int, num_steps: int, hint: Submitted | None) -> RunStatus:
    """All but the job and its log."""
    seen = look(folder)
    state, detail = judge(seen, hint)
    run = store.read_optional(folder / "run.json", RunFile)
    if run is None and (packed := packs.packed_run(folder, with_events=False)) is not None:
        run = packed.run
    beat = seen.heartbeat if state == "running" else None
    return RunStatus(
        run_id=folder.name,
        row=row,
        seed=seed,
        state=state,
        detail=detail,
        attempts=len(run.attempts) if run else 0,
        job=None,
        log=None,
        failure=seen.failure.kind if seen.failure and not seen.result else None,
        step=beat.step if beat else None,
        num_steps=num_steps,
        epoch=beat.epoch if beat else None,
        images_per_second=beat.images_per_second if beat else None,
        seconds_left=beat.seconds_left if beat else None,
        seconds_spent=seen.result.wall_seconds if seen.result else _seconds_of_events(folder),
    )


def _seconds_of_events(folder: Path) -> float:
    """What a run without a result did up to its last evaluation, so far as that can be read."""
    try:
        return max((event.wall_seconds for event in store.read_events(folder / "events.jsonl")), default=0.0)
    except (store.RecordError, OSError):
        return 0.0


def _with_hints(runs: dict[str, RunStatus], slurm_conf: str | None) -> dict[str, RunStatus]:
    """Add what sacct knows of jobs that ended without a record."""
    ended = ended_jobs([run.job for run in runs.values() if run.state == "stale" and run.job], slurm_conf)
    said = {key: f"; sacct: {ended[run.job]}" for key, run in runs.items() if run.job in ended and run.state == "stale"}
    return {key: replace(run, detail=run.detail + said.get(key, "")) for key, run in runs.items()}


def _seconds_left(runs: list[RunStatus]) -> float | None:
    """Of all runs, one after the other: what running ones say, and for the others the mean of what is known."""
    known = [run.seconds_spent for run in runs if run.state == "done"]
    known += [run.seconds_spent + run.seconds_left for run in runs if run.seconds_left is not None]
    left = [run for run in runs if run.state != "done"]
    if not known:
        return None if left else 0.0
    whole = fmean(known)
    return sum(max(0.0, whole - run.seconds_spent) if run.seconds_left is None else run.seconds_left for run in left)


def queued_jobs(slurm_conf: str | None = None) -> dict[str, str] | None:
    """State (PENDING, RUNNING, ...) of each of the user's jobs in the queue by its id, such as 12_0.

    None where squeue does not answer, which is not the same as an empty queue. `slurm_conf` says which Slurm is meant
    where the environment does not.
    """
    lines = _ask(slurm_conf, "squeue", "--me", "--array", "--noheader", "--format=%i|%T")
    return None if lines is None else dict(line.split("|", 1) for line in lines if "|" in line)


def ended_jobs(jobs: Sequence[str], slurm_conf: str | None = None) -> dict[str, str]:
    """State (FAILED, OUT_OF_MEMORY, NODE_FAIL, ...) of jobs that have left the queue, so far as sacct knows them."""
    if not jobs:
        return {}
    options = ("-X", "--noheader", "--parsable2", "--format=JobID,State", f"--jobs={','.join(jobs)}")
    lines = _ask(slurm_conf, "sacct", *options)
    return dict(line.split("|", 1) for line in lines or () if "|" in line)


def _ask(slurm_conf: str | None, *command: str) -> list[str] | None:
    environment = ({"SLURM_CONF": slurm_conf} if slurm_conf else {}) | os.environ
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()


def submitted(submission: Submission | None, job: str | None, queue: dict[str, str] | None) -> Submitted | None:
    """Of a run that was submitted as `job`; None where it never was.

    Args:
        queue: states by job, as squeue says them, or None where it does not answer.
    """
    if submission is None:
        return None
    at = datetime.datetime.fromisoformat(submission.submitted_at).timestamp()
    said = None if queue is None else queue.get(job or "")
    on = "waits" if said in WAITING else "runs" if said else "gone"
    return Submitted(None if queue is None else on, at, (*ALWAYS, *COUNTED))  # type: ignore[arg-type]


def as_json(status: CampaignStatus) -> dict[str, Any]:
    """For machines."""
    return asdict(status) | {"totals": status.totals}


def as_text(status: CampaignStatus) -> str:
    """For people: a line per run that is not simply done or missing, and totals."""
    lines = [status.title]
    shown = [run for run in status.runs if run.state not in ("done", "missing") or run.detail]
    table = [[run.row, run.seed, run.state, run.job, _progress(run), _why(run)] for run in shown]
    if table:
        lines.append(tabulate(table, ["row", "seed", "state", "job", "progress", ""], disable_numparse=True))
    totals = ", ".join(f"{count} {state}" for state, count in status.totals.items() if count)
    unit = "GPU" if status.device == "cuda" else "worker"
    left = "unknown" if status.worker_hours_left is None else f"about {status.worker_hours_left:,.1f}"
    lines.append(f"{totals}; {unit}-hours: {status.worker_hours_spent:,.1f} spent, {left} left")
    if not status.queue_answers:
        lines.append("squeue does not answer: states are what the records say")
    return "\n".join(lines)


def _progress(run: RunStatus) -> str:
    if run.epoch is None:
        return ""
    left = "?" if run.seconds_left is None else f"{run.seconds_left / 60:,.0f} min"
    return f"epoch {run.epoch:.2f}, {run.images_per_second:,.0f} samples/s, {left} left"


def _why(run: RunStatus) -> str:
    log = f" ({run.log})" if run.log and run.state in ("failed", "stale") else ""
    return f"{run.detail}{log}"
