"""Workloads: a model and its batch, what a device takes for them, and a trainee that takes both
passes or waits."""

from __future__ import annotations

import math
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cser_bench.algorithms.core.traffic import mark
from cser_bench.harness.measures.steps import FORWARD_SHARE
from cser_bench.harness.plan.forecast import RESNET50_FORWARD_FLOPS, forward_flops, published_rate
from cser_bench.harness.records.timings import Workload
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.run import (
    EvaluationSpec,
    ModelSpec,
    Precision,
    RunConfig,
    ScheduleSpec,
    TaskSpec,
)
from cser_bench.harness.tasks.task import find_task
from cser_bench.harness.train.build import build_model, trainable
from cser_bench.harness.train.local_workers import MixedPrecision, random_batch, seconds_to_idle

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 5e-4
ASSUMPTION = "forward to backward as 1 to 2 (an assumption)"
"""What is said of times of which `FORWARD_SHARE` divides the sum."""
MIN_STEPS, MAX_STEPS, MAX_SECONDS = 5, 200, 3.0
"""Bounds of a calibration."""


DATA: dict[str, Any] = tomllib.loads((Path(__file__).parent / "sessions.toml").read_text())
"""sessions.toml: what is timed, over which links, in which order."""


class Problem(NamedTuple):
    """A model, the task whose images or sentences it takes, how many of them one worker has in a
    step, and the precision that its experiment trains in on GPUs; or, where a V100 is emulated,
    that of what is published of it."""

    task: str
    model: ModelSpec
    batch_size: int
    precision: Precision = "fp32"
    emulated: str | None = None


def problem_of(name: str) -> Problem:
    """The problem of a workload. Raises SpecError: there is no such workload; the message names
    those there are."""
    known = DATA["workloads"]
    if name not in known:
        raise SpecError(f"unknown workload {name!r}; the workloads are {', '.join(known)}")
    return Problem(**known[name] | {"model": ModelSpec(**known[name]["model"])})


def short_run(
    problem: Problem, algorithm: str = "sgd", settings: dict[str, Any] | None = None, **more: Any
) -> RunConfig:
    """A run for its steps alone: what a plan would say of data and epochs does not matter; `more`
    are other fields."""
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
        settings=settings or {},
        schedule=ScheduleSpec(kind="constant"),
        evaluation=EvaluationSpec(),
        seed=1,
        **usual | more,
    )


@cache
def workload(name: str, device: str) -> Workload:
    """The workload with its times: those of a published device where it has one, else measured on
    `device` now, of one worker alone on one core or GPU, on random images, by the median.
    """
    problem, gradients, place = problem_of(name), gradients_of(name), torch.device(device)
    if problem.emulated is not None:
        rate = published_rate(problem.emulated)
        where, source = f"{rate.device}, {rate.precision}", rate.source
        seconds = problem.batch_size / rate.images_per_second
        if problem.model.name != "resnet50":
            source = f"modelled: scaled by arithmetic from {source}"
            seconds = forward_flops(short_run(problem)) / (
                RESNET50_FORWARD_FLOPS * rate.images_per_second
            )
    else:
        torch.set_num_threads(1)
        trainee, taken = Trainee(name, gradients, place), list[float]()
        while len(taken) < MIN_STEPS or (len(taken) < MAX_STEPS and sum(taken) < MAX_SECONDS):
            trainee.module.zero_grad()
            taken.append(seconds_to_idle(trainee.passes, place))
        where, seconds = (
            torch.cuda.get_device_name(place) if place.type == "cuda" else "CPU core",
            median(taken[1:]),
        )
        source = (
            f"measured here: median of {len(taken) - 1} steps of one worker alone, on random "
            "images, "
        )
        source += trainee.computes_in
    return Workload(
        name=name,
        model=problem.model.name,
        batch_size=problem.batch_size,
        num_parameters=sum(map(math.prod, gradients.shapes)),
        device=where,
        forward_seconds=FORWARD_SHARE * seconds,
        backward_seconds=(1 - FORWARD_SHARE) * seconds,
        source=f"{source}; {ASSUMPTION}",
    )


@dataclass(frozen=True)
class Gradients:
    """All that an emulation needs of a model: its parameters, and when each gets its gradient in a
    backward pass.

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
    """The gradients of the workload's model, which is run once without memory."""
    problem = problem_of(workload)
    task = find_task(problem.task)
    return gradients_of_model(
        build_model(problem.model, task, 0, torch.device("meta")), (2, *task.input_shape)
    )


def gradients_of_model(model: nn.Module, input_shape: tuple[int, ...]) -> Gradients:
    """The same of a model on the device "meta"."""
    parameters, operations = list(model.parameters()), dict[int, int]()
    with FlopCounterMode(display=False) as counter:
        loss = model(torch.zeros(input_shape, device="meta")).sum()
        forward = counter.get_total_flops()

        def note(number: int) -> None:
            operations[number] = counter.get_total_flops() - forward

        for number, parameter in enumerate(parameters):
            parameter.register_hook(lambda _, number=number: note(number))  # type: ignore[no-untyped-call]
        loss.backward()
        whole = counter.get_total_flops() - forward
    done = {number: count / whole for number, count in operations.items()}
    return Gradients(tuple(tuple(parameter.shape) for parameter in parameters), done)


