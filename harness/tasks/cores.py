"""How many cores fall to a process for reading and decoding, beside the other workers of its
host."""

from __future__ import annotations

import os
from collections.abc import Iterable, Set
from fractions import Fraction

_others: list[Set[int]] = []
"""The cores that each other worker of this host may run on; workers say so when they meet."""


def note_others(masks: Iterable[Set[int]]) -> None:
    """Note which cores each of the other workers of this host may run on."""
    _others[:] = masks


def own_cores() -> int:
    """Return how many cores fall to this process: a k-th part of a core that k workers may run on;
    at least 1.

    So a task that Slurm has bound to its CPUs has all of them, and processes of torchrun share
    those of the machine.
    """
    mine = os.sched_getaffinity(0)
    return max(1, int(sum(Fraction(1, 1 + sum(core in mask for mask in _others)) for core in mine)))
