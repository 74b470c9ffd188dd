"""What every algorithm promises, tested on each one that the registry finds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, StepLR

import algorithms as package
from algorithms import BlockSparsifier, Collectives, Compressor, DistributedOptimizer, Purpose, TopK, algorithms
from algorithms.core.checks import DIGEST_BYTES
from algorithms.core.compressors import Gathered
from algorithms.core.traffic import Entry
from algorithms.registry import settings
from tests.algorithms.problems import (
    ADAMW,
    COMPRESSORS,
    ENCODED,
    JOINT,
    LR,
    MESSAGE_BITS,
    MOMENTUM,
    NAMES,
    NUM_PARAMETERS,
    TAKING_ADAMW,
    WEIGHT_DECAY,
    assert_close,
    assert_resumable,
    batch_loss,
    every_switch,
    flat_of,
    flat_parameters,
    groups,
    make_model,
    make_optimizer,
    named_compressors,
    own_settings,
    plain_sgd,
    stacked,
    switches,
    torch_sgd,
    train,
    trained,
    workers,
)

PAIRS = [(name, key) for name in NAMES for key in named_compressors(name, COMPRESSORS)]


def test_the_registry_finds_each_module_of_the_package_and_each_states_with_what_it_is_sgd() -> None:
    stems = {path.stem for path in Path(package.__path__[0]).glob("*.py")}
    modules = {algorithm.__module__.split(".")[1] for algorithm in algorithms().values()}
    assert modules == stems - {"__init__", "registry"}
    for name, algorithm in algorithms().items():
        assert algorithm.name == name
        assert getattr(package, algorithm.__name__) is algorithm
        stated = getattr(algorithm, "no_compression", "nothing")
        assert stated != "nothing", f"{name}: state no_compression, the settings that make it SGD, or None"
        required = {key for key, (_, required) in settings(algorithm).items() if required}
        assert stated is None or required <= stated.keys() <= settings(algorithm).keys()
        assert algorithm.tried_with.keys() <= settings(algorithm).keys()


# As PyTorch users expect.

SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], LRScheduler]] = {
    "step": lambda optimizer: StepLR(optimizer, 4, gamma=0.3),
    "one_cycle": lambda optimizer: OneCycleLR(optimizer, max_lr=[0.2, 0.1], total_steps=20),
}


@pytest.mark.parametrize(("scheduler", "momentum"), [*((each, MOMENTUM) for each in SCHEDULERS), ("one_cycle", 0.0)])
@pytest.mark.parametrize("name", NAMES)
def test_schedules_of_rate_and_momentum(name: str, scheduler: str, momentum: float) -> None:
    """The last one switches momentum on."""

    def run(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
        schedule = SCHEDULERS[scheduler](optimizer)
        for step in range(1, 16):
            optimizer.zero_grad()
            batch_loss(model, step, 0).backward()
            optimizer.step()
            schedule.step()
        return flat_parameters(model)

    if momentum == 0 and algorithms()[name].without_momentum is not None:
        return
    model, plain = make_model(), make_model()
    optimizer = make_optimizer(name, model, own_settings(name), momentum=momentum)
    reference = torch_sgd(name, groups(plain), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    assert_close(run(model, optimizer), run(plain, reference))
    again = make_optimizer(name, make_model(), own_settings(name), momentum=momentum)
    again.load_state_dict(optimizer.state_dict())
    assert "momentum" in again.state_dict()["param_groups"][0]["flat"]


def by_a_closure(optimizer: DistributedOptimizer, model: nn.Module, step: int) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = batch_loss(model, step, 0)
        loss.backward()
        return loss

    expected = batch_loss(model, step, 0).item()
    assert optimizer.step(closure).item() == pytest.approx(expected, abs=1e-14)


def by_replacement(optimizer: DistributedOptimizer, model: nn.Module, step: int) -> None:
    gradients = torch.autograd.grad(batch_loss(model, step, 0), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


def by_zeroing(of: str, set_to_none: bool) -> Callable[[DistributedOptimizer, nn.Module, int], None]:
    def one_step(optimizer: DistributedOptimizer, model: nn.Module, step: int) -> None:
        (optimizer if of == "optimizer" else model).zero_grad(set_to_none)
        batch_loss(model, step, 0).backward()
        optimizer.step()

    return one_step


WAYS: dict[str, Callable[[DistributedOptimizer, nn.Module, int], None]] = {
    "closure": by_a_closure,
    "replaced": by_replacement,
    **{f"{of}, {none}": by_zeroing(of, none) for of in ("optimizer", "model") for none in (False, True)},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_any_way_to_clear_or_replace_gradients_and_to_step(name: str, way: str) -> None:
    model = make_model()
    optimizer = make_optimizer(name, model, own_settings(name))
    for step in range(1, 11):
        WAYS[way](optimizer, model, step)
    assert_close(flat_parameters(model), plain_sgd(name, 1, 10))
    assert optimizer.step() is None and optimizer.num_steps == 11


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_gradient_is_zero_and_a_frozen_parameter_stays(name: str) -> None:
    """Decay and momentum go on as torch's do on zeros; of what is frozen nothing moves, and later it goes on."""

    def moved_to(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], zeros: bool) -> list[Tensor]:
        first, left_out, frozen = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(3))
        optimizer = make([first, left_out, frozen])
        places = []
        for step in range(4):
            for each in (first, left_out, frozen):
                each.grad = None
            frozen.requires_grad_(step in (0, 3))
            loss = first.sum() + (frozen.sum() if step in (0, 3) else 0) + (left_out.sum() if step == 0 else 0)
            loss.backward()
            if zeros and left_out.grad is None:
                left_out.grad = torch.zeros_like(left_out)
            optimizer.step()
            places.append(torch.cat([first, left_out, frozen]).detach())
        return places

    common = {"lr": 0.5, "momentum": 0.5, "weight_decay": 0.25}
    own = own_settings(name)
    found = moved_to(lambda params: algorithms()[name](params, **own, **common), False)
    assert torch.equal(found[1][4:], found[0][4:]) and torch.equal(found[2][4:], found[0][4:])
    assert not torch.equal(found[3][4:], found[0][4:])
    if algorithms()[name].nesterov:
        expected = moved_to(lambda params: torch_sgd(name, params, **common), True)
        assert_close(torch.stack(found), torch.stack(expected))


