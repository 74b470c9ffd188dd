"""Losses that each algorithm had when its numbers were last looked at: any change of behaviour must
be noticed.

After a change of a method that is meant, and for a new one, run
    UPDATE_GOLDEN=NAME python -m pytest tests/algorithms/test_golden_losses.py
and read the diff: no other method's losses are written.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from cser_bench.algorithms import Collectives, Compressor, algorithms
from tests.algorithms.problems import (
    COMPRESSORS,
    NAMES,
    batch_loss,
    make_model,
    make_optimizer,
    named_compressors,
    own_settings,
    switches,
    workers,
)

FILE = Path(__file__).with_name("golden_losses.json")
UPDATED = os.environ.get("UPDATE_GOLDEN")
NUM_STEPS = 20
INTERVAL = 4
WORLD_SIZE = 3
KEYS = ["blocks", "per_tensor", "top_k", "qsgd"]
ADAMW: dict[str, Any] = {"local_step": "adamw", "momentum": None, "lr": 0.02}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "cser_pl, adamw": ("cser_pl", ADAMW),
    "diloco, adamw": ("diloco", ADAMW),
    "ef_sgd on gradients": ("ef_sgd", {"error_feedback_on": "gradients"}),
    "ef_sgd on gradients, adamw": (
        "ef_sgd",
        {"error_feedback_on": "gradients", **ADAMW},
    ),
    "ef_sgd, adamw": ("ef_sgd", ADAMW),
    "mcser, adamw": ("mcser", ADAMW),
    "sgd, adamw": ("sgd", ADAMW),
}
"""Combinations that are no method's defaults: the method, and what else is given to it."""
Losses = dict[str, list[float]]
"""By compressor, the losses before each step."""
GOLDEN: dict[str, Losses] = json.loads(FILE.read_text())


def golden_settings(name: str, compressor: Compressor) -> dict[str, object]:
    """The method's defaults for all that need not be given."""
    own = own_settings(name, [compressor], INTERVAL)
    all_switches = switches(name)
    return {key: value for key, value in own.items() if key not in all_switches}


def losses(name: str, key: str, more: dict[str, Any]) -> list[float]:
    """The workers' mean loss before each step."""
    own = golden_settings(name, COMPRESSORS[key])

    def work(collectives: Collectives) -> list[float]:
        model = make_model(torch.float64)
        optimizer = make_optimizer(name, model, own, collectives, seed=1, **more)
        sequence = []
        for step in range(1, NUM_STEPS + 1):
            optimizer.zero_grad()
            loss = batch_loss(model, step, collectives.rank)
            loss.backward()
            sequence.append(loss.item())
            optimizer.step()
        return sequence

    return [
        sum(column) / WORLD_SIZE
        for column in zip(*workers(work, WORLD_SIZE), strict=True)
    ]


def all_losses(named: str) -> Losses:
    name, more = OTHERS.get(named, (named, {}))
    return {
        key: losses(name, key, more)
        for key in named_compressors(name, {key: COMPRESSORS[key] for key in KEYS})
    }


def write(golden: dict[str, Losses]) -> None:
    """Write a line for each list, so that a diff shows which of them changed."""
    methods = []
    for name in sorted(golden):
        lists = [
            f"  {json.dumps(key)}: {json.dumps(golden[name][key])}"
            for key in golden[name]
        ]
        methods.append(f" {json.dumps(name)}: {{\n" + ",\n".join(lists) + "\n }")
    FILE.write_text("{\n" + ",\n".join(methods) + "\n}\n")


@pytest.mark.parametrize("name", [*NAMES, *OTHERS])
def test_losses_are_what_they_were(name: str) -> None:
    now = all_losses(name)
    if name == UPDATED:
        GOLDEN[name] = now
        write(GOLDEN)
    if name not in GOLDEN:
        pytest.fail(
            f"{name} is new: record its losses with UPDATE_GOLDEN={name} (see above)"
        )
    assert now.keys() == GOLDEN[name].keys()
    for key, sequence in now.items():
        expected = GOLDEN[name][key]
        assert sequence == pytest.approx(expected, rel=1e-9), key


def test_no_losses_of_algorithms_that_are_gone() -> None:
    assert set(GOLDEN) <= {*algorithms(), *OTHERS}
