"""A worker's forward and backward pass, as a session sees it: the real model's, or waits in its place."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from harness.records.timings import Workload
from harness.tasks.task import find_task
from harness.timing.workloads import (
    Layers,
    computes_in,
    is_emulated,
    layers_of,
    problem_of,
    published,
    run_config,
    workload_of,
)
from harness.train.clock import seconds_to_idle
from harness.train.precision import MixedPrecision
from harness.train.trainee import random_batch, trainable

Mark = Any
"""Seconds of the host's monotonic clock, or a CUDA event."""
Now = Callable[[], Mark]
MIN_STEPS, MAX_STEPS, MAX_SECONDS = 5, 200, 3.0
"""Of a calibration."""


def now_on(device: torch.device) -> Now:
    """The function that makes marks: on a GPU, of when what was asked of it so far is done."""
    return _cuda_now if device.type == "cuda" else time.monotonic


def _cuda_now() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def seconds_at(mark: Mark, origin: Mark) -> float:
    """A host's mark as it is; of events, the seconds since `origin`."""
    if isinstance(mark, torch.cuda.Event):
        mark.synchronize()
        return float(origin.elapsed_time(mark)) / 1e3
    return float(mark)


def clock_name(device: torch.device) -> str | None:
    """Equal for workers whose marks can be compared; None where they cannot be with anybody's."""
    if device.type == "cuda":
        return None
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{platform.node()} {boot.read_text().strip() if boot.exists() else ''}"


class TimedTrainee(Protocol):
    """What takes forward and backward passes.

    Attributes:
        module: has the parameters; a method may wrap it.
        scheduled_seconds: what the two passes take where they are waits; infinite where they take what they take.
        watch: how far the backward pass is.
        waits: whether it waits at all; a real one never does.
    """

    module: nn.Module
    scheduled_seconds: float
    watch: Watch
    waits: bool

    def slow_down(self, dilation: float) -> None:
        """Let passes that are waits take so many times the device's time from now on; others take what they take."""

    def passes(self, wrapped: nn.Module | None = None) -> None:
        """The forward pass through `wrapped`, which contains `module` (or through that), and the backward pass."""


class Watch:
    """Notes when gradients are there, by a hook on every parameter that fires before anybody uses the gradient."""

    def __init__(self, module: nn.Module, layers: Layers, now: Now) -> None:
        self._now = now
        self.share_done = 0.0
        """Of the backward pass, by the layers' arithmetic."""
        self.began: Mark = now()
        self.last_gradient: Mark = self.began
        self.returned: Mark = self.began
        """When the backward pass gave back control, whatever was waited for in it."""
        for parameter, share in zip(module.parameters(), layers.parameter_shares(), strict=True):
            parameter.register_hook(lambda _, share=share: self._gradient(share))  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        self.share_done = 0.0
        self.began = self._now()

    def end(self) -> None:
        self.returned = self._now()

    def _gradient(self, share: float) -> None:
        self.share_done = min(1.0, self.share_done + share)
        self.last_gradient = self._now()


class RealTrainee:
    """The workload's model on random images or sentences of its task's shape, as `computes_in` says."""

    def __init__(self, workload: str, layers: Layers, device: torch.device, rank: int, now: Now) -> None:
        problem = problem_of(workload)
        task = find_task(problem.task)
        self.module = trainable(run_config(workload), device)
        self.scheduled_seconds = math.inf
        self.waits = False
        self.watch = Watch(self.module, layers, now)
        self._precision = MixedPrecision(computes_in(workload, device), device, scales=False)
        generator = torch.Generator().manual_seed(rank)
        like = torch.empty(0, device=device)
        self._inputs, self._labels = random_batch(task, problem.batch_size, generator, like)

    def slow_down(self, dilation: float) -> None:
        pass

    def passes(self, wrapped: nn.Module | None = None) -> None:
        self.watch.begin()
        self._precision.backward(self._precision.loss(wrapped or self.module, self._inputs, self._labels))
        self.watch.end()


def workload(name: str, device: str) -> Workload:
    """The workload with its times: those of a published device where it has one, else measured on `device` now.

    Raises:
        SpecError: there is no such workload.
    """
    return published(name) if is_emulated(name) else calibrate(name, device)


