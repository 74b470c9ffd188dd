"""Decentralised methods: what must hold for any topology, what is sent, and what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from algorithms import Collectives, StackedCollectives, algorithms
from algorithms.core.traffic import Entry
from tests.algorithms.problems import (
    COMPRESSORS,
    MESSAGE_BITS,
    make_model,
    make_optimizer,
    own_settings,
    train,
    workers,
)

GOSSIP = [name for name in algorithms() if "topology" in own_settings(name)]
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


# What is sent, counted by hand.

NEIGHBOURS = {"ring": 2, "exponential": 3, "one_peer": 1, "complete": 7}
"""Of each of eight workers."""


@pytest.mark.parametrize("kind", NEIGHBOURS)
@pytest.mark.parametrize("key", MESSAGE_BITS)
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
            bits = 5 * NEIGHBOURS[kind] * MESSAGE_BITS[key]
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


@pytest.mark.parametrize(
    ("name", "wrong", "words"),
    [
        ("choco_sgd", {"topology": "one_peer"}, "choco_sgd: .* needs the same neighbours in each step, .* one_peer"),
        *((name, {"topology": "torus"}, f"^{name}: unknown topology 'torus'") for name in GOSSIP),
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
