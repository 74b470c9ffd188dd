"""Frames: the folder of an experiment as tidy pandas tables.

Everything else in a report starts from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd

from cser_bench.harness.errors import UsageError
from cser_bench.harness.measures.metrics import Metric, metric_of, score_in, score_of
from cser_bench.harness.measures.steps import LOAD_TOLERANCE as LOAD_TOLERANCE
from cser_bench.harness.measures.steps import link_models
from cser_bench.harness.records.ending import ending_of
from cser_bench.harness.records.experiment import (
    Choice,
    Contrast,
    Experiment,
    PlannedEvidence,
    Role,
    Row,
    read_experiment,
)
from cser_bench.harness.records.packs import read_runs
from cser_bench.harness.records.shipped import shipped_experiments, ships
from cser_bench.harness.records.store import (
    TRAINING,
    RecordError,
    Result,
    RunRecord,
    TrafficEntry,
)

Status = Literal["done", "diverged", "failed", "missing"]

_RUN = [
    "row",
    "seed",
    "run_id",
    "status",
    "score",
    "train_loss",
    "test_loss",
    "bits",
    "wall_seconds",
]
_EVENT = [
    "step",
    "epoch",
    "learning_rate",
    "train_loss",
    "test_loss",
    "bits_sent",
    "error_norm",
    "worker_distance",
]
_EVENT += ["wall_seconds"]
_OF_EVENT = itemgetter(*_EVENT)
_SCORE = ["row", "seed", "run_id", "score", *_EVENT]
_TUNING = [
    "row",
    "label",
    "trial",
    "candidate",
    "learning_rate",
    "num_epochs",
    "seed",
    "run_id",
    "status",
    "score",
]
_TUNING += ["train_loss"]
_ATTEMPT = [
    "run_id",
    "row",
    "attempt",
    "started_at",
    "resumed_from_step",
    "host",
    "command",
    "launch",
    "backend",
]
_ATTEMPT += [
    "device",
    "git_commit",
    "git_diff_sha256",
    "python",
    "cpu",
    "num_cpus",
    "accelerator",
    "nccl",
]


# Two are the same where they are one object: tables have no truth value, and no hash.
@dataclass(frozen=True, eq=False)
class Frames:
    """An experiment and its runs.

    Scores are shares (0.8738 is 87.38 %); more is better, also of an error rate.

    No frame has an index of its own: `row`, a row's name, and `run_id` join them.

    rows: one line a planned row, in the plan's order. Its settings are columns named by their path
        (`compressor.kind`, `reset_interval`). `models_sent` and `link_models` are of the finished
        runs where these sent other than was planned. `base` is the row that it repeats at another
        size, length or rate, None of a row of its own. `rule` says how its rate was chosen, as
        `Row.chosen_by`: by validation samples it is "held_out". `tunes` is the row that a trial tunes.
    runs: one line a planned run; `score` is NaN unless it is done. `bits` are one worker's training
        payload.
    scores: one line an evaluation of a run, by rising step.
    tuning: one line a trial's run of the search that chose the rows' settings and rates; empty
        where none is at hand.
    attempts: one line an attempt at a run: who, where, with what code.
    unplanned: number of runs in the folder that no row names.
    """

    folder: Path
    experiment: Experiment
    rows: pd.DataFrame
    runs: pd.DataFrame
    scores: pd.DataFrame
    tuning: pd.DataFrame
    attempts: pd.DataFrame
    unplanned: int = 0

    @property
    def metric(self) -> Metric:
        """What rows are compared by."""
        return metric_of(self.experiment.metric)

    @property
    def contrasts(self) -> list[Contrast]:
        """The declared comparisons; none in an experiment that declares none."""
        return list(self.experiment.contrasts or [])

    @property
    def is_tuning(self) -> bool:
        """Whether the experiment is a search for settings and rates.

        Then of every tuned row the best trial is shown.
        """
        return bool(self.rows["tunes"].notna().any())

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The frames by name."""
        return {
            name: getattr(self, name)
            for name in ("rows", "runs", "scores", "tuning", "attempts")
        }

    def has_role(self, role: Role) -> bool:
        """Whether the experiment is evidence in this role."""
        evidence = self.experiment.evidence
        return evidence is not None and role in evidence.roles

    @cached_property
    def by_row(self) -> pd.DataFrame:
        """`rows`, to be looked up by the row's name."""
        return self.rows.set_index("row", drop=False)

    def row(self, name: str) -> dict[str, Any]:
        """Return a row's line, as plain values."""
        return {str(key): value for key, value in self.by_row.loc[name].items()}

    @cached_property
    def _done(self) -> dict[str, pd.Series[float]]:
        done = self.runs[self.runs["status"] == "done"].sort_values("seed")
        return {
            str(name): group.set_index("seed")["score"]
            for name, group in done.groupby("row", sort=False)
        }

    def done(self, row: str) -> pd.Series[float]:
        """Return the scores of a row's finished runs, by seed."""
        return self._done.get(row, pd.Series(dtype=float))

    def count(self, row: str, status: Status) -> int:
        """Count a row's planned runs that have this status."""
        return int(((self.runs["row"] == row) & (self.runs["status"] == status)).sum())


