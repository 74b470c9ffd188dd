"""PowerSGD on tensors of all sorts: its definition, its invariants, its bits, its state, and short numbers."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from algorithms import Collectives
from algorithms.core.layout import Layout
from algorithms.core.low_rank import LowRank
from algorithms.core.traffic import Entry
from algorithms.powersgd import PowerSGD
from tests.algorithms import transcription
from tests.algorithms.following import first_q
from tests.algorithms.problems import workers
from tests.algorithms.transcription import Array, Problem

# A convolution, vectors, matrices wide and tall, two of one shape, a scalar and a column.
SHAPES: list[tuple[int, ...]] = [(4, 3, 2, 2), (5,), (6, 7), (9, 4), (), (6, 7), (3, 1), (1, 5)]
SIZES = [math.prod(shape) for shape in SHAPES]
NUMEL = sum(SIZES)
SEED, NUM_WORKERS = 5, 3

Gradient = Callable[[Array, int, int], Array]


def towards_targets(x: Array, step: int, worker: int) -> Array:
    """Of a square distance to a target that is the worker's own, with noise."""
    target = np.random.default_rng([7, worker]).normal(0, 1, NUMEL)
    noise: Array = np.random.default_rng([step, worker]).normal(0, 1, NUMEL)
    return x - target + noise


def start() -> Array:
    return np.random.default_rng(0).normal(0, 1, NUMEL)


