"""What `reanchor` must do, whatever the workers are: an optimiser that begins anew does as one that
is new."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cser_bench.algorithms import DistributedOptimizer
from tests.algorithms.problems import assert_expected_traffic

NUM_BEFORE = 4
NUM_STEPS = 14
KEPT = ("momentum", "exp_avg", "exp_avg_sq", "outer_momentum")
SENT_LATE: dict[str, dict[str, Any]] = {
    "one fragment": {"sync_interval": 4, "delay": 2, "merge": 0.5},
    "whole interval": {"sync_interval": 4, "delay": 3, "merge": 0.0},
    "fragments": {"sync_interval": 4, "num_fragments": 2, "delay": 3, "merge": 0.25},
    "in 4 bits": {"sync_interval": 4, "num_fragments": 2, "delay": 3, "bits": 4},
}
"""Settings of Streaming DiLoCo with which a message is under way after the steps before."""


def begins_anew(
    make: Callable[[], tuple[DistributedOptimizer, nn.Module]],
    one_step: Callable[[DistributedOptimizer, nn.Module, int], None],
) -> None:
    """Raises AssertionError where an optimiser that reanchors goes another way than a new one with
    its momenta.

    Args:
        make: an optimiser whose schedule begins anew after each 4 steps, with its model.
        one_step: trains on this worker's batch of a step.
    """
    optimizer, model = make()
    for step in range(1, NUM_BEFORE + 1):
        one_step(optimizer, model, step)
    new, new_model = make()
    with torch.no_grad():
        for before, after in zip(optimizer.replicas, new.replicas, strict=True):
            numel = before.flat.layout.numel
            numbers = torch.linspace(-1, 1, numel).sin()
            before.flat.parameters.copy_(numbers)
            after.flat.parameters.copy_(numbers)
            # Worker 0's must count.
            others = slice(int(optimizer.collectives.rank == 0), None)
            after.flat.parameters[others] += 1
            for key in set(KEPT) & before.buffers.keys():
                after.buffers[key].copy_(before.buffers[key])
            after.local.restore(before.local.counts())
    optimizer.reanchor()
    new.reanchor()
    for step in range(NUM_BEFORE + 1, NUM_STEPS + 1):
        one_step(optimizer, model, step)
        one_step(new, new_model, step)
        for before, after in zip(optimizer.replicas, new.replicas, strict=True):
            expected = after.flat.parameters
            assert torch.equal(before.flat.parameters, expected), f"after step {step}"
    held = optimizer.replicas[0].buffers
    new_held = new.replicas[0].buffers
    for key in ("anchor", "error", "outer_momentum"):
        if key in held:
            assert torch.equal(held[key], new_held[key]), key
    assert_expected_traffic(optimizer, NUM_STEPS)
