"""Dry steps: one worker trains on random images, alone and without data, for the time and the memory of a step."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import torch

from algorithms import SoloCollectives
from harness.spec import RunConfig
from harness.tasks.task import find_task
from harness.train.build import build_model, build_optimizer
from harness.train.precision import MixedPrecision

MAX_STEPS, MAX_SECONDS = 20, 1.0


@dataclass(frozen=True)
class DrySteps:
    """What was measured.

    Attributes:
        seconds: of a step, forward and backward pass and update; the median.
        activation_bytes: the most memory beyond parameters, gradients, momentum and batch; None on a CPU, where it is
            not counted.
    """

    seconds: float
    activation_bytes: int | None


def dry_steps(config: RunConfig, device: torch.device) -> DrySteps:
    """Take steps of the config's model, batch and precision, with plain SGD."""
    torch.set_num_threads(1)
    cuda = device.type == "cuda"
    task = find_task(config.task.name)
    model = build_model(config.model, task, 0, device)
    plain = config.model_copy(update={"algorithm": "sgd", "settings": {}})
    optimizer = build_optimizer(plain, model, SoloCollectives(), 1)
    precision = MixedPrecision(config.precision, device)
    inputs = torch.randn((config.batch_size, *task.input_shape), generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.zeros(config.batch_size, dtype=torch.int64, device=device)

    def step() -> float:
        started = time.perf_counter()
        optimizer.zero_grad()
        precision.backward(precision.loss(model, inputs, labels))
        precision.step(optimizer)
        if cuda:
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device) if cuda else 0
    step()  # The first one sets things up.
    times = [step()]
    while len(times) < MAX_STEPS and sum(times) < MAX_SECONDS:
        times.append(step())
    peak = torch.cuda.max_memory_allocated(device) - held if cuda else None
    return DrySteps(median(times), peak)