def read_frames(folder: Path, tuning: Path | None = None) -> Frames:
    """Read an experiment's folder.

    Args:
        folder: of the experiment, with experiment.json in it.
        tuning: folder of its tuning; None looks beside the experiment's folder and one above.

    Raises:
        UsageError: there is no such folder, or no experiment in it.
        RecordError: a record is damaged or of another version; the message names the file.
    """
    experiment = _experiment(folder)
    metric = metric_of(experiment.metric)
    recorded = read_runs(folder)
    planned = _planned(folder, experiment, recorded)
    trials = [each for each in planned if each.row.tunes]
    # Where the experiment is a tuning itself, its own runs are the trials.
    if not trials:
        trials = _trials(folder, experiment, tuning)
    attempts = _frame(
        (line for each in planned for line in _attempt_lines(each)), _ATTEMPT
    )
    return Frames(
        folder=folder,
        experiment=experiment,
        rows=_rows_frame(experiment, planned),
        runs=_frame((_run_line(folder, each, metric) for each in planned), _RUN),
        scores=pd.DataFrame(
            [line for each in planned for line in _score_lines(each, metric)],
            columns=_SCORE,
        ),
        tuning=_frame((_trial_line(each, metric) for each in trials), _TUNING),
        # Two rows may share a run, whose attempts count once.
        attempts=attempts.drop_duplicates(["run_id", "attempt"]),
        unplanned=len(recorded.keys() - {each.run_id for each in planned}),
    )


def evidence_in(folders: Iterable[Path]) -> dict[str, PlannedEvidence]:
    """Return what experiments are evidence for, by their names, in the order that they ask for.

    Args:
        folders: of experiments, among others; of two experiments of one name the first counts.

    Raises:
        RecordError: a plan is damaged or of another version; the message names the file.
    """
    tables: dict[str, PlannedEvidence] = {}
    for folder in folders:
        if (folder / "experiment.json").exists():
            experiment = read_experiment(folder)
            if experiment.evidence is not None:
                tables.setdefault(experiment.name, experiment.evidence)
    return dict(sorted(tables.items(), key=lambda item: (item[1].order, item[0])))


def sharing_baseline(frames: Frames) -> list[str]:
    """Return the names of other experiments that share a run of the baseline with this one.

    They have contrasts. Where this one ships they ship too, and else they lie beside the folder or
    one above. Those that cannot be read are left out: they stop their own report, not this one.
    """
    # Runs are shared where two specs ask for the same run: its id is a hash of what it does.
    shared = baseline_runs(frames.experiment)
    names = set()
    for folder in _experiments_beside(frames.folder):
        with suppress(RecordError):
            other = read_experiment(folder)
            if other.contrasts and shared & baseline_runs(other):
                names.add(other.name)
    return sorted(names - {frames.experiment.name})


