"""Advice for one's own job: what each method's step would take there, and what the regime map says
that it loses.

Steps are modelled from what each row of an experiment sent, by the cost model of report/speed.
Losses are read off the curves through runs of several lengths or loads on the nearest kind of
network (report/regime.py), with how far the job lies beyond them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from tabulate import tabulate

from cser_bench.harness.records.timings import Collective, Message, Rounds
from cser_bench.report.frame import TRAINING, Frames, UsageError, read_frames
from cser_bench.report.questions.evidence import GPT, RESIDUAL, SHIPPED, Evidence
from cser_bench.report.questions.losses import RECENT
from cser_bench.report.questions.networks import METHODS, shares_lost, spread_between_kinds
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
from cser_bench.report.speed.cost_model import Compute, Link, Links, Network, step_seconds
from cser_bench.report.wording import amount, milliseconds, points, short

MAPS = {
    "perceptron": [SHIPPED / "reference/fashion_mnist_long"],
    "residual": [SHIPPED / "reference" / RESIDUAL, SHIPPED / "study_resnet_loads"],
    "gpt": [SHIPPED / "reference" / GPT, SHIPPED / "study_gpt_text_loads"],
}
"""By kind of network: the experiments whose runs predict losses, one of several lengths or more of
several loads."""
BUCKET_BYTES = 25 * 2**20
"""Of DDP's buckets, its default."""
FORWARD_SHARE = 1 / 3
"""Of the two passes' time: an assumption, since a backward pass has twice the forward pass's
arithmetic."""
WORTH = 1.05
"""A method is recommended over DDP where its step is so many times as fast, or more."""
COVERAGE, NUM_DRAWS = 1.96, 20
"""Standard deviations of a 95 % interval, and times that the seeds' noise is drawn for one of its
two parts."""


@dataclass(frozen=True)
class TrainingJob:
    """A training job as far as advice needs to know it.

    Attributes:
        compute_seconds: forward and backward pass of one worker's batch.
        bits_per_second: of a machine's link to the others, each way; `inside`: of a worker's link
            inside its machine, 0 for no limit.
        latency_seconds: of a hop.
        margin: loss that counts as none, a share, or in nats; None takes the map's own.
        gap: between a worker alone and all sent, a share, or in nats; None takes the map's own.
    """

    num_parameters: int
    num_steps: int
    num_machines: int
    workers_per_machine: int
    compute_seconds: float
    bits_per_second: float
    inside_bits_per_second: float = 0.0
    latency_seconds: float = 50e-6
    margin: float | None = None
    gap: float | None = None
    dollars_per_hour: float | None = None

    def __post_init__(self) -> None:
        if self.num_workers < 2:
            raise UsageError("one worker sends nothing; give two workers or more")

    @property
    def num_workers(self) -> int:
        return self.num_machines * self.workers_per_machine


@dataclass(frozen=True)
class Sending:
    """One collective: the payload of one worker in models, in which share of the steps it takes
    place, and its way.

    `one_peer`: an exchange is with one neighbour, another one in each step; else with both of a
        ring.
    """

    models: float
    share_of_steps: float
    collective: Collective
    one_peer: bool = False


def sendings_of(frames: Frames, row: pd.Series) -> list[Sending]:
    """What one worker of a row sends, from the counted traffic of any of its runs; empty where
    nothing was sent."""
    runs = frames.runs[(frames.runs["row"] == row["row"]) & frames.runs["bits"].notna()]
    found: list[Sending] = []
    for purpose in TRAINING if len(runs) else ():
        bits, collectives, gathered, told = (
            float(runs.iloc[0].get(f"{purpose}.{key}") or 0)
            for key in ("bits", "collectives", "gathered_bits", "neighbour_bits")
        )
        if bits > 0:  # false for nan, of a purpose that a run has not
            kinds = [row.get(f"{key}.kind") for key in ("compressor", f"{purpose}_compressor")]
            is_short = "quantised_blocks" in kinds or pd.notna(
                row.get("bits")
            )  # Streaming DiLoCo's own
            dense: Collective = "two_stages" if is_short else "all_reduce"
            way: Collective = (
                "exchange" if 2 * told > bits else "all_gather" if 2 * gathered > bits else dense
            )
            models = bits / collectives / (32 * row["num_parameters"])
            one_peer = row.get("topology") == "one_peer" or row["algorithm"] == "noloco"
            found.append(Sending(models, collectives / row["num_steps"], way, one_peer))
    return found


