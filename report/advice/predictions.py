"""What each method would take and lose in a job: the lines that advice and the map choose from.

Steps are modelled from what each row of an experiment sent, by the cost model (report/speed/job.py).
Losses are measured where the job was run. Else they are read off the curves through runs of several
lengths or loads (report/regime.py), with how far the job lies beyond them.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from cser_bench.report.advice.runs import Line, deviations_of, methods_run, own_length
from cser_bench.report.frame import Frames
from cser_bench.report.questions.networks import method_of
from cser_bench.report.regime import (
    PREDICTORS,
    Vector,
    fitted_values,
    left_out_values,
    predictors_frame,
)
from cser_bench.report.speed.job import (
    Sending,
    TrainingJob,
    ddp_seconds,
    method_seconds,
    sendings_of,
)

DEVIATIONS = 1.96
"""Standard deviations of a 95 % interval."""

NUM_DRAWS = 20
"""Times that the seeds' noise is drawn: the error of a standard deviation is then a sixth of it."""

DEFINED = "defined"
"""Basis of the loss of DDP, which others are compared with; half of its bits are taken to lose
nothing."""
MEASURED = "measured"
"""Basis of a loss in runs of this very job."""
CURVE = "curve"
"""Basis of a loss that a curve through other jobs foretells."""
ELSEWHERE = "elsewhere"
"""Basis of a loss in runs of another length on the nearest network, which no curve carries over."""
UNKNOWN = "unknown"
"""Basis of a method that was not run on the nearest network."""

DDP = "DDP, fp32"
DDP_HALF = "DDP, fp16 hook"

NO_LOSS = {
    "estimate": math.nan,
    "low": math.nan,
    "high": math.nan,
}
"""Of a line whose loss nothing tells."""


def expected_losses(
    lost: pd.DataFrame,
    wanted: pd.DataFrame,
    predictor: str,
    between_kinds: float = 0.0,
) -> pd.DataFrame:
    """Return the share of the gap that a method is expected to lose, with a 95 % interval.

    The interval joins three errors: the seeds', by drawing their noise; the curve's own, by the
    misses of rows of one length, or of one load where all have one length, that the others alone
    predict; and that the job's network is another one.

    Args:
        lost: the method's rows of `losses_of`.
        wanted: with the columns models_sent, num_steps and ratio_sent.
        predictor: one of `PREDICTORS`.
        between_kinds: standard deviation of the share between kinds of network.

    Returns:
        A line for each of the wanted ones, with the columns share, low, high and beyond: how many
        times more, or fewer, models or steps than in any run.
    """
    columns = list(PREDICTORS[predictor])
    logs = np.log(lost[columns].to_numpy(dtype=float))
    wanted_logs = np.log(wanted[columns].to_numpy(dtype=float))
    observed = lost["lost"].to_numpy(dtype=float)
    share = fitted_values(logs, observed, wanted_logs)

    variance = lost["noise"].fillna(0.0).to_numpy(dtype=float)
    noise = np.sqrt(variance)
    # A seed of its own, so that the same job gets the same advice.
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(NUM_DRAWS):
        scores = observed + noise * generator.standard_normal(len(noise))
        drawn.append(fitted_values(logs, scores, wanted_logs))

    has_lengths = lost["num_steps"].nunique() > 1
    groups = lost["num_steps" if has_lengths else "models_sent"].to_numpy()
    # Runs of one length or load share what the curve misses there, so they are left out together.
    misses = observed - left_out_values(logs, observed, groups)
    curve_error = math.sqrt(float((misses**2).mean()))
    others = math.hypot(curve_error, between_kinds)
    error = DEVIATIONS * np.hypot(np.std(drawn, axis=0), others)

    beyond = _beyond(lost["models_sent"], wanted["models_sent"])
    if "num_steps" in columns or not has_lengths:
        beyond = np.maximum(beyond, _beyond(lost["num_steps"], wanted["num_steps"]))
    return pd.DataFrame(
        {
            "share": share,
            "low": share - error,
            "high": share + error,
            "beyond": beyond,
        },
        wanted.index,
    )


def _beyond(run: pd.Series, wanted: pd.Series) -> Vector:
    """Return how many times more than the most, or less than the least, that was run."""
    tried = run.to_numpy(dtype=float)
    values = wanted.to_numpy(dtype=float)
    factors = np.maximum(values / tried.max(), tried.min() / values)
    return np.asarray(factors.clip(1.0).round(6), dtype=np.float64)


def lines_as_run(
    job: TrainingJob,
    baseline: Frames,
    methods: Sequence[tuple[Line, list[Sending]]],
) -> pd.DataFrame:
    """Return DDP and the methods that were run, with the losses measured there.

    Args:
        job: whose step times are modelled.
        baseline: the experiment whose baseline stands for DDP.
        methods: `methods_run` for as many steps as the losses are to be of.
    """
    lines = _ddp_lines(job, baseline)
    for line, sendings in methods:
        lines.append(line | _step(job, line, sendings) | {"basis": MEASURED, "beyond": 1.0})
    return _frame(lines)


