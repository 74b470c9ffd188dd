"""What every algorithm promises, tested on each one that the registry finds."""

import copy
import inspect
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from cser_bench import algorithms as package
from cser_bench.algorithms import Collectives, Purpose, algorithms
from tests.algorithms.problems import (
    ACCURATE,
    ADAMW,
    COMPRESSORS,
    ENCODED,
    JOINT,
    LR,
    MOMENTUM,
    MUON,
    NAMES,
    NUM_PARAMETERS,
    SGD,
    SHORT,
    TAKING_ADAMW,
    Types,
    assert_close,
    assert_expected_traffic,
    batch_loss,
    every_switch,
    flat_parameters,
    groups,
    make_model,
    make_optimizer,
    named_compressors,
    own_settings,
    plain_sgd,
    reloaded,
    stacked,
    switches,
    torch_sgd,
    train,
    workers,
)

EVERY_COMPRESSOR = ("ef_sgd", "cser", "choco_sgd")
"""Methods that are tried with all compressors: by error feedback, partial averages and among
neighbours. What a compressor does is its own, so others are tried with one of each sort."""
ONE_OF_EACH_SORT = {key: COMPRESSORS[key] for key in ("blocks", "top_k", "qsgd")}


def pairs() -> Iterator[tuple[str, str]]:
    """A method, and the key of a compressor that it takes."""
    for name in NAMES:
        compressors = COMPRESSORS if name in EVERY_COMPRESSOR else ONE_OF_EACH_SORT
        for key in named_compressors(name, compressors):
            yield name, key


PAIRS = list(pairs())


def test_the_registry_finds_each_module_of_the_package_and_each_states_with_what_it_is_sgd() -> (
    None
):
    folder = Path(package.__path__[0])
    stems = {path.stem for path in folder.glob("*.py")}
    modules = {
        algorithm.__module__.rpartition(".")[2] for algorithm in algorithms().values()
    }
    assert modules == stems - {"__init__", "registry", "ddp_hook"}
    for name, algorithm in algorithms().items():
        assert algorithm.name == name
        # Nothing lists methods; where the package exports one, it is that.
        assert getattr(package, algorithm.__name__, algorithm) is algorithm
        stated = getattr(algorithm, "no_compression", "nothing")
        assert stated != "nothing", (
            f"{name}: state no_compression, the settings that make it SGD, or None"
        )
        declared = algorithm.declared
        required = {key for key, each in declared.items() if each.is_required}
        if stated is not None:
            assert required <= stated.keys() <= declared.keys()
        assert algorithm.tried_with.keys() <= algorithm.declared.keys()


@pytest.mark.parametrize("name", NAMES)
def test_help_says_what_a_method_is_and_with_which_settings_to_begin(name: str) -> None:
    method = algorithms()[name]
    said = inspect.getdoc(method)
    assert said is not None
    assert method.__doc__ is not None
    begin = re.search(r"Begin with (it as it is|`(.*?)`)", said, flags=re.DOTALL)
    assert begin is not None, said
    own = eval(f"dict({begin[2] or ''})", vars(package))
    parameters = nn.Linear(64, 32).parameters()
    optimizer = method(parameters, lr=0.1, **own)
    assert (
        not algorithms()[name].no_compression
        or optimizer.settings != method.no_compression
    )


# As PyTorch users expect.

COMMON_MOMENTS = ("sgd", "sgd_accumulate", "powersgd")
"""Methods whose moments are of the mean gradient."""
ON_GRADIENTS = {"error_feedback_on": "gradients"}
RULES: list[tuple[str, dict[str, Any], dict[str, Any], int, Types]] = [
    *((name, {}, SGD, 3 if name in JOINT else 1, torch.float64) for name in NAMES),
    *((name, {}, SGD | {"momentum": 0.0}, 1, torch.float64) for name in NAMES),
    *(
        (name, {}, ADAMW, 3 if name in COMMON_MOMENTS else 1, torch.float64)
        for name in TAKING_ADAMW
    ),
    ("ef_sgd", ON_GRADIENTS, ADAMW, 3, torch.float64),
    *(
        (name, {}, SGD, 1, types)
        for name in NAMES
        for types in (ACCURATE, ACCURATE[::-1])
    ),
    *(
        (name, {}, ADAMW, 1, types)
        for name in TAKING_ADAMW
        for types in (ACCURATE, ACCURATE[::-1])
    ),
]


