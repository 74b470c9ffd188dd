"""Prints states of runs and declarations for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from tabulate import tabulate

from cser_bench.harness.measures.declared import in_words, seen_runs, starts_of
from cser_bench.harness.records.experiment import Experiment
from cser_bench.harness.records.state import RunStatus, State
from cser_bench.harness.records.store import RunFile


def status_text(runs: Sequence[RunStatus], num_workers: int) -> str:
    """Runs of each row by state, a line for each run that there is something to say of, and what
    they take in sum."""
    totals = Counter(run.state for run in runs)
    columns = [state for state in get_args(State) if totals[state] or state in ("done", "missing")]
    by_row: dict[str, Counter[str]] = {}
    for run in runs:
        by_row.setdefault(run.row, Counter())[run.state] += 1
    table = [[row, *(counts[state] for state in columns)] for row, counts in by_row.items()]
    lines = [
        f"{run.state}: {run.row} seed {run.seed}: {said}" for run in runs if (said := _said_of(run))
    ]
    spent, left = worker_hours(runs, num_workers)
    to_come = "unknown" if left is None else f"about {left:,.2g}"
    hours = f"hours of a worker: {spent:,.2g} in runs that are done, {to_come} left"
    return "\n".join([tabulate(table, ["row", *columns]), *lines, f"{totals_text(runs)}; {hours}"])


def totals_text(runs: Sequence[RunStatus]) -> str:
    """How many runs are in each state."""
    return ", ".join(
        f"{count} {state}" for state, count in Counter(run.state for run in runs).items()
    )


def worker_hours(runs: Sequence[RunStatus], num_workers: int) -> tuple[float, float | None]:
    """Hours of one worker, a GPU or a process: of the runs that are done, and of the others if they
    are as long."""
    seconds = [run.seen.result.wall_seconds for run in runs if run.seen.result]
    spent = sum(seconds) * num_workers / 3600
    return spent, spent / len(seconds) * (len(runs) - len(seconds)) if seconds else None


def status_fields(runs: Sequence[RunStatus]) -> list[dict[str, Any]]:
    """The same for machines: of each run what is known, with its newest heartbeat."""
    return [
        {key: getattr(run, key) for key in ("row", "seed", "state", "detail", "job", "log")}
        | {
            "run_id": run.folder.name,
            "failure": run.seen.failure.kind if run.seen.failure else None,
            "heartbeat": run.seen.heartbeat.json_fields() if run.seen.heartbeat else None,
        }
        for run in runs
    ]


def _said_of(run: RunStatus) -> str:
    """How far the run is, where the newest heartbeat says so, what there is to say of it, and where
    to look."""
    parts, beat = [run.job or "", run.detail], run.seen.heartbeat
    if beat is not None and run.state in ("running", "stale"):
        parts.insert(1, f"step {beat.step} of {beat.num_steps}")
        if run.state == "running":
            parts.insert(
                2, f"{beat.images_per_second:,.0f} samples/s, {beat.seconds_left or 0:.0f} s left"
            )
    if run.state in ("stopped", "stale"):
        parts.append("the next run goes on from its checkpoint")
    if run.state == "failed" or (run.state == "stale" and run.log):
        parts.append(run.log or str(run.folder / "failure.json"))
    return "; ".join(filter(None, parts))


def declared_text(folder: Path, experiment: Experiment, runs: Mapping[str, RunFile]) -> str:
    """How many runs had begun when contrasts were declared, a line for each after the first; and of
    what code."""
    run_ids, starts = {row.row: row.runs.values() for row in experiment.rows}, starts_of(runs)
    contrasts = experiment.contrasts or []
    seen = [
        seen_runs(each, run_ids[each.row], run_ids[each.reference], starts) for each in contrasts
    ]
    num_rows = Counter(each.num_rows for each in seen if each is not None)
    attempts = [attempt for run in runs.values() for attempt in run.attempts]
    changed = sum(attempt.git_diff_sha256 is not None for attempt in attempts)
    lines = [
        f"{folder}: {len(contrasts)} contrasts: {num_rows[0]} before their runs, {num_rows[1]} after runs of one row, "
        f"{num_rows[2]} after runs of both, {seen.count(None)} not known; {changed} of {len(attempts)} attempts ran "
        "code with changes that stood in no commit"
    ]
    for contrast, each in zip(contrasts, seen, strict=True):
        if each is None or each.num_begun:
            commit = f", in {contrast.declared_in[:12]}" if contrast.declared_in else ""
            pair = f"{contrast.row} against {contrast.reference}, {contrast.kind}"
            lines.append(
                f"  {pair}: {in_words(each)}, declared {contrast.declared_at or 'in no commit'}{commit}"
            )
    return "\n".join(lines)
