"""What a step's arithmetic takes: measured on dry steps on a GPU or where that is quick, else from published rates.

In a dry step one worker trains on random images, alone and without data.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from algorithms import SoloCollectives
from harness.records.hardware import TrainingRate, training_rates
from harness.spec import RunConfig
from harness.tasks.task import find_task
from harness.train.build import build_model, trainable
from harness.train.clock import seconds_to_idle
from harness.train.local_workers import Trainee

MAX_STEPS, MAX_SECONDS = 20, 1.0
"""Dry steps at the most."""

DRY_FLOPS = 2e9
"""Up to so much work in a forward pass a CPU is timed; beyond, the answer would take longer than a plan should."""
MEASURED = "measured on dry steps on random images"

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


def published_rate(precision: str) -> TrainingRate:
    """What one V100 takes for ResNet-50: "mixed", or "fp32"."""
    return next(rate for rate in training_rates() if rate.gpus == 1 and rate.precision == precision)


def step_times(config: RunConfig) -> tuple[StepTime, ...]:
    """One step of one worker, as measured, or by each rate published of eight GPUs together, the fastest first.

    Touches no data, and without a GPU takes at most two seconds.
    """
    key = (config.model.model_dump_json(), config.task.name, config.batch_size, config.precision)
    if key not in _KNOWN:
        _KNOWN[key] = _step_times(config)
    return _KNOWN[key]


_KNOWN: dict[tuple[str, str, int, str], tuple[StepTime, ...]] = {}
"""By what a step's time depends on: model, task, batch size and precision."""


def _step_times(config: RunConfig) -> tuple[StepTime, ...]:
    if torch.cuda.is_available():
        return (dry_steps(config, torch.device("cuda", 0)),)
    flops = forward_flops(config)
    if flops <= DRY_FLOPS:
        return (dry_steps(config, torch.device("cpu")),)
    wanted = "mixed" if config.precision == "fp16" else "fp32"  # A V100 has no bf16.
    rates = [rate for rate in training_rates() if (rate.gpus, rate.precision, rate.batch_size) == (8, wanted, None)]
    times = [_scaled(flops, rate) for rate in rates]
    return tuple(sorted(times, key=lambda time: time.seconds))


def _scaled(flops: float, rate: TrainingRate) -> StepTime:
    """What so many operations of a forward pass take at the rate published for ResNet-50."""
    seconds = flops / (RESNET50_FORWARD_FLOPS * rate.images_per_second / rate.gpus)
    return StepTime(seconds, rate.device, f"scaled by arithmetic from {rate.source}")


def forward_flops(config: RunConfig) -> float:
    """Floating-point operations of one worker's forward pass, counted on a model without memory."""
    task = find_task(config.task.name)
    model = build_model(config.model, task, 0, torch.device("meta"))
    inputs = torch.zeros((config.batch_size, *task.input_shape), device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs)
    return float(counter.get_total_flops())


def dry_steps(config: RunConfig, device: torch.device) -> StepTime:
    """Take steps of the config's model, batch and precision, with plain SGD, as training takes them on the device."""
    torch.set_num_threads(1)
    cuda = device.type == "cuda"
    plain = config.model_copy(update={"algorithm": "sgd", "settings": {}})
    trainee = Trainee(plain, trainable(plain, device), SoloCollectives())
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device) if cuda else 0
    trainee.step()  # The first one sets things up.
    times = [seconds_to_idle(trainee.step, device)]
    while len(times) < MAX_STEPS and sum(times) < MAX_SECONDS:
        times.append(seconds_to_idle(trainee.step, device))
    peak = torch.cuda.max_memory_allocated(device) - held if cuda else None
    name = torch.cuda.get_device_name(device) if cuda else "CPU core"
    return StepTime(median(times), name, MEASURED, peak)
