"""The local step: AdamW against torch.optim.AdamW, NumPy and where it cannot be; and any step in every type."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from algorithms import BlockSparsifier, Collectives, DistributedOptimizer, Purpose, TopK, algorithms
from algorithms.core.flat import FlatBuffers
from algorithms.core.local_step import AdamW, Span, nesterov_step_
from algorithms.core.state import common_state
from algorithms.core.traffic import Entry
from tests.algorithms import transcription
from tests.algorithms.following import NUM_STEPS, assert_follows, compress_of, make_problem
from tests.algorithms.problems import (
    ADAMW,
    COMPRESSORS,
    NAMES,
    NUM_PARAMETERS,
    TAKING_ADAMW,
    assert_close,
    batch_loss,
    flat_parameters,
    groups,
    make_model,
    make_optimizer,
    on_the_mean_gradient,
    own_settings,
    train,
    trained,
    workers,
)
from tests.algorithms.transcription import Compress, Problem, State, Vectors, mean

NUMBERS = {key: value for key, value in ADAMW.items() if key not in ("local_step", "momentum")}
ON_GRADIENTS = {"error_feedback_on": "gradients"}
CASES = [*((name, {}) for name in TAKING_ADAMW), ("ef_sgd", ON_GRADIENTS)]
COMMON = ("sgd", "sgd_accumulate", "powersgd")
"""Methods whose moments are common."""


def adamw(model: nn.Module, **options: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups(model), **NUMBERS, **options)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("name", "more"), CASES, ids=str)
def test_without_compression_it_is_torchs_adamw(name: str, more: dict[str, Any], fused: bool) -> None:
    """On one worker; and on the mean gradient of three where the moments are common, but not where each has its own."""
    for world_size in (1, 3):
        expected = on_the_mean_gradient(lambda model: adamw(model, fused=fused), world_size, 12)
        actual = torch.stack(trained(name, own_settings(name) | more, world_size, 12, **ADAMW))
        if world_size == 1 or more or name in COMMON:
            assert_close(actual, expected.expand_as(actual))
        else:
            assert (actual.mean(0) - expected).norm() > 1e-3


@pytest.mark.parametrize("name", TAKING_ADAMW)
def test_a_frozen_tensor_waits_and_its_bias_is_corrected_by_its_own_steps(name: str) -> None:
    """In steps 3 to 6 the first layer is frozen, while a schedule changes the rate and the first beta."""

    def run(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
        schedule = OneCycleLR(optimizer, max_lr=[0.2, 0.1], total_steps=20)
        for step in range(1, 16):
            optimizer.zero_grad()
            for parameter in model[0].parameters():  # type: ignore[index,union-attr]
                parameter.requires_grad_(not 3 <= step <= 6)
            batch_loss(model, step, 0).backward()
            optimizer.step()
            schedule.step()
        return flat_parameters(model)

    model, plain = make_model(), make_model()
    assert_close(run(model, make_optimizer(name, model, own_settings(name), **ADAMW)), run(plain, adamw(plain)))


SIZES = [1, 7, 8, 9, 15, 16, 17, 31, 33, 48, 64, 65, 100, 1023, 1024, 1025]
"""Around multiples of a vector's 16 numbers."""
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rule", ["sgd", "sgd with momentum", "adamw"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_step_is_right_for_every_type_and_size(dtype: torch.dtype, rule: str, device: str) -> None:
    """Of the parameters themselves, or of another vector that the update is added to or taken from."""
    beta = 0.9 if "momentum" in rule else 0.0
    for size, separate in itertools.product(SIZES, (False, True)):
        generator = torch.Generator().manual_seed(size)
        numbers = [torch.randn(size, generator=generator).to(dtype) for _ in range(5)]
        numbers[3] = numbers[3].abs() + 0.1
        x, g, m, v, target = (each.double() for each in numbers)
        rows = [each.clone().to(device).unsqueeze(0) for each in numbers]
        sign = 1 if separate and rule == "adamw" else -1
        if rule == "adamw":
            after = [0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2]
            direction = after[0] / (1 - 0.8**3) / ((after[1] / (1 - 0.95**3)).sqrt() + 1e-6)
            update = 0.02 * (0.05 * x + direction)
            step = AdamW(FlatBuffers([[nn.Parameter(rows[0][0].clone())]]), {}).step_
            step(Span(0, size, NUMBERS, 2), rows[0], rows[1], rows[2:4], rows[4] if separate else None, sign)
        else:
            group = {"lr": 0.1, "momentum": beta, "weight_decay": 0.02}
            after = [beta * m + (g + 0.02 * x)] if beta else []
            update = 0.1 * (beta * (after[0] if beta else 0) + (g + 0.02 * x))
            moment = rows[2] if beta else None
            nesterov_step_(group, rows[0], rows[1], moment, rows[4] if separate else None, sign)
        moved, start = (rows[4], target) if separate else (rows[0], x)
        rounding = 8 * torch.finfo(dtype).eps
        for actual, wanted in zip([moved, *rows[2:4]], [start + sign * update, *after], strict=False):
            torch.testing.assert_close(actual[0].double().cpu(), wanted, rtol=rounding, atol=rounding)