@pytest.mark.parametrize(("name", "more", "common", "num_workers", "dtype"), RULES)
def test_without_compression_it_is_torchs(
    name: str, more: Any, common: Any, num_workers: int, dtype: Types
) -> None:
    """On the workers' mean gradient, under a schedule of rate and momentum, which switches it on
    where it is 0.

    In steps 3 to 6 the first layer is frozen, and stays with its state; in 8 and 9 a gradient is
    missing, which is 0.
    """

    def train_under_schedule(
        model: nn.Module, optimizer: torch.optim.Optimizer, ranks: range, is_ours: bool
    ) -> Tensor:
        schedule = OneCycleLR(optimizer, max_lr=[0.2, 0.1], total_steps=20)
        for step in range(1, 13):
            optimizer.zero_grad()
            model[0].requires_grad_(not 3 <= step <= 6)  # type: ignore[index]
            torch.stack(
                [batch_loss(model, step, rank) for rank in ranks]
            ).mean().backward()
            if step in (8, 9):
                bias = model[2].bias  # type: ignore[index]
                bias.grad = None if is_ours else torch.zeros_like(bias)
            optimizer.step()
            schedule.step()
        return flat_parameters(model)

    if common["momentum"] == 0 and algorithms()[name].without_momentum is not None:
        return

    def work(collectives: Collectives) -> Tensor:
        model = make_model(dtype, collectives.rank)
        rank = collectives.rank
        optimizer = make_optimizer(
            name, model, own_settings(name) | more, collectives, **common
        )
        own_step = range(rank, rank + 1)
        return train_under_schedule(model, optimizer, own_step, True)

    plain = make_model(dtype)
    numbers = {
        key: value
        for key, value in common.items()
        if key != "local_step" and value is not None
    }
    given = groups(list(plain.parameters()))
    adam = "local_step" in common
    reference = (
        torch.optim.AdamW(given, **numbers)
        if adam
        else torch_sgd(name, given, **numbers | {"momentum": MOMENTUM})
    )
    expected = train_under_schedule(plain, reference, range(num_workers), False)
    for found in workers(work, num_workers):
        assert_close(found, expected, 1e-12 if dtype == torch.float64 else 3e-5)


@pytest.mark.parametrize("name", NAMES)
def test_any_way_to_clear_or_replace_gradients_and_to_step(name: str) -> None:
    model = make_model()
    optimizer = make_optimizer(name, model, own_settings(name))

    def loss_after(zero_grad: Callable[[], None]) -> Tensor:
        zero_grad()
        loss = batch_loss(model, step, 0)
        loss.backward()
        return loss

    for step in range(1, 11):
        if step < 5:
            module = optimizer if step % 2 else model
            loss_after(partial(module.zero_grad, step > 2))
            assert optimizer.step() is None
        elif step < 8:
            expected = batch_loss(model, step, 0).item()
            assert optimizer.step(
                partial(loss_after, optimizer.zero_grad)
            ).item() == pytest.approx(expected, abs=1e-14)
        else:
            gradients = torch.autograd.grad(
                batch_loss(model, step, 0), list(model.parameters())
            )
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
    assert_close(flat_parameters(model), plain_sgd(name, 1, 10))


# A run: counted, looked at, resumed, and with its workers in rows.

FRAGMENTS = {"sync_interval": 6, "num_fragments": 3}
Run = tuple[str, str, dict[str, Any], dict[str, Any], Types]