def trials_elsewhere(frames: Frames, row: str) -> tuple[pd.DataFrame, Choice | None]:
    """Return the trials of a row that another experiment tuned, and what it chose by them.

    A row that takes its learning rate from its spec may be another experiment's, run for run. Its
    trials count where that search had the seeds and the task of this experiment's own, so that scores
    are of the same samples. Columns: those of `Frames.tuning`. Empty and None where there are none.
    """
    found = _frame([], _TUNING)
    own = frames.experiment.tuning
    if own is None:
        return found, None
    runs = _runs_of(frames.experiment, row)
    metric = metric_of(frames.experiment.metric)
    for folder in _experiments_beside(frames.folder):
        with suppress(RecordError):
            other = read_experiment(folder)
            choice = _choice_elsewhere(frames.experiment, other, runs)
            if choice is None:
                continue
            name, chosen = choice
            trials = [
                _trial_line(each, metric)
                for each in _trials(folder, other, None)
                if each.row.tunes == name
            ]
            if trials:
                return _frame(trials, _TUNING), chosen
    return found, None


def _runs_of(experiment: Experiment, row: str) -> set[str]:
    """Return the ids of a row's runs."""
    return {
        run_id
        for each in experiment.rows
        if each.row == row
        for run_id in each.runs.values()
    }


def _choice_elsewhere(
    experiment: Experiment, other: Experiment, runs: set[str]
) -> tuple[str, Choice] | None:
    """Return the name and the choice of another experiment's tuned row that has some of these runs."""
    if other.tuning is None or experiment.tuning is None:
        return None
    if other.tuning.seeds != experiment.tuning.seeds:
        return None
    # With it goes how many samples are held out.
    if other.config.get("task") != experiment.config.get("task"):
        return None
    for each in other.rows:
        choice = other.tuning.choices.get(each.row)
        if choice is not None and not runs.isdisjoint(each.runs.values()):
            return each.row, choice
    return None


def _experiments_beside(folder: Path) -> list[Path]:
    """Return the folders of experiments that a reader would see as one collection with this one."""
    if ships(folder):
        return shipped_experiments()
    places = (folder.parent, folder.parent / "reference", folder.parent.parent)
    return [path.parent for place in places for path in place.glob("*/experiment.json")]


def baseline_runs(experiment: Experiment) -> set[str]:
    """Return the ids of the baseline's runs."""
    return {
        run_id
        for row in experiment.rows
        if row.row == experiment.baseline
        for run_id in row.runs.values()
    }


class _Planned(NamedTuple):
    """A planned run; `run` is None where nothing was recorded."""

    row: Row
    seed: int
    run_id: str
    run: RunRecord | None

    @property
    def events(self) -> list[dict[str, Any]]:
        if self.run is None:
            return []
        return [vars(event) for event in self.run.events]

    @property
    def status(self) -> Status:
        if self.run is None:
            return "missing"
        if self.run.result is not None:
            return ending_of(self.run.result)
        if self.run.failure is not None:
            return "failed"
        # Without either it was interrupted, or goes on: its result is missing.
        return "missing"


