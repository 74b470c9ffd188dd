"""The state of a run: the one place where it is told, from its records, its lock, and what a queue
says of its job."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cser_bench.harness.records import packs, store
from cser_bench.harness.records.run_lock import is_owned
from cser_bench.harness.records.store import Failure, FailureKind, Heartbeat, Result, RunFile

State = Literal["done", "running", "queued", "stopped", "failed", "stale", "missing"]
"""`stopped`: asked to, with its state saved. `stale`: it ended without a word. A run that diverged
is done."""

FRESH_SECONDS, GONE_FRESH_SECONDS = 600.0, 60.0
"""A heartbeat no older is that of a run that is on: there is none while a model is scored, which
can take minutes. The second holds where the run's job has left the queue, and its last records are
on their way."""

ALWAYS: tuple[FailureKind, ...] = ("preempted",)
RETRIED: tuple[FailureKind, ...] = ("node", "communication", "timeout")
"""Ends after which a cluster's job goes on: always, or as often without a later checkpoint as its
profile says. All others - oom, disk, data, bug - would come again; a run that diverged has a
result, and is done."""


@dataclass(frozen=True)
class Seen:
    """What there is on one run.

    `owned`: whether a process holds the run's lock; None where this machine cannot tell, as the
    newest attempt was on another one. `replaced`: whether the attempt that failed was not the last
    one.
    """

    result: Result | None
    failure: Failure | None
    heartbeat: Heartbeat | None
    owned: bool | None
    replaced: bool = False


@dataclass(frozen=True)
class Submitted:
    """What is known of the job that a run was submitted as; its name and log are None before it has
    them.

    `queue`: None where the queue does not answer, so that records are all there is; "nameless"
    where sbatch has not answered yet, or never did, so that nobody can ask for the job.
    """

    name: str | None
    log: str | None
    queue: Literal["waits", "runs", "gone", "nameless"] | None


@dataclass(frozen=True)
class RunStatus:
    """One run, as it is shown. `job` and `log`: of the newest job that it was submitted as to a
    cluster."""

    folder: Path
    row: str
    seed: int
    state: State
    detail: str
    seen: Seen
    job: str | None = None
    log: str | None = None


def is_done(folder: Path) -> bool:
    """Whether the run of this folder has a valid result, in the folder or packed. Raises
    RecordError for a bad one."""
    return packs.read_result(folder) is not None


def saved_step(folder: Path) -> int | None:
    """The step of the newest checkpoint of the run in this folder; None where there is none."""
    try:
        return int((folder / "checkpoint" / "latest").read_text().strip().removeprefix("step-"))
    except (OSError, ValueError):
        return None


def look(folder: Path) -> Seen:
    """Read what there is on the run in this folder. Raises RecordError: the result or the failure
    is damaged."""
    result = packs.read_result(folder)
    if result is not None:
        return Seen(result, None, None, None)
    failure = store.read_optional(folder / "failure.json", Failure)
    run = store.read_if_whole(folder / "run.json", RunFile)
    attempts = run.attempts if run else []
    owned = is_owned(folder)
    if owned is False and attempts and attempts[-1].host != platform.node():
        owned = None  # Locks are seen from another machine on some file systems only.
    replaced = failure is not None and failure.attempt in [each.attempt for each in attempts[:-1]]
    return Seen(
        None, failure, store.read_if_whole(folder / "heartbeat.json", Heartbeat), owned, replaced
    )


def judge(seen: Seen, job: Submitted | None = None, now: float | None = None) -> tuple[State, str]:
    """The run's state, and what there is to say of it. `job`: where it was submitted to a
    cluster."""
    now = time.time() if now is None else now
    if seen.result is not None:
        return (
            "done",
            ""
            if seen.result.status == "done"
            else f"diverged at step {seen.result.diverged_at_step}",
        )
    if job is not None and job.queue == "waits":
        return "queued", f"again, after {seen.failure.kind}" if seen.failure is not None else ""
    failure, beat = seen.failure, seen.heartbeat
    silent: float | None = None
    if beat is not None and (failure is None or failure.attempt != beat.attempt):
        silent = now - beat.time  # of an attempt that has not failed since
    fresh = GONE_FRESH_SECONDS if job is not None and job.queue == "gone" else FRESH_SECONDS
    # The run's process lives: by its lock where that can be seen, else by its heartbeat.
    is_on = seen.owned if seen.owned is not None else silent is not None and silent < fresh
    if is_on or (job is not None and job.queue == "runs"):
        if silent is None:
            return "running", "starting or ending"
        return "running", "" if silent < FRESH_SECONDS else f"silent for {silent:.0f} s"
    if seen.failure is not None and not seen.replaced:
        if job is not None and job.queue is None and seen.failure.kind in (*ALWAYS, *RETRIED):
            return (
                "queued",
                f"again, after {seen.failure.kind}, if it was requeued: squeue does not answer",
            )
        kind, message = seen.failure.kind, seen.failure.message
        return ("stopped", message) if kind == "preempted" else ("failed", f"{kind}: {message}")
    if job is not None and job.queue == "gone":
        return (
            "stale",
            f"its job left the queue, and no record of how it ended; `sacct -j {job.name}` may "
            "know",
        )
    if job is not None and job.queue == "nameless" and silent is None:
        return (
            "missing",
            "sbatch has not answered; if no `submit` is at work, `squeue --me` may show its job",
        )
    if silent is None:
        return "missing", "" if job is None else "squeue does not answer"
    return (
        "stale",
        "its process ended without a word" if seen.owned is False else f"silent for {silent:.0f} s",
    )


def status_of(folder: Path, row: str, seed: int, job: Submitted | None = None) -> RunStatus:
    """What is shown of the run in this folder; see `judge`. Raises RecordError as `look`."""
    seen = look(folder)
    return RunStatus(
        folder, row, seed, *judge(seen, job), seen, *((job.name, job.log) if job else ())
    )