def runs() -> Iterator[Run]:
    """A method, its compressor, more settings of its own, and of those that all have, and the
    parameters' types."""
    for name, key in PAIRS:
        yield name, key, {}, {}, torch.float32
    for name in NAMES:
        if switches(name):
            yield name, "blocks", dict.fromkeys(switches(name), True), {}, torch.float32
        yield name, "block", {}, {}, SHORT
    yield "ef_sgd", "block", {}, ADAMW, SHORT
    yield "ef_sgd", "block", {}, {}, ACCURATE
    for name in TAKING_ADAMW:
        yield name, "blocks", {}, ADAMW, torch.float32
    yield "ef_sgd", "blocks", ON_GRADIENTS, ADAMW, torch.float32
    for own in (FRAGMENTS, FRAGMENTS | {"outer_momentum": 0.0}):
        yield "diloco", "identity", own, {}, torch.float32
    yield "powersgd", "identity", {"rank": 2}, {}, torch.float32
    for own in (FRAGMENTS | {"delay": 5}, FRAGMENTS | {"delay": 3, "bits": 4}):
        yield "streaming_diloco", "identity", own, {}, torch.float32
    yield (
        "local_sgd",
        "identity",
        {"first_moment_interval": 3, "second_moment_interval": 2},
        ADAMW,
        torch.float32,
    )
    for name, key in (
        ("sgd", "identity"),
        ("diloco", "identity"),
        ("mcser", "blocks"),
        ("ef_sgd", "int4"),
    ):
        yield name, key, {}, MUON, torch.float32
    yield "diloco", "identity", {}, MUON, ACCURATE


RUNS = list(runs())


