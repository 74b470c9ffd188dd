"""PowerSGD on tensors of all sorts: its definition, its invariants, and short numbers."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cser_bench.algorithms import StackedCollectives
from cser_bench.algorithms.powersgd import PowerSGD
from tests.algorithms import transcription
from tests.algorithms.following import first_q
from tests.algorithms.transcription import Array, Problem

# A convolution, vectors, matrices wide and tall, two of one shape, a scalar and a column.
SHAPES: list[tuple[int, ...]] = [
    (4, 3, 2, 2),
    (5,),
    (6, 7),
    (9, 4),
    (),
    (6, 7),
    (3, 1),
    (1, 5),
]
SIZES = [math.prod(shape) for shape in SHAPES]
NUMEL = sum(SIZES)
SEED = 5
NUM_WORKERS = 3
START = np.random.default_rng(0).normal(0, 1, NUMEL)

Gradient = Callable[[Array, int, int], Array]


def towards_targets(x: Array, step: int, worker: int) -> Array:
    """Gradient of a squared distance to the worker's own target, with noise."""
    target = np.random.default_rng([7, worker]).normal(0, 1, NUMEL)
    noise: Array = np.random.default_rng([step, worker]).normal(0, 1, NUMEL)
    return x - target + noise


def states(
    num_steps: int, gradient: Gradient = towards_targets, **given: Any
) -> Iterator[tuple[Array, Array]]:
    """After each step all workers' parameters and errors, a row each."""
    parts = zip(np.split(START, np.cumsum(SIZES)[:-1]), SHAPES, strict=True)
    rows = [np.array([part.reshape(shape)] * NUM_WORKERS) for part, shape in parts]
    parameters = [nn.Parameter(torch.from_numpy(each)) for each in rows]
    given = {
        "lr": 0.1,
        "seed": SEED,
        "collectives": StackedCollectives(NUM_WORKERS),
        **given,
    }
    optimizer = PowerSGD(parameters, **given)
    for number in range(1, num_steps + 1):
        xs = enumerate(optimizer.flat.parameters.numpy().copy())
        optimizer.flat.gradients.copy_(
            torch.from_numpy(
                np.array([gradient(x, number, worker) for worker, x in xs])
            )
        )
        optimizer.step()
        assert optimizer.error is not None
        yield optimizer.flat.parameters.numpy().copy(), optimizer.error.numpy().copy()


def assert_same(actual: Any, expected: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_it_is_what_the_paper_says(rank: int, momentum: float) -> None:
    ones = np.ones(NUMEL)
    problem = Problem(
        START, towards_targets, NUM_WORKERS, 0.1 * ones, momentum, 0.02 * ones
    )
    expected = transcription.powersgd(problem, SHAPES, rank, first_q(SEED))
    found = states(15, rank=rank, momentum=momentum, weight_decay=0.02)
    for own, wanted in zip(found, expected, strict=False):
        # Rounding grows as a power iteration's directions turn.
        assert_same(own, wanted, 1e-9)


# Invariants.


def of_rank_one(x: Array, number: int, worker: int) -> Array:
    """First matrices have one row that is not 0, and then none: whoever follows them loses all
    other directions."""
    gradient = towards_targets(x, number, worker)
    if number < 4:
        for offset, size, shape in zip(
            np.cumsum([0, *SIZES]), SIZES, SHAPES, strict=False
        ):
            gradient[
                offset + (size // shape[0] if number == 1 and shape else 0) : offset
                + size
            ] = 0
    return gradient


@pytest.mark.parametrize("gradient", [towards_targets, of_rank_one])
def test_at_full_rank_it_is_sgd_from_the_first_step(gradient: Gradient) -> None:
    """The smaller side of the greatest matrix is 6."""
    ones = np.ones(NUMEL)
    given = {"gradient": gradient, "momentum": 0.9, "weight_decay": 0.02}
    sgd = transcription.sgd(
        Problem(START, gradient, NUM_WORKERS, 0.1 * ones, 0.9, 0.02 * ones)
    )
    full = list(states(12, rank=6, **given))
    for (xs, es), (wanted, _) in zip(full, sgd, strict=False):
        assert_same(xs, wanted)
        assert np.abs(transcription.mean(es)).max() < 1e-12
    *_, (lower, _) = states(12, rank=5, **given)
    assert np.abs(lower - full[-1][0]).max() > 1e-3


# Short numbers.


def test_small_gradients_do_not_vanish_in_messages_of_16_bits() -> None:
    """Q is as long as the gradient was, so M Q would be of the order of 1e-10, which 16 bits cannot
    hold."""

    def small(x: Array, number: int, worker: int) -> Array:
        return 1e-5 * towards_targets(0 * x, 1, worker)

    *_, (full, _) = states(6, small, lr=1e4, rank=1)
    *_, (short, _) = states(6, small, lr=1e4, rank=1, communication_dtype=torch.float16)
    assert np.linalg.norm(short - full) < 0.02 * np.linalg.norm(full - START)


def test_numbers_that_are_none_stay_so_and_raise_nothing() -> None:
    *_, (xs, _) = states(
        2,
        lambda x, number, worker: np.full(NUMEL, np.nan if number == 1 else np.inf),
        rank=2,
    )
    assert not np.isfinite(xs).any()
