"""What would be wrong in silence in anyone's script: weights loaded late, models that moved on, copies of states."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from algorithms import (
    SGD,
    Collectives,
    DiLoCo,
    DistributedOptimizer,
    SoloCollectives,
    algorithms,
    consensus_checkpoint,
)
from tests.algorithms.problems import (
    NAMES,
    SHARED,
    batch_loss,
    flat_of,
    flat_parameters,
    groups,
    make_model,
    make_optimizer,
    own_settings,
    train,
    workers,
)

ADDED = {"lr": 0.04, "weight_decay": 0.03}


def made(name: str, model: nn.Module, collectives: Collectives | None = None, **more: Any) -> DistributedOptimizer:
    return make_optimizer(name, model, own_settings(name, [SHARED["blocks"]], 3), collectives, **more)


def put(model: nn.Module, seed: int) -> None:
    """What load_state_dict does: other weights in the same parameters."""
    model.load_state_dict(make_model(seed=seed).state_dict())


# Weights that are loaded late.


@pytest.mark.parametrize("name", NAMES)
def test_weights_loaded_after_the_optimiser_was_made_are_where_it_begins(name: str) -> None:
    """As if they had been there before, to the bit; and of ranks that load different ones worker 0's count."""

    def work(collectives: Collectives) -> tuple[Tensor, Tensor, Tensor]:
        before, late, apart = (make_model(seed=seed) for seed in (5, 6, 7))
        first, second = made(name, before, collectives), made(name, late, collectives)
        put(late, 5)
        for model, optimizer in ((before, first), (late, second)):
            train(optimizer, model, collectives.rank, range(1, 9))
        third = made(name, apart, collectives)
        for group in third.param_groups:
            group["lr"] = 0.0
        put(apart, 10 + collectives.rank)
        train(third, apart, collectives.rank, [1])
        return flat_of(first), flat_of(second), flat_parameters(apart)

    for first, second, apart in workers(work, 2):
        assert torch.equal(first, second)
        torch.testing.assert_close(apart, flat_parameters(make_model(seed=10)), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_a_new_anchor_in_the_middle(name: str) -> None:
    def work(collectives: Collectives) -> None:
        model = make_model()
        optimizer = made(name, model, collectives)
        train(optimizer, model, collectives.rank, range(1, 6))
        held = optimizer.state_dict()["param_groups"][0]["flat"]
        momentum = held.get("momentum", torch.zeros(1)).clone()
        put(model, 20 + collectives.rank)
        optimizer.reanchor()
        expected, held = flat_parameters(make_model(seed=20)), optimizer.state_dict()["param_groups"][0]["flat"]
        assert torch.equal(flat_parameters(model), expected) and held["num_steps"] == 5
        for key in {"anchor", "estimate", "mixed_estimates"} & held.keys() - (
            {"estimate"} if name == "ef21_sgdm" else set()
        ):
            assert torch.equal(held[key][0], expected)
        assert not any(held[key].any() for key in {"error", "accumulated"} & held.keys())
        assert torch.equal(held.get("momentum", torch.zeros(1)), momentum)
        train(optimizer, model, collectives.rank, range(6, 9))

    workers(work, 2)


@pytest.mark.parametrize("name", [name for name in NAMES if not algorithms()[name].workers_differ])
def test_workers_that_resume_from_different_models_are_told_so(name: str) -> None:
    def work(collectives: Collectives) -> str:
        model = make_model()
        optimizer = made(name, model, collectives)
        optimizer.load_state_dict(optimizer.state_dict())
        put(model, collectives.rank)
        with pytest.raises(RuntimeError, match=r"the workers' parameters differ, .* optimizer.reanchor\(\)"):
            train(optimizer, model, collectives.rank, [1])
        optimizer.reanchor()
        train(optimizer, model, collectives.rank, [1, 2])
        return str(flat_of(optimizer).tolist())

    assert len(set(workers(work, 2))) == 1


# Models that went on without the optimiser.


def test_a_model_that_was_on_meta_is_noticed() -> None:
    for is_known in (False, True):
        with torch.device("meta"):
            model = nn.Linear(3, 2)
        optimizer = SGD(model.parameters(), lr=0.1, model=model if is_known else None)
        model.to_empty(device="cpu")(torch.ones(1, 3)).sum().backward()
        with pytest.raises(RuntimeError, match=r"on the meta device|another Parameter in place of number 0"):
            optimizer.step()


def test_a_head_that_was_replaced_is_noticed() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    optimizer = SGD(model.parameters(), lr=0.1)
    model[1] = nn.Linear(3, 5)
    model(torch.ones(1, 3)).sum().backward()
    with pytest.warns(UserWarning, match=r"parameters 2, 3 have no gradient at the optimiser's first step"):
        optimizer.step()


def test_a_conversion_that_makes_new_parameters_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
    model, known = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer, knowing = SGD(model.parameters(), lr=0.1), SGD(known.parameters(), lr=0.1, model=known)
    for each in (model, known):
        each.double()(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    with pytest.warns(UserWarning, match="no parameter has a gradient"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="another Parameter in place of number 0"):
        knowing.step()


# Copies, and the average.


@pytest.mark.parametrize("act", [copy.copy, copy.deepcopy, pickle.dumps, lambda each: torch.save(each, io.BytesIO())])
def test_an_optimiser_is_neither_copied_nor_pickled(act: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match=r"DiLoCo cannot be copied or pickled, .*; save its state_dict\(\)"):
        act(DiLoCo(make_model().parameters(), lr=0.1, sync_interval=2))


def test_what_would_be_thrown_away_or_saved_as_ones_own_is_refused_inside_consensus() -> None:
    model = make_model()
    optimizer = made("mcser", model)
    calls: list[Callable[[], object]] = [
        optimizer.step,
        optimizer.state_dict,
        lambda: consensus_checkpoint("nowhere", model, optimizer),
        lambda: optimizer.load_state_dict({}),
        optimizer.reanchor,
    ]
    with optimizer.consensus(model):
        with optimizer.consensus():
            pass
        for call in calls:
            with pytest.raises(RuntimeError, match=r"inside consensus\(\)"):
                call()
    train(optimizer, model, 0, [1])


def test_moving_averages_are_averaged_where_they_are_named_and_a_masks_least_number_stays() -> None:
    least = torch.finfo(torch.float32).min

    def work(collectives: Collectives) -> None:
        model = make_model(torch.float32)
        model.register_buffer("mask", torch.tensor([0.0, least, float("-inf"), 1.0 + collectives.rank]))
        optimizer = made("local_sgd", model, collectives)
        train(optimizer, model, collectives.rank, [1])
        ema = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in ema.parameters():
                parameter.fill_(collectives.rank)
        with pytest.raises(RuntimeError, match=r"another Parameter in place of number 0 .*averages=\[ema\]"):
            optimizer.consensus(ema).__enter__()
        with optimizer.consensus(model, averages=[ema]):
            assert all((parameter == 1.0).all() for parameter in ema.parameters())
            assert model.mask.tolist() == ema.mask.tolist() == [0.0, least, float("-inf"), 2.0]
        assert all((parameter == collectives.rank).all() for parameter in ema.parameters())

    workers(work, 3)


# What is given to the constructor.


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sync_interval": 2}, r"^DiLoCo needs lr by name"),
        ({"lr": 0.1}, r"^DiLoCo needs sync_interval by name"),
        ({"lr": 0.1, "sync_intervall": 2}, r"^DiLoCo has no argument sync_intervall; did you mean sync_interval\?$"),
        ({"lr": 0.1, "sync_interval": 2, "nesterov": True}, r"^DiLoCo has no argument nesterov; it takes lr, sync_int"),
    ],
)
def test_arguments_that_are_missing_or_unknown_are_named_by_the_methods_name(given: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        DiLoCo(make_model().parameters(), **given)


@pytest.mark.filterwarnings("ignore:optimizer contains")
def test_a_parameter_given_twice_is_named_so() -> None:
    weight = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="parameters 0 and 1 are one and the same Parameter; give each once"):
        SGD([weight, weight], lr=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_groups_may_be_added_before_the_first_step(name: str) -> None:
    def work(collectives: Collectives) -> tuple[Tensor, Tensor]:
        (at_once, later), rank = (make_model(seed=2) for _ in range(2)), collectives.rank
        whole = made(name, at_once, collectives)
        weights, biases = groups(later)
        numbers = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
        own = own_settings(name, [SHARED["blocks"]], 3)
        optimizer = algorithms()[name](**{"params": [weights], "collectives": collectives, **own, **numbers})
        twice, imaginary = nn.Parameter(weights["params"][0].detach()), torch.zeros(2, dtype=torch.complex64)
        for refused, words in (
            (twice, "share memory"),
            (nn.Parameter(imaginary), "is torch.complex64"),
        ):
            with pytest.raises(ValueError, match=words):
                optimizer.add_param_group({"params": [refused]})
        optimizer.add_param_group({**biases, **ADDED})
        for model, each in ((at_once, whole), (later, optimizer)):
            train(each, model, rank, range(1, 8))
        with pytest.raises(ValueError, match="no group can be added after the first step"):
            optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
        return flat_of(whole), flat_of(optimizer)

    for whole, grown in workers(work, 2):
        assert torch.equal(whole, grown)


def test_frozen_layers_may_be_thawed_later() -> None:
    model = make_model()
    model[0].requires_grad_(False)  # type: ignore[index]
    with pytest.warns(UserWarning, match=r"parameter 0 does not require a gradient, nor do 1 more, yet they are sent"):
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, collectives=SoloCollectives())
    start = [parameter.detach().clone() for parameter in model.parameters()]
    for step in (1, 2):
        moved = [not torch.equal(*pair) for pair in zip(model.parameters(), start, strict=True)]
        assert moved == ([False] * 4 if step == 1 else [False, False, True, True])
        optimizer.zero_grad()
        batch_loss(model, step, 0).backward()
        optimizer.step()
    model[0].requires_grad_(True)  # type: ignore[index]
    train(optimizer, model, 0, [3])
    assert not any(torch.equal(*pair) for pair in zip(model.parameters(), start, strict=True))
