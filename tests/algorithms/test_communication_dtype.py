"""Short messages: half the bits, or a few; what rounding loses is kept as what a compressor leaves out is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from algorithms import QSGD, Collectives, Purpose, RandomK, StackedCollectives, TopK
from algorithms.cser import CSER
from tests.algorithms.problems import (
    JOINT,
    SHARED,
    algorithms,
    make_model,
    make_optimizer,
    named_compressors,
    own_settings,
    stacked,
    takes_any,
    train,
    trained,
    workers,
)

SHORT = [torch.float16, torch.bfloat16]
EPSILON = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
PAIRS = [(name, key) for name in JOINT for key in named_compressors(name, {"blocks": SHARED["blocks"]})]
FAMILY = [name for name, algorithm in algorithms().items() if issubclass(algorithm, CSER)]


@pytest.mark.parametrize("communication_dtype", SHORT)
@pytest.mark.parametrize(("name", "key"), PAIRS)
def test_it_sends_half_the_bits(name: str, key: str, communication_dtype: torch.dtype) -> None:
    def work(collectives: Collectives) -> None:
        bits = []
        for dtype in (communication_dtype, None):
            model, before = make_model(torch.float32), collectives.traffic.training_bits
            own = own_settings(name, [SHARED[key]], 3)
            optimizer = make_optimizer(name, model, own, collectives, communication_dtype=dtype)
            train(optimizer, model, collectives.rank, range(1, 8))
            bits.append(optimizer.expected_traffic(7).training_bits)
            assert collectives.traffic.training_bits - before == bits[-1]
        assert 2 * bits[0] == bits[1] > 0

    workers(work, 2)


@pytest.mark.parametrize("name", JOINT)
def test_it_stays_near_the_full_precision_and_the_parameters_own_type_changes_nothing(name: str) -> None:
    own = own_settings(name, [SHARED["blocks"]], 3)
    full = torch.stack(trained(name, own, 3, 12))
    assert torch.equal(torch.stack(trained(name, own, 3, 12, communication_dtype=torch.float64)), full)
    for dtype in SHORT:
        short = torch.stack(trained(name, own, 3, 12, communication_dtype=dtype))
        assert 0 < ((short - full).norm(dim=1) / full.norm(dim=1)).max() < 8 * EPSILON[dtype]


@pytest.mark.parametrize("communication_dtype", SHORT)
@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("name", [name for name in FAMILY if "released" not in name])
def test_the_cser_family_loses_nothing_to_rounding(name: str, explicit: bool, communication_dtype: torch.dtype) -> None:
    """x - e stays the same on all workers, and with one worker the method stays SGD."""
    own = own_settings(name, [SHARED["blocks"]], 3, explicit_error=explicit)

    def work(collectives: Collectives) -> tuple[Tensor, Tensor | None]:
        model = make_model()
        optimizer = make_optimizer(name, model, own, collectives, communication_dtype=communication_dtype)
        train(optimizer, model, collectives.rank, range(1, 10))
        return optimizer.flat.parameters[0].detach(), None if optimizer.error is None else optimizer.error[0]

    if explicit:
        common = [x - e for x, e in workers(work, 3) if e is not None]
        assert len(common) == 3
        for other in common:
            torch.testing.assert_close(other, common[0], rtol=0, atol=1e-12)
    ((alone, _),) = workers(work, 1)
    torch.testing.assert_close(alone, trained("sgd", {}, 1, 9)[0], rtol=0, atol=1e-12)


def test_ef_sgd_keeps_what_rounding_lost() -> None:
    def after_one_step(dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
        model = make_model()
        own = {"compressor": SHARED["identity"]}
        optimizer = make_optimizer("ef_sgd", model, own, communication_dtype=dtype)
        train(optimizer, model, 0, [1])
        assert optimizer.error is not None
        return optimizer.flat.parameters, optimizer.error

    (x, e), (exact, none) = after_one_step(torch.bfloat16), after_one_step(None)
    assert none.abs().max() == 0 < e.abs().max() < 0.01
    torch.testing.assert_close(x - e, exact, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["cser_released", "mcser_released"])
def test_the_release_overwrites_with_rounded_numbers(name: str) -> None:
    for overwrite in (False, True):
        own = own_settings(name, [SHARED["identity"]], 1, average_parameters=True, overwrite_master=overwrite)
        (parameters,) = trained(name, own, 1, 4, communication_dtype=torch.float16)
        assert torch.equal(parameters, parameters.half().double()) == overwrite


@pytest.mark.parametrize("name", [name for name in JOINT if takes_any(name) and "released" not in name])
def test_messages_with_a_format_of_their_own_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="format of their own"):
        make_optimizer(name, make_model(), own_settings(name, [TopK(5)]), communication_dtype=torch.float16)


# One rule: numbers of 16 bits are added in 32, and the mean is rounded once.

SIZES = [2, 7, 32]
"""Numbers of workers."""


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("num_workers", SIZES)
def test_a_mean_is_rounded_once_and_overflows_only_where_it_must(num_workers: int, dtype: torch.dtype) -> None:
    rows = torch.randn(num_workers, 9, generator=torch.Generator().manual_seed(1)).mul_(100).to(dtype)
    rows[:, 0], rows[:, 1] = 20_000.0, 3.0
    expected = rows.double().mean(0).to(dtype)
    stacked_rows = rows.clone()
    StackedCollectives(num_workers).all_reduce_mean_(stacked_rows, Purpose.MODEL)

    def work(collectives: Collectives) -> Tensor:
        own = rows[collectives.rank : collectives.rank + 1].clone()
        collectives.all_reduce_mean_(own, Purpose.MODEL)
        return own[0]

    assert stacked_rows.isfinite().all() and torch.equal(stacked_rows[0, :2], rows[0, :2])
    for mean in (*stacked_rows, *workers(work, num_workers)):
        torch.testing.assert_close(mean, expected, rtol=EPSILON[dtype] / 2, atol=0)
        assert torch.equal(mean, stacked_rows[0])


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("num_workers", SIZES)
@pytest.mark.parametrize("name", JOINT)
def test_equal_workers_without_gradients_stay_where_they_are(name: str, num_workers: int, dtype: torch.dtype) -> None:
    start = torch.randn(51, generator=torch.Generator().manual_seed(3)).mul_(3).expand(num_workers, -1)
    parameter = nn.Parameter(start.clone())
    common: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "communication_dtype": dtype}
    own = own_settings(name, [SHARED["block"]], 2)
    optimizer = algorithms()[name]([parameter], collectives=StackedCollectives(num_workers), **own, **common)
    for step in range(6):
        parameter.grad = torch.full_like(parameter, 1e-30 if step == 0 else 0.0)  # too small to change anything
        optimizer.step()
    assert torch.equal(parameter.detach(), start)


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("num_workers", SIZES)
@pytest.mark.parametrize("name", ["cser", "csea", "cser_pl"])
def test_the_two_forms_of_cser_stay_together(name: str, num_workers: int, dtype: torch.dtype) -> None:
    """In 24 steps a coordinate is averaged 6 times at most on average, each time rounded to half an epsilon of it.

    The mean keeps what its own rounding took with one worker, who has n times that on its share of the coordinates.
    """
    sent = {"communication_dtype": dtype}
    forms = [
        stacked(name, own_settings(name, [SHARED["block"]], 4, explicit_error=held), num_workers, 24, **sent)
        for held in (False, True)
    ]
    free, held = (optimizer.flat.parameters for optimizer in forms)
    bound = EPSILON[dtype] / 2 * held.abs().max()
    assert (free - held).abs().max() <= (6 + num_workers) * bound
    assert (free.mean(0) - held.mean(0)).abs().max() <= 2 * bound


def on_a_quadratic(name: str, own: dict[str, Any], num_steps: int, **common: Any) -> Tensor:
    """The workers' parameters, 8 rows, on sum_i a_i (x - b_i)^2 / 2, whose solution has |x| of about 0.8."""
    generator = torch.Generator().manual_seed(0)
    a, b = 0.5 + torch.rand(8, 1024, generator=generator), 2.4 * torch.randn(8, 1024, generator=generator)
    parameter = nn.Parameter(torch.zeros(8, 1024))
    optimizer = algorithms()[name]([parameter], lr=0.05, collectives=StackedCollectives(8), **own, **common)
    for _ in range(num_steps):
        parameter.grad = a * (parameter.detach() - b)
        optimizer.step()
    return parameter.detach() - (a * b).sum(0) / a.sum(0)