# Checkpoints.


FRAGMENTS = {"sync_interval": 6, "num_fragments": 3}
RESUMED: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    *((name, key, {}, {}) for name, key in PAIRS),
    *((name, "blocks", dict.fromkeys(switches(name), True), {}) for name in NAMES if switches(name)),
    *((name, "blocks", {}, ADAMW) for name in TAKING_ADAMW),
    ("ef_sgd", "blocks", {"error_feedback_on": "gradients"}, ADAMW),
    ("diloco", "identity", FRAGMENTS, {}),
    ("diloco", "identity", FRAGMENTS | {"outer_momentum": 0.0}, {}),
    ("powersgd", "identity", {"rank": 2}, {}),
    ("streaming_diloco", "identity", FRAGMENTS | {"delay": 5}, {}),
    ("streaming_diloco", "identity", FRAGMENTS | {"delay": 3, "bits": 4}, {}),
    ("local_sgd", "identity", {"first_moment_interval": 3, "second_moment_interval": 2}, ADAMW),
]


@pytest.mark.parametrize(("name", "key", "own", "common"), RESUMED)
def test_interrupted_equals_uninterrupted_to_the_bit(name: str, key: str, own: Any, common: Any) -> None:
    assert_resumable(name, own_settings(name, [COMPRESSORS[key]], 4) | own, (3, 4, 6), **common)


