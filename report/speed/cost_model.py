"""The cost model: alpha-beta times of collectives, and of a step whose messages queue.

Symbols: n workers on M machines of m, b bytes that one worker contributes, alpha seconds a hop,
beta seconds a byte. h(b), a hop of b bytes, is alpha + b beta, or where a backend sends one piece
while it handles another, less: the p-norm of the two, with p fitted (p = 1 is the sum, and a large
p the longer of the two).

    flat ring     all-reduce   2 (n-1) h(b/n)
                  all-gather   (n-1) h(b)
    pairs         two stages   2 (n-m) h(m b/n) between,
                               or 2 (m-1) h(b/n) inside where that takes longer
    neighbours    exchange     h(k b), a worker's k messages at once; a machine's link carries those
                               that leave it
    hierarchical  all-reduce   inside, a pipelined chain up and one down, 2 ((m-1) alpha + b beta),
                               and a ring of the machines between, 2 (M-1) h(b/M)
                  all-gather   (m-1) h(b) inside, (M-1) h(m b) between,
                               (m-1) alpha + n b beta inside

The flat ring's workers are contiguous in their machines, so that each link, a machine's or a
worker's, carries the same bytes; all hops go on at once, and the slowest link sets the pace. In two
stages each worker sends to each other one, whatever the algorithm, so a machine's link carries all
m workers' messages. In an exchange b is one message, of the worker's k; it has one hop, whatever n
is and whatever the algorithm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean as mean
from typing import Literal

from cser_bench.harness.measures.steps import ring_hops
from cser_bench.harness.records.timings import Collective, Message, Rounds

Algorithm = Literal["ring", "hierarchical"]

HOP_SECONDS = 50e-6
"""Latency of a hop between machines, where none is given."""


@dataclass(frozen=True)
class Link:
    """One direction of a link: seconds a hop and seconds a byte.

    `power` is the p of the norm that joins them.
    """

    alpha: float
    beta: float
    power: float = 1.0

    def hop(self, num_bytes: float) -> float:
        """Return the seconds to hand on so many bytes."""
        sending = num_bytes * self.beta
        shorter = min(self.alpha, sending)
        longer = max(self.alpha, sending)
        if longer == 0:
            return 0.0
        # (a^p + s^p)^(1/p) = max (1 + (min / max)^p)^(1/p), whose powers do not overflow.
        share = (shorter / longer) ** self.power
        return float(longer * (1 + share) ** (1 / self.power))


@dataclass(frozen=True)
class Links:
    """The links of one collective: a machine's to the others, and a worker's inside its machine."""

    between: Link
    inside: Link


@dataclass(frozen=True)
class Network:
    """Workers on machines, with the links that each collective finds.

    Their clock runs `dilation` times slower.
    """

    num_machines: int
    workers_per_machine: int
    links: Mapping[Collective, Links]
    algorithm: Algorithm = "ring"
    dilation: float = 1.0

    @property
    def num_workers(self) -> int:
        """Number of workers on all machines."""
        return self.num_machines * self.workers_per_machine


@dataclass(frozen=True)
class Compute:
    """What a worker does besides communicating, in seconds a step.

    `codec`: encoding, decoding and the update.
    """

    forward: float
    backward: float
    codec: float = 0.0


def collective_seconds(
    network: Network, collective: Collective, payload_bytes: float, rounds: Rounds = ()
) -> float:
    """Return the seconds of a collective that nothing else delays.

    For an exchange, whose payload is as in `Message`, this is the mean over its rounds.
    """
    seconds = _undilated_seconds(network, collective, payload_bytes, rounds)
    return seconds / network.dilation


def _undilated_seconds(
    network: Network, collective: Collective, payload_bytes: float, rounds: Rounds
) -> float:
    """Return the seconds by the clock of the network's workers, which may run slower than ours."""
    links = network.links[collective]
    is_two_level = network.num_machines > 1 and network.workers_per_machine > 1
    if collective == "exchange":
        return mean(
            _exchange(network, links, payload_bytes, distances) for distances in rounds
        )
    # Nobody to send to.
    if network.num_workers == 1:
        return 0.0
    # Pairs of workers exchange directly, whatever the network's algorithm for the other collectives.
    if collective == "two_stages":
        return _two_stages(network, links, payload_bytes)
    if network.algorithm == "hierarchical" and is_two_level:
        return _hierarchical(network, links, collective, payload_bytes)
    return _ring(network, links, collective, payload_bytes)


def _two_stages(network: Network, links: Links, payload_bytes: float) -> float:
    workers = network.workers_per_machine
    share = payload_bytes / network.num_workers
    # Each worker sends its share to all others, and then what it has summed: twice the same bytes.
    num_outside = network.num_workers - workers
    between = 0.0
    # A machine's link carries the shares of all its workers, to each worker outside.
    if num_outside > 0:
        between = num_outside * links.between.hop(workers * share)
    inside = (workers - 1) * links.inside.hop(share)
    return 2 * max(between, inside)


