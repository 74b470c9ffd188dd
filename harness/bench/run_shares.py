"""Benchmark: the shares of evaluation and checkpoints in the wall clock of recorded Fashion-MNIST runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from harness.bench.measurement import Measurement, not_measured
from harness.records.experiment import read_experiment
from harness.records.packs import open_runs
from harness.records.store import RecordError, Result
from harness.train.clock import PHASES

TASK = "fashion_mnist"


def measure(results: Path) -> list[Measurement]:
    """One figure for each phase of worker 0's clock, over all finished runs under `results`."""
    done = list(finished(results))
    if not done:
        return [not_measured("share of wall clock", "", f"no finished {TASK} run is recorded under {results}")]
    figures = []
    for phase in PHASES:
        shares = [share(result, phase) for result in done]
        of = "wall clock" if phase == "communicate" else "own time"
        compared = f"worker 0's clock in {len(done)} {TASK} runs; own time is the wall clock without communication"
        figures.append(Measurement(f"share of {of}: {phase}", compared, median(shares), "%", None, shares))
    return figures


def finished(results: Path) -> Iterator[Result]:
    """Results of the runs on the task; what cannot be read is the status command's business."""
    for path in sorted(results.glob("*/experiment.json")):
        with contextlib.suppress(RecordError):
            if read_experiment(path.parent).task != TASK:
                continue
            for run in open_runs(path.parent).values():
                if run.result is not None and run.result.wall_seconds > 0:
                    yield run.result


def share(result: Result, phase: str) -> float:
    """Percent. Where workers are threads, "communicate" is mostly waiting for the others' turns, in evaluation too, so
    the other phases are measured against what worker 0 does itself.
    """
    waiting = 0.0 if phase == "communicate" else result.clock_seconds.get("communicate", 0.0)
    return 100 * result.clock_seconds.get(phase, 0.0) / (result.wall_seconds - waiting)
