"""The runs that advice rests on: which experiments ran alike, and what methods lost in them."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from cser_bench.harness.records.experiment import Role
from cser_bench.report.frame import Frames
from cser_bench.report.questions.evidence import Evidence
from cser_bench.report.regime import claimed_contrasts
from cser_bench.report.speed.job import Sending, TrainingJob, sendings_of
from cser_bench.report.statistics import against_baseline

ROLES: tuple[Role, ...] = ("network", "task", "reference", "search", "loads", "methods", "rivals")
"""Of experiments whose rows are methods as one would use them, not the subject of a study."""

Line = dict[Any, Any]
"""A method in a table of methods, by the names of its columns."""


def ran_alike(frames: Frames, other: Frames) -> bool:
    """Tell whether two experiments have one network, data, baseline and number of workers."""
    return _set_up(frames) == _set_up(other)


def _set_up(frames: Frames) -> tuple[Any, ...]:
    experiment = frames.experiment
    return (
        experiment.task,
        experiment.model,
        experiment.baseline,
        frames.rows["num_parameters"].iloc[0],
        experiment.config["num_workers"],
        str(experiment.config["partition"]),
    )


def alike_in(evidence: Evidence, frames: Frames) -> list[Frames]:
    """Return the experiments of one's own and those that ship that ran as this one did."""
    about = frames.experiment.evidence
    if about is None:
        return []
    known = evidence.all_of(*ROLES, network=about.network)
    return [other.frames for other in known if ran_alike(other.frames, frames)]


def was_run(job: TrainingJob, alike: Iterable[Frames]) -> bool:
    """Tell whether a job has the size, the steps and the workers of experiments that ran alike."""
    for frames in alike:
        rows = frames.rows
        is_own = rows["num_parameters"] == job.num_parameters
        is_own &= rows["num_steps"] == job.num_steps
        if is_own.any() and frames.experiment.config["num_workers"] == job.num_workers:
            return True
    return False


def own_length(frames: Frames) -> int:
    """Return the steps of an experiment's own rows, not of those that repeat them at others."""
    rows = frames.rows
    return int(rows.loc[rows["base"].isna(), "num_steps"].max())


def methods_run(alike: Sequence[Frames], num_steps: int) -> list[tuple[Line, list[Sending]]]:
    """Return what each method lost in runs of so many steps, and what it sends.

    Of a method that several experiments ran, the line counts that a report judges, and else the one
    of the most runs.

    Returns:
        Lines with the columns method, algorithm, family, ratio, held, final_exchange, estimate, low,
        high (differences of scores to the baseline, 95 %), deviation (of a run of the method less
        one of the baseline), verdict (None where none was declared), num_runs and experiment.
    """
    best: dict[tuple[str, str], tuple[Line, list[Sending]]] = {}
    for frames in alike:
        for line, sendings in _methods_of(frames, num_steps):
            key = (str(line["method"]), f"{line['ratio']:.4g}")
            if key not in best or _weight(line) > _weight(best[key][0]):
                best[key] = (line, sendings)
    return list(best.values())


def _weight(line: Line) -> tuple[bool, int]:
    return line["verdict"] is not None, int(line["num_runs"])


def _methods_of(frames: Frames, num_steps: int) -> list[tuple[Line, list[Sending]]]:
    experiment = frames.experiment
    rows = frames.rows
    is_method = rows["tunes"].isna() & (rows["rule"] == "held_out") & (rows["ratio"] > 1)
    is_method &= (rows["num_steps"] == num_steps) & (rows["models_sent"].fillna(0) > 0)
    is_method &= rows["num_parameters"] == rows["num_parameters"].iloc[0]
    against = against_baseline(frames).set_index("row")
    verdicts = {}
    for contrast in claimed_contrasts(frames).to_dict("records"):
        is_judged = isinstance(contrast["verdict"], str)
        if contrast["kind"] == "non-inferiority" and is_judged:
            verdicts[contrast["row"], contrast["reference"]] = contrast["verdict"]
    methods = []
    for _, row in rows[is_method & rows["row"].isin(against.index)].iterrows():
        sendings = sendings_of(frames, row)
        if not sendings:
            continue
        difference = against.loc[row["row"]]
        scores = frames.done(row["row"])
        references = frames.done(difference["reference"])
        line = {
            "method": row["label"],
            "algorithm": row["algorithm"],
            "family": experiment.families.get(row["algorithm"], ""),
            "ratio": float(row["ratio"]),
            "held": row["peak_models"],
            "final_exchange": row["final_exchange"],
            "estimate": float(difference["estimate"]),
            "low": float(difference["low"]),
            "high": float(difference["high"]),
            "deviation": math.sqrt(scores.var(ddof=1) + references.var(ddof=1)),
            "verdict": verdicts.get((row["row"], difference["reference"])),
            "num_runs": len(scores),
            "experiment": experiment.name,
        }
        methods.append((line, sendings))
    return methods


def deviations_of(methods: Sequence[tuple[Line, list[Sending]]]) -> dict[str, float]:
    """Return the largest deviation of a run of each method less one of the baseline."""
    frame = pd.DataFrame([line for line, _ in methods], columns=["method", "deviation"])
    largest = frame.groupby("method")["deviation"].max()
    return {str(method): float(deviation) for method, deviation in largest.items()}
