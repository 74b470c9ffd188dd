"""Advice for one's own job: what each method's step would take there, and what it would lose.

Steps are modelled from what each row of an experiment sent, by the cost model (report/speed/job.py).
Losses are read off the curves through runs of several lengths or loads on the nearest kind of
network (report/regime.py), with how far the job lies beyond them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from cser_bench.harness.errors import UsageError
from cser_bench.report.frame import Frames, evidence_in, read_frames
from cser_bench.report.questions.evidence import SHIPPED, Evidence
from cser_bench.report.questions.networks import method_of, shares_lost, spread_between_kinds
from cser_bench.report.regime import (
    PREDICTORS,
    Vector,
    assay_frame,
    fitted_values,
    left_out_values,
    losses_of,
    predictors_frame,
)
from cser_bench.report.render import environment
from cser_bench.report.speed.job import (
    Sending,
    TrainingJob,
    ddp_seconds,
    method_seconds,
    sendings_of,
)
from cser_bench.report.wording import amount, milliseconds, points, short

PLACES = (SHIPPED, SHIPPED / "reference")
"""Folders of the shipped experiments' folders."""

WORTH = 1.05
"""A method is recommended over DDP where its step is so many times as fast, or more."""

DEVIATIONS = 1.96
"""Standard deviations of a 95 % interval."""

NUM_DRAWS = 20
"""Times that the seeds' noise is drawn: the error of a standard deviation is then a sixth of it."""

NOT_KNOWN = {
    "share": math.nan,
    "low": math.nan,
    "high": math.nan,
    "beyond": math.nan,
}
"""Of a line whose loss in the job no curve foretells."""


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


@dataclass(frozen=True)
class Advice:
    """All lines, the fastest first, and the text: a recommendation, the table, and its grounds.

    `lines` has the columns method, ratio, seconds, models_sent, held (in models, the most at a
    synchronisation), share, low, high and beyond; DDP loses nothing by definition (fp32), or is
    taken to (fp16). `gap` turns a share lost into points.
    """

    lines: pd.DataFrame
    gap: float
    text: str


def advise(
    job: TrainingJob,
    maps: Sequence[Frames],
    shares: pd.DataFrame,
    others: Sequence[Frames] = (),
) -> Advice:
    """Return advice from the runs of a kind of network and the traffic of their rows.

    Args:
        maps: one experiment of several lengths, or some of one length, which share their bounds.
        shares: what methods lose on other kinds of network; see
            `report.questions.networks.shares_lost`.
        others: experiments whose methods have a step and memory here, and no loss.

    Raises:
        UsageError: the runs are too few, of several networks, or cannot tell a loss; a margin or
            gap is above 100.
    """
    _refuse_mixed_maps(maps)
    _refuse_beyond_all(job, maps[0])
    lost = losses_of(maps)
    assays = assay_frame(maps[0])
    telling = assays[assays["reason"].isna()]
    if lost.empty or telling.empty:
        raise UsageError(
            f"{maps[0].folder} has no runs of several lengths or loads that can tell a loss, so it "
            "has no regime map; give another experiment with --map"
        )
    predictor = _best_predictor(lost)
    baseline = maps[0].row(str(maps[0].experiment.baseline))
    # DDP's buckets, a model in all, lie beside what the baseline holds.
    held = float(baseline["peak_models"]) + 1
    lines: list[dict[Any, Any]] = [
        _ddp(job, 4, "DDP, fp32", held),
        _ddp(job, 2, "DDP, fp16 hook", held),
    ]
    lines += _with_curve(
        job,
        maps,
        lost,
        predictor,
        spread_between_kinds(shares),
    )
    known = {str(line["method"]) for line in lines}
    lines += _without_curve(job, others, known)
    table = pd.DataFrame(lines).sort_values(["seconds", "method"], ignore_index=True)

    gap = job.gap
    if gap is None:
        gap = float(telling["gap"].iloc[0])
    margin = job.margin
    if margin is None:
        margin = maps[0].experiment.margin
    assert margin is not None, "an experiment that can tell a loss has a margin"
    base, best = _recommended(margin, gap, table)
    faster = table[table["seconds"] * WORTH < base["seconds"]]
    shown = _shown(job, gap, table).to_dict("list")
    context = {
        "job": job,
        "gap": gap,
        "worth": WORTH,
        "base": base,
        "best": best,
        "margin": margin,
        # Rounded up, so that the margin that is named does let the method in.
        "enough": np.ceil(1e4 * gap * faster["high"].min()) / 1e4,
        "table": tabulate(shown, headers="keys", disable_numparse=True),
        "experiment": maps[0].experiment,
        "kind": _network_advised_on(maps[0]),
        "is_text": not maps[0].metric.is_share,
        "sent_all": baseline["label"],
        "size": maps[0].rows["num_parameters"].iloc[0],
        "lengths": lost["num_steps"].drop_duplicates(),
        "num_loads": lost.groupby("label")["models_sent"].nunique().min(),
        "names": [frames.experiment.name for frames in maps],
        "predictor": predictor,
        "num_kinds": shares["network"].nunique(),
    }
    text = environment().get_template("advice.md.j2").render(context)
    return Advice(table, gap, text.rstrip())


