"""The layers of a model that have parameters, in the order of the forward pass, and their shares of its arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from harness.build import build_model
from harness.tasks.task import find_task
from harness.timing.workloads import problem_of


@dataclass(frozen=True)
class Layer:
    """One module with parameters of its own.

    Attributes:
        parameters: their numbers in the order of `model.parameters()`.
        share: of the arithmetic (floating-point operations of the forward pass) of all layers.
    """

    name: str
    parameters: tuple[int, ...]
    share: float


@dataclass(frozen=True)
class Layers:
    """All that an emulation needs of a model: layers as the forward pass meets them, and the parameters' shapes."""

    in_order: tuple[Layer, ...]
    shapes: tuple[torch.Size, ...]

    def parameter_shares(self) -> list[float]:
        """By parameter: the share of the arithmetic that is done with its gradient; a layer's is split by numel."""
        shares = [0.0] * len(self.shapes)
        for layer in self.in_order:
            numel = sum(self.shapes[number].numel() for number in layer.parameters)
            for number in layer.parameters:
                shares[number] = layer.share * self.shapes[number].numel() / numel
        return shares


@cache
def layers_of(workload: str) -> Layers:
    """Those of the workload's model: it is run without memory once.

    Raises:
        SpecError: there is no such workload.
    """
    problem = problem_of(workload)
    task = find_task(problem.task)
    model = build_model(problem.model, task, 0, torch.device("meta"))
    return layers_of_model(model, (1, *task.input_shape))


def layers_of_model(model: nn.Module, input_shape: tuple[int, ...]) -> Layers:
    """The layers of a model on the device "meta"; those whose arithmetic is not counted have none (batch norm)."""
    order: list[str] = []
    numbers = {parameter: number for number, parameter in enumerate(model.parameters())}
    owned = {
        name: tuple(numbers[parameter] for parameter in module.parameters(recurse=False))
        for name, module in model.named_modules()
    }
    hooks = [
        module.register_forward_hook(lambda *_, name=name: order.append(name))
        for name, module in model.named_modules()
        if owned[name]
    ]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(input_shape, device="meta"))
    for hook in hooks:
        hook.remove()
    counts = counter.get_flop_counts()
    root = type(model).__name__
    flops = [float(sum(counts.get(f"{root}.{name}" if name else root, {}).values())) for name in order]
    layers = tuple(Layer(name, owned[name], each / sum(flops)) for name, each in zip(order, flops, strict=True))
    return Layers(layers, tuple(parameter.shape for parameter in model.parameters()))
