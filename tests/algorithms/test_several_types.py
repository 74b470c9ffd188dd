"""One optimiser over parameters of two types: each steps and is sent in its own; groups, steps and checks are one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from algorithms import (
    EFSGD,
    MCSER,
    BlockSparsifier,
    Collectives,
    DiLoCo,
    DistributedOptimizer,
    Purpose,
    StackedCollectives,
    algorithms,
)
from algorithms.baselines.ddp import DDP
from algorithms.core.state import OTHER_TYPES, common_state
from algorithms.core.traffic import Entry
from tests.algorithms.problems import (
    ADAMW,
    COMPRESSORS,
    JOINT,
    NAMES,
    TAKING_ADAMW,
    named_compressors,
    own_settings,
    reloaded,
    torch_sgd,
    workers,
)

SHAPES = [(6, 4), (6,), (5, 6), (5,), (3, 5), (4,)]
"""Of weights and biases in turn; 84 numbers, of which weights have 69."""
ACCURATE = (torch.float32, torch.float64)
SHORT = (torch.bfloat16, torch.float32)
SGD: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
COMMON_MOMENTS = ("sgd", "sgd_accumulate", "powersgd")
Types = tuple[torch.dtype, torch.dtype]


def parameters(types: Types, seed: int = 0) -> list[Parameter]:
    """Weights of the first type and biases of the second."""
    generator = np.random.default_rng(seed)
    values = [torch.from_numpy(generator.normal(0, 0.5, shape)) for shape in SHAPES]
    return [Parameter(value.to(types[value.dim() == 1])) for value in values]


def groups(tensors: Sequence[Tensor]) -> list[dict[str, Any]]:
    """One group with both types, and two with one of them."""
    weights_alone = {"params": tensors[4:5], "lr": 0.04, "weight_decay": 0.03}
    return [{"params": tensors[:4]}, weights_alone, {"params": tensors[5:]}]


def gradients(step: int, rank: int, tensors: Sequence[Tensor]) -> list[Tensor]:
    generator = np.random.default_rng([step, rank])
    return [torch.from_numpy(generator.normal(0, 1, shape)).to(x) for shape, x in zip(SHAPES, tensors, strict=True)]


def make(
    name: str, tensors: Sequence[Tensor], own: dict[str, Any], collectives: Collectives | None = None, **common: Any
) -> DistributedOptimizer:
    return algorithms()[name](groups(tensors), collectives=collectives, **own, **(SGD | common))


def train(optimizer: DistributedOptimizer, tensors: Sequence[Tensor], rank: int, steps: Iterable[int]) -> None:
    for step in steps:
        optimizer.zero_grad()
        for x, gradient in zip(tensors, gradients(step, rank, tensors), strict=True):
            x.grad = gradient
        optimizer.step()


def trained(
    name: str, own: dict[str, Any], types: Types, num_steps: int = 8, world_size: int = 2, **common: Any
) -> list[list[Tensor]]:
    """Each worker's parameters."""

    def work(collectives: Collectives) -> list[Tensor]:
        tensors = parameters(types, collectives.rank)
        optimizer = make(name, tensors, own, collectives, **common)
        train(optimizer, tensors, collectives.rank, range(1, num_steps + 1))
        assert optimizer.traffic.training() == optimizer.expected_traffic(num_steps).training()
        return [x.detach().clone() for x in tensors]

    return workers(work, world_size)


# From the definition.