def method_seconds(job: TrainingJob, sendings: Sequence[Sending]) -> float:
    """Mean seconds of a step: messages follow the backward pass; one that is not in every step is
    spread over all."""
    alone = step_seconds(_compute(job), [], _network(job))
    extra = 0.0
    for sending in sendings:
        size = math.ceil(4 * sending.models * job.num_parameters)
        rounds = _rounds(sending, job.num_workers)
        message = Message(
            collective=sending.collective, payload_bytes=size, every=1, ready=1.0, rounds=rounds
        )
        extra += sending.share_of_steps * (
            step_seconds(_compute(job), [message], _network(job)) - alone
        )
    return alone + extra


def ddp_seconds(job: TrainingJob, bytes_per_number: int) -> float:
    """Seconds of a step of DDP: buckets that are sent as the backward pass fills them."""
    count = max(1, math.ceil(4 * job.num_parameters / BUCKET_BYTES))
    size = math.ceil(bytes_per_number * job.num_parameters / count)
    ready = [(number + 1) / count for number in range(count)]
    buckets = [
        Message(collective="all_reduce", payload_bytes=size, every=1, ready=share)
        for share in ready
    ]
    return step_seconds(_compute(job), buckets, _network(job))


def _compute(job: TrainingJob) -> Compute:
    return Compute(FORWARD_SHARE * job.compute_seconds, (1 - FORWARD_SHARE) * job.compute_seconds)


def _network(job: TrainingJob) -> Network:
    """The job's network, its collectives by hierarchy where machines hold several workers."""
    inside = Link(0.0, 8 / job.inside_bits_per_second if job.inside_bits_per_second else 0.0)
    links = Links(Link(job.latency_seconds, 8 / job.bits_per_second), inside)
    names: dict[Collective, Links] = dict.fromkeys(get_args(Collective), links)
    is_both = job.num_machines > 1 and job.workers_per_machine > 1
    return Network(
        job.num_machines, job.workers_per_machine, names, "hierarchical" if is_both else "ring"
    )


def _rounds(sending: Sending, num_workers: int) -> Rounds:
    """To whom a worker of the job sends; one peer a step is at distances 1, 2, 4 and so on."""
    if sending.collective != "exchange":
        return ()
    if sending.one_peer:
        return tuple((2**power,) for power in range((num_workers - 1).bit_length()))
    return (tuple(dict.fromkeys((1, num_workers - 1))),)


def expected_losses(
    lost: pd.DataFrame, wanted: pd.DataFrame, predictor: str, between_kinds: float = 0.0
) -> pd.DataFrame:
    """The share of the gap that a method is expected to lose at each of the wanted lines, with a 95
    % interval.

    The interval joins three errors: the seeds', by drawing their noise; the curve's own, by the
    misses of rows of one length, or of one load where all have one length, that the others alone
    predict; and that the job's network is another one.

    Args:
        lost: the method's rows of `losses_of`.
        wanted: with the columns models_sent, num_steps and ratio_sent.
        predictor: one of `PREDICTORS`.
        between_kinds: standard deviation of the share between kinds of network.

    Returns:
        The columns share, low, high and beyond: how many times more, or fewer, models or steps than
        in any run.
    """
    columns = list(PREDICTORS[predictor])
    logs, at = (np.log(frame[columns].to_numpy(dtype=float)) for frame in (lost, wanted))
    observed = lost["lost"].to_numpy(dtype=float)
    groups = lost["num_steps" if lost["num_steps"].nunique() > 1 else "models_sent"].to_numpy()
    share, generator = fitted_values(logs, observed, at), np.random.default_rng(0)
    noise = np.sqrt(lost["noise"].fillna(0.0).to_numpy(dtype=float))
    drawn = [
        fitted_values(logs, observed + noise * generator.standard_normal(len(noise)), at)
        for _ in range(NUM_DRAWS)
    ]
    misses = observed - left_out_values(logs, observed, groups)
    others = math.hypot(math.sqrt(float((misses**2).mean())), between_kinds)
    error = COVERAGE * np.hypot(np.std(drawn, axis=0), others)
    beyond = _beyond(lost["models_sent"], wanted["models_sent"])
    if "num_steps" in columns or lost["num_steps"].nunique() == 1:
        beyond = np.maximum(beyond, _beyond(lost["num_steps"], wanted["num_steps"]))
    return pd.DataFrame(
        {"share": share, "low": share - error, "high": share + error, "beyond": beyond},
        wanted.index,
    )


def _beyond(tried: pd.Series, values: pd.Series) -> Vector:
    own, run = values.to_numpy(dtype=float), tried.to_numpy(dtype=float)
    return np.asarray(
        np.maximum(own / run.max(), run.min() / own).clip(1.0).round(6), dtype=np.float64
    )


