"""AdamW as the local step: against torch.optim.AdamW, against NumPy, and where it cannot be."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from algorithms import (
    BlockSparsifier,
    Collectives,
    DistributedOptimizer,
    Purpose,
    TopK,
    algorithms,
)
from algorithms.core.flat import FlatBuffers
from algorithms.core.local_step import AdamW, Span
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
LOCAL = [name for name in TAKING_ADAMW if name not in ("alone", "sgd", "sgd_accumulate", "powersgd")]
"""Methods that talk and whose moments are each worker's own."""


def adamw(model: nn.Module, **options: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups(model), **NUMBERS, **options)


# What it is.


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("name", "more"), CASES, ids=str)
def test_one_worker_without_compression_is_torchs_adamw(name: str, more: dict[str, Any], fused: bool) -> None:
    (alone,) = trained(name, own_settings(name) | more, 1, 12, **ADAMW)
    assert_close(alone, on_the_mean_gradient(lambda model: adamw(model, fused=fused), 1, 12))


@pytest.mark.parametrize(
    ("name", "more"), [("sgd", {}), ("sgd_accumulate", {}), ("powersgd", {}), ("ef_sgd", ON_GRADIENTS)], ids=str
)
def test_with_common_moments_it_is_torchs_adamw_on_the_mean_gradient(name: str, more: dict[str, Any]) -> None:
    expected = on_the_mean_gradient(adamw, 3, 12)
    for actual in trained(name, own_settings(name) | more, 3, 12, **ADAMW):
        assert_close(actual, expected)


@pytest.mark.parametrize("name", LOCAL)
def test_with_local_moments_it_is_another_method(name: str) -> None:
    """The mean of what workers' own moments say is not what the mean gradient's moments say."""
    average = torch.stack(trained(name, own_settings(name), 3, 12, **ADAMW)).mean(0)
    assert (average - on_the_mean_gradient(adamw, 3, 12)).norm() > 1e-3


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
def test_m_cser(c2: str, c1: str, explicit: bool) -> None:
    own = own_settings("mcser", [COMPRESSORS[c2], COMPRESSORS[c1]], 3, explicit_error=explicit)
    assert own["gradient_compressor"] is COMPRESSORS[c2], "settings are in the order of the constructor"
    expected = transcription.cser(problem(), NUM_STEPS, compress_of(c2), compress_of(c1), 3)
    assert_follows("mcser", own, expected, rtol=1e-8, **ADAMW)


@pytest.mark.parametrize("key", ["blocks", "random_k", "top_k"])
def test_ef_sgd_on_updates_and_on_gradients(key: str) -> None:
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
def test_local_sgd_that_averages_moments(periods: tuple[int, int, int]) -> None:
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
        moments = optimizer.state_dict()["flat"]
        own = torch.stack([moments[key][0] for key in ("exp_avg", "exp_avg_sq")])
        others = collectives.all_gather(own.unsqueeze(0), Purpose.EVALUATION)
        assert not torch.equal(others[0], others[1]), "step 13 is each worker's own"

    workers(work, 2)


@pytest.mark.parametrize(
    ("own", "common"),
    [
        ({"first_moment_interval": 3}, {}),
        ({"second_moment_interval": 3}, ADAMW | {"communication_dtype": torch.float16}),
    ],
)
def test_moments_that_cannot_be_averaged(own: dict[str, int], common: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"local_sgd: {next(iter(own))} is for local_step = 'adamw'"):
        make_optimizer("local_sgd", make_model(), {"sync_interval": 1, **own}, **common)


# As PyTorch users expect.


