"""What checks of GPUs and benchmarks run: each method on ResNet-50's parameters, and on images
learnt by heart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from cser_bench.algorithms import Collectives, DistributedOptimizer, SoloCollectives
from cser_bench.algorithms.registry import methods
from cser_bench.harness.spec.run import ModelSpec, Precision, RunConfig
from cser_bench.harness.timing.session import there_and_back
from cser_bench.harness.timing.workloads import (
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    Problem,
    gradients_of,
    problem_of,
    short_run,
)
from cser_bench.harness.train.build import (
    build_optimizer,
    num_steps_of,
    table_at_ratio,
    trainable,
)
from cser_bench.harness.train.local_workers import seconds_to_idle
from cser_bench.harness.workers.attempt import prepare_thread
from cser_bench.harness.workers.process_group import device_groups, joined
from cser_bench.harness.workers.processes import Worker, start_workers
from tests.harness.support import BLOCK, settings_of

RATIO = 256
BLOCKS = {"kind": "block", "ratio": RATIO}
LOCAL_BLOCKS = {"compressor": {"kind": "block", "ratio": RATIO // 8}, "sync_interval": 8}
WITHOUT_RATIO: dict[str, dict[str, Any]] = {
    "sgd": {},
    "alone": {},
    "dpsgd": {"topology": "ring", "order": "adapt_then_combine"},
    "powersgd": {"rank": 1},
    "qsr": {"sync_interval": RATIO, "alpha": 0.01},
    "ef_sgd": {"compressor": BLOCKS},
    "ef21_sgdm": {"compressor": BLOCKS},
    "csea": {"error_compressor": BLOCKS},
    "qsparse_local_sgd": LOCAL_BLOCKS,
    "sparse_loco": LOCAL_BLOCKS,
}
"""Methods that do not choose settings by it, or not on these models, with what is measured instead: blocks where a
method takes them, as what an encoding takes is no part of an update's time."""
WITHOUT_MOMENTUM = ("cser", "cser_released")
"""The paper's algorithm 2 has none; with it they are M-CSER."""
SMALL_SHAPES = ((64, 32), (48,), (3, 3, 16))
T = TypeVar("T")


def _settings() -> dict[str, dict[str, Any]]:
    found = {"ddp": {}, **WITHOUT_RATIO}
    for name in methods():
        with suppress(ValueError):
            found.setdefault(name, table_at_ratio(methods()[name], RATIO))
    return found


SETTINGS = _settings()
"""As a spec has them."""
RESET_INTERVAL: int = SETTINGS["mcser"]["reset_interval"]


def config_of(algorithm: str) -> RunConfig:
    """A run of eight workers on the Fashion-MNIST network with this algorithm."""
    momentum = 0.0 if algorithm in WITHOUT_MOMENTUM else MOMENTUM
    return short_run(
        problem_of("fashion_mnist"),
        algorithm,
        SETTINGS[algorithm],
        num_workers=8,
        momentum=momentum,
    )


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
    """Small random numbers of these shapes, by default of ResNet-50's 161 tensors, without
    gradients."""
    generator = torch.Generator().manual_seed(1)
    tensors = (
        1e-2 * torch.randn(shape, generator=generator)
        for shape in shapes or gradients_of("resnet50").shapes
    )
    return nn.ParameterList(nn.Parameter(tensor.to(device)) for tensor in tensors)


def touch_gradients(parameters: nn.ParameterList) -> None:
    """Write every gradient, as a backward pass does, into the tensor that there is for it or into a
    new one."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter)
        parameter.grad.fill_(1e-3)


class Stepper(NamedTuple):
    """An optimiser to be timed: the parameters' gradients are made new before each step, as by a
    backward pass."""

    parameters: nn.ParameterList
    step: Callable[[], object]


def own_stepper(algorithm: str, parameters: nn.ParameterList) -> Stepper:
    """One of the algorithms, for a worker who is alone."""
    return Stepper(parameters, build(algorithm, parameters, SoloCollectives()).step)


def torch_stepper(momentum: float, parameters: nn.ParameterList) -> Stepper:
    """PyTorch's own fused optimiser."""
    optimizer = torch.optim.SGD(
        parameters.parameters(),
        LEARNING_RATE,
        momentum,
        0.0,
        WEIGHT_DECAY,
        nesterov=momentum > 0,
        fused=True,
    )
    return Stepper(parameters, optimizer.step)


