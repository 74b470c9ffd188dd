"""QSR: Gu et al., ICLR 2024, and as it was released."""

from collections.abc import Callable, Iterator
from itertools import count

import numpy as np

from tests.algorithms.cases import Case, Relation, by
from tests.algorithms.following import NUM_STEPS, rises_and_falls
from tests.algorithms.problems import LR
from tests.algorithms.transcription import Problem, State, mean, updates


def qsr(
    problem: Problem,
    base: int,
    alpha: float,
    rates: Callable[[int], float],
    total_steps: int | None = None,
) -> Iterator[State]:
    """`rates(t)` is the first coordinate's learning rate at step t; the others' are in proportion.

    As the release has it, a round is at most as long as what remains of `total_steps`.
    """
    x = problem.everywhere(problem.start)
    m = problem.zeros()
    ends = [0]
    before = 0.0
    for t in count(1):
        if t == ends[-1] + 1:
            ratio = alpha / rates(t)
            rule = max(base, int(np.floor(ratio**2)))
            interval = base if rates(t) > before else rule
            remaining = interval if total_steps is None else total_steps - ends[-1]
            length = max(min(interval, remaining), 1)
            ends.append(ends[-1] + length)
            before = rates(t)
        relative_rate = rates(t) / problem.eta[0]
        x = x - relative_rate * updates(problem, m, x, t)
        if t == ends[-1]:
            x = problem.everywhere(mean(x))
        yield x, []


def at_constant_rate(base: int, alpha: float) -> Case:
    """QSR at a constant rate."""
    given = {"sync_interval": base, "alpha": alpha}
    follow = by(qsr, base, alpha, lambda step: LR)
    return Case("qsr", given, follow)


def under_a_schedule(alpha: float, total_steps: int | None) -> Case:
    """QSR under a rate that rises and falls."""
    given = {"sync_interval": 2, "alpha": alpha, "total_steps": total_steps}
    known = {key: value for key, value in given.items() if value is not None}
    last = [] if total_steps is None else [total_steps]
    # The definition squares alpha over the rate, which an alpha of 1e200 takes beyond a float. From
    # 1e9 on every interval is longer than the run.
    alpha_as_large = min(alpha, 1e9)
    follow = by(qsr, 2, alpha_as_large, rises_and_falls, *last)
    return Case("qsr", known, follow, local={"rate": rises_and_falls})


CASES = [
    at_constant_rate(1, 0.0),
    at_constant_rate(4, 0.15),
    at_constant_rate(2, 0.25),
    under_a_schedule(0.15, None),
    under_a_schedule(0.15, NUM_STEPS),
    under_a_schedule(1e200, NUM_STEPS),
]

RELATIONS = [Relation("qsr", {"alpha": 0}, "local_sgd")]
