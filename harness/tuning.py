"""Chooses learning rates from the records of a tuning experiment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from harness.packs import open_runs
from harness.spec import SpecError
from harness.store import RecordError, Row, RunRecord, read_experiment

RULE = (
    "for each row the learning rate of the grid with the highest mean accuracy on held-out training samples over the "
    "tuning seeds; a rate with a diverged run is not eligible; of equals the smaller rate"
)


def select_learning_rates(folder: Path, rows: list[str]) -> dict[str, float]:
    """The learning rate of each row by `RULE`, from results/<experiment>_tuning.

    Raises:
        SpecError: the tuning is not there or not complete; the message says what to run.
        RecordError: one of its records is damaged.
    """
    advice = "run the tuning first (`make tune`, or `python -m harness run EXPERIMENT --tuning`)"
    try:
        experiment = read_experiment(folder)
    except RecordError as error:
        if (folder / "experiment.json").exists():
            raise
        raise SpecError(f"learning rates are left to the tuning, but {error}; {advice}") from None
    runs, chosen = open_runs(folder), {}
    for row in rows:
        points = [point for point in experiment.rows if point.tunes == row]
        scores = {
            point.learning_rate: score for point in points if (score := _score(runs, folder, point, advice)) is not None
        }
        if not points:
            raise SpecError(f"{folder} holds no tuning of row {row!r}; {advice}")
        if not scores:
            raise SpecError(f"row {row!r} diverged at every learning rate of the grid in {folder}; widen the grid")
        chosen[row] = min(scores, key=lambda rate: (-scores[rate], rate))
    return chosen


def _score(runs: Mapping[str, RunRecord], folder: Path, point: Row, advice: str) -> float | None:
    """Mean held-out accuracy at one grid point; None where a run diverged."""
    scores = []
    for run_id in point.runs.values():
        run = runs.get(run_id)
        if run is None or run.result is None:
            raise SpecError(
                f"the tuning in {folder} is not complete (run {run_id} of {point.row} is missing); {advice}"
            )
        scores.append(run.result.test_accuracy)
    finished = [score for score in scores if score is not None]
    return fmean(finished) if len(finished) == len(scores) else None
