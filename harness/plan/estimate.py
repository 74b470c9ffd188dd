"""What a run's arithmetic takes: measured on dry steps on a GPU or where that is quick, else modelled."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.plan.dry_step import dry_steps
from harness.spec import RunConfig
from harness.tasks.task import find_task
from harness.train.build import build_model

DRY_FLOPS = 2e9
"""Up to so much work in a forward pass a CPU is timed; beyond, the answer would take longer than a plan should."""
MEASURED = "measured on dry steps on random images"

V100_RESNET50_IMAGES_PER_SECOND = {"fp32": 367.0, "fp16": 1200.0, "bf16": 367.0}
"""ResNet-50 v1.5 training on one V100-16GB; a V100 has no bf16. Source: NVIDIA DeepLearningExamples, PyTorch."""

RESNET50_FORWARD_FLOPS = 8.2e9
"""Per image of 224 x 224: 4.1 G multiply-adds (He et al., CVPR 2016, table 1: 3.8 G, v1.5 a little more)."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one worker's forward and backward pass and update, on what, and how this is known.

    `activation_bytes`: memory that they need beside parameters, gradients and momentum, where it was measured.
    """

    seconds: float
    device: str
    basis: str
    activation_bytes: int | None = None


@dataclass(frozen=True)
class Machine:
    """One line of prices.toml."""

    name: str
    gpu: str
    gpus: int
    dollars_per_hour: float
    source: str


def prices() -> list[Machine]:
    """The price table."""
    table = tomllib.loads((Path(__file__).parent / "prices.toml").read_text())
    return [Machine(**machine) for machine in table["machines"]]


def step_time(config: RunConfig) -> StepTime:
    """Estimate for one step of one worker; touches no data, and without a GPU takes at most two seconds."""
    key = (config.model.model_dump_json(), config.task.name, config.batch_size, config.precision)
    if key not in _KNOWN:
        _KNOWN[key] = _step_time(config)
    return _KNOWN[key]


_KNOWN: dict[tuple[str, str, int, str], StepTime] = {}
"""By what a step's time depends on: model, task, batch size and precision."""


def _step_time(config: RunConfig) -> StepTime:
    if torch.cuda.is_available():
        measured = dry_steps(config, torch.device("cuda", 0))
        return StepTime(measured.seconds, torch.cuda.get_device_name(0), MEASURED, measured.activation_bytes)
    flops = forward_flops(config)
    if flops <= DRY_FLOPS:
        return StepTime(dry_steps(config, torch.device("cpu")).seconds, "CPU core", MEASURED)
    per_image = RESNET50_FORWARD_FLOPS * V100_RESNET50_IMAGES_PER_SECOND[config.precision]
    return StepTime(flops / per_image, "V100", "modelled: NVIDIA's ResNet-50 figure, scaled by arithmetic")


def forward_flops(config: RunConfig) -> float:
    """Floating-point operations of one worker's forward pass, counted on a model without memory."""
    task = find_task(config.task.name)
    model = build_model(config.model, task, 0, torch.device("meta"))
    inputs = torch.zeros((config.batch_size, *task.input_shape), device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs)
    return float(counter.get_total_flops())
