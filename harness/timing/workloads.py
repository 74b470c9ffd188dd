"""What a worker computes in a timed step: a model, its batch, the order of its gradients, and what a device takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from harness.plan.footprint import RESNET50_FORWARD_FLOPS, forward_flops, published_rate
from harness.records.timings import Workload
from harness.spec import EvaluationSpec, ModelSpec, Precision, RunConfig, ScheduleSpec, SpecError, TaskSpec
from harness.tasks.task import find_task
from harness.train.build import build_model

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 5e-4
FORWARD_SHARE = 1 / 3
"""The forward pass's part of the passes' time: an assumption, since a backward pass has twice its arithmetic."""
ASSUMPTION = "forward to backward as 1 to 2 (an assumption)"


@dataclass(frozen=True)
class Problem:
    """A model, the task whose images or sentences it takes, and how many of them one worker has in a step."""

    task: str
    model: ModelSpec
    batch_size: int
    precision: Precision = "fp32"
    """The precision that its experiment trains in on GPUs."""


FASHION_MNIST = Problem("fashion_mnist", ModelSpec(name="small_cnn", options={"widths": [16, 64]}), 16)
RESNET50 = Problem("imagenet", ModelSpec(name="resnet50"), 32, "fp16")
WIDE_RESNET = Problem("cifar100", ModelSpec(name="wide_resnet", options={"depth": 40, "width": 8}), 16)
TRANSFORMER = {"width": 64, "num_heads": 4, "num_layers": 1, "feedforward": 128}
PROBLEMS = {
    "fashion_mnist": FASHION_MNIST,
    "cmudict": Problem("cmudict", ModelSpec(name="transformer", options=TRANSFORMER), 32),
    "resnet50": RESNET50,
    "wide_resnet_40_8": WIDE_RESNET,
    "resnet50_v100": RESNET50,
    "wide_resnet_40_8_v100": WIDE_RESNET,
}
"""Problems by the workload's name."""
EMULATED = {"resnet50_v100": "mixed", "wide_resnet_40_8_v100": "fp32"}
"""Workloads with the times of a V100, by the precision of what is published of it; the others are measured."""


def problem_of(name: str) -> Problem:
    """The problem of a workload.

    Raises:
        SpecError: there is no such workload; the message names those there are.
    """
    if name not in PROBLEMS:
        raise SpecError(f"unknown workload {name!r}; the workloads are {', '.join(PROBLEMS)}")
    return PROBLEMS[name]


def short_run(
    problem: Problem, algorithm: str = "sgd", settings: dict[str, Any] | None = None, **more: Any
) -> RunConfig:
    """A run for its steps alone: what a plan would say of data and epochs does not matter; `more` are other fields."""
    usual = {"num_workers": 1, "learning_rate": LEARNING_RATE, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}
    return RunConfig(
        task=TaskSpec(name=problem.task),
        model=problem.model,
        batch_size=problem.batch_size,
        num_epochs=1,
        algorithm=algorithm,
        settings=settings or {},
        schedule=ScheduleSpec(kind="constant"),
        evaluation=EvaluationSpec(),
        seed=1,
        **usual | more,
    )


def published(name: str) -> Workload:
    """The workload with the times of a published device; it must be one of EMULATED."""
    rate = published_rate(EMULATED[name])
    source, seconds = rate.source, problem_of(name).batch_size / rate.images_per_second
    if problem_of(name) is not RESNET50:
        source = f"modelled: scaled by arithmetic from {source}"
        seconds = forward_flops(short_run(problem_of(name))) / (RESNET50_FORWARD_FLOPS * rate.images_per_second)
    return workload_of(name, f"{rate.device}, {rate.precision}", seconds, source)


def workload_of(name: str, device: str, seconds: float, source: str) -> Workload:
    """The workload whose two passes take so many seconds on the device."""
    problem = problem_of(name)
    return Workload(
        name=name,
        model=problem.model.name,
        batch_size=problem.batch_size,
        num_parameters=sum(map(math.prod, gradients_of(name).shapes)),
        device=device,
        forward_seconds=FORWARD_SHARE * seconds,
        backward_seconds=(1 - FORWARD_SHARE) * seconds,
        source=f"{source}; {ASSUMPTION}",
    )


@dataclass(frozen=True)
class Gradients:
    """All that an emulation needs of a model: its parameters, and when each gets its gradient in a backward pass.

    Attributes:
        shapes: of the parameters, in the order of `model.parameters()`.
        order: the parameters' numbers, in the order in which they get their gradients.
        done: by parameter, the share of the backward pass that is then over, by the model's arithmetic (floating-point
            operations of the forward pass); a module's own parameters are ready together.
    """

    shapes: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]
    done: tuple[float, ...]


@cache
def gradients_of(workload: str) -> Gradients:
    """The gradients of the workload's model, which is run once without memory.

    Raises:
        SpecError: there is no such workload.
    """
    problem = problem_of(workload)
    task = find_task(problem.task)
    model = build_model(problem.model, task, 0, torch.device("meta"))
    return gradients_of_model(model, (2, *task.input_shape))


def gradients_of_model(model: nn.Module, input_shape: tuple[int, ...]) -> Gradients:
    """The same of a model on the device "meta"; modules whose arithmetic is not counted have none (batch norm)."""
    inputs = torch.zeros(input_shape, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs)
    counts, root = counter.get_flop_counts(), type(model).__name__
    arrivals = _arrivals(model, inputs)
    numbers = {parameter: number for number, parameter in enumerate(model.parameters())}
    owned = {
        name: sorted((numbers[parameter] for parameter in module.parameters(recurse=False)), key=arrivals.index)
        for name, module in model.named_modules()
    }
    names = sorted((name for name in owned if owned[name]), key=lambda name: arrivals.index(owned[name][-1]))
    flops = [float(sum(counts.get(f"{root}.{name}" if name else root, {}).values())) for name in names]
    done = {
        number: min(1.0, reached / sum(flops))
        for name, reached in zip(names, accumulate(flops), strict=True)
        for number in owned[name]
    }
    shapes = tuple(tuple(parameter.shape) for parameter in model.parameters())
    return Gradients(shapes, tuple(done), tuple(done[number] for number in range(len(shapes))))


def _arrivals(model: nn.Module, inputs: Tensor) -> list[int]:
    """The parameters' numbers in the order in which a backward pass gives them gradients."""
    arrivals: list[int] = []
    for number, parameter in enumerate(model.parameters()):
        parameter.register_hook(lambda _, number=number: arrivals.append(number))  # type: ignore[no-untyped-call]
    model(inputs).sum().backward()
    return arrivals