def _refuse_mixed_maps(maps: Sequence[Frames]) -> None:
    networks = set()
    for frames in maps:
        experiment = frames.experiment
        size = frames.rows["num_parameters"].iloc[0]
        networks.add((experiment.task, experiment.baseline, size))
    if len(networks) > 1:
        raise UsageError(
            "the folders of --map differ in task, network or baseline; give folders of one network"
        )


def _refuse_beyond_all(job: TrainingJob, frames: Frames) -> None:
    """Refuse a margin or gap that is more than all of an accuracy."""
    if not frames.metric.is_share:
        return
    for option, value in (("--margin", job.margin), ("--gap", job.gap)):
        if value is not None and value > 1:
            raise UsageError(
                f"{option} is {100 * value:g} points, and all of {frames.metric.label} is 100; "
                "give less"
            )


def _best_predictor(lost: pd.DataFrame) -> str:
    """Return by what losses are predicted: what explains most of lengths that are left out."""
    if lost["num_steps"].nunique() == 1:
        return "models sent"
    explained = predictors_frame(lost).set_index("predictor")["left_out"]
    return str(explained[["models sent", "steps and ratio"]].idxmax())


def _network_advised_on(frames: Frames) -> str | None:
    """Return the network that `--network` names, with its article; None for another one."""
    evidence = frames.experiment.evidence
    return evidence.network if evidence and evidence.advice else None


def _own_rows(frames: Frames) -> list[pd.Series]:
    """Return those of the main length, with the rates that trials chose."""
    rows = frames.rows
    is_own = rows["base"].isna() & rows["tunes"].isna() & (rows["rule"] == "held_out")
    return [row for _, row in rows[is_own].iterrows()]


def _job_line(
    job: TrainingJob,
    row: pd.Series,
    sendings: Sequence[Sending],
) -> dict[str, Any]:
    models_a_step = math.fsum(sending.models * sending.share_of_steps for sending in sendings)
    models = job.num_steps * models_a_step
    if row["final_exchange"]:
        models += 1
    return {
        "method": row["label"],
        "ratio": row["ratio"],
        "seconds": method_seconds(job, sendings),
        "held": row["peak_models"],
        "models_sent": models,
        "num_steps": job.num_steps,
        "ratio_sent": job.num_steps / models,
    }


def _with_curve(
    job: TrainingJob,
    maps: Sequence[Frames],
    lost: pd.DataFrame,
    predictor: str,
    spreads: Mapping[str, float],
) -> list[dict[Any, Any]]:
    """Return the lines of methods whose loss a curve foretells."""
    senders: dict[str, list[tuple[pd.Series, list[Sending]]]] = {}
    for frames in maps:
        for row in _own_rows(frames):
            sendings = sendings_of(frames, row)
            if sendings:
                senders.setdefault(row["label"], []).append((row, sendings))
    # A method that was run on one kind of network alone may differ as much as any.
    widest = max(spreads.values(), default=0.0)
    lines: list[dict[Any, Any]] = []
    for label, rows_lost in lost.groupby("label", sort=False):
        rows = senders[str(label)]
        wanted = pd.DataFrame([_job_line(job, row, sendings) for row, sendings in rows])
        method = method_of(maps[0], rows[0][0]["algorithm"])
        spread = spreads.get(method or "", widest)
        losses = expected_losses(rows_lost, wanted, predictor, spread)
        lines += pd.concat([wanted, losses], axis=1).to_dict("records")
    return lines


def _without_curve(
    job: TrainingJob,
    others: Sequence[Frames],
    known: set[str],
) -> list[dict[Any, Any]]:
    """Return the lines of methods that are not `known`: no run says what they would lose."""
    lines: dict[str, dict[Any, Any]] = {}
    for frames in others:
        rows = frames.rows
        is_method = rows["base"].isna() & (rows["ratio"] > 1)
        for _, row in rows[is_method].iterrows():
            label = row["label"]
            if label in known or label in lines:
                continue
            sendings = sendings_of(frames, row)
            if sendings:
                lines[label] = _job_line(job, row, sendings) | NOT_KNOWN
    return list(lines.values())