@pytest.mark.whole
@pytest.mark.parametrize(("name", "key", "more", "common", "dtype"), RUNS)
def test_a_run_is_counted_and_looked_at_and_resumed_and_stacked_to_the_bit(
    name: str, key: str, more: Any, common: Any, dtype: Types
) -> None:
    """Two workers are stopped and go on as optimisers that know no more than a file; these never
    saw the average."""
    own = own_settings(name, [COMPRESSORS[key]], 4) | more

    def work(collectives: Collectives) -> tuple[Tensor, Tensor, Tensor]:
        rank = collectives.rank
        files = {}
        model = make_model(dtype, rank)
        optimizer = make_optimizer(name, model, own, collectives, seed=3, **common)
        assert optimizer.traffic.training_bits == 0, "the set-up is no part of the cost"
        for step in range(1, 13):
            train(optimizer, model, rank, [step])
            training = copy.deepcopy(optimizer.traffic.training())
            assert training == optimizer.expected_traffic(step).training()
            if step in (3, 4, 6):
                files[step] = reloaded(
                    {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                )
            if step == 6:
                before = flat_parameters(model)
                with pytest.raises(KeyError), optimizer.consensus():
                    inside = flat_parameters(model)
                    raise KeyError("what an evaluation may end in")
                assert torch.equal(flat_parameters(model), before)
                assert optimizer.traffic.training() == training
        assert optimizer.traffic[Purpose.EVALUATION].collectives == (
            2 if isinstance(dtype, tuple) else 1
        )
        for stop, file in files.items():
            again = make_model(dtype, 7)
            resumed = make_optimizer(
                name, again, own, collectives, **common | {"lr": 0.7}
            )
            again.load_state_dict(file["model"])
            resumed.load_state_dict(file["optimizer"])
            assert resumed.num_steps == stop
            train(resumed, again, rank, range(stop + 1, 13))
            assert torch.equal(flat_parameters(again), flat_parameters(model)), (
                f"after step {stop}"
            )
        return before, inside, flat_parameters(model)

    first_worker, second_worker = workers(work, 2)
    first, inside, end = first_worker
    second, same, other_end = second_worker
    assert torch.equal(inside, same)
    torch.testing.assert_close(
        inside, (first + second) / 2, rtol=1e-2 if dtype == SHORT else 1e-6, atol=1e-6
    )
    optimizer, rows = stacked(name, own, 2, 12, dtype, seed=3, **common)
    assert_expected_traffic(optimizer, 12)
    for row, alone in zip(rows, (end, other_end), strict=True):
        assert_close(row, alone, 1e-5 if common == MUON else 0)


@pytest.mark.parametrize("common", [{}, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("name", NAMES)
def test_memory_is_the_state_that_a_checkpoint_holds(
    name: str, common: dict[str, Any]
) -> None:
    for chosen in every_switch(name) if not common or name in TAKING_ADAMW else ():
        own = own_settings(name, [COMPRESSORS["block"]], 2, **chosen)
        if common and (
            chosen.get("decay_apart") or chosen.get("decay_in_momentum_only")
        ):
            with pytest.raises(ValueError, match="leave it out"):
                make_optimizer(name, make_model(), own, **common)
            continue
        optimizer = make_optimizer(name, make_model(), own, **common)
        state = optimizer.state_dict()["param_groups"][0]["flat"]
        numel = sum(
            value.numel()
            for key, value in state.items()
            if isinstance(value, Tensor) and key != "parameters"
        )
        assert optimizer.memory_in_parameters() == pytest.approx(
            numel / NUM_PARAMETERS, rel=1e-12
        )
        assert (optimizer.error is not None) == ("error" in state)


@pytest.mark.parametrize("name", NAMES)
def test_states_of_other_methods_models_and_optimisers_are_refused(name: str) -> None:
    model = make_model()
    optimizer = make_optimizer(name, model, own_settings(name))
    optimizer.load_state_dict(optimizer.state_dict())
    smaller = algorithms()[name](
        nn.Linear(3, 3).double().parameters(),
        lr=LR,
        momentum=MOMENTUM,
        **own_settings(name),
    )
    others = [
        make_optimizer(other, make_model(), own_settings(other))
        for other in NAMES
        if other != name
    ]
    torchs = torch.optim.SGD(model.parameters(), lr=0.1)
    for foreign in (*others, smaller, torchs):
        with pytest.raises(ValueError, match="state"):
            optimizer.load_state_dict(copy.deepcopy(foreign.state_dict()))


# Whether a last exchange is needed.

# Workers may agree after more steps than the method knows of: all was sent earlier, or a draw
# happened to send all.
MAY_AGREE_UNKNOWN = {"identity", "per_tensor"}


AGREEING = [
    (name, key, communication_dtype)
    for name, key in PAIRS
    if name in JOINT
    for communication_dtype in (None, torch.float16)
    # Encoded messages have a format of their own.
    if communication_dtype is None or key not in ENCODED
]


@pytest.mark.parametrize(("name", "key", "communication_dtype"), AGREEING)
def test_workers_agree_where_the_method_says_so_and_short_messages_have_half_the_bits(
    name: str, key: str, communication_dtype: torch.dtype | None
) -> None:
    for chosen in every_switch(name):
        own = own_settings(name, [COMPRESSORS[key]], 3, **chosen)
        if chosen.get("keep_master") and key in ENCODED:
            with pytest.raises(ValueError, match="leave keep_master out"):
                make_optimizer(name, make_model(), own)
            continue

        def work(
            collectives: Collectives, own: dict[str, Any] = own
        ) -> list[tuple[bool, Tensor]]:
            model = make_model(torch.float32 if communication_dtype else torch.float64)
            optimizer = make_optimizer(
                name, model, own, collectives, communication_dtype=communication_dtype
            )
            seen = []
            for step in range(1, 8):
                train(optimizer, model, collectives.rank, [step])
                agrees = optimizer.agree_after(step)
                seen.append((agrees, flat_parameters(model)))
            assert_expected_traffic(optimizer, 7)
            if communication_dtype:
                full = make_optimizer(
                    name, make_model(torch.float32), own, collectives
                ).expected_traffic(7)
                assert 2 * optimizer.traffic.training_bits == full.training_bits
            return seen

        for (says, first), (_, second) in zip(*workers(work, 2), strict=True):
            distance = float((first - second).norm())
            if says:
                assert distance < 1e-6
            elif key not in MAY_AGREE_UNKNOWN:
                assert distance > 1e-6
