"""What had been run of each contrast's rows when it was declared, by the attempts on record."""

from cser_bench.harness.measures.declared import (
    RunsBegun,
    is_without_verdict,
    runs_begun,
)
from cser_bench.report.frame import Frames


def begun_when_declared(frames: Frames) -> list[RunsBegun | None]:
    """Return how many runs of each contrast's rows had begun when it was declared.

    In the order of `Frames.contrasts`; None where it is not known when one was declared.
    """
    # A run that was interrupted has several attempts. Its scores could be read from the first on.
    # Times are texts of ISO 8601 in UTC, whose order is that of the alphabet. Index: run_id.
    first_attempts = frames.attempts.groupby("run_id")["started_at"].min()
    starts = {str(run_id): str(start) for run_id, start in first_attempts.items()}
    # Index: row; values: sets of run ids.
    runs_of = frames.runs.groupby("row")["run_id"].agg(set)
    begun = []
    for contrast in frames.contrasts:
        row_runs = runs_of.get(contrast.row, ())
        reference_runs = runs_of.get(contrast.reference, ())
        begun.append(runs_begun(contrast, row_runs, reference_runs, starts))
    return begun


def are_without_verdict(frames: Frames) -> list[bool]:
    """Return of each contrast whether it was declared too late to be judged."""
    too_late = []
    for contrast, begun in zip(
        frames.contrasts, begun_when_declared(frames), strict=True
    ):
        too_late.append(is_without_verdict(contrast, begun))
    return too_late
