"""A worker's forward and backward pass, as a session sees it: the real model's, or waits in its place."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import accumulate
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from harness.records.timings import Workload
from harness.spec import Precision
from harness.tasks.task import find_task
from harness.timing.workloads import EMULATED, Layers, layers_of, problem_of, published, short_run, workload_of
from harness.train.clock import seconds_to_idle
from harness.train.precision import MixedPrecision
from harness.train.trainee import random_batch, trainable

Mark = Any
"""Seconds of the host's monotonic clock, or a CUDA event."""
MIN_STEPS, MAX_STEPS, MAX_SECONDS = 5, 200, 3.0
"""Bounds of a calibration."""


def now_on(device: torch.device) -> Mark:
    """A mark of now; on a GPU, of when what was asked of it so far is done."""
    if device.type != "cuda":
        return time.monotonic()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def seconds_at(mark: Mark, origin: Mark) -> float:
    """A host's mark as it is; of events, the seconds since `origin`."""
    if isinstance(mark, torch.cuda.Event):
        mark.synchronize()
        return float(origin.elapsed_time(mark)) / 1e3
    return float(mark)


class Watch:
    """Notes when gradients are there, by a hook on every parameter that fires before anybody uses the gradient."""

    def __init__(self, module: nn.Module, layers: Layers, device: torch.device) -> None:
        self._device = device
        self.share_done = 0.0
        """The part of the backward pass that is done, by the layers' arithmetic."""
        self.began = self.last_gradient = self.returned = now_on(device)
        """When the passes began, when the last gradient was there, and when the backward pass gave back control,
        whatever was waited for in it."""
        for parameter, done in zip(module.parameters(), layers.ready(), strict=True):
            parameter.register_hook(lambda _, done=done: self._gradient(done))  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        self.share_done = 0.0
        self.began = now_on(self._device)

    def end(self) -> None:
        self.returned = now_on(self._device)

    def _gradient(self, done: float) -> None:
        self.share_done = max(self.share_done, done)
        self.last_gradient = now_on(self._device)


class RealTrainee:
    """The workload's model on random images or sentences of its task's shape, as `computes_in` says.

    Attributes:
        module: has the parameters; a method may wrap it.
        scheduled_seconds: what the two passes take where they are waits; infinite where they take what they take.
        watch: how far the backward pass is.
    """

    scheduled_seconds = math.inf

    def __init__(self, workload: str, layers: Layers, device: torch.device, rank: int) -> None:
        problem = problem_of(workload)
        self.module = trainable(short_run(problem), device)
        self.watch = Watch(self.module, layers, device)
        self._precision = MixedPrecision(computes_in(workload, device), device, scales=False)
        generator, like = torch.Generator().manual_seed(rank), torch.empty(0, device=device)
        self._inputs, self._labels = random_batch(find_task(problem.task), problem.batch_size, generator, like)

    def slow_down(self, dilation: float) -> None:
        """Real passes take what they take."""

    def passes(self, wrapped: nn.Module | None = None) -> None:
        """The forward pass through `wrapped`, which contains `module` (or through that), and the backward pass."""
        self.watch.begin()
        self._precision.backward(self._precision.loss(wrapped or self.module, self._inputs, self._labels))
        self.watch.end()


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
    trainee = RealTrainee(name, layers_of(name), place, 0)
    seconds: list[float] = []
    while len(seconds) < MIN_STEPS or (len(seconds) < MAX_STEPS and sum(seconds) < MAX_SECONDS):
        trainee.module.zero_grad()
        seconds.append(seconds_to_idle(trainee.passes, place))
    where = torch.cuda.get_device_name(place) if place.type == "cuda" else "CPU core"
    source = f"measured here: median of {len(seconds) - 1} steps of one worker alone, on random images, "
    return workload_of(name, where, median(seconds[1:]), source + computes_in(name, place))


class WaitingTrainee:
    """Parameters of the layers' shapes; in the backward pass a layer waits `dilation` times its share of the device's
    time for the model, the last one for the forward pass as well, in which nobody looks on.

    Waits end at times that are set when the pass begins, so errors do not add up, and what hooks and gradients cost
    this host is hidden in the waits as far as these are long enough. Gradients are views of one random vector. At first
    nothing waits, which is enough to warm up. Attributes are as a RealTrainee's.
    """

    def __init__(self, layers: Layers, workload: Workload) -> None:
        self._workload = workload
        self._shares = [layer.share for layer in layers.in_order]
        self.module: nn.Module = _WaitingModel(layers, self.wait_for)
        self.watch = Watch(self.module, layers, torch.device("cpu"))
        self._start = 0.0
        self.slow_down(0.0)

    def slow_down(self, dilation: float) -> None:
        """Let passes take so many times the device's time from now on."""
        forward, backward = dilation * self._workload.forward_seconds, dilation * self._workload.backward_seconds
        self.scheduled_seconds = forward + backward
        self._ends = [forward + backward * done for done in accumulate(reversed(self._shares))][::-1]

    def wait_for(self, layer: int) -> None:
        """Until the layer's backward pass is over by the schedule; not at all if that is past."""
        remaining = self._start + self._ends[layer] - time.monotonic()
        if remaining > 0:
            time.sleep(remaining)

    def passes(self, wrapped: nn.Module | None = None) -> None:
        """The passes as a RealTrainee's, with waits in place of arithmetic."""
        self.watch.begin()
        self._start = time.monotonic()
        output: Tensor = (wrapped or self.module)(torch.ones(1, requires_grad=True))
        output.backward()  # type: ignore[no-untyped-call]
        self.watch.end()


class _WaitingModel(nn.Module):
    """The parameters in the model's own order; its layers are passed in their order."""

    def __init__(self, layers: Layers, wait_for: Callable[[int], None]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.full(shape, 1e-2)) for shape in layers.shapes)
        self._layers, self._wait_for = layers, wait_for
        largest = max((math.prod(shape) for shape in layers.shapes), default=0)
        pattern = 1e-3 * torch.randn(largest, generator=torch.Generator().manual_seed(1))
        self._gradients = [pattern[: math.prod(shape)].view(shape) for shape in layers.shapes]

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self._layers.in_order):
            own = [self.weights[each] for each in layer.parameters]
            gradients = [self._gradients[each] for each in layer.parameters]
            x = _Wait.apply(x, number, self._wait_for, gradients, *own)  # type: ignore[no-untyped-call]
        return x


class _Wait(torch.autograd.Function):
    """One layer: passes its input on, and gives its parameters gradients that were made before."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, number: int, wait_for: Callable[[int], None], *tensors: Any) -> Tensor:
        ctx.number, ctx.wait_for, ctx.gradients = number, wait_for, tensors[0]
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        ctx.wait_for(ctx.number)
        # New views: autograd may keep what it is given.
        return grad_outputs[0], None, None, None, *(gradient.view_as(gradient) for gradient in ctx.gradients)
