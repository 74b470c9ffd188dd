"""The number of cores that a process may read with, given the other workers of its host."""

from __future__ import annotations

from collections.abc import Iterable, Set
from fractions import Fraction

from cser_bench.harness.cores import usable_cores

_others: list[Set[int]] = []
"""The cores that each other worker of this host may run on; workers say so when they meet."""


def note_others(masks: Iterable[Set[int]]) -> None:
    """Note which cores each of the other workers of this host may run on."""
    _others[:] = masks


def own_cores() -> int:
    """Return this process's share of the cores, at least 1.

    A core that k workers may run on counts as 1/k. So a task that Slurm has bound to its CPUs has
    all of them, and processes of torchrun share the machine's.
    """
    share = Fraction(0)
    for core in usable_cores():
        num_others = sum(core in mask for mask in _others)
        share += Fraction(1, 1 + num_others)
    return max(1, int(share))
