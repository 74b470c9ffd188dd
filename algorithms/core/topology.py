"""Topologies: whose messages each worker takes, and with what weight; plain data, checked, with their spectral gap."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, Literal, get_args

import numpy
from numpy.typing import NDArray

Named = Literal["ring", "exponential", "one_peer", "complete"]
Rows = tuple[tuple[float, ...], ...]
Matrix = NDArray[numpy.float64]

TOLERANCE = 1e-9
"""By which a sum of weights may miss 1."""


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
        """Of each worker, those whose messages it takes, ascending."""
        return tuple(tuple(sender for sender, _ in row) for row in self.neighbours)

    @cached_property
    def receivers(self) -> tuple[tuple[int, ...], ...]:
        """Of each worker, those that take its message, ascending."""
        receivers: list[list[int]] = [[] for _ in self.neighbours]
        for rank, senders in enumerate(self.senders):
            for sender in senders:
                receivers[sender].append(rank)
        return tuple(map(tuple, receivers))

    @cached_property
    def num_messages(self) -> int:
        """What a worker sends in this step; where workers differ in that, the most, for which a step must wait."""
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
    """Who mixes with whom; what it means for n workers is said by `rounds`.

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
            if not all(isinstance(each, list | tuple) for each in (self.rows, *self.rows)):
                raise ValueError("a mixing matrix is a list of rows, each a list of numbers")
            object.__setattr__(self, "rows", tuple(tuple(map(_number, row)) for row in self.rows))
            _check(self.rows)

    @classmethod
    def from_text(cls, text: str) -> Topology:
        """The matrix in a text: JSON, a list of rows, or a row a line with blanks or commas between its weights.

        A weight may be written as a fraction, such as 1/3 (in JSON as a text).

        Raises:
            ValueError: the text holds no such matrix.
        """
        rows: Any = json.loads(text) if text.lstrip().startswith("[") else _rows_of(text)
        return cls("matrix", rows)

    @classmethod
    def from_file(cls, path: str | Path) -> Topology:
        """The matrix in a file, written as in `from_text`. Raises ValueError where there is none that can be used."""
        try:
            return cls.from_text(Path(path).read_text())
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def __repr__(self) -> str:
        """As a setting is written; a matrix by its digest, so that workers and saved states can be compared."""
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


def _rows_of(text: str) -> list[list[str]]:
    return [words for line in text.splitlines() if (words := line.replace(",", " ").split())]


def _number(value: Any) -> float:
    try:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            return float(value) if isinstance(value, float) else float(Fraction(value))
    except (ValueError, ZeroDivisionError):
        pass
    raise ValueError(f"a weight of the mixing matrix must be a number or a fraction, not {value!r}")


def _check(rows: Rows) -> None:
    """Raises ValueError unless workers that mix so keep their mean and come to agree."""
    n = len(rows)
    if not n or any(len(row) != n for row in rows):
        raise ValueError(f"the mixing matrix has {n} rows, so each must have {n} weights, and has not")
    for rank, row in enumerate(rows):
        if not all(weight >= 0 for weight in row):
            raise ValueError(f"row {rank} of the mixing matrix has a weight that is not 0 or more: {min(row)}")
    _check_sums("row", rows)
    _check_sums("column", zip(*rows, strict=True))
    reached, last = {0}, {0}
    while last:
        last = {sender for rank in last for sender, _ in _links(rank, rows[rank])} - reached
        reached |= last
    if len(reached) < n:
        apart = min(set(range(n)) - reached)
        raise ValueError(f"the mixing matrix is not connected: nothing leads from worker {apart} to worker 0")
    # Workers that only swap are connected and never agree.
    if (abs(numpy.linalg.eigvals(numpy.array(rows))) > 1 - TOLERANCE).sum() > 1:
        raise ValueError("the mixing matrix never makes the workers agree: two of its eigenvalues have modulus 1")


def _check_sums(what: str, lines: Iterable[Sequence[float]]) -> None:
    for number, line in enumerate(lines):
        if not abs(sum(line) - 1) <= TOLERANCE:
            raise ValueError(
                f"{what} {number} of the mixing matrix sums to {sum(line):.10g} and must sum to 1 (write 1/3 where "
                "digits do not suffice)"
            )
