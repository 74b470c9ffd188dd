"""The cost model: alpha-beta times of collectives, and a step whose messages queue behind its
backward pass.

Symbols: n workers on M machines of m, b bytes that one worker contributes, alpha seconds a hop,
beta seconds a byte. h(b), a hop of b bytes, is alpha + b beta, or where a backend sends one piece
while it handles another, less: the p-norm of the two, with p fitted (p = 1 is the sum, and a large
p the longer of the two).

    flat ring     all-reduce   2 (n-1) h(b/n)                   all-gather   (n-1) h(b) tree
    all-reduce   2 ceil(log2 m) h(b) inside + 2 ceil(log2 M) h(b) between pairs         two stages
    2 (n-m) h(m b/n) between, or 2 (m-1) h(b/n) inside where that takes longer neighbours
    exchange     h(k b), a worker's k messages at once; a machine's link carries those that leave it
    hierarchical  all-reduce   inside, a pipelined chain up and one down, 2 ((m-1) alpha + b beta),
    and a ring of the
                               machines between, 2 (M-1) h(b/M)
                  all-gather   (m-1) h(b) inside, (M-1) h(m b) between, (m-1) alpha + n b beta
                  inside

The flat ring's workers are contiguous in their machines, so that each link, a machine's or a
worker's, carries the same bytes; all hops go on at once, and the slowest link sets the pace. An
all-gather by tree goes round the ring. In two stages each worker sends to each other one, whatever
the algorithm, so a machine's link carries all m workers' messages. In an exchange b is one message,
of the worker's k; it has one hop, whatever n is and whatever the algorithm.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean as mean
from typing import Literal

from cser_bench.harness.measures.steps import ring_hops
from cser_bench.harness.records.timings import Collective, Message, Rounds

Algorithm = Literal["ring", "tree", "hierarchical"]


@dataclass(frozen=True)
class Link:
    """One direction of a link: seconds a hop and seconds a byte. `power` is the p of the norm that
    joins them."""

    alpha: float
    beta: float
    power: float = 1.0

    def hop(self, num_bytes: float) -> float:
        """Seconds to hand on so many bytes."""
        shorter, longer = sorted((self.alpha, num_bytes * self.beta))
        return (
            float(longer * (1 + (shorter / longer) ** self.power) ** (1 / self.power))
            if longer
            else 0.0
        )


@dataclass(frozen=True)
class Links:
    """The links of one collective: a machine's to the others, and a worker's inside its machine."""

    between: Link
    inside: Link


@dataclass(frozen=True)
class Network:
    """Workers on machines, with the links that each collective finds; their clock runs `dilation`
    times slower."""

    num_machines: int
    workers_per_machine: int
    links: Mapping[Collective, Links]
    algorithm: Algorithm = "ring"
    dilation: float = 1.0

    @property
    def num_workers(self) -> int:
        return self.num_machines * self.workers_per_machine


@dataclass(frozen=True)
class Compute:
    """What a worker does besides communicating, in seconds a step. `codec`: encoding, decoding and
    the update."""

    forward: float
    backward: float
    codec: float = 0.0


def collective_seconds(
    network: Network, collective: Collective, payload_bytes: float, rounds: Rounds = ()
) -> float:
    """Seconds of a collective that nothing else delays; of an exchange, whose payload is as in
    `Message`, the mean."""
    machines, workers = network.num_machines, network.workers_per_machine
    links = network.links[collective]
    if collective == "exchange":
        seconds = mean(_exchange(network, links, payload_bytes, distances) for distances in rounds)
    elif network.num_workers == 1:
        seconds = 0.0
    elif collective == "two_stages":
        others, share = network.num_workers - workers, payload_bytes / network.num_workers
        between = others * links.between.hop(workers * share) if others else 0.0
        seconds = 2 * max(between, (workers - 1) * links.inside.hop(share))
    elif network.algorithm == "hierarchical" and min(machines, workers) > 1:
        seconds = _hierarchical(network, links, collective, payload_bytes)
    elif network.algorithm == "tree" and collective == "all_reduce":
        levels = ((links.inside, workers), (links.between, machines))
        seconds = sum(
            2 * math.ceil(math.log2(count)) * link.hop(payload_bytes) for link, count in levels
        )
    else:
        hops, hop_bytes = ring_hops(collective, payload_bytes, network.num_workers)
        used = [links.between] * (machines > 1) + [links.inside] * (workers > 1)
        seconds = hops * max(link.hop(hop_bytes) for link in used)
    return seconds / network.dilation


def _hierarchical(
    network: Network, links: Links, collective: Collective, payload_bytes: float
) -> float:
    machines, workers = network.num_machines, network.workers_per_machine
    chain = (workers - 1) * links.inside.alpha
    if collective == "all_reduce":
        between = 2 * (machines - 1) * links.between.hop(payload_bytes / machines)
        return 2 * (chain + payload_bytes * links.inside.beta) + between
    gathered = (workers - 1) * links.inside.hop(payload_bytes)
    between = (machines - 1) * links.between.hop(workers * payload_bytes)
    return gathered + between + chain + network.num_workers * payload_bytes * links.inside.beta


def _exchange(
    network: Network, links: Links, payload_bytes: float, distances: Sequence[int]
) -> float:
    """One round. All machines are alike, so the first one's workers say how many messages leave any
    of them."""
    if not distances:
        return 0.0
    workers = network.workers_per_machine
    leaving = sum(
        (rank + distance) % network.num_workers >= workers
        for rank in range(workers)
        for distance in distances
    )
    between = links.between.hop(payload_bytes / len(distances) * leaving) if leaving else 0.0
    return max(between, links.inside.hop(payload_bytes) if workers > 1 else 0.0)


def step_seconds(compute: Compute, messages: Sequence[Message], network: Network) -> float:
    """Seconds of one step that sends all of these messages; where their blocks are drawn, the mean
    over draws.

    They queue on one link as they get ready. The codec comes after both the backward pass and the
    last message.
    """
    num_draws = min((len(m.ready_draws) for m in messages if m.ready_draws), default=0)
    draws = [
        [m.ready_draws[draw] if m.ready_draws else m.ready for m in messages]
        for draw in range(num_draws)
    ]
    sending = [
        collective_seconds(network, m.collective, m.payload_bytes, m.rounds) for m in messages
    ]
    return mean(
        _queued(compute, ready, sending) for ready in draws or [[m.ready for m in messages]]
    )


def _queued(compute: Compute, ready: Sequence[float], sending: Sequence[float]) -> float:
    free = 0.0
    for share, seconds in sorted(zip(ready, sending, strict=True), key=lambda pair: pair[0]):
        free = max(free, compute.forward + share * compute.backward) + seconds
    return max(compute.forward + compute.backward, free) + compute.codec


def period_seconds(
    compute: Compute, messages: Sequence[Message], period: int, network: Network
) -> float:
    """Mean seconds of a step over a period: its last step synchronises, and alone sends what is not
    sent in each."""
    ordinary = step_seconds(
        compute, [message for message in messages if message.every == 1], network
    )
    return ((period - 1) * ordinary + step_seconds(compute, messages, network)) / period
