"""What a step of a method takes on a job's network, by the cost model, from what the method sent in an experiment."""

from __future__ import annotations

import math
from dataclasses import dataclass

from harness.records.store import TrafficEntry
from harness.records.timings import Collective, Message, Rounds
from report.accuracy.records import RowRuns
from report.advice.job import TrainingJob
from report.speed.cost_model import Compute, Link, Links, Network, step_seconds

BUCKET_BYTES = 25 * 2**20
"""Of DDP's buckets, its default."""

FORWARD_SHARE = 1 / 3
"""Of the two passes' time: an assumption, since a backward pass has twice the forward pass's arithmetic."""


@dataclass(frozen=True)
class Sent:
    """What one worker of a row sends, in models: `messages` of a step, each with its share of steps.

    `per_step` is the sum, and `at_end` the exchange that follows where workers differ at the end.
    """

    messages: tuple[Sending, ...]
    at_end: int

    @property
    def per_step(self) -> float:
        return math.fsum(message.models * message.share_of_steps for message in self.messages)

    def models(self, num_steps: int) -> float:
        """Models sent in a run of so many steps."""
        return num_steps * self.per_step + self.at_end


@dataclass(frozen=True)
class Sending:
    """One collective: the payload of one worker in models, in which share of the steps it takes place, and its way.

    `one_peer`: an exchange is with one neighbour, another one in each step; else with both of a ring.
    """

    models: float
    share_of_steps: float
    collective: Collective
    one_peer: bool = False


def sent_by(rows: RowRuns) -> Sent | None:
    """From the counted traffic of any of its runs; None where there is none, or nothing was sent."""
    result = next((run.result for run in rows.finished.values() if run.result), None)
    if result is None:
        return None
    messages = []
    for purpose in ("gradient", "error", "model"):
        entry = result.traffic.get(purpose)
        if entry and entry.bits:
            models = entry.bits / entry.collectives / (32 * result.num_parameters)
            share = entry.collectives / result.num_steps
            messages.append(Sending(models, share, _way(entry), "one_peer" in rows.row.words))
    return Sent(tuple(messages), int(bool(rows.row.final_exchange))) if messages else None


def _way(entry: TrafficEntry) -> Collective:
    """By which most of the bits went."""
    if 2 * entry.neighbour_bits > entry.bits:
        return "exchange"
    return "all_gather" if 2 * entry.gathered_bits > entry.bits else "all_reduce"


def network_of(job: TrainingJob) -> Network:
    """The job's network, its collectives by hierarchy where machines hold several workers."""
    between = Link(job.latency_seconds, 8 / job.bits_per_second)
    inside = Link(0.0, 8 / job.inside_bits_per_second if job.inside_bits_per_second else 0.0)
    both = job.num_machines > 1 and job.workers_per_machine > 1
    links = Links(between, inside)
    names: dict[Collective, Links] = {"all_reduce": links, "all_gather": links, "exchange": links}
    return Network(job.num_machines, job.workers_per_machine, names, "hierarchical" if both else "ring")


def compute_of(job: TrainingJob) -> Compute:
    forward = FORWARD_SHARE * job.compute_seconds
    return Compute(forward, job.compute_seconds - forward)


def rounds_of(sending: Sending, num_workers: int) -> Rounds:
    """To whom a worker of the job sends; one peer a step is at distances 1, 2, 4 and so on."""
    if sending.collective != "exchange":
        return ()
    if sending.one_peer:
        return tuple((2**power,) for power in range((num_workers - 1).bit_length()))
    return (tuple(dict.fromkeys((1, num_workers - 1))),)


def method_seconds(job: TrainingJob, sent: Sent) -> float:
    """Mean seconds of a step: messages follow the backward pass; one that is not in every step is spread over all."""
    alone = step_seconds(compute_of(job), [], network_of(job))
    extra = 0.0
    for sending in sent.messages:
        num_bytes = math.ceil(4 * sending.models * job.num_parameters)
        rounds = rounds_of(sending, job.num_workers)
        one = Message(collective=sending.collective, payload_bytes=num_bytes, every=1, ready=1.0, rounds=rounds)
        extra += sending.share_of_steps * (step_seconds(compute_of(job), [one], network_of(job)) - alone)
    return alone + extra


def ddp_seconds(job: TrainingJob, bytes_per_number: int) -> float:
    """Seconds of a step of DDP: buckets that are sent as the backward pass fills them."""
    num_buckets = max(1, math.ceil(4 * job.num_parameters / BUCKET_BYTES))
    size = math.ceil(bytes_per_number * job.num_parameters / num_buckets)
    buckets = [
        Message(collective="all_reduce", payload_bytes=size, every=1, ready=(number + 1) / num_buckets)
        for number in range(num_buckets)
    ]
    return step_seconds(compute_of(job), buckets, network_of(job))
