"""How long a run's arithmetic takes: measured on a dry step where that is quick, else modelled."""

from __future__ import annotations

import time
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from harness.build import build_model
from harness.spec import RunConfig
from harness.tasks.task import find_task

DRY_FLOPS = 2e9
"""Up to so much work in a forward pass a CPU is timed; beyond, the answer would take longer than a plan should."""

V100_RESNET50_IMAGES_PER_SECOND = {"fp32": 367.0, "fp16": 1200.0, "bf16": 367.0}
"""ResNet-50 v1.5 training on one V100-16GB; a V100 has no bf16. Source: NVIDIA DeepLearningExamples, PyTorch."""

RESNET50_FORWARD_FLOPS = 8.2e9
"""Per image of 224 x 224: 4.1 G multiply-adds (He et al., CVPR 2016, table 1: 3.8 G, v1.5 a little more)."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one worker's forward and backward pass, on what, and how this is known."""

    seconds: float
    device: str
    basis: str


@dataclass(frozen=True)
class Machine:
    """One line of prices.toml."""

    name: str
    gpus: int
    dollars_per_hour: float
    source: str


def prices() -> list[Machine]:
    """The price table."""
    table = tomllib.loads((Path(__file__).parent / "prices.toml").read_text())
    return [Machine(**machine) for machine in table["machines"]]


def step_time(config: RunConfig) -> StepTime:
    """Estimate for one step of one worker; touches no data, and takes at most a few seconds."""
    return _step_time(
        config.model.model_dump_json(), config.task.name, config.batch_size, config.precision, _Box(config)
    )


@dataclass(frozen=True)
class _Box:
    """Carries a config past the cache's key, which the other arguments are."""

    config: RunConfig

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Box)


@cache
def _step_time(model: str, task: str, batch_size: int, precision: str, box: _Box) -> StepTime:
    if torch.cuda.is_available():
        return StepTime(_measure(box.config, "cuda"), torch.cuda.get_device_name(), "measured on random images")
    flops = forward_flops(box.config)
    if flops <= DRY_FLOPS:
        return StepTime(_measure(box.config, "cpu"), "CPU core", "measured on random images")
    per_image = RESNET50_FORWARD_FLOPS * V100_RESNET50_IMAGES_PER_SECOND[precision]
    return StepTime(flops / per_image, "V100", "modelled: NVIDIA's ResNet-50 figure, scaled by arithmetic")


def forward_flops(config: RunConfig) -> float:
    """Floating-point operations of one worker's forward pass, counted on a model without memory."""
    task = find_task(config.task.name)
    model = build_model(config.model, task, 0, torch.device("meta"))
    inputs = torch.zeros((config.batch_size, *task.input_shape), device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs)
    return float(counter.get_total_flops())


def _measure(config: RunConfig, device: str) -> float:
    """Median seconds of a forward and backward pass, over at most two seconds."""
    torch.set_num_threads(1)
    task = find_task(config.task.name)
    model = build_model(config.model, task, 0, torch.device(device))
    inputs = torch.zeros((config.batch_size, *task.input_shape), device=device)
    times: list[float] = []
    while len(times) < 20 and sum(times) < 2.0:
        started = time.perf_counter()
        _pass(model, inputs)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return median(times)


def _pass(model: nn.Module, inputs: torch.Tensor) -> None:
    model(inputs).sum().backward()
