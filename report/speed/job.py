"""The step of one's own training job, by the cost model, from what a row of an experiment sent."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import pandas as pd

from cser_bench.harness.errors import UsageError
from cser_bench.harness.measures.steps import BUCKET_BYTES, FORWARD_SHARE
from cser_bench.harness.records.store import TRAINING
from cser_bench.harness.records.timings import Collective, Message, Rounds
from cser_bench.report.frame import Frames
from cser_bench.report.speed.cost_model import (
    HOP_SECONDS,
    Algorithm,
    Compute,
    Link,
    Links,
    Network,
    step_seconds,
)
from cser_bench.report.speed.two_stages import two_stage_factor


@dataclass(frozen=True)
class TrainingJob:
    """A training job as far as advice needs to know it.

    Attributes:
        compute_seconds: forward and backward pass of one worker's batch.
        bits_per_second: of a machine's link to the others, each way.
        inside_bits_per_second: of a worker's link inside its machine, 0 for no limit.
        latency_seconds: of a hop.
    """

    num_parameters: int
    num_steps: int
    num_machines: int
    workers_per_machine: int
    compute_seconds: float
    bits_per_second: float
    inside_bits_per_second: float = 0.0
    latency_seconds: float = HOP_SECONDS

    def __post_init__(self) -> None:
        if self.num_workers < 2:
            raise UsageError("one worker sends nothing; give two workers or more")

    @property
    def num_workers(self) -> int:
        """Number of workers on all machines."""
        return self.num_machines * self.workers_per_machine


RESNET50 = TrainingJob(
    num_parameters=25_600_000,
    num_steps=450_000,
    num_machines=8,
    workers_per_machine=1,
    compute_seconds=27e-3,
    bits_per_second=10e9,
)
"""ResNet-50 on eight V100s, 32 images each, between machines at 10 Gb/s: the job of the pages."""


@dataclass(frozen=True)
class Sending:
    """One collective of a method.

    Attributes:
        models: the payload of one worker, in models.
        share_of_steps: in which it takes place.
        one_peer: an exchange is with one neighbour, another one in each step; else with both of a
            ring.
    """

    models: float
    share_of_steps: float
    collective: Collective
    one_peer: bool = False


def sendings_of(frames: Frames, row: pd.Series) -> list[Sending]:
    """Return what one worker of a row sends, from the counted traffic of any of its runs.

    Empty where nothing was sent.
    """
    is_own = frames.runs["row"] == row["row"]
    counted = frames.runs[is_own & frames.runs["bits"].notna()]
    if counted.empty:
        return []
    run = counted.iloc[0]
    # NoLoCo draws its pairs itself, and has no topology among its settings.
    is_one_peer = row.get("topology") == "one_peer" or row["algorithm"] == "noloco"
    sendings: list[Sending] = []
    for purpose in TRAINING:
        bits = _traffic(run, purpose, "bits")
        if not bits > 0:
            # Zero, or NaN of a purpose that this run has not.
            continue
        num_collectives = _traffic(run, purpose, "collectives")
        # Of one collective, in models of 32 bits a parameter; a run has so many in its steps.
        sendings.append(
            Sending(
                models=bits / num_collectives / (32 * row["num_parameters"]),
                share_of_steps=num_collectives / row["num_steps"],
                collective=_collective(run, row, purpose),
                one_peer=is_one_peer,
            )
        )
    return sendings


def _traffic(run: pd.Series, purpose: str, count: str) -> float:
    """Return a count of a run's traffic, as "gradient.bits"; 0 or NaN of a purpose that it has not."""
    return float(run.get(f"{purpose}.{count}") or 0)