@pytest.mark.filterwarnings("ignore:parameter . does not require a gradient")
@pytest.mark.parametrize("types", [ACCURATE, ACCURATE[::-1], SHORT, (torch.float16, torch.float32)], ids=str)
@pytest.mark.parametrize(
    ("name", "rule", "world_size"),
    [
        *((name, "sgd", 2) for name in JOINT),
        *((name, "adamw", 2 if name in COMMON_MOMENTS else 1) for name in TAKING_ADAMW),
    ],
)
def test_without_compression_each_type_is_stepped_as_torch_steps_it(
    name: str, rule: str, world_size: int, types: Types
) -> None:
    """On the mean gradient; a weight and a bias are frozen when the optimiser is made, and thawed after two steps."""
    common = ADAMW if rule == "adamw" else SGD

    def freeze(tensors: Sequence[Tensor], thawed: bool) -> None:
        for number in (1, 2):
            tensors[number].requires_grad_(thawed)

    def work(collectives: Collectives) -> list[Tensor]:
        tensors = parameters(types, collectives.rank)
        freeze(tensors, False)
        optimizer = make(name, tensors, own_settings(name), collectives, **common)
        train(optimizer, tensors, collectives.rank, (1, 2))
        freeze(tensors, True)
        train(optimizer, tensors, collectives.rank, range(3, 7))
        return [x.detach() for x in tensors]

    plain = parameters(types)
    numbers = {key: value for key, value in common.items() if key != "local_step" and value is not None}
    make_plain: Callable[..., torch.optim.Optimizer] = (
        torch.optim.AdamW if rule == "adamw" else partial(torch_sgd, name)
    )
    reference = make_plain(groups(plain), **numbers)
    for step in range(1, 7):
        each = [gradients(step, rank, plain) for rank in range(world_size)]
        for number, (x, *own) in enumerate(zip(plain, *each, strict=True)):
            is_frozen = step <= 2 and number in (1, 2)
            x.grad = None if is_frozen else torch.stack(own).double().mean(0).to(x)
        reference.step()
    for found in workers(work, world_size):
        for x, wanted in zip(found, plain, strict=True):
            assert x.dtype == wanted.dtype
            # Eight roundings in six steps of numbers that lie below 4.
            rounding = 32 * torch.finfo(x.dtype).eps
            torch.testing.assert_close(x, wanted.detach(), rtol=0, atol=max(rounding, 1e-12))


# What is sent.


