"""What the checks train on: random images of CIFAR's shape, a batch for each worker, to be learnt by heart."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from algorithms import Collectives, Compressor
from algorithms.registry import methods, settings
from harness.bench.methods import random_parameters, resnet50_parameters, short_run
from harness.spec import ModelSpec, Precision, RunConfig
from harness.tasks.task import find_task
from harness.train.build import build_model
from harness.train.trainee import Trainee

TASK = "cifar100"
WIDE = ModelSpec(name="wide_resnet", options={"depth": 40, "width": 8})
SMALL = ModelSpec(name="wide_resnet", options={"depth": 10, "width": 1})
RATIO, INTERVAL = 4, 4
"""Little compression and short intervals, so that a few steps show whether a method learns."""
ACCUMULATION_STEPS = 2
"""Fewer still: a method that accumulates gradients moves only every so many steps, so it trains that much longer."""
WAIT_SECONDS = 120.0
"""For a worker that does not come."""


@dataclass(frozen=True)
class Scale:
    """How large the checks are. The default is for a GPU; tests have a smaller one.

    Attributes:
        model: trained by every method.
        batch_size: images of a worker.
        num_steps: of a training.
        shapes: of the parameters whose updates are timed; None for ResNet-50's.
        num_intervals: how many reset intervals are timed.
    """

    model: ModelSpec = WIDE
    batch_size: int = 16
    num_steps: int = 40
    shapes: tuple[tuple[int, ...], ...] | None = None
    num_intervals: int = 5

    def parameters(self, device: torch.device) -> nn.ParameterList:
        """Small numbers of these shapes on the device."""
        if self.shapes is None:
            return resnet50_parameters(device)
        return random_parameters(self.shapes, device)


def config_of(algorithm: str, scale: Scale, precision: Precision = "fp32", **own: Any) -> RunConfig:
    """A run of two workers with this algorithm; `own` are settings besides those that it requires."""
    # A dampened momentum steps 1 - 0.9 times as far.
    rate = 0.05 if methods()[algorithm].nesterov else 0.5
    more = {"num_workers": 2, "learning_rate": rate, "precision": precision}
    return short_run(TASK, scale.model, scale.batch_size, algorithm, _required(algorithm) | own, **more)


def _required(algorithm: str) -> dict[str, Any]:
    method = methods()[algorithm]
    # For what is neither a compressor nor an interval, what the method itself says that it is to be tried with.
    table = {**(method.no_compression or {}), **method.tried_with}
    table = {key: table.get(key) for key, (_, required) in settings(method).items() if required}
    for key, (kind, _) in settings(method).items():
        if key in table and isinstance(kind, type) and issubclass(kind, Compressor):
            table[key] = {"kind": "block", "ratio": RATIO}
        elif key in table and kind is int:
            table[key] = ACCUMULATION_STEPS if key == "accumulation_steps" else INTERVAL
    return table


def initial_model(config: RunConfig, device: torch.device) -> nn.Module:
    """What workers start from: to be built once, since threads that draw initial values disturb each other."""
    return build_model(config.model, find_task(config.task.name), config.seed, device)


def trainee_of(config: RunConfig, model: nn.Module, collectives: Collectives) -> Trainee:
    """One worker, which trains a copy of the model."""
    return Trainee(config, copy.deepcopy(model), collectives)
