"""Dry steps: one worker trains on random images, alone and without data, for the time and the memory of a step."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import torch

from algorithms import SoloCollectives
from harness.spec import RunConfig
from harness.tasks.task import find_task
from harness.train.build import build_model
from harness.train.stopwatch import seconds_to_idle
from harness.train.trainee import Trainee

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
    plain = config.model_copy(update={"algorithm": "sgd", "settings": {}})
    model = build_model(config.model, find_task(config.task.name), 0, device)
    trainee = Trainee(plain, model, SoloCollectives())
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device) if cuda else 0
    trainee.step()  # The first one sets things up.
    times = [seconds_to_idle(trainee.step, device)]
    while len(times) < MAX_STEPS and sum(times) < MAX_SECONDS:
        times.append(seconds_to_idle(trainee.step, device))
    peak = torch.cuda.max_memory_allocated(device) - held if cuda else None
    return DrySteps(median(times), peak)
