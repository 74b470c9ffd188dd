"""Short messages: half the bits, or a few; what rounding loses is kept as what a compressor leaves
out is."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cser_bench.algorithms import QSGD, Collectives, Purpose, StackedCollectives
from tests.algorithms.problems import (
    JOINT,
    SHARED,
    algorithms,
    kinds_taken,
    own_settings,
    stacked,
    trained,
    workers,
)

SHORT = [torch.float16, torch.bfloat16]
EPSILON = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


@pytest.mark.parametrize("name", ["cser_released", "mcser_released"])
def test_the_release_overwrites_with_rounded_numbers(name: str) -> None:
    for overwrite in (False, True):
        own = own_settings(
            name,
            [SHARED["identity"]],
            1,
            average_parameters=True,
            overwrite_master=overwrite,
        )
        (parameters,) = trained(name, own, 1, 4, communication_dtype=torch.float16)
        assert torch.equal(parameters, parameters.half().double()) == overwrite


# One rule: numbers of 16 bits are added in 32, and the mean is rounded once.

SIZES = [2, 7, 32]
"""Numbers of workers."""


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("num_workers", SIZES)
def test_a_mean_is_rounded_once_and_overflows_only_where_it_must(
    num_workers: int, dtype: torch.dtype
) -> None:
    rows = (
        torch.randn(num_workers, 9, generator=torch.Generator().manual_seed(1))
        .mul_(100)
        .to(dtype)
    )
    rows[:, 0], rows[:, 1] = 20_000.0, 3.0
    expected = rows.double().mean(0).to(dtype)
    stacked_rows = rows.clone()
    StackedCollectives(num_workers).all_reduce_mean_(stacked_rows, Purpose.MODEL)

    def work(collectives: Collectives) -> Tensor:
        own = rows[collectives.rank : collectives.rank + 1].clone()
        collectives.all_reduce_mean_(own, Purpose.MODEL)
        return own[0]

    assert stacked_rows.isfinite().all()
    assert torch.equal(stacked_rows[0, :2], rows[0, :2])
    for mean in (*stacked_rows, *workers(work, num_workers)):
        torch.testing.assert_close(mean, expected, rtol=EPSILON[dtype] / 2, atol=0)
        assert torch.equal(mean, stacked_rows[0])


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("num_workers", SIZES)
@pytest.mark.parametrize("name", JOINT)
def test_equal_workers_without_gradients_stay_where_they_are(
    name: str, num_workers: int, dtype: torch.dtype
) -> None:
    start = (
        torch.randn(51, generator=torch.Generator().manual_seed(3))
        .mul_(3)
        .expand(num_workers, -1)
    )
    parameter = nn.Parameter(start.clone())
    common: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "communication_dtype": dtype}
    own = own_settings(name, [SHARED["block"]], 2)
    optimizer = algorithms()[name](
        [parameter], collectives=StackedCollectives(num_workers), **own, **common
    )
    for step in range(6):
        # Too small to change anything.
        parameter.grad = torch.full_like(parameter, 1e-30 if step == 0 else 0.0)
        optimizer.step()
    assert torch.equal(parameter.detach(), start)


@pytest.mark.whole
@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("num_workers", SIZES)
@pytest.mark.parametrize("name", ["cser", "csea", "cser_pl"])
def test_the_two_forms_of_cser_stay_together(
    name: str, num_workers: int, dtype: torch.dtype
) -> None:
    """In 24 steps a coordinate is averaged 6 times at most on average, each time rounded to half an
    epsilon of it.

    The mean keeps what its own rounding took with one worker, who has n times that on its share of
    the coordinates.
    """
    sent = {"communication_dtype": dtype}
    forms = [
        own_settings(name, [SHARED["block"]], 4, explicit_error=held)
        for held in (False, True)
    ]
    free, held = (
        torch.stack(stacked(name, own, num_workers, 24, **sent)[1]) for own in forms
    )
    bound = EPSILON[dtype] / 2 * held.abs().max()
    assert (free - held).abs().max() <= (6 + num_workers) * bound
    assert (free.mean(0) - held.mean(0)).abs().max() <= 2 * bound


@pytest.mark.whole
@pytest.mark.parametrize("compressor", [QSGD(2), QSGD(2, bucket_size=16)], ids=str)
@pytest.mark.parametrize(
    "name", [name for name in JOINT if kinds_taken(name) and "released" not in name]
)
def test_a_quantiser_under_feedback_does_not_diverge(
    name: str, compressor: QSGD
) -> None:
    """On sum_i a_i (x - b_i)^2 / 2; unscaled, they grow beyond 1e2 in 150 steps, and most beyond
    1e8."""
    generator = torch.Generator().manual_seed(0)
    a = 0.5 + torch.rand(8, 1024, generator=generator)
    b = 2.4 * torch.randn(8, 1024, generator=generator)
    gamma = {"gamma": 0.02} if name in ("choco_sgd", "deep_squeeze") else {}
    own = own_settings(name, [compressor], 2, **gamma)
    parameter = nn.Parameter(torch.zeros(8, 1024))
    optimizer = algorithms()[name](
        [parameter], lr=0.05, collectives=StackedCollectives(8), **own
    )
    for _ in range(150):
        parameter.grad = a * (parameter.detach() - b)
        optimizer.step()
    assert (parameter.detach() - (a * b).sum(0) / a.sum(0)).abs().max() < 30


@pytest.mark.parametrize(
    "name", [name for name in JOINT if algorithms()[name].no_compression is not None]
)
def test_what_rounding_takes_adds_up_only_where_the_method_says_so(name: str) -> None:
    """Gradients are constant and round down: of 64 steps those that keep it lose less than one
    message's rounding."""
    algorithm = algorithms()[name]
    gradients = (1.003, 1.006)
    lr = 0.25
    own: dict[str, Any] = {
        **(algorithm.no_compression or {}),
        "momentum": 0.5 if algorithm.without_momentum else 0.0,
    }
    own |= {"overwrite_master": True} if "overwrite_master" in own else {}

    def moved(
        collectives: Collectives, communication_dtype: torch.dtype | None
    ) -> Tensor:
        weight = nn.Parameter(torch.zeros(16, 1, dtype=torch.float64))
        optimizer = algorithm(
            [weight],
            lr=lr,
            collectives=collectives,
            communication_dtype=communication_dtype,
            **own,
        )
        for _ in range(64):
            optimizer.zero_grad()
            (weight.sum() * gradients[collectives.rank]).backward()
            optimizer.step()
        with optimizer.consensus():
            return weight.detach() / lr

    kinds = (torch.bfloat16, torch.float64, None)
    (short, own_type, full), _ = workers(
        lambda each: [moved(each, kind) for kind in kinds], 2
    )
    assert torch.equal(own_type, full), "the parameters' own type changes nothing"
    lost = float((short - full).abs().max())
    assert lost < EPSILON[torch.bfloat16] if algorithm.keeps_rounding else lost > 0.25