def calibrate(name: str, device: str) -> Workload:
    """The workload with its times as measured here: one worker alone on one core or GPU, random images, the median.

    Raises:
        SpecError: there is no such workload.
    """
    torch.set_num_threads(1)
    place = torch.device(device)
    prepared = RealTrainee(name, layers_of(name), place, 0, now_on(place))
    seconds: list[float] = []
    while len(seconds) < MIN_STEPS or (len(seconds) < MAX_STEPS and sum(seconds) < MAX_SECONDS):
        prepared.module.zero_grad()
        seconds.append(seconds_to_idle(prepared.passes, place))
    where = torch.cuda.get_device_name(place) if place.type == "cuda" else "CPU core"
    source = f"measured here: median of {len(seconds) - 1} steps of one worker alone, on random images, "
    return workload_of(name, where, median(seconds[1:]), source + computes_in(name, place))


class WaitingTrainee:
    """Parameters of the layers' shapes; a layer waits `dilation` times its share of the device's time for the model.

    Waits end at times that are set when the pass begins, so errors do not add up, and what hooks and gradients cost
    this host is hidden in the waits as far as these are long enough. Gradients are views of one random vector.

    Args:
        clock, sleep: as in `time`; `now` marks for the session.
    """

    def __init__(
        self,
        layers: Layers,
        workload: Workload,
        dilation: float,
        now: Now = time.monotonic,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._workload = workload
        self._shares = [layer.share for layer in layers.in_order]
        self.module: nn.Module = _WaitingModel(layers, self.wait_until)
        self.watch = Watch(self.module, layers, now)
        self._clock, self._sleep = clock, sleep
        self._start = 0.0
        self.slow_down(dilation)
        self.waits = True
        """False lets steps pass without waiting, which is enough to warm up."""

    def slow_down(self, dilation: float) -> None:
        """Let passes take so many times the device's time from now on."""
        forward, backward = dilation * self._workload.forward_seconds, dilation * self._workload.backward_seconds
        self.scheduled_seconds = forward + backward
        self._forward_ends = [forward * done for done in accumulate(self._shares)]
        self._backward_ends = [forward + backward * done for done in accumulate(reversed(self._shares))][::-1]

    def wait_until(self, layer: int, backward: bool) -> None:
        """Until the layer's pass is over by the schedule; not at all if that is past."""
        if self.waits:
            end = self._start + (self._backward_ends if backward else self._forward_ends)[layer]
            remaining = end - self._clock()
            if remaining > 0:
                self._sleep(remaining)

    def passes(self, wrapped: nn.Module | None = None) -> None:
        self.watch.begin()
        self._start = self._clock()
        output: Tensor = (wrapped or self.module)(torch.ones(1, requires_grad=True))
        output.backward()  # type: ignore[no-untyped-call]
        self.watch.end()


class _WaitingModel(nn.Module):
    """The parameters in the model's own order; its layers are passed in their order."""

    def __init__(self, layers: Layers, wait_until: Callable[[int, bool], None]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.full(shape, 1e-2)) for shape in layers.shapes)
        self._layers, self._wait_until = layers, wait_until
        largest = max((math.prod(shape) for shape in layers.shapes), default=0)
        pattern = 1e-3 * torch.randn(largest, generator=torch.Generator().manual_seed(1))
        self._gradients = [pattern[: math.prod(shape)].view(shape) for shape in layers.shapes]

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self._layers.in_order):
            own = [self.weights[each] for each in layer.parameters]
            gradients = [self._gradients[each] for each in layer.parameters]
            x = _Wait.apply(x, number, self._wait_until, gradients, *own)  # type: ignore[no-untyped-call]
        return x


class _Wait(torch.autograd.Function):
    """One layer: passes its input on, and gives its parameters gradients that were made before."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        number: int,
        wait_until: Callable[[int, bool], None],
        gradients: list[Tensor],
        *parameters: Tensor,
    ) -> Tensor:
        wait_until(number, False)
        ctx.number, ctx.wait_until, ctx.gradients = number, wait_until, gradients
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        ctx.wait_until(ctx.number, True)
        # New views: autograd may keep what it is given.
        return grad_outputs[0], None, None, None, *(gradient.view_as(gradient) for gradient in ctx.gradients)