class Trainee:
    """A model that takes its passes, and notes when its gradients are there, before anybody uses
    them.

    Args:
        name, gradients: of the workload.
        schedule: has the times that passes wait for, in place of a model's arithmetic; None: the
            workload's model takes them, on a random batch of this rank.

    Attributes:
        module: has the parameters; a method may wrap it.
        computes_in: precision of a model's passes, its experiment's on a GPU. Losses are not
            scaled: an overflow would leave a step out.
        dilation: how many times the schedule's times waits take; at first nothing waits, which is
            enough to warm up.
        share_done: the part of the backward pass that is over, by the model's arithmetic. began,
        last_gradient, returned: when the passes began, when the last gradient was there, and when
        the backward
            pass gave back control, whatever was waited for in it.
    """

    def __init__(
        self,
        name: str,
        gradients: Gradients,
        device: torch.device,
        schedule: Workload | None = None,
        rank: int = 0,
    ) -> None:
        self.problem, self.gradients, self.device, self._schedule = (
            problem_of(name),
            gradients,
            device,
            schedule,
        )
        self.computes_in: Precision = self.problem.precision if device.type == "cuda" else "fp32"
        self.dilation, self.share_done = 0.0, 0.0
        self.began = self.last_gradient = self.returned = mark(device)
        self.module: nn.Module
        self._loss: Callable[[nn.Module], Tensor]
        if schedule is not None:
            self.module = _Waiting(gradients, self._wait)
            self._loss = lambda model: model(torch.ones(1, requires_grad=True))
        else:
            task, generator = find_task(self.problem.task), torch.Generator().manual_seed(rank)
            precision = MixedPrecision(self.computes_in, device)
            batch = random_batch(
                task, self.problem.batch_size, generator, torch.empty(0, device=device)
            )
            self.module = trainable(short_run(self.problem), device)
            self._loss = lambda model: precision.loss(model, *batch)
        for number, parameter in enumerate(self.module.parameters()):
            note = partial(self._note, gradients.done[number])
            parameter.register_hook(note)  # type: ignore[no-untyped-call]

    def _note(self, done: float, _: Tensor) -> None:
        self.share_done = max(self.share_done, done)
        self.last_gradient = mark(self.device)

    def _wait(self, done: float) -> None:
        """Sleep until so much of the backward pass is over by the schedule; not at all if that is
        past."""
        assert self._schedule is not None and isinstance(self.began, float)
        passed = self._schedule.forward_seconds + self._schedule.backward_seconds * done
        remaining = self.began + self.dilation * passed - time.perf_counter()
        if remaining > 0:
            time.sleep(remaining)

    @property
    def scheduled_seconds(self) -> float:
        """What the two passes take where they are waits; infinite where they take what they
        take."""
        return (
            math.inf if self._schedule is None else self.dilation * self._schedule.compute_seconds
        )

    def passes(self, wrapped: nn.Module | None = None) -> None:
        """The forward pass through `wrapped`, which contains `module` (or through that), and the
        backward pass."""
        self.share_done = 0.0
        self.began = mark(self.device)
        self._loss(wrapped or self.module).backward()  # type: ignore[no-untyped-call]
        self.returned = mark(self.device)


class _Waiting(nn.Module):
    """Parameters in the model's own order; in the backward pass each waits until its gradient would
    be there.

    Waits end at times that are set when the passes begin, so errors do not add up, and what hooks
    cost this host is hidden in them as far as they are long enough. Gradients are views of one
    random vector.
    """

    def __init__(self, gradients: Gradients, wait: Callable[[float], None]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            nn.Parameter(torch.full(shape, 1e-2)) for shape in gradients.shapes
        )
        largest = max(map(math.prod, gradients.shapes))
        pattern = 1e-3 * torch.randn(largest, generator=torch.Generator().manual_seed(1))
        self._gradients = [pattern[: math.prod(shape)].view(shape) for shape in gradients.shapes]
        self._done, self._wait = gradients.done, wait

    def forward(self, x: Tensor) -> Tensor:
        for number in reversed(self._done):
            x = _Wait.apply(x, self, number, self.weights[number])  # type: ignore[no-untyped-call]
        return x

    def gradient(self, number: int) -> Tensor:
        """The parameter's gradient, when it is there."""
        self._wait(self._done[number])
        # A new view: autograd may keep what it is given.
        return self._gradients[number].view_as(self._gradients[number])


class _Wait(torch.autograd.Function):
    """Passes its input on; in the backward pass its parameter is given the gradient that was made
    before."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, model: _Waiting, number: int, weight: Tensor) -> Tensor:
        ctx.model, ctx.number = model, number
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        return grad_outputs[0], None, None, ctx.model.gradient(ctx.number)