# From the definition.


class Moments:
    """Of each worker m and v, and t steps; returns p_i = eta lambda x_i + eta mhat / (sqrt(vhat) + eps)."""

    def __init__(self, problem: Problem) -> None:
        self.m, self.v = (problem.everywhere(0 * problem.start) for _ in range(2))
        self.t = 0
        self.problem = problem

    def updates(self, gradients: Vectors, xs: Vectors) -> Vectors:
        (b1, b2), eps = NUMBERS["betas"], NUMBERS["eps"]
        self.t += 1
        self.m = b1 * self.m + (1 - b1) * gradients
        self.v = b2 * self.v + (1 - b2) * gradients**2
        m_hat, v_hat = self.m / (1 - b1**self.t), self.v / (1 - b2**self.t)
        return self.problem.eta * (self.problem.decay * xs + m_hat / (np.sqrt(v_hat) + eps))


def ef_on_gradients(problem: Problem, compress: Compress) -> Iterator[State]:
    e, x, moments = problem.everywhere(0 * problem.start), problem.start.copy(), Moments(problem)
    for t in range(1, NUM_STEPS + 1):
        e = e + problem.gradients(problem.everywhere(x), t)
        sent = compress(t, "gradient", e)
        e = e - sent
        # All workers take the same step.
        x = x - moments.updates(problem.everywhere(mean(sent)), problem.everywhere(x))[0]
        yield problem.everywhere(x), e


def problem() -> Problem:
    made = make_problem(0.0)
    is_weight = made.eta == made.eta[0]
    made.eta = np.where(is_weight, NUMBERS["lr"], made.eta)
    made.decay = np.where(is_weight, NUMBERS["weight_decay"], made.decay)
    made.rule = Moments(made).updates
    return made


@pytest.mark.parametrize(
    ("c2", "c1", "explicit"), [("block", "blocks", False), ("blocks", "block", True), ("top_k", "random_k", True)]
)
def test_m_cser_follows_its_definition(c2: str, c1: str, explicit: bool) -> None:
    own = own_settings("mcser", [COMPRESSORS[c2], COMPRESSORS[c1]], 3, explicit_error=explicit)
    assert own["gradient_compressor"] is COMPRESSORS[c2], "settings are in the order of the constructor"
    expected = transcription.cser(problem(), NUM_STEPS, compress_of(c2), compress_of(c1), 3)
    assert_follows("mcser", own, expected, rtol=1e-8, **ADAMW)


@pytest.mark.parametrize("key", ["blocks", "random_k", "top_k"])
def test_ef_sgd_on_updates_and_on_gradients_follows_its_definition(key: str) -> None:
    own = {"compressor": COMPRESSORS[key]}
    on_updates = transcription.ef_sgd(problem(), NUM_STEPS, compress_of(key))
    assert_follows("ef_sgd", own, on_updates, rtol=1e-8, **ADAMW)
    on_gradients = ef_on_gradients(problem(), compress_of(key))
    assert_follows("ef_sgd", own | ON_GRADIENTS, on_gradients, rtol=1e-8, **ADAMW)


PERIODS = [(1, 1, 1), (4, 4, 4), (2, 6, 12), (3, 2, 5)]
"""H, K_u and K_v: all averaged in each step, Local Adam, DES-LOC as it is recommended, and such as never meet."""


def moment_settings(periods: tuple[int, int, int]) -> dict[str, int]:
    keys = ("sync_interval", "first_moment_interval", "second_moment_interval")
    return dict(zip(keys, periods, strict=True))


@pytest.mark.parametrize("periods", PERIODS, ids=str)
def test_local_sgd_that_averages_moments_follows_its_definition(periods: tuple[int, int, int]) -> None:
    made = problem()
    moments = made.rule.__self__  # type: ignore[union-attr]
    expected = transcription.averaged_moments(made, NUM_STEPS, periods, [lambda: moments.m, lambda: moments.v])
    assert_follows("local_sgd", moment_settings(periods), expected, **ADAMW)


def test_each_average_of_moments_is_a_model_on_the_link() -> None:
    def work(collectives: Collectives) -> None:
        model = make_model(torch.float32)
        optimizer = make_optimizer("local_sgd", model, moment_settings((2, 6, 12)), collectives, **ADAMW)
        train(optimizer, model, collectives.rank, range(1, 14))
        sent = Entry(32 * NUM_PARAMETERS * (6 + 2 + 1), 6 + 2 + 1)
        assert optimizer.traffic["model"] == sent == optimizer.expected_traffic(13)["model"]
        assert [step for step in range(7) if optimizer.agree_after(step)] == [0, 2, 4, 6]
        moments = optimizer.state_dict()["param_groups"][0]["flat"]
        own = torch.stack([moments[key][0] for key in ("exp_avg", "exp_avg_sq")])
        others = collectives.all_gather(own.unsqueeze(0), Purpose.EVALUATION)
        assert not torch.equal(others[0], others[1]), "step 13 is each worker's own"

    workers(work, 2)


# Checkpoints.


