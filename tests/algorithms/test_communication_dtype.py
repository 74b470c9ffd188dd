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
        rounded = parameters.half().double()
        assert torch.equal(parameters, rounded) == overwrite


# One rule: numbers of 16 bits are added in 32, and the mean is rounded once.

SIZES = [2, 7, 32]
"""Numbers of workers."""


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("num_workers", SIZES)
def test_a_mean_is_rounded_once_and_overflows_only_where_it_must(
    num_workers: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(num_workers, 9, generator=generator)
    rows = (100 * drawn).to(dtype)
    rows[:, 0] = 20_000.0
    rows[:, 1] = 3.0
    exact = rows.double().mean(0)
    expected = exact.to(dtype)
    tolerance = EPSILON[dtype] / 2
    stacked_rows = rows.clone()
    collectives = StackedCollectives(num_workers)
    collectives.all_reduce_mean_(stacked_rows, Purpose.MODEL)

    def work(collectives: Collectives) -> Tensor:
        rank = collectives.rank
        own = rows[rank : rank + 1].clone()
        collectives.all_reduce_mean_(own, Purpose.MODEL)
        return own[0]

    assert stacked_rows.isfinite().all()
    assert torch.equal(stacked_rows[0, :2], rows[0, :2])
    for mean in (*stacked_rows, *workers(work, num_workers)):
        torch.testing.assert_close(mean, expected, rtol=tolerance, atol=0)
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
        value = 1e-30 if step == 0 else 0.0
        parameter.grad = torch.full_like(parameter, value)
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
    off = (free - held).abs().max()
    off_mean = (free.mean(0) - held.mean(0)).abs().max()
    assert off <= (6 + num_workers) * bound
    assert off_mean <= 2 * bound


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
    settings = {"gamma": 0.02} if name in ("choco_sgd", "deep_squeeze") else {}
    own = own_settings(name, [compressor], 2, **settings)
    parameter = nn.Parameter(torch.zeros(8, 1024))
    optimizer = algorithms()[name](
        [parameter], lr=0.05, collectives=StackedCollectives(8), **own
    )
    for _ in range(150):
        parameter.grad = a * (parameter.detach() - b)
        optimizer.step()
    best = (a * b).sum(0) / a.sum(0)
    off = (parameter.detach() - best).abs()
    assert off.max() < 30


@pytest.mark.parametrize(
    "name", [name for name in JOINT if algorithms()[name].no_compression is not None]
)
def test_what_rounding_takes_adds_up_only_where_the_method_says_so(name: str) -> None:
    """Gradients are constant and round down: of 64 steps those that keep it lose less than one
    message's rounding."""
    algorithm = algorithms()[name]
    gradients = (1.003, 1.006)
    lr = 0.25
    own: dict[str, Any] = dict(algorithm.no_compression or {})
    own["momentum"] = 0.5 if algorithm.without_momentum else 0.0
    if "overwrite_master" in own:
        own["overwrite_master"] = True

    def moved(
        collectives: Collectives, communication_dtype: torch.dtype | None
    ) -> Tensor:
        zeros = torch.zeros(16, 1, dtype=torch.float64)
        weight = nn.Parameter(zeros)
        optimizer = algorithm(
            [weight],
            lr=lr,
            collectives=collectives,
            communication_dtype=communication_dtype,
            **own,
        )
        for _ in range(64):
            optimizer.zero_grad()
            loss = weight.sum() * gradients[collectives.rank]
            loss.backward()
            optimizer.step()
        with optimizer.consensus():
            return weight.detach() / lr

    kinds = (torch.bfloat16, torch.float64, None)

    def moved_by_kind(collectives: Collectives) -> list[Tensor]:
        return [moved(collectives, kind) for kind in kinds]

    (short, own_type, full), _ = workers(moved_by_kind, 2)
    assert torch.equal(own_type, full), "the parameters' own type changes nothing"
    lost = float((short - full).abs().max())
    if algorithm.keeps_rounding:
        assert lost < EPSILON[torch.bfloat16]
    else:
        assert lost > 0.25
