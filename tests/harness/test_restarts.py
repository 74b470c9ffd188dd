"""Restarts without a part of the state: what is put in its place, and that nothing else changes; a
synchronous tail."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cser_bench.algorithms import DistributedOptimizer, StackedCollectives
from cser_bench.algorithms.registry import algorithms
from cser_bench.harness.plan.footprint import footprint_of
from cser_bench.harness.spec.run import RunConfig
from cser_bench.harness.train.build import build_optimizer
from cser_bench.harness.train.restarts import lose_state
from cser_bench.harness.train.training import Training
from tests.harness.support import (
    BLOCK,
    comparable,
    done,
    job_for,
    settings_of,
    small_config,
)

NUM_WORKERS = 3
NUM_STEPS = 16
NUM_TAKEN = 8
"""With intervals of 3 the middle of a run is none of the steps at which workers synchronise."""
TOP_K = {"kind": "top_k", "ratio": 4}


def config_of(method: str, **restart: Any) -> RunConfig:
    table = settings_of(method, BLOCK if "released" in method else TOP_K)
    return small_config(method, table, num_workers=NUM_WORKERS, restart=restart or None)


def stacked(
    config: RunConfig, values: list[Tensor] | None = None
) -> DistributedOptimizer:
    """An optimiser of a model of a matrix and a vector, whose workers begin with equal values."""
    draw = torch.Generator().manual_seed(3)
    shapes = [(6, 5), (7,)]
    values = values or [torch.randn(shape, generator=draw) for shape in shapes]
    model = nn.ParameterList(
        nn.Parameter(each.expand(NUM_WORKERS, *each.shape).clone()) for each in values
    )
    return build_optimizer(config, model, StackedCollectives(NUM_WORKERS), NUM_STEPS)


def train(optimizer: DistributedOptimizer, first: int, last: int) -> None:
    for step in range(first, last):
        optimizer.zero_grad()
        draw = torch.Generator().manual_seed(step)
        optimizer.flat.gradients.copy_(
            torch.randn(optimizer.flat.gradients.shape, generator=draw)
        )
        optimizer.step()


def held(optimizer: DistributedOptimizer) -> dict[str, Tensor]:
    """A copy of all that a checkpoint holds, and of the parameters."""
    saved = {
        "parameters": optimizer.flat.parameters,
        **optimizer.state_dict()["param_groups"][0]["flat"],
    }
    return {
        name: value.clone()
        for name, value in saved.items()
        if isinstance(value, Tensor)
    }


@cache
def parts() -> list[tuple[str, str]]:
    """Every part of every method's state."""
    return [
        (method, name)
        for method in algorithms()
        for name in held(stacked(config_of(method)))
    ]


def lost_in_the_middle(
    config: RunConfig,
) -> tuple[dict[str, Tensor], dict[str, Tensor], DistributedOptimizer]:
    """What is held before and after the restart, and the optimiser."""
    optimizer = stacked(config)
    train(optimizer, 0, NUM_TAKEN)
    before = held(optimizer)
    assert config.restart is not None
    assert [
        step for step in range(NUM_STEPS) if config.restart.is_due(step, NUM_STEPS)
    ] == [NUM_TAKEN]
    lose_state(config, config.restart, optimizer, NUM_STEPS)
    assert optimizer.num_steps == NUM_TAKEN
    return before, held(optimizer), optimizer


@pytest.mark.parametrize(("method", "lost"), parts())
def test_what_all_workers_or_one_lose_begins_anew_and_nothing_else_changes(
    method: str, lost: str
) -> None:
    config = config_of(method, without=[lost])
    before, after, optimizer = lost_in_the_middle(config)
    firsts = [
        each.detach()[0] for group in optimizer.param_groups for each in group["params"]
    ]
    # On worker 0's parameters, which all workers have if theirs are lost.
    made_anew = held(stacked(config, firsts))
    assert torch.equal(after[lost], made_anew[lost])
    if lost != "parameters":
        assert not torch.equal(before[lost], made_anew[lost])
    assert all(
        torch.equal(after[name], value)
        for name, value in before.items()
        if name != lost
    )
    train(optimizer, NUM_TAKEN, NUM_STEPS)
    assert optimizer.flat.parameters.isfinite().all()
    if lost != "right_factors":  # which workers have in common
        before, alone, _ = lost_in_the_middle(
            config_of(method, without=[lost], worker=2)
        )
        found = alone[lost]
        assert torch.equal(found[:2], before[lost][:2])
        assert torch.equal(found[2], after[lost][2])


# Whole runs and specs.


TAIL = {"everything_sent": True, "at": 0.5}


def test_a_synchronous_tail_of_sgd_is_sgd_that_lost_its_momentum(
    tmp_path: Path,
) -> None:
    configs = (
        small_config(restart=restart) for restart in (TAIL, {"without": ["momentum"]})
    )
    runs = [done(config, tmp_path) for config in configs]
    first, second = (comparable(run.folder)[1] for run in runs)
    different = {key for key in first if first[key] != second[key]}
    assert different == {"run_id"}


def test_a_synchronous_tail_begins_from_the_average_and_sends_each_gradient(
    tmp_path: Path,
) -> None:
    """20 of 40 steps by local SGD, which averaged after 7 and 14: the average at 20, then 20
    gradients."""
    config = small_config("local_sgd", {"sync_interval": 7}, restart=TAIL)
    result = comparable(done(config, tmp_path).folder)[1]
    size = 32 * result["num_parameters"]
    sent = {
        key: (entry["bits"], entry["collectives"])
        for key, entry in result["traffic"].items()
    }
    assert sent["model"] == (3 * size, 3)
    assert sent["gradient"] == (20 * size, 20)
    assert footprint_of(config).bits == 23 * size
    assert not footprint_of(config).final_exchange
    job = job_for(config, tmp_path / "by steps")
    training = Training(job, StackedCollectives(2))
    for _ in range(20):
        training.take_step()
    own = training.optimizer.flat.parameters.clone()
    training.take_step()
    both = training.optimizer.flat.parameters
    one, other = own
    spread = (one - other).norm()
    moved = (both[0] - own.mean(0)).norm()
    assert torch.equal(both[0], both[1])
    assert 0 < moved < 0.3 * spread
