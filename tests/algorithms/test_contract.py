"""What every algorithm promises, tested on each one that the registry finds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR, StepLR

import algorithms as package
from algorithms import (
    BlockSparsifier,
    Collectives,
    Compressor,
    DistributedOptimizer,
    Purpose,
    TopK,
    algorithms,
)
from algorithms.core.checks import DIGEST_BYTES
from algorithms.core.compressors import Gathered
from algorithms.core.traffic import Entry
from algorithms.registry import settings
from tests.algorithms.problems import (
    ADAMW,
    COMPRESSORS,
    GATHERED,
    JOINT,
    LR,
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


def test_the_registry_finds_each_module_of_the_package() -> None:
    stems = {path.stem for path in Path(package.__path__[0]).glob("*.py")}
    modules = {algorithm.__module__.split(".")[1] for algorithm in algorithms().values()}
    assert modules == stems - {"__init__", "registry"}
    for name, algorithm in algorithms().items():
        assert algorithm.name == name
        assert getattr(package, algorithm.__name__) is algorithm


@pytest.mark.parametrize("name", NAMES)
def test_each_method_states_with_what_it_is_sgd(name: str) -> None:
    algorithm = algorithms()[name]
    stated = getattr(algorithm, "no_compression", "nothing")
    assert stated != "nothing", f"{name}: state no_compression, the settings that make it SGD, or None"
    required = {key for key, (_, required) in settings(algorithm).items() if required}
    if stated is not None:
        assert required <= stated.keys() <= settings(algorithm).keys()
    assert algorithm.tried_with.keys() <= settings(algorithm).keys()


# As PyTorch users expect.

SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], LRScheduler]] = {
    "step": lambda optimizer: StepLR(optimizer, 4, gamma=0.3),
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, 15),
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
    assert "momentum" in again.state_dict()["flat"]


@pytest.mark.parametrize("name", NAMES)
def test_two_optimisers_of_the_same_parameters_take_turns(name: str) -> None:
    model, plain = make_model(), make_model()
    ours = [make_optimizer(name, model, own_settings(name)) for _ in range(2)]
    numbers = {"lr": LR, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}
    torchs = [torch_sgd(name, groups(plain), **numbers) for _ in range(2)]
    for step in range(1, 7):
        for pair, network in ((ours, model), (torchs, plain)):
            optimizer = pair[step in (3, 4)]
            optimizer.zero_grad()
            batch_loss(network, step, 0).backward()
            optimizer.step()
    assert_close(flat_parameters(model), flat_parameters(plain))


ZEROINGS: dict[str, Callable[[DistributedOptimizer, nn.Module], None]] = {
    "optimizer_to_none": lambda optimizer, model: optimizer.zero_grad(set_to_none=True),
    "optimizer_to_zero": lambda optimizer, model: optimizer.zero_grad(set_to_none=False),
    "model_to_none": lambda optimizer, model: model.zero_grad(),
    "model_to_zero": lambda optimizer, model: model.zero_grad(set_to_none=False),
}


@pytest.mark.parametrize("zeroing", [*ZEROINGS, "replaced"])
@pytest.mark.parametrize("name", NAMES)
def test_any_way_to_clear_or_replace_gradients(name: str, zeroing: str) -> None:
    model = make_model()
    optimizer = make_optimizer(name, model, own_settings(name))
    for step in range(1, 11):
        loss = batch_loss(model, step, 0)
        if zeroing == "replaced":
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = gradient
        else:
            ZEROINGS[zeroing](optimizer, model)
            loss.backward()
        optimizer.step()
    assert_close(flat_parameters(model), plain_sgd(name, 1, 10))


@pytest.mark.parametrize("name", NAMES)
def test_closures(name: str) -> None:
    model, twin = make_model(), make_model()
    optimizer = make_optimizer(name, model, own_settings(name))
    for step in range(1, 11):

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            loss = batch_loss(model, step, 0)
            loss.backward()
            return loss

        with torch.no_grad():
            nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(model.parameters()), twin.parameters())
            expected = batch_loss(twin, step, 0)
        assert optimizer.step(closure).item() == pytest.approx(expected.item(), abs=1e-14)
    assert optimizer.step() is None
    assert optimizer.num_steps == 11


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


@pytest.mark.parametrize("saved", NAMES)
def test_another_methods_state_is_refused(saved: str) -> None:
    state = make_optimizer(saved, make_model(), own_settings(saved)).state_dict()
    for name in NAMES:
        optimizer = make_optimizer(name, make_model(), own_settings(name))
        if name == saved:
            optimizer.load_state_dict(state)
            continue
        with pytest.raises(ValueError, match="state"):
            optimizer.load_state_dict(copy.deepcopy(state))


@pytest.mark.parametrize("name", NAMES)
def test_foreign_states_are_refused(name: str) -> None:
    def optimizer_for(model: nn.Module) -> torch.optim.Optimizer:
        return algorithms()[name](model.parameters(), lr=0.1, momentum=0.9, **own_settings(name))

    optimizer = optimizer_for(nn.Linear(3, 2))
    for other in (optimizer_for(nn.Linear(3, 3)), torch.optim.SGD(nn.Linear(3, 2).parameters(), lr=0.1)):
        with pytest.raises(ValueError, match="state"):
            optimizer.load_state_dict(other.state_dict())


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
            sums_of_the_first_step = 4 * 64 * len(optimizer.flat.tensors)
            at_start = 32 * NUM_PARAMETERS + 8 * DIGEST_BYTES
            assert optimizer.traffic[Purpose.CONTROL].bits == at_start + sums_of_the_first_step
            assert optimizer.traffic[Purpose.EVALUATION].collectives == 0

        workers(work, 2)


# Bits of one message for 51 parameters in 32-bit numbers, counted by hand.
MESSAGES = {
    "block": 32 * 13,  # one of 4 blocks of 13
    "blocks": 32 * 2 * 7,  # two of 8 blocks of 7
    "random_k": 32 * 10,
    "identity": 32 * 51,
    "zero": 0,
    "top_k": (32 + 32) * 5,
    "sign": 8 * 7 + 32,  # 51 bits in 7 bytes, and a scale
    "qsgd": 8 * 26 + 32 * 4,  # 51 codes of 4 bits in 26 bytes, and a norm for each of 4 buckets
    "chunks": 8 * 6 + 8 * 12 + 32 * 4,  # 5 of each 12 and 3 of the last: 23 of 2 bits, 4 bits of index; 4 means
}

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


@pytest.mark.parametrize("key", MESSAGES)
@pytest.mark.parametrize("name", COUNTS)
def test_the_closed_form_is_what_a_hand_counts(name: str, key: str) -> None:
    if key not in named_compressors(name, COMPRESSORS):
        with pytest.raises(ValueError, match="all workers share"):
            make_optimizer(name, make_model(), own_settings(name, [COMPRESSORS[key]], 4))
        return
    own = own_settings(name, [COMPRESSORS[key]], 4, **({"skip_gradient_at_reset": True} if "released" in name else {}))
    expected = {purpose: Entry() for purpose in ("gradient", "error", "model")}
    for purpose, count in COUNTS[name].items():
        bits = count * MESSAGES[key]
        expected[purpose] = Entry(bits, count if bits else 0, bits if isinstance(COMPRESSORS[key], Gathered) else 0)
    assert make_optimizer(name, make_model(), own).expected_traffic(13).training() == expected


# Consensus.


@pytest.mark.parametrize(("name", "key"), PAIRS)
def test_consensus_shows_the_average_and_leaves_no_trace(name: str, key: str) -> None:
    own = own_settings(name, [COMPRESSORS[key]], 4)

    def work(collectives: Collectives) -> tuple[Tensor, Tensor, Tensor]:
        model = make_model(torch.float32)
        optimizer = make_optimizer(name, model, own, collectives)
        train(optimizer, model, collectives.rank, range(1, 7))
        own_values = flat_of(optimizer)
        training = copy.deepcopy(optimizer.traffic.training())
        with optimizer.consensus():
            inside = flat_parameters(model)
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


@pytest.mark.parametrize("name", NAMES)
def test_consensus_restores_after_an_exception(name: str) -> None:
    def work(collectives: Collectives) -> None:
        model = make_model()
        optimizer = make_optimizer(name, model, own_settings(name, [BlockSparsifier(4)], 3), collectives)
        train(optimizer, model, collectives.rank, range(1, 3))
        before = flat_of(optimizer)
        with pytest.raises(KeyError), optimizer.consensus():
            raise KeyError("evaluation")
        assert torch.equal(flat_of(optimizer), before)

    workers(work, 2)


# Whether a last exchange is needed.


# Workers may agree after more steps than the method knows of: all was sent earlier, or a draw happened to send all.
MAY_AGREE_UNKNOWN = {"identity", "per_tensor"}


@pytest.mark.parametrize("communication_dtype", [None, torch.float16])
@pytest.mark.parametrize(("name", "key"), [pair for pair in PAIRS if pair[0] in JOINT])
def test_workers_agree_where_the_method_says_so(name: str, key: str, communication_dtype: torch.dtype | None) -> None:
    if communication_dtype is not None and key in GATHERED:
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


@pytest.mark.parametrize(
    ("name", "table", "agreeing"),
    [
        ("sgd", {}, {0, 1, 2, 3, 4, 5, 6}),
        ("sgd_accumulate", {"accumulation_steps": 3}, {0, 1, 2, 3, 4, 5, 6}),
        ("ef_sgd", {"compressor": TopK(10)}, {0, 1, 2, 3, 4, 5, 6}),
        ("ef21_sgdm", {"compressor": TopK(10)}, {0, 1, 2, 3, 4, 5, 6}),
        ("alone", {}, {0}),
        ("local_sgd", {"sync_interval": 3}, {0, 3, 6}),
        ("diloco", {"sync_interval": 3}, {0, 3, 6}),
        ("diloco", {"sync_interval": 3, "num_fragments": 3}, {0}),
        ("qsparse_local_sgd", {"compressor": TopK(10), "sync_interval": 3}, {0, 3, 6}),
        ("sparse_loco", {"compressor": TopK(10), "sync_interval": 3}, {0, 3, 6}),
        ("qsr", {"sync_interval": 2, "alpha": 0.2}, {0, 2, 6}),
        ("streaming_diloco", {"sync_interval": 2, "num_fragments": 1, "delay": 1, "merge": 0.0}, {0, 3, 5}),
        ("streaming_diloco", {"sync_interval": 2, "num_fragments": 1, "delay": 1, "merge": 0.5}, {0}),
        ("cser_pl", {"error_compressor": BlockSparsifier(1), "reset_interval": 2}, {0, 2, 4, 6}),
        ("csea", {"error_compressor": BlockSparsifier(4)}, {0}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_after_which_steps_workers_agree(name: str, table: dict[str, Any], agreeing: set[int]) -> None:
    optimizer = make_optimizer(name, make_model(), table)
    assert {step for step in range(7) if optimizer.agree_after(step)} == agreeing


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


@pytest.mark.parametrize("name", NAMES)
def test_parameters_that_do_not_fit_one_vector_are_refused(name: str) -> None:
    weight = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="parameter 1"):
        algorithms()[name]([weight, nn.Parameter(torch.zeros(3, dtype=torch.float64))], lr=0.1, **own_settings(name))


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
        state = optimizer.state_dict()["flat"]
        numel = sum(value.numel() for key, value in state.items() if isinstance(value, Tensor) and key != "parameters")
        assert optimizer.memory_in_parameters() == pytest.approx(numel / NUM_PARAMETERS, rel=1e-12)
        assert (optimizer.error is not None) == ("error" in state)