def _ddp(
    job: TrainingJob,
    bytes_per_number: int,
    name: str,
    held: float,
) -> dict[str, Any]:
    ratio = 4 / bytes_per_number
    return {
        "method": name,
        "ratio": ratio,
        "seconds": ddp_seconds(job, bytes_per_number),
        "held": held,
        "models_sent": job.num_steps / ratio,
        "share": 0.0,
        "low": 0.0,
        "high": 0.0,
        "beyond": 1.0,
    }


def _recommended(
    margin: float,
    gap: float,
    lines: pd.DataFrame,
) -> tuple[dict[Any, Any], dict[Any, Any] | None]:
    """Return DDP's faster line, and the line that is recommended over it; None for DDP itself."""
    is_ddp = lines["method"].str.startswith("DDP")
    base = lines[is_ddp].iloc[0]
    # The end of the interval counts, and a comparison with NaN is false: an unknown loss is not safe.
    safe = lines[gap * lines["high"] <= margin]
    fastest = safe["seconds"].min()
    # Of lines that are about as fast as the fastest, the one that sends most is the safest.
    near = safe[safe["seconds"] <= WORTH * fastest]
    best = near.loc[near["models_sent"].idxmax()]
    if base["seconds"] < WORTH * fastest or best["method"].startswith("DDP"):
        return base.to_dict(), None
    return base.to_dict(), best.to_dict()


def _shown(
    job: TrainingJob,
    gap: float,
    lines: pd.DataFrame,
) -> pd.DataFrame:
    """Return the lines as texts."""
    hours = lines["seconds"] * job.num_steps / 3600
    gigabytes = lines["held"] * 4 * job.num_parameters / 1e9
    estimate = (gap * lines["share"]).map(points)
    low = (gap * lines["low"]).map(points)
    high = (gap * lines["high"]).map(points)
    losses = estimate + " (" + low + " to " + high + ")"
    losses = losses.mask(lines["method"].str.startswith("DDP"), "0")
    losses = losses.mask(lines["share"].isna(), "not known")
    beyond = lines["beyond"].map("{:.2g} times".format)
    beyond = beyond.mask(lines["beyond"] == 1, "no")
    beyond = beyond.mask(lines["share"].isna(), "too few runs")
    shown = pd.DataFrame(
        {
            "method": lines["method"],
            "ratio": lines["ratio"].map(short),
            "ms a step": lines["seconds"].map(milliseconds),
            "hours": hours.map("{:.3g}".format),
            "models sent": lines["models_sent"].map(amount),
            "GB held": gigabytes.map("{:.2g}".format),
            "expected loss, points": losses,
            "beyond what was run": beyond,
        }
    )
    if job.dollars_per_hour:
        dollars = hours * job.dollars_per_hour
        shown["dollars"] = dollars.map("{:,.0f}".format)
    return shown


def folders_for(network: str | None) -> list[Path]:
    """Return the folders of the shipped experiments whose runs predict losses on a network.

    They are one of several lengths, or more of several loads.

    Args:
        network: as their specs name it for advice; None is the first of all.

    Raises:
        UsageError: there are no shipped records, or none of this network.
    """
    _check_shipped()
    advised: dict[str, list[Path]] = {}
    for name, about in evidence_in(PLACES).items():
        if about.advice:
            folder = next(place / name for place in PLACES if (place / name).is_dir())
            advised.setdefault(about.advice, []).append(folder)
    wanted = next(iter(advised), None) if network is None else network
    if wanted is None or wanted not in advised:
        raise UsageError(
            f"no shipped experiment is advised on as {network!r}; give one of {', '.join(advised)}"
        )
    return advised[wanted]


def _check_shipped() -> None:
    if not SHIPPED.is_dir():
        raise UsageError(
            f"advice stands on the records in {SHIPPED}, which come with a checkout and not with "
            "an installation; run `python -m harness advise` in a checkout"
        )


def advice_from(folders: Sequence[Path], job: TrainingJob) -> str:
    """Return advice from the runs in experiments' folders, in words.

    Raises:
        UsageError: as `advise`, or there are no shipped records.
    """
    _check_shipped()
    evidence = Evidence((SHIPPED,))
    shares = shares_lost(evidence)
    maps = [read_frames(folder) for folder in folders]
    others = []
    for known in evidence.all_of("methods"):
        # Methods of another optimiser's family would be compared with another baseline.
        if known.baseline == maps[0].experiment.baseline:
            others.append(known.frames)
    tell = shares[shares["tells"]]
    return advise(job, maps, tell, [*maps, *others]).text
