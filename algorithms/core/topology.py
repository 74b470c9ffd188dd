"""Topologies: whose messages each worker takes, and with what weight.

Plain data, with their spectral gap.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Literal

import numpy
from numpy.typing import NDArray

Topology = Literal["ring", "exponential", "one_peer", "complete"]
"""A worker's neighbours. "ring": the two beside it. "exponential": workers at distances 1, 2, 4, ...
"one_peer": one of these distances a step, in turn; the number of workers must be a power of two.
"complete": all workers."""


@dataclass(frozen=True)
class Mixing:
    """The weights of one step, row by row of W.

    `neighbours[i]` holds (j, w_ij) for each worker j whose message worker i takes, in the order of
    ranks. What is missing from 1 is worker i's weight of its own.
    """

    neighbours: tuple[tuple[tuple[int, float], ...], ...]

    @property
    def num_workers(self) -> int:
        return len(self.neighbours)

    @cached_property
    def senders(self) -> tuple[tuple[int, ...], ...]:
        """For each worker, the ranks whose messages it takes, ascending."""
        senders = []
        for row in self.neighbours:
            senders.append(tuple(sender for sender, _ in row))
        return tuple(senders)

    @cached_property
    def receivers(self) -> tuple[tuple[int, ...], ...]:
        """For each worker, the ranks that take its message, ascending."""
        receivers: list[list[int]] = [[] for _ in self.neighbours]
        for rank, senders in enumerate(self.senders):
            for sender in senders:
                receivers[sender].append(rank)
        return tuple(map(tuple, receivers))

    @cached_property
    def num_messages(self) -> int:
        """Messages that a worker sends in this step; the most of any worker, if they differ."""
        return max(map(len, self.receivers))

    @cached_property
    def averages(self) -> bool:
        """Whether W is 1/n everywhere, so that all workers have the mean after it."""
        n = self.num_workers
        for row in self.neighbours:
            if len(row) != n - 1:
                return False
            for _, weight in row:
                # 1/n as a float times n need not be 1.
                if abs(n * weight - 1) >= 1e-9:
                    return False
        return True

    @property
    def matrix(self) -> NDArray[numpy.float64]:
        """W, of shape (num_workers, num_workers)."""
        n = self.num_workers
        matrix = numpy.zeros((n, n))
        for rank, row in enumerate(self.neighbours):
            given = sum(weight for _, weight in row)
            # Rows add up to 1.
            matrix[rank, rank] = 1 - given
            for sender, weight in row:
                matrix[rank, sender] = weight
        return matrix


def rounds_of(topology: Topology, num_workers: int) -> tuple[Mixing, ...]:
    """Return the mixings of steps 1, 2, ..., which then repeat; several for "one_peer" only.

    Raises:
        ValueError: there is no such topology of that many workers.
    """
    n = num_workers
    # The powers of two below n.
    num_powers = (n - 1).bit_length()
    powers = [2**k for k in range(num_powers)]
    if topology == "one_peer" and n & (n - 1):
        raise ValueError(
            f"the topology one_peer needs a power of two of workers, not {n}; take exponential or "
            "ring"
        )
    distances: dict[str, list[set[int]]] = {
        "ring": [{1, n - 1}],
        "exponential": [set(powers)],
        # A single worker has no peer, and still one round.
        "one_peer": [{power} for power in powers] or [set()],
        "complete": [set(range(1, n))],
    }
    rounds = []
    for round_distances in distances[topology]:
        # At these a worker would meet itself: on a ring of one.
        others = round_distances - {0, n}
        rounds.append(_circulant(n, others))
    return tuple(rounds)


def mixing_at(rounds: Sequence[Mixing], step: int) -> Mixing:
    """Return the mixing of a step, counted from 1."""
    number = (step - 1) % len(rounds)
    return rounds[number]


def spectral_gap(rounds: Sequence[Mixing]) -> float:
    """Return 1 minus the largest singular value of W_k ... W_1 - 1/n, where W_1 to W_k are the rounds.

    In k steps the workers' distance to their mean shrinks at least by the factor 1 - gap.
    """
    matrices = [mixing.matrix for mixing in rounds]  # (n, n) each
    product = reduce(lambda before, after: after @ before, matrices)  # W_k ... W_1
    from_mean = product - 1 / rounds[0].num_workers
    largest = float(numpy.linalg.norm(from_mean, 2))
    # Rounding may make a singular value of 1 slightly larger.
    return max(0.0, 1 - largest)


def _circulant(num_workers: int, distances: set[int]) -> Mixing:
    """Return the mixing in which workers take messages from these distances, with equal weights.

    A distance counts ranks before the worker, round the circle.
    """
    # The worker's own weight is the same as each neighbour's.
    weight = 1 / (len(distances) + 1)
    rows = []
    for rank in range(num_workers):
        senders = sorted((rank - distance) % num_workers for distance in distances)
        row = tuple((sender, weight) for sender in senders)
        rows.append(row)
    return Mixing(tuple(rows))
