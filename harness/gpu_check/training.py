"""Check: every method learns random images by heart, two workers as threads on one device, and in how much memory."""

from __future__ import annotations

import math
from functools import partial

import torch

from algorithms import Collectives, algorithms, run_workers
from harness.gpu_check.memory import peak_bytes
from harness.gpu_check.problem import Scale, config_of, initial_model, trainee_of
from harness.gpu_check.record import Checks, Outcome
from harness.workers.attempt import prepare_thread


def checks(device: torch.device, scale: Scale) -> Checks:
    for name in algorithms():
        yield f"training: {name}", partial(learns, device, scale, name)


def learns(device: torch.device, scale: Scale, algorithm: str) -> Outcome:
    """Whether all losses are finite, and the last is less than half the first."""
    config = config_of(algorithm, scale)
    model = initial_model(config, device)
    num_steps = scale.num_steps * config.settings.get("accumulation_steps", 1)

    def work(collectives: Collectives) -> list[float]:
        prepare_thread(str(device))
        trainee = trainee_of(config, model, collectives)
        return torch.stack([trainee.step() for _ in range(num_steps)]).tolist()

    with peak_bytes(device) as peak:
        losses = [sum(each) / len(each) for each in zip(*run_workers(work, config.num_workers), strict=True)]
    passed = all(map(math.isfinite, losses)) and losses[-1] < losses[0] / 2
    measured = {"first loss": losses[0], "last loss": losses[-1], "peak bytes": peak.bytes}
    return Outcome(passed, "finite losses, the last less than half the first", measured)
