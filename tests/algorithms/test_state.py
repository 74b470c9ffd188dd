"""What each method's state is: which parts, whose they are, how large, and how they begin; the page's table says it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from algorithms import BlockSparsifier, Collectives, TopK
from algorithms.core.low_rank import LowRank
from tests.algorithms.problems import (
    NAMES,
    NUM_PARAMETERS,
    make_model,
    make_optimizer,
    own_settings,
    takes,
    train,
    workers,
)

PAGE = (Path(__file__).parents[2] / "docs" / "lost-state.md").read_text()
WORLD_SIZE, INTERVAL, NUM_STEPS = 4, 3, 8
"""Steps that end between two synchronisations."""
State = dict[str, Tensor]


@cache
def begun_and_trained(name: str) -> tuple[list[State], list[State], float]:
    """Each worker's state when it is made, and after some steps; and the numbers of PowerSGD's Q, in models."""
    compressor = TopK(10) if takes(name, TopK(10)) else BlockSparsifier(4)

    def work(collectives: Collectives) -> tuple[State, State, float]:
        model = make_model(seed=collectives.rank)
        optimizer = make_optimizer(name, model, own_settings(name, [compressor], INTERVAL), collectives)
        begun = held(optimizer.state_dict()["flat"] | {"parameters": optimizer.flat.parameters})
        train(optimizer, model, collectives.rank, range(1, NUM_STEPS + 1))
        now = held(optimizer.state_dict()["flat"] | {"parameters": optimizer.flat.parameters})
        return begun, now, LowRank(optimizer.flat.layout, 1).second_numel / NUM_PARAMETERS

    found = workers(work, WORLD_SIZE)
    return [each[0] for each in found], [each[1] for each in found], found[0][2]


def held(flat: dict[str, object]) -> State:
    return {key: value.clone() for key, value in flat.items() if isinstance(value, Tensor)}


def whose(trained: list[State], part: str) -> str:
    same = all(torch.equal(each[part], trained[0][part]) for each in trained)
    return "common" if same else "each worker's"


def size(name: str, part: str) -> str:
    _, trained, factors = begun_and_trained(name)
    models = trained[0][part].numel() / NUM_PARAMETERS
    assert models in (1, factors)
    return "d" if models == 1 else "Σ r columns"


def beginning(name: str, part: str) -> str:
    begun, _, _ = begun_and_trained(name)
    if all(not each[part].any() for each in begun):
        return "0"
    shape = begun[0]["parameters"].shape
    if begun[0][part].shape == shape and all(torch.equal(each[part], begun[0]["parameters"]) for each in begun):
        return "worker 0's parameters"
    assert all(torch.equal(each[part], begun[0][part]) for each in begun)
    return "drawn from the seed"


def line(name: str) -> str:
    """The method's line of the table."""
    _, trained, _ = begun_and_trained(name)
    parts = [part for part in trained[0] if part != "parameters"]
    cells = [
        f"{part.replace('_', ' ')}: {whose(trained, part)}, {size(name, part)}, {beginning(name, part)}"
        for part in parts
    ]
    differ = "differ" if whose(trained, "parameters") == "each worker's" else "agree"
    total = len([part for part in parts if size(name, part) == "d"])
    return f"| `{name}` | {differ} | {'; '.join(cells)} | {total} d{' and Q' if 'right_factors' in parts else ''} |"


@pytest.mark.parametrize("name", NAMES)
def test_the_page_says_what_the_state_is(name: str) -> None:
    assert line(name) in PAGE.splitlines(), f"docs/lost-state.md should have this line:\n{line(name)}"


def test_the_page_has_no_other_methods() -> None:
    assert sorted(re.findall(r"^\| `(\w+)` \| (?:differ|agree)", PAGE, flags=re.MULTILINE)) == sorted(NAMES)
