"""What benchmarks and checks of GPUs measure: every method at an overall ratio of 256, and ResNet-50's parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import nn

from algorithms import Collectives, DistributedOptimizer, SoloCollectives
from algorithms.registry import methods
from harness.spec import RunConfig
from harness.timing.workloads import FASHION_MNIST, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, gradients_of, short_run
from harness.train.build import build_optimizer, table_at_ratio
from harness.train.clock import seconds_to_idle, there_and_back

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
WITHOUT_MOMENTUM = ("cser", "cser_released")
"""The paper's algorithm 2 has none; with it they are M-CSER."""


def _settings() -> dict[str, dict[str, Any]]:
    found = dict(WITHOUT_RATIO)
    for name in methods():
        with suppress(ValueError):
            found.setdefault(name, table_at_ratio(name, RATIO))
    return found


SETTINGS = _settings()
"""As a spec has them."""
RESET_INTERVAL: int = SETTINGS["mcser"]["reset_interval"]


def config_of(algorithm: str) -> RunConfig:
    """A run of eight workers on the Fashion-MNIST network with this algorithm."""
    momentum = 0.0 if algorithm in WITHOUT_MOMENTUM else MOMENTUM
    return short_run(FASHION_MNIST, algorithm, SETTINGS[algorithm], num_workers=8, momentum=momentum)


def build(algorithm: str, model: nn.Module, collectives: Collectives) -> DistributedOptimizer:
    """The algorithm on any model."""
    return build_optimizer(config_of(algorithm), model, collectives, num_steps=0)


def skip_to_reset(optimizer: DistributedOptimizer) -> None:
    """Let the next step but one be a reset's or a synchronisation's."""
    settings = SETTINGS[optimizer.name]
    optimizer.num_steps = settings.get("reset_interval", settings.get("sync_interval", 2)) - 2


def random_parameters(
    shapes: Iterable[tuple[int, ...]] | None = None, device: str | torch.device = "cpu"
) -> nn.ParameterList:
    """Small random numbers of these shapes, by default of ResNet-50's 161 tensors, without gradients."""
    generator = torch.Generator().manual_seed(1)
    tensors = (1e-2 * torch.randn(shape, generator=generator) for shape in shapes or gradients_of("resnet50").shapes)
    return nn.ParameterList(nn.Parameter(tensor.to(device)) for tensor in tensors)


def touch_gradients(parameters: nn.ParameterList) -> None:
    """Write every gradient, as a backward pass does, into the tensor that there is for it or into a new one."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter)
        parameter.grad.fill_(1e-3)


class Stepper(NamedTuple):
    """An optimiser to be timed: `touch` makes the gradients new, as the backward pass before each step does."""

    touch: Callable[[], object]
    step: Callable[[], object]


def own_stepper(algorithm: str, parameters: nn.ParameterList) -> Stepper:
    """One of the algorithms, for a worker who is alone."""
    optimizer = build(algorithm, parameters, SoloCollectives())
    return Stepper(lambda: touch_gradients(parameters), optimizer.step)


def torch_stepper(momentum: float, parameters: nn.ParameterList) -> Stepper:
    """PyTorch's own fused optimiser."""
    optimizer = torch.optim.SGD(
        parameters.parameters(), LEARNING_RATE, momentum, 0.0, WEIGHT_DECAY, nesterov=momentum > 0, fused=True
    )
    return Stepper(lambda: touch_gradients(parameters), optimizer.step)


def interval_seconds(steppers: dict[str, Stepper], num_intervals: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of whole reset intervals of each one's steps, there and back again, after a step that is not counted;
    gradients are not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    for number, name in there_and_back(list(steppers), 1 + num_intervals * RESET_INTERVAL):
        steppers[name].touch()
        taken = seconds_to_idle(steppers[name].step, device)
        if number:
            seconds[name].append(taken)
    starts = range(0, num_intervals * RESET_INTERVAL, RESET_INTERVAL)
    return {name: [sum(own[start : start + RESET_INTERVAL]) for start in starts] for name, own in seconds.items()}


def interleave(calls: Mapping[str, Callable[[], float]], repetitions: int) -> dict[str, list[float]]:
    """What each call says in each repetition, there and back again, after a turn that is not counted."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number, name in there_and_back(list(calls), 1 + repetitions):
        said = calls[name]()
        if number:
            found[name].append(said)
    return found