def parameters_at(x: Array, dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    parts = np.split(x, np.cumsum(SIZES)[:-1])
    return [nn.Parameter(torch.from_numpy(p.reshape(s)).to(dtype)) for p, s in zip(parts, SHAPES, strict=True)]


def make(collectives: Collectives | None = None, dtype: torch.dtype = torch.float64, **given: Any) -> PowerSGD:
    return PowerSGD(
        parameters_at(start(), dtype), collectives=collectives, **{"lr": 0.1, "rank": 2, "seed": SEED, **given}
    )


def step(optimizer: PowerSGD, gradient: Array) -> None:
    for parameter, part in zip(optimizer.flat.tensors, np.split(gradient, np.cumsum(SIZES)[:-1]), strict=True):
        parameter.grad = torch.from_numpy(part.reshape(parameter.shape)).to(parameter.dtype)
    optimizer.step()


def states(
    num_steps: int, num_workers: int = NUM_WORKERS, gradient: Gradient = towards_targets, **given: Any
) -> list[list[tuple[Array, Array]]]:
    """After each step, of each worker, its parameters and its error."""

    def work(collectives: Collectives) -> list[tuple[Array, Array]]:
        optimizer, seen = make(collectives, **given), []
        for number in range(1, num_steps + 1):
            step(optimizer, gradient(optimizer.flat.parameters[0].numpy().copy(), number, collectives.rank))
            assert optimizer.error is not None
            seen.append((optimizer.flat.parameters[0].numpy().copy(), optimizer.error[0].numpy().copy()))
        return seen

    return [list(of_all) for of_all in zip(*workers(work, num_workers), strict=True)]


def assert_same(actual: Any, expected: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_it_is_what_the_paper_says(rank: int, momentum: float) -> None:
    ones = np.ones(NUMEL)
    problem = Problem(start(), towards_targets, NUM_WORKERS, 0.1 * ones, momentum, 0.02 * ones)
    expected = transcription.powersgd(problem, SHAPES, rank, first_q(SEED))
    given = {"rank": rank, "momentum": momentum, "weight_decay": 0.02}
    for number, (of_all, (xs, es)) in enumerate(zip(states(15, **given), expected, strict=False), start=1):
        tolerance = 1e-12 if number < 9 else 1e-9  # rounding grows as a power iteration's directions turn
        assert_same([x for x, _ in of_all], xs, tolerance)
        assert_same([e for _, e in of_all], es, tolerance)


# Invariants.


def of_rank_one(x: Array, number: int, worker: int) -> Array:
    """First matrices have one row that is not 0, and then none: whoever follows them loses all other directions."""
    gradient = towards_targets(x, number, worker)
    if number < 4:
        for offset, size, shape in zip(np.cumsum([0, *SIZES]), SIZES, SHAPES, strict=False):
            gradient[offset + (size // shape[0] if number == 1 and shape else 0) : offset + size] = 0
    return gradient


@pytest.mark.parametrize("gradient", [towards_targets, of_rank_one])
def test_at_full_rank_it_is_sgd_from_the_first_step(gradient: Gradient) -> None:
    """The smaller side of the greatest matrix is 6."""
    ones = np.ones(NUMEL)
    sgd = transcription.sgd(Problem(start(), gradient, NUM_WORKERS, 0.1 * ones, 0.9, 0.02 * ones))
    full = states(12, gradient=gradient, rank=6, momentum=0.9, weight_decay=0.02)
    for of_all, (xs, _) in zip(full, sgd, strict=False):
        assert_same([x for x, _ in of_all], xs)
        assert np.abs(transcription.mean([e for _, e in of_all])).max() < 1e-13
    lower = states(12, gradient=gradient, rank=5, momentum=0.9, weight_decay=0.02)
    assert np.abs(lower[-1][0][0] - full[-1][0][0]).max() > 1e-3


MATRICES = {
    "plain": [1.0, 1.0, 1.0],
    "a column of 0": [1.0, 0.0, 1.0],
    "0": [0.0, 0.0, 0.0],
    "tiny": [1e-150, 1e-150, 1e-150],
    "huge": [1e150, 1e150, 1e150],
    "columns of all sizes": [1e-12, 1.0, 1e12],
}
"""Factors of a random matrix' columns."""


@pytest.mark.parametrize("key", [*MATRICES, "of rank 1"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_columns_of_p_are_orthonormal_and_span_what_they_spanned(dtype: torch.dtype, key: str) -> None:
    if dtype != torch.float64 and key in ("tiny", "huge", "columns of all sizes"):
        return
    plain = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = plain[:, :1] * plain[0] if key == "of rank 1" else plain * torch.tensor(MATRICES[key], dtype=torch.float64)
    low = LowRank(Layout.of([torch.empty(8, 5)]), 3)
    exact = torch.finfo(dtype).eps * 10
    message = p.to(dtype).reshape(-1).clone()
    low.orthonormalise_(message)
    basis = low.factors(message, "rows")[0].double()
    torch.testing.assert_close(basis.T @ basis, torch.eye(3, dtype=torch.float64), rtol=0, atol=exact)
    size = float(p.abs().max()) or 1.0
    torch.testing.assert_close(basis @ (basis.T @ p) / size, p / size, rtol=0, atol=exact)


# Bits.


def test_bits_counted_by_hand() -> None:
    """Matrices of 4 x 12, 6 x 7 twice, 9 x 4, 3 x 1 and 1 x 5; 6 numbers are in none."""
    for rank, numbers in (
        (1, 16 + 13 + 13 + 13 + 4 + 6),
        (3, 48 + 39 + 39 + 39 + 4 + 6),
        (100, 64 + 78 + 78 + 52 + 4 + 6),
    ):
        optimizer = make(dtype=torch.float32, rank=rank)
        assert optimizer.expected_traffic(10).training()["gradient"] == Entry(10 * 32 * (numbers + 6), 20)
        assert optimizer.overall_ratio() == pytest.approx(NUMEL / (numbers + 6))
    vectors = PowerSGD([nn.Parameter(torch.zeros(7))], lr=0.1, rank=1)
    assert vectors.expected_traffic(10).training()["gradient"] == Entry(10 * 32 * 7, 10), "there is no second message"


# State.


def test_a_state_of_other_factors_is_refused() -> None:
    state = make(rank=2).state_dict()
    with pytest.raises(ValueError, match="rank = 2, this has 3"):
        make(rank=3).load_state_dict(state)
    flat = state["param_groups"][0]["flat"]
    flat["right_factors"] = flat["right_factors"][:-1]
    with pytest.raises(ValueError, match=r"does not fit powersgd.*right_factors"):
        make(rank=2).load_state_dict(state)


def test_the_first_factors_are_drawn_from_the_seed_alone() -> None:
    first = make().q.clone()
    assert all(torch.equal(first, other) for other in workers(lambda collectives: make(collectives).q.clone(), 3))
    assert not torch.equal(first, make(seed=SEED + 1).q)
    with torch.device("meta"):
        planned = PowerSGD([nn.Parameter(torch.empty(shape)) for shape in SHAPES], lr=0.1, rank=2)
    assert planned.expected_traffic(7) == make(rank=2, dtype=torch.float32).expected_traffic(7)


# Short numbers.


def test_small_gradients_do_not_vanish_in_messages_of_16_bits() -> None:
    """Q is as long as the gradient was, so M Q would be of the order of 1e-10, which 16 bits cannot hold."""

    def small(x: Array, number: int, worker: int) -> Array:
        return 1e-5 * towards_targets(0 * x, 1, worker)

    full, short = (
        states(6, gradient=small, lr=1e4, rank=1, communication_dtype=communication_dtype)[-1][0][0]
        for communication_dtype in (None, torch.float16)
    )
    assert np.linalg.norm(short - full) < 0.02 * np.linalg.norm(full - start())


def test_what_rounding_took_is_kept() -> None:
    """Also of what is no matrix: with the error it is what there was."""
    total, before = np.zeros(NUMEL), start()
    for number, of_all in enumerate(states(8, 1, communication_dtype=torch.bfloat16, lr=1.0, rank=6), start=1):
        total += towards_targets(before, number, 0)
        before = of_all[0][0]
        assert_same(start() - before + of_all[0][1], total)
        assert np.abs(of_all[0][1]).max() > 1e-4


def test_numbers_that_are_none_stay_so_and_raise_nothing() -> None:
    optimizer = make()
    step(optimizer, np.full(NUMEL, np.nan))
    step(optimizer, np.full(NUMEL, np.inf))
    assert not torch.isfinite(optimizer.flat.parameters[0]).any()
