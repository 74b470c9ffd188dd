"""Reading: an experiment's folder as planned rows with what was found of each run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.records.experiment import Experiment, Row, read_experiment
from harness.records.metrics import ACCURACY, Metric, metric_of, score_in
from harness.records.packs import open_runs
from harness.records.store import RecordError, RunRecord
from report.frame import UsageError as UsageError


@dataclass(frozen=True)
class RowRuns:
    """A planned row with its runs by seed; None is a run that was not started."""

    row: Row
    runs: dict[int, RunRecord | None]
    metric: Metric = ACCURACY
    """What the experiment compares by."""

    @property
    def method(self) -> str:
        """The row's label, one name for a method at all ratios."""
        return self.row.label

    @property
    def finished(self) -> dict[int, RunRecord]:
        """Runs with a score."""
        return {seed: run for seed, run in self.runs.items() if run and run.result and run.result.status == "done"}

    @property
    def diverged(self) -> dict[int, RunRecord]:
        """Runs whose result is that they diverged."""
        return {seed: run for seed, run in self.runs.items() if run and run.result and run.result.status == "diverged"}

    @property
    def accuracy(self) -> dict[int, float]:
        """Accuracy (a share), or what else the experiment compares by, of the finished runs by seed."""
        return {seed: score_of(run, self.metric) for seed, run in self.finished.items()}

    @property
    def workers_accuracy(self) -> dict[int, list[float]]:
        """Accuracy of each worker's own model at the end, by seed, of the finished runs that recorded it.

        Of other metrics it was not.
        """
        if self.metric is not ACCURACY:
            return {}
        own = {seed: run.result.worker_accuracy for seed, run in self.finished.items() if run.result}
        return {seed: accuracy for seed, accuracy in own.items() if accuracy}

    @property
    def finished_ids(self) -> tuple[str, ...]:
        """Ids of the runs with a score, in the order of their seeds."""
        return tuple(run.run.run_id for run in self.finished.values())

    @property
    def true_ratio(self) -> float | None:
        """Steps per model sent, the final exchange counted; None where nothing is sent or no plan says what is."""
        return self.row.num_steps / self.row.models_sent if self.row.models_sent else None

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Ids of the runs that have a result, in the order of their seeds."""
        return tuple(run.run.run_id for run in self.runs.values() if run and run.result)


@dataclass(frozen=True)
class Records:
    """Everything read of one experiment. `unplanned` counts runs that no row names."""

    folder: Path
    experiment: Experiment
    rows: tuple[RowRuns, ...]
    unplanned: int

    @property
    def metric(self) -> Metric:
        """What rows are compared by; everywhere it is called accuracy, and the report says once what that is."""
        return metric_of(self.experiment.metric)

    @property
    def main_rows(self) -> tuple[RowRuns, ...]:
        """Rows of their own: not those that repeat one at another length or under another rule of selection."""
        return tuple(rows for rows in self.rows if rows.row.base is None)

    @property
    def planned(self) -> int:
        """Number of runs in the plan."""
        return sum(len(row.runs) for row in self.rows)

    @property
    def ended(self) -> int:
        """Number of runs with a result, diverged ones among them."""
        return sum(len(row.run_ids) for row in self.rows)

    @property
    def failed(self) -> tuple[RunRecord, ...]:
        """Runs without a result whose latest attempt said why."""
        return tuple(
            run for row in self.rows for run in row.runs.values() if run and run.result is None and run.failure
        )


def score_of(run: RunRecord, metric: Metric = ACCURACY) -> float:
    """Accuracy of a finished run, or of another metric the score of which more is better.

    Raises:
        RecordError: the result says "done" and has no finite accuracy.
    """
    accuracy = score_in(run.result, metric) if run.result else None
    if accuracy is None or not math.isfinite(accuracy):
        path = run.folder / "result.json"
        raise RecordError(f"{path} says the run is done and has no {metric.label}; delete the file and run again")
    return accuracy


def best_training_loss(run: RunRecord) -> float | None:
    """Lowest finite training loss of a run's evaluations and its result; None where there is none."""
    losses = [event.train_loss for event in run.events]
    if run.result and run.result.train_loss is not None:
        losses.append(run.result.train_loss)
    return min((loss for loss in losses if math.isfinite(loss)), default=None)


def read_records(folder: Path) -> Records:
    """Read an experiment's folder.

    Raises:
        UsageError: no such folder, or no experiment in it.
        RecordError: a record in it is damaged or of another version; the message names the file.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; give the folder of an experiment, as results/fashion_mnist")
    if not (folder / "experiment.json").exists():
        raise UsageError(f"{folder} holds no experiment.json; give the folder that an experiment was run into")
    experiment = read_experiment(folder)
    found = open_runs(folder)
    rows = tuple(_read_row(folder, row, found, metric_of(experiment.metric)) for row in experiment.rows)
    named = {run_id for row in experiment.rows for run_id in row.runs.values()}
    return Records(folder, experiment, rows, len(found.keys() - named))


def _read_row(folder: Path, row: Row, found: Mapping[str, RunRecord], metric: Metric) -> RowRuns:
    runs: dict[int, RunRecord | None] = {}
    for seed, run_id in sorted(row.runs.items(), key=lambda item: _seed(folder, row, item[0])):
        run = found.get(run_id)
        if run is not None and run.run.run_id != run_id:
            raise RecordError(
                f"{folder / run_id / 'run.json'} belongs to run {run.run.run_id}; delete the folder and run again"
            )
        runs[int(seed)] = run
    return RowRuns(row, runs, metric)


def _seed(folder: Path, row: Row, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        path = folder / "experiment.json"
        message = f"{path} names a seed {text!r} in row {row.row!r} that is no whole number; plan again"
        raise RecordError(message) from None