def test_schedules_of_rate_and_beta() -> None:
    def run(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
        schedule = OneCycleLR(optimizer, max_lr=[0.2, 0.1], total_steps=20)
        for step in range(1, 16):
            optimizer.zero_grad()
            batch_loss(model, step, 0).backward()
            optimizer.step()
            schedule.step()
        return flat_parameters(model)

    model, plain = make_model(), make_model()
    assert_close(run(model, make_optimizer("sgd", model, {}, **ADAMW)), run(plain, adamw(plain)))


@pytest.mark.parametrize("name", TAKING_ADAMW)
def test_a_frozen_tensor_waits_and_its_bias_is_corrected_by_its_own_steps(name: str) -> None:
    """In steps 3 to 6 the first layer is frozen."""

    def run(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
        for step in range(1, 11):
            optimizer.zero_grad()
            for parameter in model[0].parameters():
                parameter.requires_grad_(not 3 <= step <= 6)
            batch_loss(model, step, 0).backward()
            optimizer.step()
        return flat_parameters(model)

    model, plain = make_model(), make_model()
    assert_close(run(model, make_optimizer(name, model, own_settings(name), **ADAMW)), run(plain, adamw(plain)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_step_is_right_for_every_type_and_size(dtype: torch.dtype) -> None:
    for size in (1, 7, 16, 33, 100, 1025):
        for separate in (False, True):
            generator = torch.Generator().manual_seed(size)
            x, g, m, v, target = (torch.randn(size, generator=generator).to(dtype) for _ in range(5))
            v = v.abs() + 0.1
            before = [vector.double().clone() for vector in (x, g, m, v, target)]
            after_m = 0.8 * before[2] + 0.2 * before[1]
            after_v = 0.95 * before[3] + 0.05 * before[1] ** 2
            direction = after_m / (1 - 0.8**3) / ((after_v / (1 - 0.95**3)).sqrt() + 1e-6)
            rows = [vector.unsqueeze(0) for vector in (x, g, m, v)]
            rule = AdamW(FlatBuffers([[nn.Parameter(x.clone())]]), {})
            target_row = target.unsqueeze(0) if separate else None
            rule.step_(Span(0, size, NUMBERS, 2), rows[0], rows[1], rows[2:], target_row, +1 if separate else -1)
            update = 0.02 * (0.05 * before[0] + direction)
            moved, expected = (target, before[4] + update) if separate else (x, before[0] - update)
            rounding = 8 * torch.finfo(dtype).eps
            for actual, wanted in ((moved, expected), (m, after_m), (v, after_v)):
                torch.testing.assert_close(actual.double(), wanted, rtol=rounding, atol=rounding)


# Checkpoints.


def test_a_state_for_any_worker_has_the_average_moments() -> None:
    def work(collectives: Collectives) -> tuple[dict[str, Any], dict[str, Any]]:
        model = make_model()
        optimizer = make_optimizer("local_sgd", model, {"sync_interval": 10}, collectives, **ADAMW)
        for step in range(1, 6):
            optimizer.zero_grad()
            model[0].bias.requires_grad_(step > 2)  # type: ignore[union-attr]
            batch_loss(model, step, collectives.rank).backward()
            optimizer.step()
        return copy.deepcopy(optimizer.state_dict()["flat"]), optimizer.consensus_state_dict("drop")["flat"]

    (own, common), (other, same) = workers(work, 2)
    assert own["tensor_steps"] == common["tensor_steps"] == same["tensor_steps"] == [5, 5, 3, 5]
    for key in ("exp_avg", "exp_avg_sq"):
        assert_close(common[key], (own[key] + other[key]) / 2)


def test_states_of_another_local_step_or_of_other_tensors_are_refused() -> None:
    def make(**more: Any) -> DistributedOptimizer:
        return make_optimizer("ef_sgd", make_model(), {"compressor": TopK(10)}, **more)

    with pytest.raises(ValueError, match="saved with local_step = None, this has 'adamw'"):
        make(**ADAMW).load_state_dict(make().state_dict())
    with pytest.raises(ValueError, match="saved with local_step = 'adamw', this has None"):
        make().load_state_dict(make(**ADAMW).state_dict())
    state = make(**ADAMW).state_dict()
    state["flat"]["tensor_steps"] = [1]
    with pytest.raises(ValueError, match=r"tensor_steps is \[1\], not 4 numbers"):
        make(**ADAMW).load_state_dict(state)


def test_a_state_from_before_a_method_had_a_setting_has_that_at_its_default() -> None:
    own = {"compressor": TopK(10)}
    state = make_optimizer("ef_sgd", make_model(), own).state_dict()
    del state["flat"]["settings"]["error_feedback_on"]
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
    ("given", "words"),
    [
        ({"local_step": "adam"}, "sgd: local_step must be one of sgd, adamw, not 'adam'"),
        (
            {"momentum": 0.9},
            "sgd: momentum belongs to local_step = 'sgd', and local_step is 'adamw'; leave",
        ),
        ({"local_step": "sgd"}, "sgd: betas belongs to local_step = 'adamw', and local_step is 'sgd'"),
        ({"betas": (0.9, 1.0)}, r"betas must lie in \[0, 1\), not \(0.9, 1.0\)"),
        ({"betas": 0.9}, "group 0: betas must be two numbers, not 0.9"),
        ({"betas": (0.9, True)}, "group 0: betas must be a plain number, not True"),
        ({"eps": 0}, "eps must be a number above 0, not 0"),
        ({"eps": -1e-8}, "eps must be a number above 0"),
        ({"lr": float("nan")}, "learning rate"),
    ],
    ids=str,
)
def test_numbers_that_do_not_fit_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_optimizer("sgd", make_model(), {}, **ADAMW | given)


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ({"momentum": 0.9}, "group 0: momentum belongs to local_step = 'sgd'"),
        ({"amsgrad": True}, "group 0: amsgrad = True"),
    ],
    ids=str,
)
def test_what_a_group_says_is_done_or_refused(group: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        algorithms()["sgd"]([{"params": make_model().parameters(), **group}], local_step="adamw", **NUMBERS)


def test_numbers_that_a_schedule_puts_out_of_range_are_refused_at_the_step() -> None:
    optimizer = make_optimizer("sgd", make_model(), {}, **ADAMW)
    optimizer.param_groups[1]["betas"] = (1.5, 0.9)
    with pytest.raises(ValueError, match="betas must lie in"):
        optimizer.step()


def test_error_feedback_is_on_one_of_the_two() -> None:
    with pytest.raises(ValueError, match="error_feedback_on must be one of updates, gradients, not 'both'"):
        make_optimizer("ef_sgd", make_model(), {"compressor": TopK(10), "error_feedback_on": "both"})


def test_it_prints_its_numbers() -> None:
    said = repr(make_optimizer("sgd", make_model(), {}, **ADAMW))
    assert said.startswith(
        "SGD(local_step='adamw', lr=0.02, betas=(0.8, 0.95), eps=1e-06, weight_decay=0.05, group 1: "
    )
