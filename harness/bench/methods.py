"""What the benchmarks compare: every algorithm at an overall compression ratio of 256, and ResNet-50's parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from algorithms import Collectives, DistributedOptimizer
from harness.spec import EvaluationSpec, ModelSpec, RunConfig, ScheduleSpec, TaskSpec
from harness.train.build import build_optimizer

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 5e-4
RESET_INTERVAL = 32

_CSER = {
    "gradient_compressor": {"kind": "block", "ratio": 512},
    "error_compressor": {"kind": "block", "ratio": 16},
    "reset_interval": RESET_INTERVAL,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "sgd_accumulate": {"accumulation_steps": 256},
    "alone": {},
    # Eight workers in a ring have two neighbours each. D-PSGD has nothing that compresses.
    "dpsgd": {"topology": "ring", "order": "adapt_then_combine"},
    "choco_sgd": {"topology": "ring", "compressor": {"kind": "block", "ratio": 512}, "gamma": 0.01},
    "deep_squeeze": {"topology": "ring", "compressor": {"kind": "block", "ratio": 512}, "gamma": 0.001},
    "ef_sgd": {"compressor": {"kind": "block", "ratio": 256}},
    "powersgd": {"rank": 1},
    "qsparse_local_sgd": {"compressor": {"kind": "block", "ratio": 32}, "sync_interval": 8},
    "local_sgd": {"sync_interval": 256},
    "diloco": {"sync_interval": 256},
    "ef21_sgdm": {"compressor": {"kind": "block", "ratio": 256}},
    "csea": {"error_compressor": {"kind": "block", "ratio": 256}},
    "cser_pl": {"error_compressor": {"kind": "block", "ratio": 16}, "reset_interval": 16},
    "cser": _CSER,
    "mcser": _CSER,
    "cser_released": _CSER,
    "mcser_released": _CSER,
}
"""Settings as a spec has them; SGD, D-PSGD and workers alone compress nothing."""

WITHOUT_MOMENTUM = ("cser", "cser_released")
"""The paper's algorithm 2 has none; with it they are M-CSER."""


def config_of(algorithm: str) -> RunConfig:
    """A run of eight workers on the Fashion-MNIST network with this algorithm."""
    return RunConfig(
        task=TaskSpec(name="fashion_mnist"),
        model=ModelSpec(name="small_cnn", options={"widths": [16, 64]}),
        num_workers=8,
        batch_size=16,
        num_epochs=1,
        algorithm=algorithm,
        settings=SETTINGS[algorithm],
        learning_rate=LEARNING_RATE,
        momentum=0.0 if algorithm in WITHOUT_MOMENTUM else MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        schedule=ScheduleSpec(kind="constant"),
        evaluation=EvaluationSpec(),
        seed=1,
    )


def build(algorithm: str, model: nn.Module, collectives: Collectives) -> DistributedOptimizer:
    """The algorithm on any model."""
    return build_optimizer(config_of(algorithm), model, collectives, num_steps=0)


def skip_to_reset(optimizer: DistributedOptimizer) -> None:
    """Let the next step but one be a reset's or a synchronisation's."""
    settings = SETTINGS[optimizer.name]
    optimizer.num_steps = settings.get("reset_interval", settings.get("sync_interval", 2)) - 2


def resnet50_parameters(device: str | torch.device = "cpu") -> nn.ParameterList:
    """161 tensors of ResNet-50's shapes, 25.6 million small random numbers, without gradients."""
    from torchvision.models import resnet50  # Takes seconds to import, and timing needs it not.

    with torch.device("meta"):
        shapes = [parameter.shape for parameter in resnet50().parameters()]
    return random_parameters(shapes, device)


def random_parameters(shapes: Iterable[tuple[int, ...]], device: str | torch.device = "cpu") -> nn.ParameterList:
    """Small random numbers of these shapes, without gradients."""
    generator = torch.Generator().manual_seed(1)
    tensors = (1e-2 * torch.randn(shape, generator=generator) for shape in shapes)
    return nn.ParameterList(nn.Parameter(tensor.to(device)) for tensor in tensors)


def fill_gradients(parameters: nn.ParameterList) -> None:
    """Give every parameter a gradient, in the tensor that it has for it or in a new one."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter)
        parameter.grad.fill_(1e-3)


def numel_of(parameters: nn.ParameterList) -> int:
    return sum(parameter.numel() for parameter in parameters)
