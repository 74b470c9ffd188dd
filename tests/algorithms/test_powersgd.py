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
    own = np.random.default_rng([7, worker])
    target = own.normal(0, 1, NUMEL)
    of_step = np.random.default_rng([step, worker])
    noise: Array = of_step.normal(0, 1, NUMEL)
    return x - target + noise


def states(
    num_steps: int, gradient: Gradient = towards_targets, **given: Any
) -> Iterator[tuple[Array, Array]]:
    """After each step all workers' parameters and errors, a row each."""
    parameters = []
    slices = transcription.slices_of(SHAPES)
    for here, shape in zip(slices, SHAPES, strict=True):
        numbers = START[here].reshape(shape)
        own = torch.from_numpy(numbers)
        of_all = torch.stack([own] * NUM_WORKERS)
        parameters.append(nn.Parameter(of_all))
    collectives = StackedCollectives(NUM_WORKERS)
    defaults = {"lr": 0.1, "seed": SEED, "collectives": collectives}
    settings = defaults | given
    optimizer = PowerSGD(parameters, **settings)
    flat = optimizer.flat
    for number in range(1, num_steps + 1):
        xs = flat.parameters.numpy().copy()
        for worker, x in enumerate(xs):
            found = gradient(x, number, worker)
            flat.gradients[worker] = torch.from_numpy(found)
        optimizer.step()
        error = optimizer.error
        assert error is not None
        parameters_now = flat.parameters.numpy().copy()
        error_now = error.numpy().copy()
        yield parameters_now, error_now


def assert_same(actual: Any, expected: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_it_is_what_the_paper_says(rank: int, momentum: float) -> None:
    ones = np.ones(NUMEL)
    eta = 0.1 * ones
    decay = 0.02 * ones
    problem = Problem(START, towards_targets, NUM_WORKERS, eta, momentum, decay)
    q = first_q(SEED)
    expected = transcription.powersgd(problem, SHAPES, rank, q)
    found = states(15, rank=rank, momentum=momentum, weight_decay=0.02)
    for own, wanted in zip(found, expected, strict=False):
        # Rounding grows as a power iteration's directions turn.
        assert_same(own, wanted, 1e-9)


# Invariants.


def of_rank_one(x: Array, number: int, worker: int) -> Array:
    """First matrices have one row that is not 0, and then none: whoever follows them loses all
    other directions."""
    gradient = towards_targets(x, number, worker)
    if number >= 4:
        return gradient
    slices = transcription.slices_of(SHAPES)
    for here, shape in zip(slices, SHAPES, strict=True):
        own = gradient[here]
        is_scalar = len(shape) == 0
        num_kept = 0
        if number == 1 and not is_scalar:
            num_rows = shape[0]
            num_kept = len(own) // num_rows
        own[num_kept:] = 0
    return gradient


@pytest.mark.parametrize("gradient", [towards_targets, of_rank_one])
def test_at_full_rank_it_is_sgd_from_the_first_step(gradient: Gradient) -> None:
    """The smaller side of the greatest matrix is 6."""
    ones = np.ones(NUMEL)
    given = {"gradient": gradient, "momentum": 0.9, "weight_decay": 0.02}
    eta = 0.1 * ones
    decay = 0.02 * ones
    problem = Problem(START, gradient, NUM_WORKERS, eta, 0.9, decay)
    sgd = transcription.sgd(problem)
    full = list(states(12, rank=6, **given))
    for (xs, es), (wanted, _) in zip(full, sgd, strict=False):
        assert_same(xs, wanted)
        mean_error = transcription.mean(es)
        largest_error = np.abs(mean_error).max()
        assert largest_error < 1e-12
    last, _ = full[-1]
    *_, (lower, _) = states(12, rank=5, **given)
    apart = np.abs(lower - last)
    assert apart.max() > 1e-3


def test_an_empty_tensor_changes_nothing() -> None:
    def after_two_steps(shapes: list[tuple[int, ...]]) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        parameters = []
        for shape in shapes:
            drawn = torch.randn((NUM_WORKERS, *shape), generator=generator)
            start = drawn[:1].expand(NUM_WORKERS, *shape).clone()
            parameters.append(nn.Parameter(start))
        collectives = StackedCollectives(NUM_WORKERS)
        optimizer = PowerSGD(
            parameters, lr=0.1, rank=1, seed=SEED, collectives=collectives
        )
        for _ in range(2):
            for parameter in parameters:
                parameter.grad = parameter.detach().cos()
            optimizer.step()
        return [parameter.detach() for parameter in parameters if parameter.numel()]

    without = after_two_steps([(6, 7), (9, 4), (5,)])
    beside = after_two_steps([(0,), (6, 7), (0, 3), (9, 4), (5,)])
    assert len(without) == len(beside) == 3
    for one, other in zip(without, beside, strict=True):
        assert torch.equal(one, other)


# Short numbers.


def test_small_gradients_do_not_vanish_in_messages_of_16_bits() -> None:
    """Q is as long as the gradient was, so M Q would be of the order of 1e-10, which 16 bits cannot
    hold."""

    def small(x: Array, number: int, worker: int) -> Array:
        origin = np.zeros_like(x)
        gradient = towards_targets(origin, 1, worker)
        return 1e-5 * gradient

    given = {"gradient": small, "lr": 1e4, "rank": 1}
    *_, (full, _) = states(6, **given)
    *_, (short, _) = states(6, communication_dtype=torch.float16, **given)
    apart = np.linalg.norm(short - full)
    moved = np.linalg.norm(full - START)
    assert apart < 0.02 * moved


def test_numbers_that_are_none_stay_so_and_raise_nothing() -> None:
    def not_finite(x: Array, number: int, worker: int) -> Array:
        value = np.inf
        if number == 1:
            value = np.nan
        return np.full(NUMEL, value)

    *_, (xs, _) = states(2, not_finite, rank=2)
    is_finite = np.isfinite(xs)
    assert not is_finite.any()
