"""What benchmarks and checks of GPUs measure: every method at an overall ratio of 256, and ResNet-50's parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import nn

from algorithms import Collectives, DistributedOptimizer, SoloCollectives
from algorithms.registry import methods
from harness.spec import RunConfig
from harness.timing.workloads import FASHION_MNIST, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, layers_of, short_run
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
    tensors = (1e-2 * torch.randn(shape, generator=generator) for shape in shapes or layers_of("resnet50").shapes)
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


def interleaved_steps(
    steppers: dict[str, Stepper], repetitions: int, seconds_of: Callable[[Callable[[], object]], float]
) -> dict[str, list[float]]:
    """Seconds of each one's steps, there and back again, after a step that is not counted; gradients are not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    for number, name in there_and_back(list(steppers), 1 + repetitions):
        steppers[name].touch()
        taken = seconds_of(steppers[name].step)
        if number:
            seconds[name].append(taken)
    return seconds


def wall_seconds(work: Callable[[], object]) -> float:
    """Do the work; how long it took by the clock."""
    return seconds_to_idle(work, torch.device("cpu"))


def interleave(
    calls: Mapping[str, Callable[[], object]],
    repetitions: int,
    seconds_of: Callable[[Callable[[], object]], float] = wall_seconds,
) -> dict[str, list[float]]:
    """Seconds of each call in each repetition, there and back again, after a turn that is not counted."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _, name in there_and_back(list(calls), repetitions):
        seconds[name].append(seconds_of(calls[name]))
    return seconds


def sums(seconds: Sequence[float], length: int) -> list[float]:
    """Sums over consecutive runs of `length` timings; a shorter rest is left out."""
    return [sum(seconds[start : start + length]) for start in range(0, len(seconds) - length + 1, length)]