def lines_beyond(
    job: TrainingJob,
    maps: Sequence[Frames],
    alike: Sequence[Frames],
    others: Sequence[Frames],
    lost: pd.DataFrame,
    spreads: Mapping[str, float],
    gap: float,
) -> pd.DataFrame:
    """Return DDP and all methods, with what is known of their losses in a job that was not run.

    Args:
        maps: experiments through whose rows curves go.
        alike: these and others that ran alike.
        others: experiments whose methods have a step here, and no loss.
        lost: `losses_of` the maps.
        spreads: standard deviation between kinds of network of a method's share lost.
        gap: what can be lost, in scores.
    """
    measured = [pair for frames in alike for pair in methods_run([frames], own_length(frames))]
    deviations = deviations_of(measured)
    lines = _ddp_lines(job, maps[0])
    curves = _with_curve(job, maps, lost, spreads)
    for line in curves:
        share = {
            "estimate": -gap * line["share"],
            "low": -gap * line["share_high"],
            "high": -gap * line["share_low"],
            "deviation": deviations.get(str(line["method"]), math.nan),
            "verdict": None,
            "basis": CURVE,
        }
        lines.append(line | share)
    with_curve = {line["method"] for line in curves}
    for line, sendings in methods_run(alike, own_length(maps[0])):
        if line["method"] not in with_curve:
            lines.append(line | _step(job, line, sendings) | {"basis": ELSEWHERE})
    known = {str(line["method"]) for line in lines}
    lines += _not_run(job, others, known)
    return _frame(lines)


def best_predictor(lost: pd.DataFrame) -> str:
    """Return by what losses are predicted: what explains most of lengths that are left out."""
    if lost["num_steps"].nunique() == 1:
        return "models sent"
    explained = predictors_frame(lost).set_index("predictor")["left_out"]
    return str(explained[["models sent", "steps and ratio"]].idxmax())


def _frame(lines: Sequence[Line]) -> pd.DataFrame:
    frame = pd.DataFrame(lines).sort_values(["seconds", "method"], ignore_index=True)
    # None of a line, and what it lacks, is the same: no verdict.
    frame["verdict"] = frame["verdict"].astype(object).where(frame["verdict"].notna(), None)
    return frame


def _ddp_lines(job: TrainingJob, frames: Frames) -> list[Line]:
    """Return DDP's lines, of numbers of four bytes and of two."""
    baseline = frames.row(str(frames.experiment.baseline))
    lines: list[Line] = []
    for name, bytes_per_number in ((DDP, 4), (DDP_HALF, 2)):
        ratio = 4 / bytes_per_number
        line = {
            "method": name,
            "family": "all sent",
            "ratio": ratio,
            "seconds": ddp_seconds(job, bytes_per_number),
            # DDP's buckets, a model in all, lie beside what the baseline holds.
            "held": float(baseline["peak_models"]) + 1,
            "models_sent": job.num_steps / ratio,
            "estimate": 0.0,
            "low": 0.0,
            "high": 0.0,
            "deviation": 0.0,
            "beyond": 1.0,
            "basis": DEFINED,
            "verdict": None,
            "experiment": frames.experiment.name,
        }
        lines.append(line)
    return lines


def _step(
    job: TrainingJob,
    line: Line,
    sendings: Sequence[Sending],
) -> Line:
    """Return a method's seconds of a step in a job, and the models that it sends there."""
    models_a_step = math.fsum(sending.models * sending.share_of_steps for sending in sendings)
    models = job.num_steps * models_a_step
    if line["final_exchange"]:
        models += 1
    return {
        "seconds": method_seconds(job, sendings),
        "models_sent": models,
        "num_steps": job.num_steps,
        "ratio_sent": job.num_steps / models,
    }


def _of_row(frames: Frames, row: pd.Series) -> Line:
    families = frames.experiment.families
    return {
        "method": row["label"],
        "algorithm": row["algorithm"],
        "family": families.get(row["algorithm"], ""),
        "ratio": row["ratio"],
        "held": row["peak_models"],
        "final_exchange": row["final_exchange"],
        "experiment": frames.experiment.name,
    }


def _own_rows(frames: Frames) -> list[pd.Series]:
    """Return those of the main length, with the rates that trials chose."""
    rows = frames.rows
    is_own = rows["base"].isna() & rows["tunes"].isna() & (rows["rule"] == "held_out")
    return [row for _, row in rows[is_own].iterrows()]


def _with_curve(
    job: TrainingJob,
    maps: Sequence[Frames],
    lost: pd.DataFrame,
    spreads: Mapping[str, float],
) -> list[Line]:
    """Return the lines of methods whose loss a curve foretells, as shares of what can be lost."""
    predictor = best_predictor(lost)
    lines_of: dict[str, list[Line]] = {}
    for frames in maps:
        for row in _own_rows(frames):
            sendings = sendings_of(frames, row)
            if sendings:
                line = _of_row(frames, row)
                lines_of.setdefault(row["label"], []).append(line | _step(job, line, sendings))
    # A method that was run on one kind of network alone may differ as much as any.
    widest = max(spreads.values(), default=0.0)
    lines: list[Line] = []
    for label, rows_lost in lost.groupby("label", sort=False):
        wanted = pd.DataFrame(lines_of[str(label)])
        method = method_of(maps[0], wanted["algorithm"].iloc[0])
        spread = spreads.get(method or "", widest)
        losses = expected_losses(rows_lost, wanted, predictor, spread)
        losses = losses.rename(columns={"low": "share_low", "high": "share_high"})
        lines += pd.concat([wanted, losses], axis=1).to_dict("records")
    return lines


def _not_run(
    job: TrainingJob,
    others: Sequence[Frames],
    known: set[str],
) -> list[Line]:
    """Return the lines of methods that are not `known`: no run says what they would lose."""
    lines: dict[str, Line] = {}
    for frames in others:
        rows = frames.rows
        is_method = rows["base"].isna() & (rows["ratio"] > 1)
        for _, row in rows[is_method].iterrows():
            label = row["label"]
            if label in known or label in lines:
                continue
            sendings = sendings_of(frames, row)
            if sendings:
                line = _of_row(frames, row)
                lines[label] = line | _step(job, line, sendings) | NO_LOSS | {"basis": UNKNOWN}
    return list(lines.values())
