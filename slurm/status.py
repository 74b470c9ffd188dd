"""How far a campaign is: the state of every run, totals, and GPU-hours spent and left."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import get_args

from harness.records import packs, store
from harness.records.experiment import Experiment, read_experiment
from harness.records.state import State, Submitted, judge, look
from harness.records.store import RunFile
from slurm.campaign import Campaign, read_campaign
from slurm.queue import ended_jobs, queued_jobs
from slurm.state import submitted


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
