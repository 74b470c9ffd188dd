"""The most memory of a step, as planned on the meta device: against steps that are done, and
against what is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cser_bench.harness.plan.memory import Allocations, peak_models
from cser_bench.harness.plan.one_of_many import OneOfMany
from cser_bench.harness.spec.run import MethodSettings, RunConfig
from cser_bench.harness.train.build import build_optimizer
from tests.harness.support import small_config

SIZE = 300
NUM_STEPS = 24
TOP_K = {"kind": "top_k", "ratio": 8}
SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "local_sgd": {"sync_interval": 4},
    "diloco": {"sync_interval": 4},
    "ef_sgd": {"compressor": TOP_K},
    "qsparse_local_sgd": {"compressor": TOP_K, "sync_interval": 4},
    "cser": {
        "gradient_compressor": {"kind": "block", "ratio": 8},
        "error_compressor": TOP_K,
        "reset_interval": 4,
    },
    "sparse_loco": {
        "sync_interval": 4,
        "compressor": {"kind": "chunk_top_k", "kept": 64},
    },
    "streaming_diloco": {"sync_interval": 4, "delay": 1, "bits": 4},
}


def config_of(name: str, num_workers: int) -> RunConfig:
    changes = {
        "algorithm": name,
        "settings": MethodSettings.model_validate(SETTINGS[name]),
        "num_workers": num_workers,
        "momentum": 0.9,
    }
    return small_config().model_copy(update=changes)


def network(device: str) -> nn.Module:
    return nn.Linear(SIZE, SIZE, bias=False, device=device)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_peak_that_is_planned_is_that_of_steps_that_are_done(name: str) -> None:
    config = config_of(name, 1)
    model = network("cpu")
    optimizer = build_optimizer(
        config, model, OneOfMany(0, 1, shares_memory=False), NUM_STEPS
    )
    most = 0
    for _ in range(12):
        outputs = model(torch.ones(1, SIZE))
        outputs.sum().backward()
        with Allocations() as allocations:
            optimizer.step()
        most = max(most, allocations.most)
    most_in_parameters = most / (4 * SIZE**2)
    done = 2 + optimizer.memory_in_parameters() + most_in_parameters
    assert peak_models(config, network("meta"), NUM_STEPS) == pytest.approx(
        done, abs=0.05
    )


def test_parameters_gradients_momentum_and_what_is_gathered_are_held() -> None:
    peaks = {
        (name, n): peak_models(config_of(name, n), network("meta"), NUM_STEPS)
        for name in SETTINGS
        for n in (2, 6)
    }
    assert peaks["sgd", 2] == peaks["local_sgd", 6] == 3
    assert peaks["diloco", 2] >= 5
    # Eight times fewer numbers from each of four workers more, each with its 64 bits.
    added = peaks["ef_sgd", 6] - peaks["ef_sgd", 2]
    assert added == pytest.approx(4 * 2 / 8, rel=0.5)


def test_what_was_freed_counts_no_more_and_views_and_writing_in_place_not_at_all() -> (
    None
):
    held = torch.zeros(1000)
    with Allocations() as allocations:
        held.view(10, 100).add_(1)
        for _ in range(3):
            kept = held + 1
            del kept
        kept = held + 1
        assert allocations.now == 4000
        assert allocations.most == 4000
        both = torch.cat([held, kept])
    assert allocations.now == 12_000
    assert allocations.most == 12_000
    assert len(both) == 2000
