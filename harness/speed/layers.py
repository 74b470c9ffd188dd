"""The layers of a model that have parameters: in which order they are passed, and their shares of the arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from harness.speed.workloads import problem_of
from harness.tasks.task import find_task
from harness.train.build import build_model


@dataclass(frozen=True)
class Layer:
    """One module with parameters of its own.

    Attributes:
        parameters: by their numbers in `model.parameters()`, in the order in which they get their gradients.
        share: of the arithmetic (floating-point operations of the forward pass) of all layers.
    """

    name: str
    parameters: tuple[int, ...]
    share: float


@dataclass(frozen=True)
class Layers:
    """All that an emulation needs of a model: layers, the last to get its gradients first, and parameters' shapes."""

    in_order: tuple[Layer, ...]
    shapes: tuple[tuple[int, ...], ...]

    def parameter_shares(self) -> list[float]:
        """By parameter: the share of the arithmetic that is done with its gradient; a layer's is split by numel."""
        shares = [0.0] * len(self.shapes)
        for layer in self.in_order:
            numel = sum(math.prod(self.shapes[number]) for number in layer.parameters)
            for number in layer.parameters:
                shares[number] = layer.share * math.prod(self.shapes[number]) / numel
        return shares

    def ready(self) -> list[float]:
        """By parameter: the share of the backward pass that is done when its gradient is there."""
        ready = [0.0] * len(self.shapes)
        backwards = self.in_order[::-1]
        for layer, done in zip(backwards, accumulate(layer.share for layer in backwards), strict=True):
            for number in layer.parameters:
                ready[number] = min(1.0, done)
        return ready


@cache
def layers_of(workload: str) -> Layers:
    """Those of the workload's model, which is run once without memory.

    Raises:
        SpecError: there is no such workload.
    """
    problem = problem_of(workload)
    task = find_task(problem.task)
    model = build_model(problem.model, task, 0, torch.device("meta"))
    return layers_of_model(model, (2, *task.input_shape))


def layers_of_model(model: nn.Module, input_shape: tuple[int, ...]) -> Layers:
    """The layers of a model on the device "meta"; those whose arithmetic is not counted have none (batch norm)."""
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
    order = sorted((name for name in owned if owned[name]), key=lambda name: -arrivals.index(owned[name][-1]))
    flops = [float(sum(counts.get(f"{root}.{name}" if name else root, {}).values())) for name in order]
    layers = (Layer(name, tuple(owned[name]), each / sum(flops)) for name, each in zip(order, flops, strict=True))
    return Layers(tuple(layers), tuple(tuple(parameter.shape) for parameter in model.parameters()))


def _arrivals(model: nn.Module, inputs: Tensor) -> list[int]:
    """The parameters' numbers in the order in which a backward pass gives them gradients."""
    arrivals: list[int] = []
    for number, parameter in enumerate(model.parameters()):
        parameter.register_hook(lambda _, number=number: arrivals.append(number))  # type: ignore[no-untyped-call]
    model(inputs).sum().backward()
    return arrivals
