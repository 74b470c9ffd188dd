"""Topologies: whose messages each worker takes, and with what weight; plain data, checked, with their spectral gap."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, Literal, get_args

import numpy
from numpy.typing import NDArray

Named = Literal["ring", "exponential", "one_peer", "complete"]
Rows = tuple[tuple[float, ...], ...]
Matrix = NDArray[numpy.float64]

TOLERANCE = 1e-9
"""How far a sum of weights may be from 1."""


@dataclass(frozen=True)
class Mixing:
    """The weights of one step, row by row of W: `neighbours[i]` holds (j, w_ij) for each worker j whose message worker
    i takes, in the order of ranks. What is missing from 1 is worker i's weight of its own.
    """

    neighbours: tuple[tuple[tuple[int, float], ...], ...]

    @property
    def num_workers(self) -> int:
        return len(self.neighbours)

    @cached_property
    def senders(self) -> tuple[tuple[int, ...], ...]:
        """For each worker, the ranks whose messages it takes, ascending."""
        return tuple(tuple(sender for sender, _ in row) for row in self.neighbours)

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
        """The messages that a worker sends in this step; where workers differ, the most, for which a step must wait."""
        return max(map(len, self.receivers))

    @cached_property
    def averages(self) -> bool:
        """Whether W is 1/n everywhere, so that all workers have the mean after it."""
        n = self.num_workers
        return all(len(row) == n - 1 and all(abs(n * w - 1) < TOLERANCE for _, w in row) for row in self.neighbours)

    @property
    def matrix(self) -> Matrix:
        """W, of shape (num_workers, num_workers)."""
        matrix = numpy.zeros((self.num_workers, self.num_workers))
        for rank, row in enumerate(self.neighbours):
            matrix[rank, rank] = 1 - sum(weight for _, weight in row)
            for sender, weight in row:
                matrix[rank, sender] = weight
        return matrix


@dataclass(frozen=True, repr=False)
class Topology:
    """A rule of who mixes with whom; `rounds` says what it means for n workers.

    Args:
        kind: "ring": both neighbours. "exponential": those at distances 1, 2, 4, ... "one_peer": the same, one distance
            a step in turn; n must be a power of two. "complete": everybody. All weights of a row are equal, a worker's
            own among them. "matrix": `rows`.
        rows: W, where row i holds the weights of worker i; rows and columns must sum to 1.

    Raises:
        ValueError: an unknown kind, or a matrix that no averaging can be done with; the message says why.
    """

    kind: Named | Literal["matrix"]
    rows: Rows | None = None

    def __post_init__(self) -> None:
        known = (*get_args(Named), "matrix")
        if self.kind not in known:
            raise ValueError(f"unknown topology {self.kind!r}; it must be one of {', '.join(known)}")
        if (self.kind == "matrix") != (self.rows is not None):
            raise ValueError("the weights of a topology are given where its kind is matrix, and only there")
        if self.rows is not None:
            object.__setattr__(self, "rows", _checked(self.rows))

    def __repr__(self) -> str:
        """Returns how a setting is written; for a matrix its digest, so that workers and states can be compared."""
        if self.rows is None:
            return repr(self.kind)
        digest = hashlib.sha256(repr(self.rows).encode()).hexdigest()[:12]
        return f"Topology('matrix', of {len(self.rows)} workers, sha256 {digest})"

    @property
    def is_static(self) -> bool:
        """Whether each step mixes as the one before."""
        return self.kind != "one_peer"

    def rounds(self, num_workers: int) -> tuple[Mixing, ...]:
        """The mixings of steps 1, 2, ..., after which they begin anew: a single one where the topology is static.

        Raises:
            ValueError: there is no such topology of that many workers.
        """
        n = num_workers
        powers = [2**k for k in range((n - 1).bit_length())]
        if self.rows is not None:
            if len(self.rows) != n:
                raise ValueError(f"the mixing matrix is for {len(self.rows)} workers, and there are {n}")
            return (Mixing(tuple(_links(rank, row) for rank, row in enumerate(self.rows))),)
        if self.kind == "one_peer":
            if n & (n - 1):
                raise ValueError(
                    f"the topology one_peer needs a power of two of workers, not {n}; take exponential or ring"
                )
            return tuple(_circulant(n, {power}) for power in powers) or (_circulant(1, set()),)
        distances = {"ring": {1, n - 1}, "exponential": set(powers), "complete": set(range(1, n))}
        return (_circulant(n, distances[self.kind]),)

    def spectral_gap(self, num_workers: int) -> float:
        """1 - ||W_k ... W_1 - 1/n||, the largest singular value, over the rounds until they begin anew.

        In so many steps the workers' distance to their mean becomes 1 - gap of what it was, or less. With a symmetric W
        it is 1 less the second largest modulus of an eigenvalue.

        Raises:
            ValueError: as `rounds`.
        """
        matrices = [mixing.matrix for mixing in self.rounds(num_workers)]
        over_all = reduce(lambda before, after: after @ before, matrices)
        return max(0.0, 1 - float(numpy.linalg.norm(over_all - 1 / num_workers, 2)))


def mixing_of(rounds: tuple[Mixing, ...], step: int) -> Mixing:
    """Returns the mixing of step number `step`, counted from 1."""
    return rounds[(step - 1) % len(rounds)]


def as_topology(name: str, topology: Topology | Named) -> Topology:
    """The topology that method `name` was given, by itself or by its name. Raises ValueError where it is neither."""
    if isinstance(topology, Topology):
        return topology
    try:
        return Topology(topology)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _circulant(num_workers: int, distances: set[int]) -> Mixing:
    """Each worker takes the messages of those so many ranks before it, round the circle, with equal weights."""
    distances = distances - {0, num_workers}
    weight = 1 / (len(distances) + 1)
    senders = (sorted((rank - distance) % num_workers for distance in distances) for rank in range(num_workers))
    return Mixing(tuple(tuple((sender, weight) for sender in row) for row in senders))


def _links(rank: int, row: Sequence[float]) -> tuple[tuple[int, float], ...]:
    return tuple((sender, weight) for sender, weight in enumerate(row) if weight > 0 and sender != rank)


def _checked(rows: Any) -> Rows:
    """The matrix as tuples. Raises ValueError unless workers that mix so keep their mean and come to agree."""
    try:
        matrix = numpy.array(rows, dtype=numpy.float64)
    except (TypeError, ValueError):
        matrix = numpy.empty(0)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError("a mixing matrix has as many rows as columns, all of numbers")
    if not (matrix >= 0).all():
        raise ValueError(f"the weights of a mixing matrix are 0 or more, not {matrix.min()}")
    for what, sums in (("row", matrix.sum(1)), ("column", matrix.sum(0))):
        worst = int(abs(sums - 1).argmax())
        if abs(sums[worst] - 1) > TOLERANCE:
            raise ValueError(f"{what} {worst} of the mixing matrix sums to {sums[worst]:.10g} and must sum to 1")
    if (abs(numpy.linalg.eigvals(matrix)) > 1 - TOLERANCE).sum() > 1:
        raise ValueError(
            "the mixing matrix never makes all workers agree: two of its eigenvalues have modulus 1, as where some are "
            "not connected with the others, or only swap"
        )
    return tuple(map(tuple, matrix.tolist()))