def _ring(
    network: Network, links: Links, collective: Collective, payload_bytes: float
) -> float:
    # All links hand on at the same time, so each hop is as long as that of the slowest.
    # All-reduce of B bytes among n: 2 (n - 1) hops of B / n. All-gather: n - 1 hops of B.
    num_hops, hop_bytes = ring_hops(collective, payload_bytes, network.num_workers)
    hops = []
    if network.num_machines > 1:
        hops.append(links.between.hop(hop_bytes))
    if network.workers_per_machine > 1:
        hops.append(links.inside.hop(hop_bytes))
    return num_hops * max(hops)


def _hierarchical(
    network: Network, links: Links, collective: Collective, payload_bytes: float
) -> float:
    machines = network.num_machines
    workers = network.workers_per_machine
    # Inside, pieces follow one another down the chain: the bytes count once, the latency each hop.
    chain = (workers - 1) * links.inside.alpha
    if collective == "all_reduce":
        inside = 2 * (chain + payload_bytes * links.inside.beta)
        # Between machines a ring of their first workers, with the whole payload.
        between = 2 * (machines - 1) * links.between.hop(payload_bytes / machines)
        return inside + between
    # Gathered in each machine, between machines, and handed on to the other workers of each.
    gathered = (workers - 1) * links.inside.hop(payload_bytes)
    between = (machines - 1) * links.between.hop(workers * payload_bytes)
    handed_on = network.num_workers * payload_bytes * links.inside.beta
    return gathered + between + chain + handed_on


def _exchange(
    network: Network, links: Links, payload_bytes: float, distances: Sequence[int]
) -> float:
    """Return the seconds of one round.

    All machines are alike, so the first one's workers say how many messages leave any of them.
    """
    if not distances:
        return 0.0
    workers = network.workers_per_machine
    num_leaving = 0
    for rank in range(workers):
        for distance in distances:
            peer = (rank + distance) % network.num_workers
            if peer >= workers:
                num_leaving += 1
    between = 0.0
    # A worker's payload is shared out among its peers.
    if num_leaving:
        between = links.between.hop(payload_bytes / len(distances) * num_leaving)
    inside = 0.0
    if workers > 1:
        inside = links.inside.hop(payload_bytes)
    return max(between, inside)


def step_seconds(
    compute: Compute, messages: Sequence[Message], network: Network
) -> float:
    """Return the seconds of one step that sends all of these messages.

    They queue on one link as they get ready. The codec comes after both the backward pass and the
    last message. Where a message's blocks are drawn, it is the mean over draws.
    """
    sending = []
    for message in messages:
        sending.append(
            collective_seconds(
                network, message.collective, message.payload_bytes, message.rounds
            )
        )
    # Not one step at the mean shares: how long messages wait for the link is not linear in them.
    return mean(_queued(compute, ready, sending) for ready in _ready_shares(messages))


def _ready_shares(messages: Sequence[Message]) -> list[list[float]]:
    """Return when each message is ready, in shares of the backward pass: a list a draw."""
    num_draws = [
        len(message.ready_draws) for message in messages if message.ready_draws
    ]
    if not num_draws:
        return [[message.ready for message in messages]]
    draws = []
    for draw in range(min(num_draws)):
        ready = []
        for message in messages:
            # A message whose blocks are not drawn is ready at the same time in each draw.
            share = message.ready
            if message.ready_draws:
                share = message.ready_draws[draw]
            ready.append(share)
        draws.append(ready)
    return draws


def _queued(
    compute: Compute, ready: Sequence[float], sending: Sequence[float]
) -> float:
    """Return the seconds of a step.

    Args:
        ready: when each message is, in shares of the backward pass.
        sending: seconds of each message by itself.
    """
    # The link takes one message at a time, in the order in which the backward pass fills them.
    link_is_free = 0.0
    in_order = sorted(zip(ready, sending, strict=True), key=lambda pair: pair[0])
    for share, seconds in in_order:
        is_ready = compute.forward + share * compute.backward
        link_is_free = max(link_is_free, is_ready) + seconds
    passes = compute.forward + compute.backward
    # What is sent during the backward pass costs only where it outlasts the pass.
    return max(passes, link_is_free) + compute.codec


def period_seconds(
    compute: Compute, messages: Sequence[Message], period: int, network: Network
) -> float:
    """Return the mean seconds of a step over a period.

    Its last step synchronises, and alone sends what is not sent in each.
    """
    # (H - 1) ordinary steps and one that sends everything, of H.
    in_each_step = [message for message in messages if message.every == 1]
    ordinary = step_seconds(compute, in_each_step, network)
    last = step_seconds(compute, messages, network)
    return ((period - 1) * ordinary + last) / period
