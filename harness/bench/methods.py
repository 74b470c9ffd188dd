"""What benchmarks compare: every method, at an overall ratio of 256 if it reaches that; ResNet-50's parameters."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from algorithms import Collectives, DistributedOptimizer
from algorithms.registry import methods
from harness.spec import EvaluationSpec, ModelSpec, RunConfig, ScheduleSpec, TaskSpec
from harness.train.build import build_optimizer, table_at_ratio

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 5e-4
SMALL_CNN = ModelSpec(name="small_cnn", options={"widths": [16, 64]})
RATIO = 256
WITHOUT_RATIO: dict[str, dict[str, Any]] = {
    "sgd": {},
    "alone": {},
    "dpsgd": {"topology": "ring", "order": "adapt_then_combine"},
    "powersgd": {"rank": 1},
    "ddp": {},
    "ddp_fp16": {},
    "ddp_powersgd": {"rank": 1},
}
"""Methods that do not reach it, or not on these models, with what is measured instead."""


def _settings() -> dict[str, dict[str, Any]]:
    found = dict(WITHOUT_RATIO)
    for name in methods():
        with suppress(ValueError):
            found.setdefault(name, table_at_ratio(name, RATIO))
    return found


SETTINGS = _settings()
"""As a spec has them."""
RESET_INTERVAL: int = SETTINGS["mcser"]["reset_interval"]

WITHOUT_MOMENTUM = ("cser", "cser_released")
"""The paper's algorithm 2 has none; with it they are M-CSER."""


def config_of(algorithm: str) -> RunConfig:
    """A run of eight workers on the Fashion-MNIST network with this algorithm."""
    momentum = 0.0 if algorithm in WITHOUT_MOMENTUM else MOMENTUM
    return short_run("fashion_mnist", SMALL_CNN, 16, algorithm, SETTINGS[algorithm], num_workers=8, momentum=momentum)


def short_run(
    task: str, model: ModelSpec, batch_size: int, algorithm: str, settings: dict[str, Any], **more: Any
) -> RunConfig:
    """A run for its steps alone: what a plan would say of data and epochs does not matter; `more` are other fields."""
    usual = {"num_workers": 1, "learning_rate": LEARNING_RATE, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}
    return RunConfig(
        task=TaskSpec(name=task),
        model=model,
        batch_size=batch_size,
        num_epochs=1,
        algorithm=algorithm,
        settings=settings,
        schedule=ScheduleSpec(kind="constant"),
        evaluation=EvaluationSpec(),
        seed=1,
        **usual | more,
    )


def build(algorithm: str, model: nn.Module, collectives: Collectives) -> DistributedOptimizer:
    """The algorithm on any model."""
    return build_optimizer(config_of(algorithm), model, collectives, num_steps=0)


def skip_to_reset(optimizer: DistributedOptimizer) -> None:
    """Let the next step but one be a reset's or a synchronisation's."""
    settings = SETTINGS[optimizer.name]
    optimizer.num_steps = settings.get("reset_interval", settings.get("sync_interval", 2)) - 2


def resnet50_parameters(device: str | torch.device = "cpu") -> nn.ParameterList:
    """161 tensors of ResNet-50's shapes, 25.6 million small random numbers, without gradients."""
    from torchvision.models import resnet50  # Takes seconds to import, and timing needs it not.

    with torch.device("meta"):
        shapes = [parameter.shape for parameter in resnet50().parameters()]
    return random_parameters(shapes, device)


def random_parameters(shapes: Iterable[tuple[int, ...]], device: str | torch.device = "cpu") -> nn.ParameterList:
    """Small random numbers of these shapes, without gradients."""
    generator = torch.Generator().manual_seed(1)
    tensors = (1e-2 * torch.randn(shape, generator=generator) for shape in shapes)
    return nn.ParameterList(nn.Parameter(tensor.to(device)) for tensor in tensors)


def fill_gradients(parameters: nn.ParameterList) -> None:
    """Give every parameter a gradient, in the tensor that it has for it or in a new one."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter)
        parameter.grad.fill_(1e-3)


def numel_of(parameters: nn.ParameterList) -> int:
    return sum(parameter.numel() for parameter in parameters)
