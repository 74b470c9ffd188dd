"""Benchmark: the optimisers' own arithmetic at ResNet-50's size, on one thread, against PyTorch's SGD."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from algorithms import SoloCollectives
from harness.bench import methods
from harness.bench.measurement import Aim, Measurement, ratio
from harness.train.stopwatch import interleave, sums

INTERVALS = 5
"""Repetitions, each a whole reset interval of steps, so that resets weigh what they do in training."""
LABELS = {
    "sgd": "SGD",
    "ef_sgd": "EF-SGD",
    "cser_pl": "CSER-PL",
    "csea": "CSEA",
    "cser": "CSER (no momentum)",
    "mcser": "M-CSER",
}
FUSED, PLAIN, FOREACH = "torch fused", "torch fused, no momentum", "torch foreach"


def measure(results: Path) -> list[Measurement]:
    """The time of a step of each algorithm over PyTorch's fused step, and M-CSER's also over the foreach step."""
    calls: dict[str, Callable[[], object]] = {
        FUSED: torch_step(methods.resnet50_parameters(), methods.MOMENTUM, fused=True),
        PLAIN: torch_step(methods.resnet50_parameters(), 0.0, fused=True),
        FOREACH: torch_step(methods.resnet50_parameters(), methods.MOMENTUM, fused=False),
    }
    calls.update({algorithm: own_step(methods.resnet50_parameters(), algorithm) for algorithm in LABELS})
    steps = interleave(calls, INTERVALS * methods.RESET_INTERVAL)
    timings = {name: sums(seconds, methods.RESET_INTERVAL) for name, seconds in steps.items()}
    what = f"{methods.RESET_INTERVAL} steps at 25.6 M parameters on one thread"
    figures = [
        ratio(
            f"step: {label} / torch fused",
            f"{what}, a solo worker at ratio 256, against torch.optim.SGD(fused=True), "
            + ("without momentum" if algorithm in methods.WITHOUT_MOMENTUM else "Nesterov"),
            timings,
            algorithm,
            PLAIN if algorithm in methods.WITHOUT_MOMENTUM else FUSED,
            Aim("at most", 1.0) if algorithm == "mcser" else None,
        )
        for algorithm, label in LABELS.items()
    ]
    against = f"{what}, M-CSER at ratio 256 against torch.optim.SGD(foreach=True), Nesterov"
    return [*figures, ratio("step: M-CSER / torch foreach", against, timings, "mcser", FOREACH)]


def torch_step(parameters: nn.ParameterList, momentum: float, fused: bool) -> Callable[[], object]:
    """A step of PyTorch's own optimiser, gradients left as they are."""
    methods.fill_gradients(parameters)
    optimizer = torch.optim.SGD(
        parameters.parameters(),
        lr=methods.LEARNING_RATE,
        momentum=momentum,
        nesterov=momentum > 0,
        weight_decay=methods.WEIGHT_DECAY,
        fused=fused or None,
        foreach=None if fused else True,
    )
    return optimizer.step


def own_step(parameters: nn.ParameterList, algorithm: str) -> Callable[[], object]:
    """A step of one of the algorithms for a worker who is alone, gradients left as they are."""
    optimizer = methods.build(algorithm, parameters, SoloCollectives())
    methods.fill_gradients(parameters)
    return optimizer.step
