"""When contrasts were declared, and how many runs of their rows had begun by then.

A run counts from the begin of its first attempt and not from its end: while it is on, its scores
can be read. Times are as `provenance.now` writes them, so that they can be compared as text.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cser_bench.harness.records import packs, store
from cser_bench.harness.records.experiment import Contrast, Experiment, Row
from cser_bench.harness.records.store import RunFile

NOT_KNOWN = "not known"
BEFORE_RUNS = "before its runs"


class RunsBegun(NamedTuple):
    """How many planned runs of a contrast's two rows had begun when it was declared.

    It also says in how many of the two rows.
    """

    num_begun: int
    num_planned: int
    num_rows: int


def runs_begun(
    contrast: Contrast,
    row_runs: Collection[str],
    reference_runs: Collection[str],
    starts: Mapping[str, str],
) -> RunsBegun | None:
    """Return which runs of a contrast's rows had begun when it was declared.

    None where that time is not recorded.

    Args:
        row_runs, reference_runs: ids of the runs that are planned of each.
        starts: when the first attempt at a run began, by the run's id; absent for a run that never
            began.
    """
    declared_at = contrast.declared_at
    if declared_at is None:
        return None
    # ISO 8601 in UTC sorts as text.
    begun = {run for run, start in starts.items() if start < declared_at}
    planned = {*row_runs, *reference_runs}
    num_rows = sum(not begun.isdisjoint(runs) for runs in (row_runs, reference_runs))
    return RunsBegun(len(begun & planned), len(planned), num_rows)


def begun_in_words(begun: RunsBegun | None) -> str:
    """Return the words that a report prints next to a verdict."""
    if begun is None:
        return NOT_KNOWN
    if not begun.num_begun:
        return BEFORE_RUNS
    words = f"after {begun.num_begun} of {begun.num_planned} runs"
    if begun.num_rows == 1:
        words += ", one row's"
    return words


def is_without_verdict(contrast: Contrast, begun: RunsBegun | None) -> bool:
    """Say whether a contrast came too late to be judged.

    It did where runs of both rows had begun before, so that their difference could be seen.

    Where runs of one row alone had begun, as of a baseline that an older experiment ran, nothing
    showed how the other would stand to it.
    """
    return begun is not None and begun.num_rows == 2 and not contrast.is_verdict_kept


def run_files(folder: Path) -> dict[str, RunFile]:
    """Return run.json of each run in an experiment's folder, packed or not, by id.

    A damaged run.json is left out.

    Raises RecordError: the pack is damaged.
    """
    runs: dict[str, RunFile] = {}
    for path in store.run_folders(folder):
        record = store.read_if_whole(path / "run.json", RunFile)
        if record is not None:
            runs[path.name] = record
    for run, files in packs.read_pack(folder).items():
        # A folder of a run that is packed may be a later try at it.
        runs[run] = store.parse_record(files["run"], folder / packs.NAME, RunFile)
    return runs


def starts_of(runs: Mapping[str, RunFile]) -> dict[str, str]:
    """Return when the first attempt at each run began, by the run's id."""
    return {
        name: min(attempt.started_at for attempt in run.attempts)
        for name, run in runs.items()
        if run.attempts
    }


def with_dates(planned: Experiment, written: Experiment | None, now: str) -> Experiment:
    """Return the planned experiment with the time at which each contrast was declared.

    That is when the record first had it, so one that is not yet `written` is declared `now`. A
    contrast is the same where kind and margin are, and both rows by their names or by a run that
    they share.
    """
    if planned.contrasts is None:
        return planned
    dated = []
    for contrast in planned.contrasts:
        before = None
        if written is not None:
            before = _recorded(contrast, planned, written)
        # New: it is declared by being written.
        dates: dict[str, Any] = {"declared_at": now}
        if before is not None:
            dates = before.model_dump(
                include={"declared_at", "declared_in", "is_verdict_kept"}
            )
        dated.append(contrast.model_copy(update=dates))
    return planned.model_copy(update={"contrasts": dated})


def _recorded(
    contrast: Contrast, planned: Experiment, written: Experiment
) -> Contrast | None:
    rows = {row.row: row for row in planned.rows}
    rows_before = {row.row: row for row in written.rows}
    for before in written.contrasts or []:
        # Another margin is another question, though rows are the same.
        if (contrast.kind, contrast.margin) != (before.kind, before.margin):
            continue
        same_row = _is_same_row(rows[contrast.row], rows_before[before.row])
        if same_row and _is_same_row(
            rows[contrast.reference], rows_before[before.reference]
        ):
            return before
    return None


def _is_same_row(row: Row, before: Row) -> bool:
    return row.row == before.row or not set(row.runs.values()).isdisjoint(
        before.runs.values()
    )
