"""Check: workers stacked on a GPU end where they end stacked on the CPU."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from harness.gpu_check.problem import SMALL, Scale, config_of, initial_model
from harness.gpu_check.record import Checks, Outcome
from harness.train.trainee import StackedTrainee

NUM_WORKERS, NUM_STEPS = 4, 5
TOLERANCE = 1e-8
"""Of parameters in float64, relative to the way that training took them: only the order of additions may differ."""


def checks(device: torch.device, scale: Scale) -> Checks:
    for name in ("mcser", "ef_sgd"):
        yield f"stacked workers: {name}", partial(same_parameters, device, name)


def same_parameters(device: torch.device, algorithm: str) -> Outcome:
    """The largest relative distance of a worker between the two devices."""
    pairs = zip(_trained(device, algorithm), _trained(torch.device("cpu"), algorithm), strict=True)
    measured = {"on the CPU": max(_distance(one, other) for one, other in pairs)}
    return Outcome(measured["on the CPU"] <= TOLERANCE, f"relative distances of at most {TOLERANCE:g}", measured)


def _trained(device: torch.device, algorithm: str) -> list[tuple[Tensor, Tensor]]:
    """Each worker's parameters before and after, on the CPU."""
    config = config_of(algorithm, Scale(model=SMALL, batch_size=8)).model_copy(update={"num_workers": NUM_WORKERS})
    trainee = StackedTrainee(config, initial_model(config, device).double())
    parameters = trainee.optimizer.flat.parameters
    before = parameters.cpu().clone()
    for _ in range(NUM_STEPS):
        trainee.step()
    return list(zip(before, parameters.cpu(), strict=True))


def _distance(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    return float((one[1] - other[1]).norm() / (other[1] - other[0]).norm())