def entry_steppers(config: RunConfig) -> dict[str, Stepper]:
    """The method of a run, for a worker who is alone, and PyTorch's fused AdamW on the same
    network."""
    device = torch.device("cpu")
    own = trainable(config, device)
    plain = nn.ParameterList(trainable(config, device).parameters())
    optimizer = build_optimizer(config, own, SoloCollectives(), num_steps_of(config)[1])
    adamw = torch.optim.AdamW(plain.parameters(), config.learning_rate, fused=True)
    return {
        "own": Stepper(nn.ParameterList(own.parameters()), optimizer.step),
        "AdamW": Stepper(plain, adamw.step),
    }


def interval_seconds(
    steppers: dict[str, Stepper], num_intervals: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of whole reset intervals of each one's steps, which take turns; gradients are not
    timed."""

    def seconds(stepper: Stepper) -> float:
        touch_gradients(stepper.parameters)
        return seconds_to_idle(stepper.step, device)

    calls = {name: lambda each=each: seconds(each) for name, each in steppers.items()}
    starts = range(0, num_intervals * RESET_INTERVAL, RESET_INTERVAL)
    found = interleave(calls, num_intervals * RESET_INTERVAL)
    return {
        name: [sum(own[start : start + RESET_INTERVAL]) for start in starts]
        for name, own in found.items()
    }


def interleave(
    calls: Mapping[str, Callable[[], float]], repetitions: int
) -> dict[str, list[float]]:
    """What each call says in each repetition, there and back again, after a turn that is not
    counted."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number, name in there_and_back(list(calls), 1 + repetitions):
        said = calls[name]()
        if number:
            found[name].append(said)
    return found


@dataclass(frozen=True)
class Scale:
    """How large the checks are.

    Attributes:
        model: trained by every method, on random images of CIFAR's shape.
        batch_size: images of a worker.
        num_steps: of a training.
        shapes: of the parameters whose updates are timed; None for ResNet-50's.
        num_intervals: how many reset intervals are timed.
    """

    model: ModelSpec
    batch_size: int
    num_steps: int
    shapes: tuple[tuple[int, ...], ...] | None
    num_intervals: int


FULL = Scale(ModelSpec(name="wide_resnet", options={"depth": 40, "width": 8}), 16, 40, None, 5)
TINY = Scale(
    ModelSpec(name="wide_resnet", options={"depth": 10, "width": 1}), 4, 12, SMALL_SHAPES, 2
)


def learning(algorithm: str, scale: Scale, precision: Precision = "fp32", **own: Any) -> RunConfig:
    """A run of two workers with this algorithm, with so little compression and such short intervals
    that a few steps show whether it learns; `own` are settings besides those that it requires."""
    # A dampened momentum steps 1 - 0.9 times as far.
    rate = 0.05 if methods()[algorithm].nesterov else 0.5
    problem = Problem("cifar100", scale.model, scale.batch_size)
    table = settings_of(algorithm, BLOCK) | own
    return short_run(
        problem, algorithm, table, num_workers=2, learning_rate=rate, precision=precision
    )


def on_processes(
    work: Callable[..., T], device: torch.device, *arguments: object, most: int = 2
) -> list[T]:
    """What `work(device, *arguments)` gives on each of a group's processes: as many as there are
    GPUs, at most `most`.

    On a CPU there are two, over gloo.
    """
    world_size = min(most, torch.cuda.device_count() if device.type == "cuda" else 2)
    devices = device_groups(device.type, world_size, torch.cuda.device_count())[0]
    with start_workers(_join_and, [(work, own, *arguments) for own in devices]) as workers:
        return workers.hear_all()


def _join_and(worker: Worker, work: Callable[..., T], device: str, *arguments: object) -> T:
    prepare_thread(device)
    with joined(device, 120.0, worker.init_method, worker.rank, worker.world_size):
        return work(torch.device(device), *arguments)