def _collective(run: pd.Series, row: pd.Series, purpose: str) -> Collective:
    """Return the way that more than half of a purpose's bits took."""
    bits = _traffic(run, purpose, "bits")
    if 2 * _traffic(run, purpose, "neighbour_bits") > bits:
        return "exchange"
    if 2 * _traffic(run, purpose, "gathered_bits") > bits:
        return "all_gather"
    compressors = [
        row.get(f"{name}.kind") for name in ("compressor", f"{purpose}_compressor")
    ]
    # A sum of numbers of few bits needs more bits, so they are not summed on the way. The setting
    # `bits` is Streaming DiLoCo's, which has no compressor by name.
    if "quantised_blocks" in compressors or pd.notna(row.get("bits")):
        return "two_stages"
    return "all_reduce"


def method_seconds(job: TrainingJob, sendings: Sequence[Sending]) -> float:
    """Return the mean seconds of a step whose messages follow the backward pass.

    One that is not in every step is spread over all.
    """
    compute = _compute(job)
    network = _network(job)
    passes = step_seconds(compute, [], network)
    communication = 0.0
    for sending in sendings:
        # A model is 4 bytes a parameter. The message is ready when the backward pass is over.
        message = Message(
            collective=sending.collective,
            payload_bytes=math.ceil(4 * sending.models * job.num_parameters),
            every=1,
            ready=1.0,
            rounds=_rounds(sending, job.num_workers),
        )
        seconds = step_seconds(compute, [message], network) - passes
        communication += sending.share_of_steps * seconds
    return passes + communication


def ddp_seconds(job: TrainingJob, bytes_per_number: int) -> float:
    """Return the seconds of a step of DDP, whose buckets are sent as the backward pass fills them.

    Their number is that of fp32, since a hook that halves them does so after they are filled.
    """
    num_buckets = max(1, math.ceil(4 * job.num_parameters / BUCKET_BYTES))
    buckets = []
    for number in range(num_buckets):
        bucket = Message(
            collective="all_reduce",
            payload_bytes=math.ceil(
                bytes_per_number * job.num_parameters / num_buckets
            ),
            every=1,
            ready=(number + 1) / num_buckets,
        )
        buckets.append(bucket)
    return step_seconds(_compute(job), buckets, _network(job))


def _compute(job: TrainingJob) -> Compute:
    forward = FORWARD_SHARE * job.compute_seconds
    backward = (1 - FORWARD_SHARE) * job.compute_seconds
    return Compute(forward, backward)


def _network(job: TrainingJob) -> Network:
    """Return the job's network, its collectives by hierarchy where machines hold several workers."""
    inside_beta = 0.0
    if job.inside_bits_per_second:
        inside_beta = 8 / job.inside_bits_per_second
    # Compared with a hop between machines, one inside a machine has no latency.
    inside = Link(alpha=0.0, beta=inside_beta)
    between = Link(alpha=job.latency_seconds, beta=8 / job.bits_per_second)
    # A hop is the sum of both, p = 1: nothing was swept of this network to fit p to.
    links: dict[Collective, Links] = dict.fromkeys(
        get_args(Collective), Links(between, inside)
    )
    # Between machines, where it was timed: inside one nothing says that it takes longer.
    factor = two_stage_factor()
    slowed = Link(factor * between.alpha, factor * between.beta)
    links["two_stages"] = Links(slowed, inside)
    algorithm: Algorithm = "ring"
    if job.num_machines > 1 and job.workers_per_machine > 1:
        algorithm = "hierarchical"
    return Network(job.num_machines, job.workers_per_machine, links, algorithm)


def _rounds(sending: Sending, num_workers: int) -> Rounds:
    """Return the distances to which a worker of the job sends, of each round of an exchange."""
    if sending.collective != "exchange":
        return ()
    if sending.one_peer:
        # One peer a step, at distances 1, 2, 4 and so on.
        num_rounds = (num_workers - 1).bit_length()
        return tuple((2**power,) for power in range(num_rounds))
    # Both neighbours on the ring, which of two workers are one.
    neighbours = dict.fromkeys((1, num_workers - 1))
    return (tuple(neighbours),)