def _frame(lines: Iterable[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    records = list(lines)
    if not records:
        return pd.DataFrame(columns=columns)
    # Without `columns`, which would drop what only some records have, as traffic by purpose.
    return pd.DataFrame(records)


def _experiment(folder: Path) -> Experiment:
    if not folder.is_dir():
        raise UsageError(
            f"there is no folder {folder}; give the folder of an experiment, as "
            "results/fashion_mnist"
        )
    if not (folder / "experiment.json").exists():
        raise UsageError(
            f"{folder} holds no experiment.json; give the folder that an experiment was run into"
        )
    experiment = read_experiment(folder)
    if not experiment.rows:
        raise UsageError(
            f"{folder / 'experiment.json'} plans no rows; plan the experiment again"
        )
    return experiment


def _planned(
    folder: Path, experiment: Experiment, recorded: Mapping[str, RunRecord]
) -> list[_Planned]:
    """List every planned run, in the order of rows and seeds.

    Args:
        recorded: what the folder holds, by the run's id; runs of no row may be among it.
    """
    planned = []
    for row in experiment.rows:
        try:
            # Keys of JSON are texts, by which 10 would come before 9.
            seeds = sorted((int(seed), run_id) for seed, run_id in row.runs.items())
        except ValueError:
            path = folder / "experiment.json"
            raise RecordError(
                f"{path} names a seed in row {row.row!r} that is no whole number; plan again"
            ) from None
        planned += [
            _Planned(row, seed, run_id, recorded.get(run_id)) for seed, run_id in seeds
        ]
    for run in planned:
        if run.run and run.run.run.run_id != run.run_id:
            path = folder / run.run_id / "run.json"
            raise RecordError(
                f"{path} belongs to run {run.run.run.run_id}; delete the folder and run again"
            )
    return planned


def _trials(
    folder: Path, experiment: Experiment, tuning: Path | None
) -> list[_Planned]:
    """Read the runs of the tuning: of the folder given, or of that which the experiment names.

    No runs where neither is at hand.
    """
    if tuning is None and experiment.tuning is not None:
        for place in (folder.parent, folder.parent.parent):
            beside = place / experiment.tuning.experiment
            if (beside / "experiment.json").exists():
                tuning = beside
                break
    if tuning is None:
        return []
    return _planned(tuning, _experiment(tuning), read_runs(tuning))


def _rows_frame(experiment: Experiment, planned: Sequence[_Planned]) -> pd.DataFrame:
    """Return `Frames.rows`: what was planned of each row, and what its runs sent if that differs."""
    results = _results_by_row(planned)
    lines = []
    for row in experiment.rows:
        # The later keys win, so what was sent stands in the place of what was planned.
        lines.append(_row_line(row) | _sent(row, results.get(row.row, [])))
    # Without `columns`: rows have the settings of their own methods, and NaN in those of others.
    return pd.DataFrame(lines)


def _row_line(row: Row) -> dict[str, Any]:
    line: dict[str, Any] = row.model_dump(
        exclude={"settings", "restart", "betas", "runs", "held_back"}, by_alias=True
    )
    line |= dict(_paths(row.settings))
    if row.restart is not None:
        line |= dict(_paths({"restart": row.restart}))
    return line


def _results_by_row(planned: Iterable[_Planned]) -> dict[str, list[Result]]:
    """Return the results of finished runs by row."""
    results: dict[str, list[Result]] = {}
    for each in planned:
        of_row = results.setdefault(each.row.row, [])
        if each.status == "done" and each.run and each.run.result:
            of_row.append(each.run.result)
    return results


def _sent(row: Row, results: Sequence[Result]) -> dict[str, float]:
    """Return what a row's finished runs sent on average, if that is not what was planned.

    A compressor that draws whole tensors sends as many bits as it happens to draw, and a plan has
    their expectation.
    """
    # (runs,): one worker's payload bits.
    bits = [sum(entry.bits for entry in _training(result)) for result in results]
    # Without any finished run `all` holds too, and the plan's numbers stay.
    if row.models_sent is None or all(number == row.expected_bits for number in bits):
        return {}
    gathered = sum(entry.gathered_bits for each in results for entry in _training(each))
    to_neighbours = sum(
        entry.neighbour_bits for each in results for entry in _training(each)
    )
    # A model is its parameters in fp32, once a run: the sums are over all of them.
    model_bits = 32 * row.num_parameters * len(results)
    models_sent = sum(bits) / model_bits + row.final_exchange
    carried = link_models(
        models_sent,
        gathered / model_bits,
        to_neighbours / model_bits,
        results[0].world_size,
    )
    return {"models_sent": models_sent, "link_models": carried}


def _training(result: Result) -> list[TrafficEntry]:
    """List the traffic of a run that is its method's cost."""
    return [
        result.traffic[purpose] for purpose in TRAINING if purpose in result.traffic
    ]


def _paths(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield settings by path; a list, as the matrix of a topology, as the text of it."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _paths(value, f"{above}{key}.")
        elif isinstance(value, list):
            yield f"{above}{key}", str(value)
        else:
            yield f"{above}{key}", value


def _run_line(folder: Path, planned: _Planned, metric: Metric) -> dict[str, Any]:
    # All columns are there, in one order, also where nothing was recorded.
    line: dict[str, Any] = dict.fromkeys(_RUN) | {
        "row": planned.row.row,
        "seed": planned.seed,
        "run_id": planned.run_id,
        "score": math.nan,
        "status": planned.status,
    }
    if planned.run is None or planned.run.result is None:
        return line
    result = planned.run.result
    line |= {
        "train_loss": result.train_loss,
        "test_loss": result.test_loss,
        "bits": sum(entry.bits for entry in _training(result)),
        "wall_seconds": result.wall_seconds,
        "diverged_at_step": result.diverged_at_step,
    }
    metrics = result.metrics or {}
    line |= {f"metrics.{name}": value for name, value in metrics.items()}
    if result.worker_accuracy:
        num_workers = len(result.worker_accuracy)
        line["worker_accuracy"] = math.fsum(result.worker_accuracy) / num_workers
    # As "gradient.bits": a column for each purpose and count.
    for purpose, entry in result.traffic.items():
        line |= {f"{purpose}.{key}": value for key, value in vars(entry).items()}
    if planned.status == "done":
        line["score"] = _score(f"{folder}/{planned.run_id}/result.json", result, metric)
    return line


def _score(path: str, result: Result, metric: Metric) -> float:
    score = score_in(result, metric)
    if score is None or not math.isfinite(score):
        raise RecordError(
            f"{path} says the run is done and has no {metric.label}; delete the file and run again"
        )
    return score


def _score_lines(planned: _Planned, metric: Metric) -> Iterator[tuple[Any, ...]]:
    """Yield lines of `_SCORE`: as tuples, since there are the most of them."""
    for event in planned.events:
        score = score_of(
            event["test_accuracy"], event["test_loss"], event.get("metrics"), metric
        )
        yield (planned.row.row, planned.seed, planned.run_id, score, *_OF_EVENT(event))


def _attempt_lines(planned: _Planned) -> Iterator[dict[str, Any]]:
    if planned.run is None:
        return
    for attempt in planned.run.run.attempts:
        packages = " ".join(
            f"{name} {version}" for name, version in attempt.packages.items()
        )
        plain = {
            key: value
            for key, value in vars(attempt).items()
            if key not in ("slurm", "packages")
        }
        yield {
            "run_id": planned.run_id,
            "row": planned.row.row,
            **plain,
            "packages": packages,
        }


def _trial_line(planned: _Planned, metric: Metric) -> dict[str, Any]:
    row = planned.row
    losses = [event["train_loss"] for event in planned.events]
    score: float | None = math.nan
    if planned.run is not None and planned.run.result is not None:
        result = planned.run.result
        if result.train_loss is not None:
            losses.append(result.train_loss)
        if planned.status == "done":
            score = score_in(result, metric)
    finite = [loss for loss in losses if math.isfinite(loss)]
    return {
        "row": row.tunes,
        "label": row.label,
        "trial": row.row,
        "candidate": row.candidate,
        "learning_rate": row.learning_rate,
        "num_epochs": row.num_epochs,
        "seed": planned.seed,
        "run_id": planned.run_id,
        "status": planned.status,
        "score": score,
        # The least on the way, as the paper's rule chooses by it.
        "train_loss": min(finite, default=None),
    }
