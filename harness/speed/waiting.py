"""The trainee of an emulation: the model's parameters in a real backward pass, whose arithmetic is waits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from harness.records.timings import Workload
from harness.speed.clock import Now
from harness.speed.layers import Layers
from harness.speed.trainee import Watch


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
