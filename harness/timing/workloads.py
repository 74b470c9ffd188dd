"""Workloads: a model and its batch, what a device takes for them, and a trainee.

A trainee takes both passes, or waits as long.
"""

from __future__ import annotations

import math
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cser_bench.algorithms.core.traffic import mark
from cser_bench.harness.measures.steps import FORWARD_SHARE
from cser_bench.harness.plan.forecast import (
    RESNET50_FORWARD_FLOPS,
    forward_flops,
    published_rate,
)
from cser_bench.harness.records.timings import Workload
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.run import (
    EvaluationSpec,
    MethodSettings,
    ModelSpec,
    Precision,
    RunConfig,
    ScheduleSpec,
    TaskSpec,
)
from cser_bench.harness.tasks.task import find_task
from cser_bench.harness.train.build import build_model, trainable
from cser_bench.harness.train.passes import (
    MixedPrecision,
    random_batch,
    seconds_to_idle,
)

LEARNING_RATE = 1e-3
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
ASSUMPTION = "forward to backward as 1 to 2 (an assumption)"
"""What is said of times of which `FORWARD_SHARE` divides the sum."""
MIN_STEPS = 5
MAX_STEPS = 200
MAX_SECONDS = 3.0
"""Bounds of a calibration."""


DATA: dict[str, Any] = tomllib.loads(
    (Path(__file__).parent / "sessions.toml").read_text()
)
"""sessions.toml: what is timed, over which links, in which order."""


class Problem(NamedTuple):
    """A model and the task whose images or sentences it takes.

    Attributes:
        batch_size: how many of them one worker has in a step.
        precision: what its experiment trains in on GPUs.
        emulated: where a V100 is emulated, the precision of what is published of it.
    """

    task: str
    model: ModelSpec
    batch_size: int
    precision: Precision = "fp32"
    emulated: str | None = None


def problem_of(name: str) -> Problem:
    """Look a workload's problem up.

    Raises:
        SpecError: there is no such workload; the message names those there are.
    """
    workloads = DATA["workloads"]
    if name not in workloads:
        raise SpecError(
            f"unknown workload {name!r}; the workloads are {', '.join(workloads)}"
        )
    fields = workloads[name]
    return Problem(**fields | {"model": ModelSpec(**fields["model"])})


def short_run(
    problem: Problem,
    algorithm: str = "sgd",
    settings: Mapping[str, Any] = MappingProxyType({}),
    **more: Any,
) -> RunConfig:
    """Describe a run for its steps alone: what a plan would say of data and epochs is made up.

    Args:
        more: other fields of the run.
    """
    usual = {
        "num_workers": 1,
        "learning_rate": LEARNING_RATE,
        "momentum": MOMENTUM,
        "weight_decay": WEIGHT_DECAY,
    }
    return RunConfig(
        task=TaskSpec(name=problem.task),
        model=problem.model,
        batch_size=problem.batch_size,
        num_epochs=1,
        algorithm=algorithm,
        settings=MethodSettings(dict(settings)),
        schedule=ScheduleSpec(kind="constant"),
        evaluation=EvaluationSpec(),
        seed=1,
        **usual | more,
    )


@cache
def workload(name: str, device: str) -> Workload:
    """Describe the workload with its times.

    They are those of a published device where it has one, else measured on `device` now.
    """
    problem = problem_of(name)
    if problem.emulated is not None:
        times = _published_times(problem, problem.emulated)
    else:
        times = _measured_times(name, torch.device(device))
    return Workload(
        name=name,
        model=problem.model.name,
        batch_size=problem.batch_size,
        # Counted on the meta device, where no model is held.
        num_parameters=sum(map(math.prod, gradients_of(name).shapes)),
        device=times.device,
        forward_seconds=FORWARD_SHARE * times.seconds,
        backward_seconds=(1 - FORWARD_SHARE) * times.seconds,
        source=f"{times.source}; {ASSUMPTION}",
    )


class _Times(NamedTuple):
    """What both passes take together, on which device, and how that is known."""

    seconds: float
    device: str
    source: str


