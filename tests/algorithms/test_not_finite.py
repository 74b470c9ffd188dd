"""Numbers beyond the range of messages, and numbers that are none: what is kept, who is named, what
is left out."""

import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cser_bench.algorithms import (
    Collectives,
    DistributedOptimizer,
    Purpose,
    SoloCollectives,
    StackedCollectives,
    algorithms,
)
from cser_bench.algorithms.baselines.ddp import DDP
from cser_bench.algorithms.baselines.ddp_powersgd import DDPPowerSGD
from cser_bench.algorithms.core.exchange import Sending
from cser_bench.algorithms.core.topology import rounds_of
from tests.algorithms.problems import (
    ADAMW,
    JOINT,
    NAMES,
    SHARED,
    TAKING_ADAMW,
    assert_expected_traffic,
    own_settings,
    workers,
)

# Messages of fewer bits.

LARGEST = {torch.float16: 65_504.0, torch.bfloat16: (2 - 2.0**-7) * 2.0**127}
BEYOND = [
    (torch.float32, torch.float16, 7e4),
    (torch.float32, torch.float16, 3e38),
    (torch.float64, torch.float16, 1e300),
    (torch.bfloat16, torch.float16, 65_536.0),
    (torch.float32, torch.bfloat16, 3.4e38),
    (torch.float64, torch.bfloat16, 1e300),
]
"""Types of vectors and of messages, and a number that the second does not reach."""


@pytest.mark.parametrize(("dtype", "communication_dtype", "number"), BEYOND)
def test_a_number_beyond_the_range_is_sent_as_the_largest_and_the_rest_is_kept(
    dtype: torch.dtype, communication_dtype: torch.dtype, number: float
) -> None:
    largest = LARGEST[communication_dtype]
    inf = float("inf")
    rows = torch.tensor(
        [[number, -number, 1.5, inf, -inf, inf], [0, 0, 2.5, 0, 0, -inf]], dtype=dtype
    )
    sending = Sending(StackedCollectives(2), communication_dtype)
    own, mean = sending.average(rows, Purpose.ERROR)
    ring = rounds_of("ring", 2)[0]
    mixed, pull = sending.mix_dense(rows, ring, Purpose.ERROR)
    expected = torch.tensor([largest, -largest, 1.5], dtype=dtype)
    assert torch.equal(own[0, :3], expected)
    assert torch.equal(mixed[0, :3], expected)
    assert not own[0, 3:].isfinite().any()
    assert not mixed[0, 3:].isfinite().any()
    means = torch.tensor([largest / 2, -largest / 2, 2.0], dtype=dtype)
    assert torch.equal(mean[0, :3], means)
    moved = mixed[0, :3] + pull[0, :3]
    assert torch.equal(moved, means)
    assert not mean[:, 3:].isfinite().any()


@pytest.mark.parametrize(
    "name", [name for name in JOINT if algorithms()[name].no_compression is not None]
)
def test_what_a_methods_message_cannot_hold_arrives_later_or_is_lost_as_what_rounding_takes(
    name: str,
) -> None:
    """Two workers move once by 1e5 and 2e5: by their mean in the end, or by 65,504 where a method
    keeps nothing.

    EF21 steps by what it knows of a gradient, and by the rest no more once that is gone.
    """
    algorithm = algorithms()[name]
    own: dict[str, Any] = {
        **(algorithm.no_compression or {}),
        "momentum": 0.5 if algorithm.without_momentum else 0.0,
    }
    own |= {"overwrite_master": True} if "overwrite_master" in own else {}

    def moved(
        collectives: Collectives, communication_dtype: torch.dtype | None
    ) -> Tensor:
        weight = nn.Parameter(torch.zeros(16, 1))
        optimizer = algorithm(
            [weight],
            lr=1.0,
            collectives=collectives,
            communication_dtype=communication_dtype,
            **own,
        )
        for step in range(24):
            optimizer.zero_grad()
            scale = 1e5 * (1 + collectives.rank)
            factor = scale if step == 0 else 0.0
            (weight.sum() * factor).backward()
            optimizer.step()
        with optimizer.consensus():
            return weight.detach().clone()

    (short, full), _ = workers(
        lambda each: [moved(each, kind) for kind in (torch.float16, None)], 2
    )
    assert short.isfinite().all()
    if algorithm.keeps_rounding and name != "ef21_sgdm":
        torch.testing.assert_close(short, full, rtol=2e-3, atol=0)
    elif algorithm.without_momentum is None and name != "ef21_sgdm":
        assert (short == -LARGEST[torch.float16]).all()