@pytest.mark.parametrize("common", [{}, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize(
    ("name", "key"), [pair for pair in PAIRS if pair[1] in ("blocks", "random_k", "top_k", "identity")]
)
def test_stacked_workers_equal_threads_to_the_bit(name: str, key: str, common: dict[str, Any]) -> None:
    if common and name not in TAKING_ADAMW:
        return
    own = own_settings(name, [COMPRESSORS[key]], 3)
    rows = stacked(name, own, 3, 8, **common)
    for row, alone in zip(rows.flat.parameters, trained(name, own, 3, 8, torch.float32, **common), strict=True):
        assert torch.equal(row, alone)
    assert rows.traffic.training() == rows.expected_traffic(8).training()


@pytest.mark.parametrize("name", NAMES)
def test_states_of_other_methods_models_and_optimisers_are_refused(name: str) -> None:
    model = make_model()
    optimizer = make_optimizer(name, model, own_settings(name))
    optimizer.load_state_dict(optimizer.state_dict())
    smaller = algorithms()[name](nn.Linear(3, 3).double().parameters(), lr=0.1, momentum=0.9, **own_settings(name))
    others = [make_optimizer(other, make_model(), own_settings(other)) for other in NAMES if other != name]
    for foreign in (*others, smaller, torch.optim.SGD(groups(model), lr=0.1)):
        with pytest.raises(ValueError, match="state"):
            optimizer.load_state_dict(copy.deepcopy(foreign.state_dict()))


# Traffic.


@pytest.mark.parametrize(("name", "key"), PAIRS)
def test_the_traffic_is_what_the_closed_form_says(name: str, key: str) -> None:
    for chosen in every_switch(name) if key == "per_tensor" else [switches(name)]:
        own = own_settings(name, [COMPRESSORS[key]], 4, **chosen)

        def work(collectives: Collectives, own: dict[str, Any] = own) -> None:
            model = make_model(torch.float32)
            optimizer = make_optimizer(name, model, own, collectives)
            assert optimizer.traffic.training_bits == 0, "the set-up is no part of the cost"
            for step in range(1, 14):
                train(optimizer, model, collectives.rank, [step])
                if step in (3, 4, 13):
                    assert optimizer.traffic.training() == optimizer.expected_traffic(step).training()
            sums_of_the_first_step = 5 * 64 * len(optimizer.flat.tensors)
            at_start = 32 * NUM_PARAMETERS + 8 * DIGEST_BYTES
            assert optimizer.traffic[Purpose.CONTROL].bits == at_start + sums_of_the_first_step
            assert optimizer.traffic[Purpose.EVALUATION].collectives == 0

        workers(work, 2)


# Messages that 13 steps take, with an interval of 4, by purpose.
COUNTS: dict[str, dict[str, int]] = {
    "ef_sgd": {"gradient": 13},
    "qsparse_local_sgd": {"model": 3},
    "sparse_loco": {"model": 3},
    "cser": {"gradient": 13, "error": 3},
    "mcser": {"gradient": 13, "error": 3},
    "csea": {"error": 13},
    "cser_pl": {"error": 3},
    "cser_released": {"gradient": 10, "error": 3},
    "mcser_released": {"gradient": 10, "error": 3},
}


@pytest.mark.parametrize("key", MESSAGE_BITS)
@pytest.mark.parametrize("name", COUNTS)
def test_the_closed_form_is_what_a_hand_counts(name: str, key: str) -> None:
    if key not in named_compressors(name, COMPRESSORS):
        with pytest.raises(ValueError, match="all workers share"):
            make_optimizer(name, make_model(), own_settings(name, [COMPRESSORS[key]], 4))
        return
    own = own_settings(name, [COMPRESSORS[key]], 4, **({"skip_gradient_at_reset": True} if "released" in name else {}))
    expected = {purpose: Entry() for purpose in ("gradient", "error", "model")}
    for purpose, count in COUNTS[name].items():
        bits = count * MESSAGE_BITS[key]
        expected[purpose] = Entry(bits, count if bits else 0, bits if isinstance(COMPRESSORS[key], Gathered) else 0)
    assert make_optimizer(name, make_model(torch.float32), own).expected_traffic(13).training() == expected


@pytest.mark.parametrize("key", MESSAGE_BITS)
def test_the_first_message_of_ef21_is_whole(key: str) -> None:
    optimizer = make_optimizer("ef21_sgdm", make_model(torch.float32), {"compressor": COMPRESSORS[key]})
    whole, later, count = 32 * NUM_PARAMETERS, 12 * MESSAGE_BITS[key], 12 if MESSAGE_BITS[key] else 0
    gathered = later if isinstance(COMPRESSORS[key], Gathered) else 0
    expected = [Entry(), Entry(whole, 1), Entry(whole + later, 1 + count, gathered)]
    assert [optimizer.expected_traffic(steps)[Purpose.GRADIENT] for steps in (0, 1, 13)] == expected


# Consensus.


@pytest.mark.parametrize(("name", "key"), PAIRS)
def test_consensus_shows_the_average_and_leaves_no_trace_however_it_ends(name: str, key: str) -> None:
    own = own_settings(name, [COMPRESSORS[key]], 4)

    def work(collectives: Collectives) -> tuple[Tensor, Tensor, Tensor]:
        model = make_model(torch.float32)
        optimizer = make_optimizer(name, model, own, collectives)
        train(optimizer, model, collectives.rank, range(1, 7))
        own_values = flat_of(optimizer)
        training = copy.deepcopy(optimizer.traffic.training())
        with pytest.raises(KeyError), optimizer.consensus():
            inside = flat_parameters(model)
            raise KeyError("what an evaluation may end in")
        assert torch.equal(flat_of(optimizer), own_values)
        assert optimizer.traffic.training() == training
        evaluation = optimizer.traffic[Purpose.EVALUATION]
        assert (evaluation.bits, evaluation.collectives) == (32 * NUM_PARAMETERS, 1)
        train(optimizer, model, collectives.rank, range(7, 13))
        return own_values, inside, flat_of(optimizer)

    results = workers(work, 2)
    average = torch.stack([before for before, _, _ in results]).double().mean(0).float()
    for (_, inside, after), never in zip(results, trained(name, own, 2, 12, torch.float32), strict=True):
        assert_close(inside, average, atol=1e-6)
        assert torch.equal(inside, results[0][1])
        assert torch.equal(after, never)


# Whether a last exchange is needed.


# Workers may agree after more steps than the method knows of: all was sent earlier, or a draw happened to send all.
MAY_AGREE_UNKNOWN = {"identity", "per_tensor"}


@pytest.mark.parametrize("communication_dtype", [None, torch.float16])
@pytest.mark.parametrize(("name", "key"), [pair for pair in PAIRS if pair[0] in JOINT])
def test_workers_agree_where_the_method_says_so(name: str, key: str, communication_dtype: torch.dtype | None) -> None:
    if communication_dtype is not None and key in ENCODED:
        return  # such messages have a format of their own
    for chosen in every_switch(name):
        own = own_settings(name, [COMPRESSORS[key]], 3, **chosen)

        def work(collectives: Collectives, own: dict[str, Any] = own) -> list[tuple[bool, Tensor]]:
            model = make_model(torch.float32 if communication_dtype else torch.float64)
            optimizer = make_optimizer(name, model, own, collectives, communication_dtype=communication_dtype)
            seen = []
            for step in range(1, 8):
                train(optimizer, model, collectives.rank, [step])
                seen.append((optimizer.agree_after(step), flat_of(optimizer)))
            return seen

        for (says, first), (_, second) in zip(*workers(work, 2), strict=True):
            distance = float((first - second).norm())
            if says:
                assert distance < 1e-6
            elif key not in MAY_AGREE_UNKNOWN:
                assert distance > 1e-6


# What cannot be.


@pytest.mark.parametrize(("name", "plain"), [("mcser", "cser"), ("mcser_released", "cser_released")])
def test_a_method_with_momentum_in_its_name_has_some(name: str, plain: str) -> None:
    def of(**more: float) -> float:
        optimizer = algorithms()[name](make_model().parameters(), lr=0.1, **own_settings(name), **more)
        return float(optimizer.param_groups[0]["momentum"])

    assert of() == 0.9
    assert of(momentum=0.5) == 0.5
    with pytest.raises(ValueError, match=f"^{name}: the momentum must not be 0; without momentum .* is {plain}$"):
        of(momentum=0.0)
    assert algorithms()[plain](make_model().parameters(), lr=0.1, **own_settings(plain)).defaults["momentum"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_wrong_settings_of_its_own_are_refused(name: str) -> None:
    for key, value in own_settings(name).items():
        wrong: list[Any] = [*[0] * (value != 0), -1, 1.5, True] if type(value) is int else []
        wrong = ["block", None, TopK(1000), BlockSparsifier(1000)] if isinstance(value, Compressor) else wrong
        for bad in wrong:
            with pytest.raises(ValueError, match=key):
                make_optimizer(name, make_model(), own_settings(name) | {key: bad})


@pytest.mark.parametrize("common", [{}, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("name", NAMES)
def test_memory_is_the_state_that_a_checkpoint_holds(name: str, common: dict[str, Any]) -> None:
    for chosen in every_switch(name) if not common or name in TAKING_ADAMW else ():
        own = own_settings(name, [BlockSparsifier(4)], 2, **chosen)
        if common and (chosen.get("decay_apart") or chosen.get("decay_in_momentum_only")):
            with pytest.raises(ValueError, match="leave it out"):
                make_optimizer(name, make_model(), own, **common)
            continue
        optimizer = make_optimizer(name, make_model(), own, **common)
        state = optimizer.state_dict()["param_groups"][0]["flat"]
        numel = sum(value.numel() for key, value in state.items() if isinstance(value, Tensor) and key != "parameters")
        assert optimizer.memory_in_parameters() == pytest.approx(numel / NUM_PARAMETERS, rel=1e-12)
        assert (optimizer.error is not None) == ("error" in state)
