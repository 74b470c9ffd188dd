"""What each method's state is: which parts, whose they are, how large, and how they begin; the page's table says it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

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
    """The table's words on a method, where a part is each worker's own, of size d and 0 at first unless it says so."""
    _, trained, _ = begun_and_trained(name)
    parts = [part for part in trained[0] if part != "parameters"]
    cells, usual = [], ("each worker's", "d", "0")
    for part in parts:
        facts = [whose(trained, part), size(name, part), beginning(name, part)]
        said = ", ".join(fact for fact in facts if fact not in usual)
        cells.append(part.replace("_", " ") + (f" ({said})" if said else ""))
    differ = "differ" if whose(trained, "parameters") == "each worker's" else "agree"
    total = len([part for part in parts if size(name, part) == "d"])
    return f"{differ} | {', '.join(cells)} | {total} d{' and Q' if 'right_factors' in parts else ''} |"


def test_the_page_says_what_the_state_of_each_method_is() -> None:
    methods: dict[str, list[str]] = {}
    for name in NAMES:
        methods.setdefault(line(name), []).append(f"`{name}`")
    lines = [f"| {', '.join(names)} | {rest}" for rest, names in methods.items()]
    assert re.findall(r"^\| `.*", PAGE, flags=re.MULTILINE) == lines, "\n".join(lines)