# What is no number.


def stepped(
    name: str, own: dict[str, Any], **more: Any
) -> tuple[DistributedOptimizer, nn.Parameter]:
    """Three stacked workers after four steps, at the second of which numbers 0 and 2 have a
    gradient that is not."""
    weight = nn.Parameter(torch.zeros(3, 40))
    collectives = StackedCollectives(3)
    optimizer = algorithms()[name](
        [weight], lr=0.1, momentum=0.9, collectives=collectives, **own, **more
    )
    for step in range(1, 5):
        weight.grad = torch.ones_like(weight)
        if step == 2:
            weight.grad[0, 3] = float("nan")
            weight.grad[2, 5] = float("-inf")
        optimizer.step()
    return optimizer, weight


def test_stacked_workers_that_send_what_is_not_finite_are_named_once() -> None:
    own = own_settings("ef_sgd", [SHARED["identity"]])
    with pytest.warns(
        UserWarning, match="what workers 0, 2 sent at step 2 is not finite"
    ) as warned:
        _, weight = stepped("ef_sgd", own)
    (warning,) = warned
    assert warning.filename == __file__
    # Also that of worker 1, whose own gradients were finite.
    assert not weight.isfinite().all(dim=1).any()
    assert "the models of all workers that take it" in str(warning.message)
    assert "no error ends the training" in str(warning.message)
    assert "give skip_nonfinite=True" in str(warning.message)