def _published_times(problem: Problem, precision: str) -> _Times:
    """Take the times of ResNet-50 that are published, scaled by arithmetic for other models."""
    rate = published_rate(precision)
    device = f"{rate.device}, {rate.precision}"
    if problem.model.name == "resnet50":
        return _Times(problem.batch_size / rate.images_per_second, device, rate.source)
    # The whole batch's; the published rate is of images of ResNet-50.
    flops = forward_flops(short_run(problem))
    seconds = flops / (RESNET50_FORWARD_FLOPS * rate.images_per_second)
    return _Times(seconds, device, f"modelled: scaled by arithmetic from {rate.source}")


def _measured_times(name: str, device: torch.device) -> _Times:
    """Time one worker alone on one core or GPU, on random images; the first step is left out."""
    torch.set_num_threads(1)
    trainee = Trainee(name, gradients_of(name), device)
    taken: list[float] = []
    while len(taken) < MIN_STEPS or (
        len(taken) < MAX_STEPS and sum(taken) < MAX_SECONDS
    ):
        trainee.module.zero_grad()
        taken.append(seconds_to_idle(trainee.passes, device))
    device_name = "CPU core"
    if device.type == "cuda":
        device_name = torch.cuda.get_device_name(device)
    # The first step allocates, and is no part of the median.
    source = (
        f"measured here: median of {len(taken) - 1} steps of one worker alone, on random images, "
        f"{trainee.computes_in}"
    )
    return _Times(median(taken[1:]), device_name, source)


@dataclass(frozen=True)
class Gradients:
    """All that an emulation needs of a model.

    Attributes:
        shapes: of the parameters, in the order of `model.parameters()`.
        done: by the parameters' numbers, in the order in which they get their gradients: the share
            of the backward pass that is then over, by its floating-point operations; those of a
            norm are not counted.
    """

    shapes: tuple[tuple[int, ...], ...]
    done: dict[int, float]


@cache
def gradients_of(workload: str) -> Gradients:
    """Find the gradients of the workload's model, which is run once without memory."""
    problem = problem_of(workload)
    task = find_task(problem.task)
    model = build_model(problem.model, task, 0, torch.device("meta"))
    # Two samples, as batch norm wants; shares of operations do not depend on the number.
    return gradients_of_model(model, (2, *task.input_shape))


def gradients_of_model(model: nn.Module, input_shape: tuple[int, ...]) -> Gradients:
    """Find the gradients of a model on the device "meta"."""
    parameters = list(model.parameters())
    operations: dict[int, int] = {}
    with FlopCounterMode(display=False) as counter:
        loss = model(torch.zeros(input_shape, device="meta")).sum()
        forward = counter.get_total_flops()

        def note(number: int) -> None:
            # A hook runs as the gradient is ready: what has been done since the forward pass.
            operations[number] = counter.get_total_flops() - forward

        for number, parameter in enumerate(parameters):
            parameter.register_hook(lambda _, number=number: note(number))  # type: ignore[no-untyped-call]
        loss.backward()
        # At the end of the backward pass: shares of this are shares of its time, as far as
        # arithmetic tells.
        whole = counter.get_total_flops() - forward
    done = {number: count / whole for number, count in operations.items()}
    return Gradients(tuple(tuple(parameter.shape) for parameter in parameters), done)


