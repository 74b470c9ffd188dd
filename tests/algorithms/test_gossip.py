"""Decentralised methods: what must hold for any topology, what is sent, and what cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from algorithms import Collectives, StackedCollectives, Topology, algorithms
from algorithms.core.traffic import Entry
from tests.algorithms.problems import (
    COMPRESSORS,
    make_model,
    make_optimizer,
    own_settings,
    train,
    workers,
)
from tests.algorithms.test_contract import MESSAGES
from tests.algorithms.test_definitions import ORDERS
from tests.algorithms.transcription import Array

GOSSIP = [name for name in algorithms() if "topology" in own_settings(name)]
# Without gradients.


def without_gradients(own: dict[str, Any], starts: Array, num_steps: int) -> list[Array]:
    """The workers' parameters, a row each, from `starts` on and after each step of decentralised SGD with rate 0."""

    def work(collectives: Collectives) -> list[Array]:
        parameter = nn.Parameter(torch.zeros(starts.shape[1], dtype=torch.float64))
        optimizer = algorithms()["dpsgd"]([parameter], lr=0.0, collectives=collectives, **own)
        state = optimizer.state_dict()
        state["flat"]["parameters"] = torch.from_numpy(starts[collectives.rank : collectives.rank + 1].copy())
        optimizer.load_state_dict(state)
        seen = [parameter.detach().numpy().copy()]
        for _ in range(num_steps):
            optimizer.zero_grad()
            parameter.sum().backward()
            optimizer.step()
            seen.append(parameter.detach().numpy().copy())
        return seen

    return [np.array(rows) for rows in zip(*workers(work, len(starts)), strict=True)]


def squared_distance(x: Array) -> float:
    return float(((x - x.mean(axis=0)) ** 2).sum())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("topology", "n"),
    [(Topology("ring"), 8), (Topology("exponential"), 8), (Topology("exponential"), 6)],
    ids=str,
)
def test_without_gradients_workers_come_nearer_by_the_spectral_gap(topology: Topology, n: int, order: str) -> None:
    contraction = (1 - topology.spectral_gap(n)) ** 2
    seen = without_gradients({"topology": topology, "order": order}, np.random.default_rng(0).normal(size=(n, 9)), 12)
    for before, after in pairwise(seen):
        np.testing.assert_allclose(after.mean(axis=0), seen[0].mean(axis=0), rtol=0, atol=1e-14)
        assert squared_distance(after) <= contraction * squared_distance(before) * (1 + 1e-9)
    assert squared_distance(seen[-1]) > 0


@pytest.mark.parametrize("n", [2, 4, 8])
def test_one_peer_averages_exactly_in_log2_n_rounds(n: int) -> None:
    starts = np.random.default_rng(0).normal(size=(n, 9))
    rounds = int(np.log2(n))
    seen = without_gradients({"topology": "one_peer", "order": ORDERS[1]}, starts, rounds)
    assert all(squared_distance(x) > 1e-3 for x in seen[:-1])
    np.testing.assert_allclose(seen[rounds], np.tile(starts.mean(axis=0), (n, 1)), rtol=0, atol=1e-15)


# When workers agree.


@pytest.mark.parametrize("name", GOSSIP)
def test_when_workers_are_known_to_agree(name: str) -> None:
    def says(num_workers: int, num_steps: int, **changes: Any) -> bool:
        model = make_model()
        stacked = [nn.Parameter(torch.stack([each.detach()] * num_workers)) for each in model.parameters()]
        collectives = StackedCollectives(num_workers)
        own = own_settings(name) | {key: value for key, value in changes.items() if key in own_settings(name)}
        communication_dtype = changes.get("communication_dtype")
        return algorithms()[name](
            stacked, lr=0.1, collectives=collectives, communication_dtype=communication_dtype, **own
        ).agree_after(num_steps)

    assert says(4, 7) and says(1, 7, topology="ring") and says(4, 0, topology="ring")
    assert says(3, 7, topology="ring"), "of three all are neighbours"
    assert not says(4, 7, topology="ring") and not says(4, 7, communication_dtype=torch.float16)
    other: dict[str, Any] = {"gamma": 0.5} if "gamma" in own_settings(name) else {"order": "combine_while_adapt"}
    assert not says(4, 7, **other)