@pytest.mark.filterwarnings("ignore:no parameter has a gradient")
@pytest.mark.parametrize("types", [ACCURATE, SHORT], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_bits_are_the_sum_of_those_of_each_type_alone(name: str, types: Types) -> None:
    for key in named_compressors(name, COMPRESSORS):
        own = own_settings(name, [COMPRESSORS[key]], 3)
        collectives = [StackedCollectives(4) for _ in range(3)]
        rows = [Parameter(torch.stack([x.detach()] * 4)) for x in parameters(types)]
        both = make(name, rows, own, collectives[0])
        apart = [
            algorithms()[name](
                [Parameter(x.detach().clone()) for x in rows if x.dtype == dtype], collectives=end, **own, **SGD
            )
            for dtype, end in zip(types, collectives[1:], strict=True)
        ]
        for num_steps in (1, 3, 7):
            total = both.expected_traffic(num_steps).training()
            if key == "per_tensor":  # which sends other numbers in other draws
                continue
            for purpose, entry in total.items():
                parts = [each.expected_traffic(num_steps).training()[purpose] for each in apart]
                assert entry.bits == sum(part.bits for part in parts)
                assert entry.collectives == sum(part.collectives for part in parts)
        for _ in range(7):
            both.zero_grad()
            both.step()
        assert both.traffic.training() == both.expected_traffic(7).training()


def test_types_draw_apart_and_one_that_is_too_small_to_compress_is_sent_whole() -> None:
    """In each step a block of each type moves; were they drawn alike, both would have the same number."""
    same = [Parameter(torch.zeros(64, dtype=dtype)) for dtype in ACCURATE]
    optimizer = EFSGD(same, lr=1.0, compressor=BlockSparsifier(8))
    places = []
    for _ in range(12):
        before = [x.detach().clone() for x in same]
        for x in same:
            x.grad = torch.ones_like(x)
        optimizer.step()
        places.append([int((x != old).nonzero()[0]) for x, old in zip(same, before, strict=True)])
    assert any(first != second for first, second in places)
    small = [Parameter(torch.zeros(64)), Parameter(torch.zeros(6, dtype=torch.float64))]
    optimizer = EFSGD(small, lr=1.0, compressor=BlockSparsifier(8))
    small[1].grad = torch.ones_like(small[1])
    optimizer.step()
    assert (small[1] == -1).all()
    assert (
        optimizer.traffic[Purpose.GRADIENT]
        == optimizer.expected_traffic(1)[Purpose.GRADIENT]
        == Entry(8 * 32 + 6 * 64, 2)
    )
    with pytest.raises(ValueError, match=r"num_fragments = 8 is more .* \(of the parameters of type torch.float64, "):
        DiLoCo(small, lr=1.0, sync_interval=8, num_fragments=8)


# States.


@pytest.mark.parametrize("types", [ACCURATE, SHORT], ids=str)
@pytest.mark.parametrize(
    ("name", "common"),
    [*((name, SGD) for name in NAMES), *((name, ADAMW) for name in TAKING_ADAMW), ("diloco", {"local_step": "muon"})],
    ids=str,
)
def test_a_run_that_is_resumed_and_one_whose_workers_are_stacked_have_the_same_bits(
    name: str, common: dict[str, Any], types: Types
) -> None:
    own = own_settings(name, [COMPRESSORS["block"]], 3)

    def work(collectives: Collectives) -> list[Tensor]:
        tensors = parameters(types, collectives.rank)
        optimizer = make(name, tensors, own, collectives, **common)
        train(optimizer, tensors, collectives.rank, range(1, 5))
        state = reloaded([tensors, optimizer.state_dict()])
        again = parameters(types, 7)
        resumed = make(name, again, own, collectives, **common | {"lr": 0.7, "seed": 5})
        for x, saved in zip(again, state[0], strict=True):
            x.data.copy_(saved)
        resumed.load_state_dict(state[1])
        train(resumed, again, collectives.rank, range(5, 9))
        return [x.detach() for x in again]

    resumed = workers(work, 2)
    whole = trained(name, own, types, **common)
    rows = [Parameter(torch.stack([x.detach()] * 2)) for x in parameters(types)]
    optimizer = make(name, rows, own, StackedCollectives(2), **common)
    for step in range(1, 9):
        for x, *each in zip(rows, *(gradients(step, rank, rows) for rank in range(2)), strict=True):
            x.grad = torch.stack(each)
        optimizer.step()
    for rank in range(2):
        for again, once, row in zip(resumed[rank], whole[rank], rows, strict=True):
            assert torch.equal(again, once) and torch.equal(once, row[rank])


def test_the_average_is_of_both_types_and_begins_a_run_of_another_size() -> None:
    own = own_settings("mcser", [COMPRESSORS["top_k"]], 3)

    def work(collectives: Collectives) -> tuple[list[Tensor], list[Tensor], Any]:
        tensors = parameters(ACCURATE)
        optimizer = make("mcser", tensors, own, collectives)
        train(optimizer, tensors, collectives.rank, range(1, 5))
        before = [x.detach().clone() for x in tensors]
        assert optimizer.error is not None and optimizer.error.shape == (1, 84)
        with optimizer.consensus():
            inside = [x.detach().clone() for x in tensors]
        assert all(map(torch.equal, before, tensors))
        return before, inside, copy.deepcopy(optimizer.state_dict())

    (first, inside, own_state), (second, same, other_state) = workers(work, 2)
    for one, other, average, again in zip(first, second, inside, same, strict=True):
        assert not torch.equal(one, other)
        torch.testing.assert_close(average, (one + other) / 2)
        assert torch.equal(average, again)
    state = common_state(copy.deepcopy([own_state, other_state]))
    optimizer = make("mcser", alone := parameters(ACCURATE, 3), own)
    optimizer.load_state_dict(state)
    flats = [each["param_groups"][0]["flat"] for each in (optimizer.state_dict(), own_state, other_state)]
    others = [next(iter(flat[OTHER_TYPES].values())) for flat in flats]
    for mean, one, other in (flats, others):
        assert one["error"].any()
        torch.testing.assert_close(mean["error"], (one["error"] + other["error"]) / 2)
    one_type = make("mcser", parameters((torch.float32, torch.float32)), own)
    for optimizer, foreign in ((one_type, state), (make("mcser", alone, own), one_type.state_dict())):
        with pytest.raises(ValueError, match=r"^this state does not fit mcser: "):
            optimizer.load_state_dict(copy.deepcopy(foreign))


def test_weights_loaded_before_the_first_step_go_to_all_in_both_types_and_anchors_begin_there() -> None:
    def work(collectives: Collectives) -> list[Tensor]:
        tensors = parameters(ACCURATE)
        optimizer = DiLoCo(tensors, lr=0.0, sync_interval=1, collectives=collectives)
        for x, loaded in zip(tensors, parameters(ACCURATE, 5 + collectives.rank), strict=True):
            x.data.copy_(loaded)
        train(optimizer, tensors, collectives.rank, (1, 2))
        return [x.detach() for x in tensors]

    for found in workers(work, 2):
        for x, wanted in zip(found, parameters(ACCURATE, 5), strict=True):
            torch.testing.assert_close(x, wanted.detach())


# Beside that.


@pytest.mark.parametrize("overflow", [False, True])
def test_under_a_grad_scaler_both_types_are_stepped_or_neither(overflow: bool) -> None:
    def work(collectives: Collectives) -> tuple[list[Tensor], int]:
        tensors = parameters((torch.float16, torch.float32))
        optimizer = make("mcser", tensors, own_settings("mcser"), collectives)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        for step in range(1, 4):
            optimizer.zero_grad()
            torch.stack([x.float().square().sum() for x in tensors]).sum().mul(64.0).backward()
            scaler.scale(torch.zeros(()))  # type: ignore[no-untyped-call]
            if overflow and step == 2 and collectives.rank == 1:
                tensors[0].grad.fill_(torch.inf)  # type: ignore[union-attr]
            scaler.step(optimizer)
            scaler.update(64.0)
        return [x.detach() for x in tensors], optimizer.num_steps

    def without() -> list[Tensor]:
        tensors = parameters((torch.float16, torch.float32))
        optimizer = torch.optim.SGD(groups(tensors), nesterov=True, **SGD)
        for _ in range(2 if overflow else 3):
            optimizer.zero_grad()
            torch.stack([x.float().square().sum() for x in tensors]).sum().backward()
            optimizer.step()
        return [x.detach() for x in tensors]

    for found, num_steps in workers(work, 2):
        assert num_steps == (2 if overflow else 3)
        for x, wanted in zip(found, without(), strict=True):
            torch.testing.assert_close(x, wanted, rtol=0, atol=32 * torch.finfo(x.dtype).eps)


def test_a_group_of_another_type_is_added_before_the_first_step_and_none_afterwards() -> None:
    own = own_settings("mcser", [BlockSparsifier(2)], 3)
    apart, together = parameters(ACCURATE), parameters(ACCURATE)
    first, *others = groups(apart)
    optimizer = MCSER([{**first, "params": [x for x in first["params"] if x.dtype == torch.float32]}], **own, **SGD)
    optimizer.add_param_group({"params": [x for x in first["params"] if x.dtype == torch.float64]})
    for group in others:
        optimizer.add_param_group(group)
    at_once = make("mcser", together, own)
    assert optimizer.num_parameters == 84 and [len(group["params"]) for group in optimizer.param_groups] == [2, 2, 1, 1]
    for each, tensors in ((optimizer, apart), (at_once, together)):
        train(each, tensors, 0, range(1, 6))
    assert all(map(torch.equal, apart, together))
    with pytest.raises(ValueError, match=r"no group can be added after the first step .* add it at the start, frozen"):
        optimizer.add_param_group({"params": [Parameter(torch.zeros(3))]})


def test_what_is_no_part_of_the_model_any_more_and_types_that_differ_between_workers_are_noticed() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).double())
    optimizer = MCSER(model.parameters(), model=model, **own_settings("mcser"), **SGD)
    model[1].bias = Parameter(torch.zeros(3, dtype=torch.float64))  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="another Parameter in place of number 3"):
        optimizer.state_dict()

    def work(collectives: Collectives) -> None:
        make("mcser", parameters((torch.float32, ACCURATE[collectives.rank])), own_settings("mcser"), collectives)

    with pytest.raises(ValueError, match="the workers' optimisers differ"):
        workers(work, 2)
    with pytest.raises(ValueError, match=r"ddp: parameters must have one type, and here are torch.float32 besides"):
        DDP(parameters(SHORT), lr=0.1)