@dataclass(frozen=True)
class Advice:
    """All lines, the fastest first, and the text: a recommendation, the table, and what it rests
    on.

    `lines` has the columns method, ratio, seconds, models_sent, held (in models, the most at a
    synchronisation), share, low, high and beyond; DDP loses nothing by definition (fp32), or is
    taken to (fp16). `gap` turns a share lost into points.
    """

    lines: pd.DataFrame
    gap: float
    text: str


def advise(
    job: TrainingJob, maps: Sequence[Frames], shares: pd.DataFrame, others: Sequence[Frames] = ()
) -> Advice:
    """Advice from the runs of a kind of network, of several lengths or loads, and the traffic of
    their rows.

    Args:
        maps: one experiment of several lengths, or some of one length, which share their bounds.
        shares: what methods lose on other kinds of network; see
            `report.questions.networks.shares_lost`.
        others: experiments whose methods have a step and memory here, and no loss.

    Raises UsageError: the runs are too few, of several networks, or cannot tell a loss; a margin or
    gap is above 100.
    """
    alike = {
        (each.experiment.task, each.experiment.baseline, each.rows["num_parameters"].iloc[0])
        for each in maps
    }
    if len(alike) > 1:
        raise UsageError(
            "the folders of --map differ in task, network or baseline; give folders of one network"
        )
    for option, given in (("--margin", job.margin), ("--gap", job.gap)):
        if given is not None and given > 1 and maps[0].metric.is_share:
            raise UsageError(
                f"{option} is {100 * given:g} points, and all of {maps[0].metric.label} is 100; "
                "give less"
            )
    lost, telling = losses_of(maps), assay_frame(maps[0])
    telling = telling[telling["reason"].isna()]
    if lost.empty or telling.empty:
        where = f"{maps[0].folder} has no runs of several lengths or loads that can tell a loss"
        raise UsageError(f"{where}, so it has no regime map; give another experiment with --map")
    gap = job.gap if job.gap is not None else float(telling["gap"].iloc[0])
    predictor = "models sent"
    if lost["num_steps"].nunique() > 1:
        explained = predictors_frame(lost).set_index("predictor")["left_out"]
        predictor = str(explained[["models sent", "steps and ratio"]].idxmax())
    sent_all = maps[0].row(str(maps[0].experiment.baseline))
    held = float(sent_all["peak_models"]) + 1  # and its buckets
    lines: list[dict[Any, Any]] = [
        _ddp(job, 4, "DDP, fp32", held),
        _ddp(job, 2, "DDP, fp16 hook", held),
    ]
    lines += _with_curve(job, maps, lost, predictor, spread_between_kinds(shares))
    lines += _without_curve(job, others, {str(line["method"]) for line in lines})
    table = pd.DataFrame(lines).sort_values(["seconds", "method"], ignore_index=True)
    margin = job.margin if job.margin is not None else maps[0].experiment.margin
    assert margin is not None, "an experiment that can tell a loss has a margin"
    base, best = _recommended(margin, gap, table)
    faster = table[table["seconds"] * WORTH < base["seconds"]]
    context = {
        "job": job,
        "gap": gap,
        "worth": WORTH,
        "base": base,
        "best": best,
        "margin": margin,
        "enough": np.ceil(1e4 * gap * faster["high"].min()) / 1e4,
        "table": tabulate(
            _shown(job, gap, table).to_dict("list"), headers="keys", disable_numparse=True
        ),
        "experiment": maps[0].experiment,
        "kind": {places[0].name: kind for kind, places in MAPS.items()}.get(
            maps[0].experiment.name
        ),
        "is_text": not maps[0].metric.is_share,
        "sent_all": sent_all["label"],
        "size": maps[0].rows["num_parameters"].iloc[0],
        "lengths": lost["num_steps"].drop_duplicates(),
        "num_loads": lost.groupby("label")["models_sent"].nunique().min(),
        "names": [each.experiment.name for each in maps],
        "predictor": predictor,
        "num_kinds": shares["network"].nunique(),
    }
    return Advice(table, gap, environment().get_template("advice.md.j2").render(context).rstrip())


def _own_rows(frames: Frames) -> list[pd.Series]:
    """Those of the main length, with the rates that trials chose."""
    rows = frames.rows
    own = rows["base"].isna() & rows["tunes"].isna() & (rows["rule"] == "held_out")
    return [row for _, row in rows[own].iterrows()]