# Groups of all kinds.


# What is sent, counted by hand.

NEIGHBOURS = {"ring": 2, "exponential": 3, "one_peer": 1, "complete": 7}
"""Of each of eight workers."""


@pytest.mark.parametrize("kind", NEIGHBOURS)
@pytest.mark.parametrize("key", MESSAGES)
def test_the_closed_form_is_what_a_hand_counts(key: str, kind: str) -> None:
    def work(collectives: Collectives) -> None:
        for name in GOSSIP:
            if (name == "dpsgd" and key != "identity") or (name == "choco_sgd" and kind == "one_peer"):
                continue
            model = make_model(torch.float32)
            own = own_settings(name, [COMPRESSORS[key]], 4, topology=kind)
            before = collectives.traffic.state_dict()["model"]
            optimizer = make_optimizer(name, model, own, collectives)
            train(optimizer, model, collectives.rank, range(1, 6))
            bits = 5 * NEIGHBOURS[kind] * MESSAGES[key]
            expected = Entry(bits, 5 if bits else 0, 0, bits)
            assert optimizer.expected_traffic(5).training() == {
                "gradient": Entry(),
                "error": Entry(),
                "model": expected,
            }
            after = collectives.traffic.state_dict()["model"]
            assert [b - a for a, b in zip(before, after, strict=True)] == list(vars(expected).values())

    workers(work, 8)


def test_one_worker_has_nobody_to_send_to() -> None:
    for name in GOSSIP:
        model = make_model()
        optimizer = make_optimizer(name, model, own_settings(name))
        train(optimizer, model, 0, range(1, 4))
        assert optimizer.traffic.training() == optimizer.expected_traffic(3).training()
        assert optimizer.traffic.training_bits == 0


# What cannot be.


def refusals(name: str, differ: Sequence[dict[str, Any]], world_size: int) -> list[str]:
    """What each worker is told; worker i has the settings differ[i], the last of them where there are fewer."""

    def work(collectives: Collectives) -> str:
        own = own_settings(name) | differ[min(collectives.rank, len(differ) - 1)]
        try:
            make_optimizer(name, make_model(), own, collectives)
        except ValueError as error:
            return str(error)
        return "nothing"

    return workers(work, world_size)


@pytest.mark.parametrize("name", GOSSIP)
def test_workers_whose_topologies_differ_are_told_so(name: str) -> None:
    for said in refusals(name, [{"topology": "complete"}, {"topology": "ring"}], 3):
        assert "topology = 'complete' on rank 0" in said and "topology = 'ring' on ranks 1, 2" in said
    assert refusals(name, [{"topology": Topology("ring")}, {"topology": "ring"}], 2) == ["nothing"] * 2


@pytest.mark.parametrize("name", GOSSIP)
def test_a_topology_that_does_not_fit_the_workers_is_refused_on_each_of_them(name: str) -> None:
    for said in refusals(name, [{"topology": "torus"}], 2):
        assert said.startswith(f"{name}: unknown topology 'torus'")
    if name != "choco_sgd":
        for said in refusals(name, [{"topology": "one_peer"}], 3):
            assert "one_peer needs a power of two of workers, not 3" in said


@pytest.mark.parametrize(
    ("name", "wrong", "words"),
    [
        (
            "choco_sgd",
            {"topology": "one_peer"},
            "choco_sgd: .* needs the same neighbours in each step, .* one_peer",
        ),
        ("dpsgd", {"order": "adapt"}, "dpsgd: order must be one of combine_while_adapt, adapt_then_combine"),
        *(
            (name, {"gamma": gamma}, f"{name}: gamma must be a number above 0 and up to 1, not ")
            for name in ("choco_sgd", "deep_squeeze")
            for gamma in (0, 1.5, float("nan"), True, "1")
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_optimizer(name, make_model(), own_settings(name, **wrong))
