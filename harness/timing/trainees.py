"""A worker's forward and backward pass, as a session sees it: the real model's, or waits in its place."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from algorithms.core.traffic import mark
from harness.records.timings import Workload
from harness.spec import Precision
from harness.tasks.task import find_task
from harness.timing.workloads import EMULATED, Gradients, gradients_of, problem_of, published, short_run, workload_of
from harness.train.build import trainable
from harness.train.local_workers import MixedPrecision, random_batch, seconds_to_idle

MIN_STEPS, MAX_STEPS, MAX_SECONDS = 5, 200, 3.0
"""Bounds of a calibration."""


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

    Raises:
        SpecError: there is no such workload.
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
