"""How far a campaign is: the state of every run, totals, GPU-hours spent and left; what squeue and sacct say."""

from __future__ import annotations

import datetime
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

from tabulate import tabulate

from harness.records import store
from harness.records.experiment import Experiment, read_experiment
from harness.records.state import State, Submitted, judge, look
from slurm.allocation import ask_slurm
from slurm.campaign import Campaign, Submission, read_campaign
from slurm.requeue import ALWAYS, COUNTED

WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")


@dataclass(frozen=True)
class RunStatus:
    """One run, as `status` shows it. `failure`: the kind of the latest one, where there is no result.

    The fields from `step` to `seconds_left` are those of a running run's heartbeat.
    """

    run_id: str
    row: str
    seed: int
    state: State
    detail: str
    job: str | None
    log: str | None
    failure: str | None
    seconds_spent: float
    step: int | None = None
    epoch: float | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None


@dataclass(frozen=True)
class CampaignStatus:
    """All runs of an experiment. `num_workers`: of a run, each on a GPU of its own where `device` is "cuda"."""

    experiment: str
    title: str
    device: str
    num_workers: int
    queue_answers: bool
    runs: list[RunStatus]

    @property
    def totals(self) -> dict[str, int]:
        """Number of runs in each state."""
        counts = Counter(run.state for run in self.runs)
        return {state: counts[state] for state in get_args(State)}

    @property
    def worker_hours_spent(self) -> float:
        """Hours of one worker, a GPU or a process, that all runs took so far."""
        return sum(run.seconds_spent for run in self.runs) * self.num_workers / 3600

    @property
    def worker_hours_left(self) -> float | None:
        """What is left: what running runs say, and for others the mean of what is known; None before that."""
        done = [run.seconds_spent for run in self.runs if run.state == "done"]
        known = done + [run.seconds_spent + run.seconds_left for run in self.runs if run.seconds_left is not None]
        left = [run for run in self.runs if run.state != "done"]
        if left and not known:
            return None
        seconds = 0.0
        for run in left:
            expected = max(0.0, fmean(known) - run.seconds_spent)
            seconds += expected if run.seconds_left is None else run.seconds_left
        return seconds * self.num_workers / 3600

    def in_hand(self) -> set[str]:
        """Ids of the runs that are queued or running."""
        return {run.run_id for run in self.runs if run.state in ("queued", "running")}


def campaign_status(folder: Path) -> CampaignStatus:
    """Read the records of the experiment in this folder, and ask Slurm's queue.

    Raises:
        RecordError: no experiment there, or a damaged record.
    """
    return observe(folder, read_experiment(folder), queued_jobs())


def observe(folder: Path, experiment: Experiment, queue: dict[str, str] | None) -> CampaignStatus:
    """The same with what squeue said: a state by job, or None where it did not answer."""
    campaign = read_campaign(folder)
    found: dict[str, RunStatus] = {}
    for row in experiment.rows:
        for seed, run_id in row.runs.items():
            found.setdefault(run_id, _run_status(folder / run_id, row.row, int(seed), campaign, queue))
    runs = list(found.values())
    if lost := [run.job for run in runs if run.state == "stale" and run.job]:
        words = ("sacct", "-X", "--noheader", "--parsable2", "--format=JobID,State", f"--jobs={','.join(lost)}")
        ended = _states(ask_slurm(*words) or "")
        hint = {job: f"; sacct: {ended[job]}" for job in lost if job in ended}
        runs = [replace(run, detail=run.detail + hint.get(run.job or "", "")) for run in runs]
    device, num_workers = "cpu", 1
    for submission in campaign.submissions:
        device, num_workers = submission.device, submission.num_workers
    return CampaignStatus(experiment.name, experiment.title, device, num_workers, queue is not None, runs)


def _run_status(folder: Path, row: str, seed: int, campaign: Campaign, queue: dict[str, str] | None) -> RunStatus:
    submission, job = campaign.latest(folder.name) or (None, None)
    seen = look(folder)
    state, detail = judge(seen, submitted(submission, job, queue))
    beat = seen.heartbeat if state == "running" else None
    shown = {"step", "epoch", "images_per_second", "seconds_left"}
    return RunStatus(
        run_id=folder.name,
        row=row,
        seed=seed,
        state=state,
        detail=detail,
        job=job,
        log=str(submission.log_of(job)) if submission and job else None,
        failure=seen.failure.kind if seen.failure and not seen.result else None,
        seconds_spent=seen.result.wall_seconds if seen.result else _seconds_of_events(folder),
        **(beat.model_dump(include=shown) if beat else {}),
    )


def _seconds_of_events(folder: Path) -> float:
    """What a run without a result did up to its last evaluation, so far as that can be read."""
    try:
        return max((event.wall_seconds for event in store.read_events(folder / "events.jsonl")), default=0.0)
    except (store.RecordError, OSError):
        return 0.0


def submitted(submission: Submission | None, job: str | None, queue: dict[str, str] | None) -> Submitted | None:
    """What squeue, if it answered, says of a run that was submitted as `job`; None where it never was."""
    if submission is None:
        return None
    at = datetime.datetime.fromisoformat(submission.submitted_at).timestamp()
    said = None if queue is None else queue.get(job or "")
    on = "waits" if said in WAITING else "runs" if said else "gone"
    return Submitted(None if queue is None else on, at, (*ALWAYS, *COUNTED))  # type: ignore[arg-type]


def queued_jobs() -> dict[str, str] | None:
    """State (PENDING, RUNNING, ...) of each of the user's jobs in the queue by its id, such as 12_0.

    None where squeue does not answer, which is not the same as an empty queue.
    """
    said = ask_slurm("squeue", "--me", "--array", "--noheader", "--format=%i|%T")
    return None if said is None else _states(said)


def _states(said: str) -> dict[str, str]:
    return dict(line.split("|", 1) for line in said.splitlines() if "|" in line)


def as_json(status: CampaignStatus) -> dict[str, Any]:
    """The status for machines."""
    also = ("totals", "worker_hours_spent", "worker_hours_left")
    return asdict(status) | {name: getattr(status, name) for name in also}


def as_text(status: CampaignStatus) -> str:
    """The status for people: a line per run that is not simply done or missing, and totals."""
    lines = [status.title]
    shown = [run for run in status.runs if run.state not in ("done", "missing") or run.detail]
    table = []
    for run in shown:
        log = f" ({run.log})" if run.log and run.state in ("failed", "stale") else ""
        table.append([run.row, run.seed, run.state, run.job, _progress(run), run.detail + log])
    if table:
        lines.append(tabulate(table, ["row", "seed", "state", "job", "progress", ""], disable_numparse=True))
    totals = ", ".join(f"{count} {state}" for state, count in status.totals.items() if count)
    unit, hours = "GPU" if status.device == "cuda" else "worker", status.worker_hours_left
    left = "unknown" if hours is None else f"about {hours:,.1f}"
    lines.append(f"{totals}; {unit}-hours: {status.worker_hours_spent:,.1f} spent, {left} left")
    if not status.queue_answers:
        lines.append("squeue does not answer: states are what the records say")
    return "\n".join(lines)


def _progress(run: RunStatus) -> str:
    if run.epoch is None:
        return ""
    left = "?" if run.seconds_left is None else f"{run.seconds_left / 60:,.0f} min"
    return f"epoch {run.epoch:.2f}, {run.images_per_second:,.0f} samples/s, {left} left"
