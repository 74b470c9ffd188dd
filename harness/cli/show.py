"""Prints states of runs for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from tabulate import tabulate

from cser_bench.harness.records.ending import ending_of
from cser_bench.harness.records.shipped import Taken, ships, take
from cser_bench.harness.records.state import RunStatus, State
from cser_bench.harness.spec.spec_file import shipped_titles


def status_text(runs: Sequence[RunStatus], num_workers: int) -> str:
    """Return the runs of each row by state, remarks on single runs, and the sums.

    A run has a line where there is something to say of it. The sums are the runs in each state and
    the hours that they take.
    """
    totals = Counter(run.state for run in runs)
    columns = [
        state
        for state in get_args(State)
        if totals[state] or state in ("done", "missing")
    ]
    # In the plan's order of rows, which dictionaries keep.
    by_row: dict[str, Counter[str]] = {}
    for run in runs:
        by_row.setdefault(run.row, Counter())[run.state] += 1
    table = [
        [row, *(counts[state] for state in columns)] for row, counts in by_row.items()
    ]
    lines = [tabulate(table, ["row", *columns])]
    for run in runs:
        remark = _remark(run)
        if remark:
            lines.append(f"{run.state}: {run.row} seed {run.seed}: {remark}")
    spent, left = worker_hours(runs, num_workers)
    to_come = "unknown" if left is None else f"about {left:,.2g}"
    lines.append(
        f"{totals_text(runs)}; hours of a worker: {spent:,.2g} in runs that are done, {to_come} left"
    )
    return "\n".join(lines)


def taken_lines(taken: Taken, only_shipped: bool = False) -> list[str]:
    """Say of each experiment of the user's own that is evidence whether it was taken, a line each.

    Args:
        only_shipped: whether none was, as what was written ships.
    """
    lines = []
    for own in taken.own:
        if not own.is_evidence:
            continue
        if not own.is_done:
            reason = f"{own.num_done} of {own.num_planned} planned runs are done"
            lines.append(f"{own.folder.name}: left out {own.folder}, as {reason}")
        elif only_shipped:
            lines.append(
                f"{own.folder.name}: left out {own.folder}, as these pages ship; --output FOLDER "
                "writes pages with it"
            )
        else:
            lines.append(
                f"{own.folder.name}: took {own.folder}, all runs of which are done"
            )
    return lines


def say_what_is_taken(results: Path | None, pages: Path | None = None) -> None:
    """Say of each experiment of the user's own that counts whether it was taken.

    Args:
        results: folder of the user's own records; None where there is none.
        pages: the folder that was written into, if any.
    """
    only_shipped = pages is not None and ships(pages)
    for line in taken_lines(take(results), only_shipped):
        print(line)


def titles_text() -> str:
    """Return the names of the experiments that ship, with their titles."""
    return tabulate(sorted(shipped_titles().items()), tablefmt="plain")


def totals_text(runs: Sequence[RunStatus]) -> str:
    """Say how many runs are in each state, and how many of those that are done diverged."""
    totals = Counter(run.state for run in runs)
    parts = {state: f"{count} {state}" for state, count in totals.items()}
    ends = [ending_of(run.seen.result) for run in runs if run.seen.result]
    if count := ends.count("diverged"):
        parts["done"] += f" ({count} diverged)"
    return ", ".join(parts.values())


def worker_hours(
    runs: Sequence[RunStatus], num_workers: int
) -> tuple[float, float | None]:
    """Return the hours that one worker spent in runs that are done, and those that are left.

    A worker is a GPU or a process. The hours left are what the other runs take if they are as long;
    None where no run shows that.
    """
    seconds = [run.seen.result.wall_seconds for run in runs if run.seen.result]
    spent = sum(seconds) * num_workers / 3600
    if not seconds:
        return spent, None
    # Runs under way count as a whole: how far they are is not asked here.
    num_left = len(runs) - len(seconds)
    return spent, spent / len(seconds) * num_left


def status_fields(runs: Sequence[RunStatus]) -> list[dict[str, Any]]:
    """Return the same for machines: what is known of each run, with its newest heartbeat."""
    return [_fields_of(run) for run in runs]


def _fields_of(run: RunStatus) -> dict[str, Any]:
    failure = run.seen.failure
    heartbeat = run.seen.heartbeat
    return {
        "row": run.row,
        "seed": run.seed,
        "state": run.state,
        "detail": run.detail,
        "job": run.job,
        "log": run.log,
        "run_id": run.folder.name,
        "failure": None if failure is None else failure.kind,
        "heartbeat": None if heartbeat is None else heartbeat.json_fields(),
    }


def _remark(run: RunStatus) -> str:
    """Return what there is to say of a run, and where to look.

    Before it stands how far the run is, where the newest heartbeat says so.
    """
    parts = [run.job or ""]
    beat = run.seen.heartbeat
    if beat is not None and run.state in ("running", "stale"):
        parts.append(f"step {beat.step} of {beat.num_steps}")
    if beat is not None and run.state == "running":
        parts.append(
            f"{beat.images_per_second:,.0f} samples/s, {beat.seconds_left or 0:.0f} s left"
        )
    parts.append(run.detail)
    if run.state in ("stopped", "stale"):
        parts.append("the next run goes on from its checkpoint")
    if run.state == "failed" or (run.state == "stale" and run.log):
        parts.append(run.log or str(run.folder / "failure.json"))
    return "; ".join(filter(None, parts))