def _job_line(job: TrainingJob, row: pd.Series, sendings: Sequence[Sending]) -> dict[str, Any]:
    models = job.num_steps * math.fsum(each.models * each.share_of_steps for each in sendings)
    models += bool(row["final_exchange"])
    line = {"method": row["label"], "ratio": row["ratio"], "seconds": method_seconds(job, sendings)}
    line["held"] = row["peak_models"]
    return line | {
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
    """Lines of methods whose loss a curve foretells."""
    sent = [
        (row, sendings)
        for each in maps
        for row in _own_rows(each)
        if (sendings := sendings_of(each, row))
    ]
    lines: list[dict[Any, Any]] = []
    for label, known in lost.groupby("label", sort=False):
        own = [each for each in sent if each[0]["label"] == label]
        wanted = pd.DataFrame([_job_line(job, *each) for each in own])
        between = spreads.get(
            METHODS.get(own[0][0]["algorithm"], ""), max(spreads.values(), default=0.0)
        )
        lines += pd.concat(
            [wanted, expected_losses(known, wanted, predictor, between)], axis=1
        ).to_dict("records")
    return lines


def _without_curve(
    job: TrainingJob, others: Sequence[Frames], known: set[str]
) -> list[dict[Any, Any]]:
    """Lines of methods that are not `known`: what they would lose in the job nobody knows."""
    unknown, found = (
        dict.fromkeys(("share", "low", "high", "beyond"), math.nan),
        dict[str, dict[Any, Any]](),
    )
    for frames in others:
        for _, row in frames.rows[
            frames.rows["base"].isna() & (frames.rows["ratio"] > 1)
        ].iterrows():
            if row["label"] not in known and (sendings := sendings_of(frames, row)):
                found.setdefault(row["label"], _job_line(job, row, sendings) | unknown)
    return list(found.values())


def _ddp(job: TrainingJob, bytes_per_number: int, name: str, held: float) -> dict[str, Any]:
    ratio = 4 / bytes_per_number
    nothing = {"share": 0.0, "low": 0.0, "high": 0.0, "beyond": 1.0}
    line = {
        "method": name,
        "ratio": ratio,
        "seconds": ddp_seconds(job, bytes_per_number),
        "held": held,
    }
    return line | {"models_sent": job.num_steps / ratio} | nothing


def _recommended(
    margin: float, gap: float, lines: pd.DataFrame
) -> tuple[dict[Any, Any], dict[Any, Any] | None]:
    """DDP's faster line, and the line that is recommended over it; None where none is worth it."""
    base = lines[lines["method"].str.startswith("DDP")].iloc[0]
    safe = lines[gap * lines["high"] <= margin]
    # Of lines that are about as fast as the fastest, the one that sends most is the safest.
    near = safe[safe["seconds"] <= WORTH * safe["seconds"].min()]
    best = near.loc[near["models_sent"].idxmax()]
    is_plain = base["seconds"] < WORTH * safe["seconds"].min() or best["method"].startswith("DDP")
    return base.to_dict(), None if is_plain else best.to_dict()


def _shown(job: TrainingJob, gap: float, lines: pd.DataFrame) -> pd.DataFrame:
    """The lines as texts."""
    hours = lines["seconds"] * job.num_steps / 3600
    losses = [(gap * lines[key]).map(points) for key in ("share", "low", "high")]
    beyond = lines["beyond"].map("{:.2g} times".format)
    shown = {
        "method": lines["method"],
        "ratio": lines["ratio"].map(short),
        "ms a step": lines["seconds"].map(milliseconds),
        "hours": hours.map("{:.3g}".format),
        "models sent": lines["models_sent"].map(amount),
        "GB held": (lines["held"] * 4 * job.num_parameters / 1e9).map("{:.2g}".format),
        "expected loss, points": (losses[0] + " (" + losses[1] + " to " + losses[2] + ")")
        .mask(lines["method"].str.startswith("DDP"), "0")
        .mask(lines["share"].isna(), "not known"),
        "beyond what was run": beyond.mask(lines["beyond"] == 1, "no").mask(
            lines["share"].isna(), "too few runs"
        ),
    }
    dollars = (
        {"dollars": (hours * job.dollars_per_hour).map("{:,.0f}".format)}
        if job.dollars_per_hour
        else {}
    )
    return pd.DataFrame(shown | dollars)


def advice_from(folders: Sequence[Path], job: TrainingJob) -> str:
    """Advice from the runs in experiments' folders, in words. Raises UsageError as `advise`."""
    if not SHIPPED.is_dir():
        raise UsageError(
            f"advice stands on the records in {SHIPPED}, which come with a checkout and not with "
            "an installation; run `python -m harness advise` in a checkout"
        )
    shares = shares_lost(Evidence((SHIPPED,)))
    recent = [
        read_frames(place) for name in RECENT if (place := SHIPPED / "reference" / name).is_dir()
    ]
    maps = [read_frames(folder) for folder in folders]
    others = [each for each in recent if each.experiment.baseline == maps[0].experiment.baseline]
    return advise(job, maps, shares[shares["tells"]], [*maps, *others]).text