@pytest.mark.parametrize("dtype", SHORT)
def test_ef21_rests_where_it_does_with_32_bits(dtype: torch.dtype) -> None:
    far = [on_a_quadratic("ef21_sgdm", {"compressor": RandomK(4)}, 1200, communication_dtype=d) for d in (dtype, None)]
    assert far[0].abs().max() < 2 * far[1].abs().max() + 1e-5


@pytest.mark.parametrize("compressor", [QSGD(2), QSGD(4), QSGD(2, bucket_size=16), QSGD(4, bucket_size=64)], ids=str)
@pytest.mark.parametrize("name", [name for name in JOINT if takes_any(name) and "released" not in name])
def test_a_quantiser_under_feedback_does_not_diverge(name: str, compressor: QSGD) -> None:
    """Unscaled, all but the last grow beyond 1e2 in 150 steps, and most beyond 1e8."""
    gamma = {"gamma": 0.02} if name in ("choco_sgd", "deep_squeeze") else {}
    far = on_a_quadratic(name, own_settings(name, [compressor], 2, **gamma), 150)
    assert far.abs().max() < 30


@pytest.mark.parametrize("name", [name for name in JOINT if algorithms()[name].no_compression is not None])
def test_what_rounding_takes_adds_up_only_where_the_method_says_so(name: str) -> None:
    """Gradients are constant and round down: of 64 steps those that keep it lose less than one message's rounding."""
    algorithm, gradients, lr = algorithms()[name], (1.003, 1.006), 0.25
    own: dict[str, Any] = {**(algorithm.no_compression or {}), "momentum": 0.5 if algorithm.without_momentum else 0.0}
    own |= {"overwrite_master": True} if "overwrite_master" in own else {}

    def moved(collectives: Collectives, communication_dtype: torch.dtype | None) -> Tensor:
        weight = nn.Parameter(torch.zeros(16, 1, dtype=torch.float64))
        optimizer = algorithm([weight], lr=lr, collectives=collectives, communication_dtype=communication_dtype, **own)
        for _ in range(64):
            optimizer.zero_grad()
            (weight.sum() * gradients[collectives.rank]).backward()
            optimizer.step()
        with optimizer.consensus():
            return weight.detach() / lr

    (short, full), _ = workers(lambda each: (moved(each, torch.bfloat16), moved(each, None)), 2)
    lost = float((short - full).abs().max())
    assert lost < EPSILON[torch.bfloat16] if algorithm.keeps_rounding else lost > 0.25