def test_a_state_for_any_worker_has_the_average_moments() -> None:
    def work(collectives: Collectives) -> dict[str, Any]:
        model = make_model()
        optimizer = make_optimizer("local_sgd", model, {"sync_interval": 10}, collectives, **ADAMW)
        for step in range(1, 6):
            optimizer.zero_grad()
            model[0].bias.requires_grad_(step > 2)  # type: ignore[union-attr]
            batch_loss(model, step, collectives.rank).backward()
            optimizer.step()
        return copy.deepcopy(optimizer.state_dict())

    states = workers(work, 2)
    own, other, common = (each["param_groups"][0]["flat"] for each in (*states, common_state(copy.deepcopy(states))))
    assert own["tensor_steps"] == common["tensor_steps"] == [5, 5, 3, 5]
    for key in ("exp_avg", "exp_avg_sq"):
        assert_close(common[key], (own[key] + other[key]) / 2)


def test_states_of_another_local_step_or_of_other_tensors_are_refused() -> None:
    def make(**more: Any) -> DistributedOptimizer:
        return make_optimizer("ef_sgd", make_model(), {"compressor": TopK(10)}, **more)

    with pytest.raises(ValueError, match="saved with local_step = None, this has 'adamw'"):
        make(**ADAMW).load_state_dict(make().state_dict())
    state = make(**ADAMW).state_dict()
    state["param_groups"][0]["flat"]["tensor_steps"] = [1]
    with pytest.raises(ValueError, match=r"tensor_steps is \[1\], not 4 numbers"):
        make(**ADAMW).load_state_dict(state)


def test_a_state_from_before_a_method_had_a_setting_has_that_at_its_default() -> None:
    own = {"compressor": TopK(10)}
    state = make_optimizer("ef_sgd", make_model(), own).state_dict()
    del state["param_groups"][0]["flat"]["settings"]["error_feedback_on"]
    make_optimizer("ef_sgd", make_model(), own).load_state_dict(copy.deepcopy(state))
    with pytest.raises(ValueError, match="saved with error_feedback_on = 'updates', this has 'gradients'"):
        make_optimizer("ef_sgd", make_model(), own | ON_GRADIENTS).load_state_dict(state)


# What cannot be.


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TAKING_ADAMW])
def test_methods_that_step_by_sgd_alone_say_why(name: str) -> None:
    own = own_settings(name, [BlockSparsifier(4)])
    with pytest.raises(ValueError, match=f"^{name}: local_step = 'adamw' cannot be, since .*; leave local_step out$"):
        make_optimizer(name, make_model(), own, **ADAMW)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("sgd", {"local_step": "adam"}, "sgd: local_step must be one of sgd, adamw, muon, not 'adam'"),
        ("sgd", {"momentum": 0.9}, "sgd: momentum belongs to local_step = 'sgd', and local_step is 'adamw'; leave"),
        ("sgd", {"local_step": "sgd"}, "sgd: betas belongs to local_step = 'adamw', and local_step is 'sgd'"),
        ("sgd", {"betas": (0.9, 1.0)}, r"betas must lie in \[0, 1\), not \(0.9, 1.0\)"),
        ("sgd", {"betas": 0.9}, "group 0: betas must be two numbers, not 0.9"),
        ("sgd", {"betas": (0.9, True)}, "group 0: betas must be a plain number, not True"),
        ("sgd", {"eps": 0}, "eps must be a number above 0, not 0"),
        ("sgd", {"eps": -1e-8}, "eps must be a number above 0"),
        ("sgd", {"lr": float("nan")}, "learning rate"),
        (
            "local_sgd",
            {"second_moment_interval": 3, "communication_dtype": torch.float16},
            "local_sgd: second_moment_interval is for local_step = 'adamw'",
        ),
        ("ef_sgd", {"error_feedback_on": "both"}, "error_feedback_on must be one of updates, gradients, not 'both'"),
    ],
    ids=str,
)
def test_numbers_that_do_not_fit_are_refused(name: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_optimizer(name, make_model(), own_settings(name), **(ADAMW | given))


def test_moments_are_averaged_with_adamw_alone() -> None:
    with pytest.raises(ValueError, match="local_sgd: first_moment_interval is for local_step = 'adamw'"):
        make_optimizer("local_sgd", make_model(), {"sync_interval": 1, "first_moment_interval": 3})


def test_numbers_of_groups_are_refused_as_they_are_given_or_once_a_schedule_has_put_them_out_of_range() -> None:
    for group, words in (({"momentum": 0.9}, "momentum belongs to local_step = 'sgd'"), ({"amsgrad": True}, "amsgrad")):
        with pytest.raises(ValueError, match=f"group 0: {words}"):
            algorithms()["sgd"]([{"params": make_model().parameters(), **group}], local_step="adamw", **NUMBERS)
    optimizer = make_optimizer("sgd", make_model(), {}, **ADAMW)
    assert repr(optimizer).startswith(
        "SGD(local_step='adamw', lr=0.02, betas=(0.8, 0.95), eps=1e-06, weight_decay=0.05, group 1: "
    )
    optimizer.param_groups[1]["betas"] = (1.5, 0.9)
    with pytest.raises(ValueError, match="betas must lie in"):
        optimizer.step()
