"""What a worker computes in a timed step: a model and its batch, what a device takes, and the two passes or waits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from algorithms.core.traffic import mark
from harness.plan.footprint import RESNET50_FORWARD_FLOPS, forward_flops, published_rate
from harness.records.timings import Workload
from harness.spec import EvaluationSpec, ModelSpec, Precision, RunConfig, ScheduleSpec, SpecError, TaskSpec
from harness.tasks.task import find_task
from harness.train.build import build_model, trainable
from harness.train.local_workers import MixedPrecision, random_batch, seconds_to_idle

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 5e-4
FORWARD_SHARE = 1 / 3
"""The forward pass's part of the passes' time: an assumption, since a backward pass has twice its arithmetic."""
ASSUMPTION = "forward to backward as 1 to 2 (an assumption)"
MIN_STEPS, MAX_STEPS, MAX_SECONDS = 5, 200, 3.0
"""Bounds of a calibration."""


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
    """The problem of a workload. Raises SpecError: there is no such workload; the message names those there are."""
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
    """The gradients of the workload's model, which is run once without memory."""
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


class Trainee:
    """A model that takes its passes, and notes when its gradients are there, before anybody uses them.

    Args:
        module: has the parameters; a method may wrap it.
        loss: the forward pass through the module or its wrapper.

    Attributes:
        dilation: how many times slower than the emulated device passes are; real ones take what they take.
        scheduled_seconds: what the two passes take where they are waits; infinite where they take what they take.
        share_done: the part of the backward pass that is over, by the model's arithmetic.
        began, last_gradient, returned: when the passes began, when the last gradient was there, and when the backward
            pass gave back control, whatever was waited for in it.
    """

    def __init__(
        self, module: nn.Module, loss: Callable[[nn.Module], Tensor], gradients: Gradients, device: torch.device
    ) -> None:
        self.module, self._loss, self._device = module, loss, device
        self.share_done = 0.0
        self.began = self.last_gradient = self.returned = mark(device)
        for parameter, done in zip(module.parameters(), gradients.done, strict=True):
            parameter.register_hook(lambda _, done=done: self._gradient(done))  # type: ignore[no-untyped-call]

    def _gradient(self, done: float) -> None:
        self.share_done = max(self.share_done, done)
        self.last_gradient = mark(self._device)

    @property
    def scheduled_seconds(self) -> float:
        return self.module.scheduled_seconds if isinstance(self.module, WaitingModel) else math.inf

    def slow_down(self, dilation: float) -> None:
        """Let passes that are waits take so many times the device's time from now on."""
        if isinstance(self.module, WaitingModel):
            self.module.dilation = dilation

    def passes(self, wrapped: nn.Module | None = None) -> None:
        """The forward pass through `wrapped`, which contains `module` (or through that), and the backward pass."""
        self.share_done = 0.0
        self.began = mark(self._device)
        self._loss(wrapped or self.module).backward()  # type: ignore[no-untyped-call]
        self.returned = mark(self._device)


def real_trainee(workload: str, gradients: Gradients, device: torch.device, rank: int) -> Trainee:
    """The workload's model on random images or sentences of its task's shape, as `computes_in` says."""
    problem = problem_of(workload)
    precision = MixedPrecision(computes_in(workload, device), device)
    generator, like = torch.Generator().manual_seed(rank), torch.empty(0, device=device)
    batch = random_batch(find_task(problem.task), problem.batch_size, generator, like)
    return Trainee(
        trainable(short_run(problem), device), lambda model: precision.loss(model, *batch), gradients, device
    )


def computes_in(name: str, device: torch.device) -> Precision:
    """The precision of a workload's passes: its experiment's on a GPU, fp32 on a CPU.

    Losses are not scaled: what is timed is the passes, and an overflow would leave a step out.
    """
    return problem_of(name).precision if device.type == "cuda" else "fp32"


def workload(name: str, device: str) -> Workload:
    """The workload with its times: those of a published device where it has one, else measured on `device` now, of one
    worker alone on one core or GPU, on random images, by the median.
    """
    if name in EMULATED:
        return published(name)
    torch.set_num_threads(1)
    place = torch.device(device)
    trainee = real_trainee(name, gradients_of(name), place, 0)
    seconds: list[float] = []
    while len(seconds) < MIN_STEPS or (len(seconds) < MAX_STEPS and sum(seconds) < MAX_SECONDS):
        trainee.module.zero_grad()
        seconds.append(seconds_to_idle(trainee.passes, place))
    where = torch.cuda.get_device_name(place) if place.type == "cuda" else "CPU core"
    source = f"measured here: median of {len(seconds) - 1} steps of one worker alone, on random images, "
    return workload_of(name, where, median(seconds[1:]), source + computes_in(name, place))


def waiting_trainee(gradients: Gradients, workload: Workload) -> Trainee:
    """Parameters of the model's shapes, whose passes are waits. At first nothing waits, which is enough to warm up."""
    return Trainee(WaitingModel(gradients, workload), _waited, gradients, torch.device("cpu"))


def _waited(model: nn.Module) -> Tensor:
    loss: Tensor = model(torch.ones(1, requires_grad=True))
    return loss


class WaitingModel(nn.Module):
    """Parameters in the model's own order; in the backward pass each waits until its gradient would be there.

    That is `dilation` times its share of the device's time, and that of the forward pass, in which nobody looks on.
    Waits end at times that are set when the forward pass begins, so errors do not add up, and what hooks and gradients
    cost this host is hidden in the waits as far as these are long enough. Gradients are views of one random vector.
    """

    def __init__(self, gradients: Gradients, workload: Workload) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.full(shape, 1e-2)) for shape in gradients.shapes)
        largest = max(map(math.prod, gradients.shapes))
        pattern = 1e-3 * torch.randn(largest, generator=torch.Generator().manual_seed(1))
        self._gradients = [pattern[: math.prod(shape)].view(shape) for shape in gradients.shapes]
        self._order, self._done, self._workload = gradients.order, gradients.done, workload
        self.dilation, self._start = 0.0, 0.0

    @property
    def scheduled_seconds(self) -> float:
        """What the two passes take in all."""
        return self.dilation * (self._workload.forward_seconds + self._workload.backward_seconds)

    def forward(self, x: Tensor) -> Tensor:
        self._start = time.perf_counter()
        for number in reversed(self._order):
            x = _Wait.apply(x, self, number, self.weights[number])  # type: ignore[no-untyped-call]
        return x

    def gradient(self, number: int) -> Tensor:
        """The parameter's gradient, when it is there by the schedule; at once if that is past."""
        passed = self._workload.forward_seconds + self._workload.backward_seconds * self._done[number]
        remaining = self._start + self.dilation * passed - time.perf_counter()
        if remaining > 0:
            time.sleep(remaining)
        # A new view: autograd may keep what it is given.
        return self._gradients[number].view_as(self._gradients[number])


class _Wait(torch.autograd.Function):
    """Passes its input on; in the backward pass its parameter is given the gradient that was made before."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, model: WaitingModel, number: int, weight: Tensor) -> Tensor:
        ctx.model, ctx.number = model, number
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        return grad_outputs[0], None, None, ctx.model.gradient(ctx.number)