def test_finite_numbers_whose_sum_is_not_are_not_complained_of() -> None:
    weight = nn.Parameter(torch.zeros(2, 4))
    optimizer = algorithms()["sgd"](
        [weight], lr=0.0, collectives=StackedCollectives(2), skip_nonfinite=True
    )
    large = [3e38, 3e38, -3e38, -3e38]
    weight.grad = torch.tensor([large, [0.0, 0.0, 0.0, 0.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert optimizer.num_steps == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_is_left_out_leaves_no_trace(name: str) -> None:
    """For parameters of two types, of which one alone is not finite; traffic is that of the steps
    that count."""
    own = own_settings(name, [SHARED["identity"]], 2)

    def state(left_out: bool) -> tuple[dict[str, Any], int]:
        first = nn.Parameter(torch.ones(2, 6))
        ones = torch.ones(2, 5, dtype=torch.float64)
        second = nn.Parameter(ones)
        optimizer = algorithms()[name](
            [first, second],
            lr=0.1,
            momentum=0.9,
            collectives=StackedCollectives(2),
            skip_nonfinite=left_out,
            **own,
        )
        for step in range(1, 6):
            first.grad, second.grad = (
                torch.full_like(first, step),
                torch.full_like(second, step),
            )
            if step == 3:
                if not left_out:
                    continue
                second.grad[1, 0] = float("nan")
            optimizer.step()
        assert optimizer.num_steps == 4
        assert_expected_traffic(optimizer, 4)
        flat = optimizer.state_dict()["param_groups"][0]["flat"]
        vectors = {
            f"{kind} {key}": value
            for kind, part in flat.pop("other types").items()
            for key, value in part.items()
        }
        return flat | vectors | {"first": first, "second": second}, optimizer.traffic[
            Purpose.CONTROL
        ].bits

    with pytest.warns(
        UserWarning,
        match="all workers left step 3 out, since gradients of worker 1 are not finite",
    ):
        left, _ = state(True)
    whole, _ = state(False)
    for key, value in whole.items():
        assert (
            torch.equal(value, left[key])
            if isinstance(value, Tensor)
            else value == left[key]
        ), key


def test_a_worker_alone_may_leave_steps_out_and_is_not_told_what_it_sent() -> None:
    for skips in (False, True):
        weight = nn.Parameter(torch.ones(3))
        optimizer = algorithms()["sgd"](
            [weight], lr=0.1, collectives=SoloCollectives(), skip_nonfinite=skips
        )
        weight.grad = torch.tensor([1.0, float("inf"), 1.0])
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            optimizer.step()
        assert len(warned) == skips
        assert optimizer.num_steps == 1 - skips
        assert weight.isfinite().all() == skips


def test_a_step_that_ddp_has_averaged_in_vain_is_control() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = nn.Linear(3, 2)
        optimizer = DDP(model.parameters(), lr=0.1, skip_nonfinite=True)
        wrapped = optimizer.through(model)
        for factor in (1.0, float("inf"), 1.0):
            optimizer.zero_grad()
            loss = wrapped(torch.ones(1, 3)).sum() * factor
            loss.backward()
            optimizer.step()
        assert optimizer.num_steps == 2
        assert optimizer.traffic[Purpose.CONTROL].bits == 8 * 32
        assert_expected_traffic(optimizer, 2)
    finally:
        dist.destroy_process_group()


def test_a_hook_that_keeps_what_is_not_finite_cannot_leave_steps_out() -> None:
    with pytest.raises(
        ValueError, match=r"ddp_powersgd: its hook keeps .*skip_nonfinite"
    ):
        DDPPowerSGD(
            [nn.Parameter(torch.zeros(8, 8))], lr=0.1, rank=1, skip_nonfinite=True
        )


@pytest.mark.parametrize("overflowed", [0.0, 1.0])
def test_a_hook_that_an_overflow_spoils_refuses_a_scaler(overflowed: float) -> None:
    """Also where the first step under it is left out."""
    weight = nn.Parameter(torch.zeros(8, 8))
    optimizer = DDPPowerSGD([weight], lr=0.1, rank=1)
    weight.sum().backward()
    setattr(optimizer, "found_inf", torch.tensor([overflowed]))  # noqa: B010 (no field of it)
    with pytest.raises(
        RuntimeError, match=r"ddp_powersgd: its hook keeps .*GradScaler"
    ):
        optimizer.step()


# Parameters of 16 bits.


@pytest.mark.parametrize("local_step", ["adamw", "muon"])
@pytest.mark.parametrize("name", TAKING_ADAMW)
def test_adamw_on_parameters_in_fp16_is_that_on_fp32_but_for_their_rounding(
    name: str, local_step: Any
) -> None:
    """Gradients are of any size, also 0, and some are missing: no number may become NaN, or move
    far."""
    common = {
        **ADAMW,
        "local_step": local_step,
        "lr": 0.01,
        "eps": 1e-8,
        "betas": (0.9, 0.999),
    }
    sizes = torch.tensor([1.0, 1e-2, 1e-4, 1e-6, 0.0])

    def moved(dtype: torch.dtype) -> Tensor:
        weights = [
            nn.Parameter(torch.ones(4, 5, dtype=dtype)),
            nn.Parameter(torch.ones(5, dtype=dtype)),
        ]
        numbers = common | own_settings(name)
        optimizer = algorithms()[name](weights, **numbers)
        for step in range(8):
            sign = -1 if step > 5 else 1
            gradient = (sign * sizes).half().to(dtype)
            for weight in weights:
                weight.grad = (
                    None if step in (3, 4) else gradient.expand_as(weight).clone()
                )
            optimizer.step()
        flat = [weight.detach().float().view(-1) for weight in weights]
        return torch.cat(flat)

    torch.testing.assert_close(
        moved(torch.float16), moved(torch.float32), rtol=0, atol=0.01
    )
