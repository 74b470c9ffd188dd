"""The order of a session: methods take turns there and back again, so that what disturbs the machine disturbs all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def visits(methods: Sequence[str], num_visits: int) -> Iterator[tuple[int, str]]:
    """Number of the visit and method: A B C, C B A, A B C, ..."""
    for visit in range(num_visits):
        for method in methods if visit % 2 == 0 else reversed(methods):
            yield visit, method


def kinds_of_steps(period: int, steps_per_visit: int) -> list[bool]:
    """Of a visit's steps: whether each is the synchronising one of its period; all are where none is ordinary."""
    return [True] * steps_per_visit if period == 1 else [False, True] * steps_per_visit