class Trainee:
    """A model that takes its passes, and notes when its gradients are there.

    It notes it before anybody uses them.

    Args:
        name: of the workload.
        gradients: of the workload's model.
        schedule: has the times that passes wait for, in place of a model's arithmetic; None: the
            workload's model takes them, on a random batch of this rank.

    Attributes:
        module: has the parameters; a method may wrap it.
        computes_in: precision of a model's passes, its experiment's on a GPU. Losses are not
            scaled: an overflow would leave a step out.
        dilation: how many times the schedule's times waits take; at first nothing waits, which is
            enough to warm up.
        share_done: the part of the backward pass that is over, by the model's arithmetic.
        began: when the passes began.
        last_gradient: when the last gradient was there.
        returned: when the backward pass gave back control, whatever was waited for in it.
    """

    def __init__(
        self,
        name: str,
        gradients: Gradients,
        device: torch.device,
        schedule: Workload | None = None,
        rank: int = 0,
    ) -> None:
        self.problem = problem_of(name)
        self.gradients = gradients
        self.device = device
        self._schedule = schedule
        self.computes_in: Precision = (
            self.problem.precision if device.type == "cuda" else "fp32"
        )
        self.dilation = 0.0
        self.share_done = 0.0
        self.began = mark(device)
        self.last_gradient = self.began
        self.returned = self.began
        self.module: nn.Module
        self._loss: Callable[[nn.Module], Tensor]
        if schedule is not None:
            self.module = _Waiting(gradients, self._wait)
            # An input that needs a gradient, so that autograd comes back through every wait.
            self._loss = lambda model: model(torch.ones(1, requires_grad=True))
        else:
            task = find_task(self.problem.task)
            generator = torch.Generator().manual_seed(rank)
            precision = MixedPrecision(self.computes_in, device)
            on_device = torch.empty(0, device=device)
            batch = random_batch(task, self.problem.batch_size, generator, on_device)
            self.module = trainable(short_run(self.problem), device)
            self._loss = lambda model: precision.loss(model, *batch)
        for number, parameter in enumerate(self.module.parameters()):
            note = partial(self._note, gradients.done[number])
            parameter.register_hook(note)  # type: ignore[no-untyped-call]

    def _note(self, done: float, _: Tensor) -> None:
        self.share_done = max(self.share_done, done)
        self.last_gradient = mark(self.device)

    def _wait(self, done: float) -> None:
        """Sleep until so much of the backward pass is over by the schedule.

        Where that is past, do not sleep at all.
        """
        assert self._schedule is not None and isinstance(self.began, float)
        passed = self._schedule.forward_seconds + self._schedule.backward_seconds * done
        remaining = self.began + self.dilation * passed - time.perf_counter()
        if remaining > 0:
            time.sleep(remaining)

    @property
    def scheduled_seconds(self) -> float:
        """What the two passes take where they are waits; infinite where they take their time."""
        if self._schedule is None:
            return math.inf
        return self.dilation * self._schedule.compute_seconds

    def passes(self, wrapped: nn.Module | None = None) -> None:
        """Take the forward pass and the backward pass.

        Args:
            wrapped: what to go through; it contains `module`. None: that itself.
        """
        self.share_done = 0.0
        self.began = mark(self.device)
        self._loss(wrapped or self.module).backward()  # type: ignore[no-untyped-call]
        self.returned = mark(self.device)


class _Waiting(nn.Module):
    """Parameters in the model's own order, each of which waits until its gradient would be there.

    Waits end at times that are set when the passes begin, so errors do not add up, and what hooks
    cost this host is hidden in them as far as they are long enough. Gradients are views of one
    random vector.
    """

    def __init__(self, gradients: Gradients, wait: Callable[[float], None]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            nn.Parameter(torch.full(shape, 1e-2)) for shape in gradients.shapes
        )
        # One vector for all: a gradient of its own for each would take the model's memory once
        # more.
        largest = max(map(math.prod, gradients.shapes))
        pattern = 1e-3 * torch.randn(
            largest, generator=torch.Generator().manual_seed(1)
        )
        self._gradients = [
            pattern[: math.prod(shape)].view(shape) for shape in gradients.shapes
        ]
        self._done = gradients.done
        self._wait = wait

    def forward(self, x: Tensor) -> Tensor:
        # Autograd goes through them backwards, which is the order in which gradients come.
        for number in reversed(self._done):
            x = _Wait.apply(x, self, number, self.weights[number])  # type: ignore[no-untyped-call]
        return x

    def gradient(self, number: int) -> Tensor:
        """Wait for the parameter's gradient, and return it."""
        self._wait(self._done[number])
        # A new view: autograd may keep what it is given.
        return self._gradients[number].view_as(self._gradients[number])


class _Wait(torch.autograd.Function):
    """The identity, whose backward pass gives a parameter the gradient that was made before."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, model: _Waiting, number: int, weight: Tensor
    ) -> Tensor:
        ctx.model = model
        ctx.number = number
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        return grad_outputs[0], None, None, ctx.model.gradient(ctx.number)
