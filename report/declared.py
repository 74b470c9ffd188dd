"""How many runs of its rows had begun when each contrast was declared, by the attempts on
record."""

from cser_bench.harness.records.declared import Seen, is_without_verdict, seen_runs
from cser_bench.report.frame import Frames


def seen_when_declared(frames: Frames) -> list[Seen | None]:
    """Of each contrast, in the order of `Frames.contrasts`; None where it is not known when it was
    declared."""
    first = frames.attempts.groupby("run_id")["started_at"].min()
    starts = {str(run_id): str(start) for run_id, start in first.items()}
    runs = frames.runs.groupby("row")["run_id"].agg(set)
    return [
        seen_runs(contrast, runs.get(contrast.row, ()), runs.get(contrast.reference, ()), starts)
        for contrast in frames.contrasts
    ]


def are_without_verdict(frames: Frames) -> list[bool]:
    """Of each contrast whether it was declared too late to be judged."""
    pairs = zip(frames.contrasts, seen_when_declared(frames), strict=True)
    return [is_without_verdict(contrast, seen) for contrast, seen in pairs]
