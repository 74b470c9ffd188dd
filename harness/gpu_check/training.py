"""Check: every method learns random images by heart, and in how much memory.

The worker is alone; a baseline's is a process, alone in its group.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist

from algorithms import Collectives, ProcessGroupCollectives, SoloCollectives, algorithms
from algorithms.registry import baselines
from harness.gpu_check.memory import peak_bytes
from harness.gpu_check.problem import WAIT_SECONDS, Scale, config_of, initial_model, trainee_of
from harness.gpu_check.record import Checks, Outcome
from harness.workers.attempt import prepare_thread
from harness.workers.process_group import joined

Work = Callable[[Collectives], list[float]]
"""What one worker does: its losses."""


def checks(device: torch.device, scale: Scale) -> Checks:
    for name in algorithms():
        yield f"training: {name}", partial(learns, device, scale, name, alone)
    for name in baselines():
        yield f"training: {name}", partial(learns, device, scale, name, partial(as_a_process, device))


def alone(work: Work) -> list[float]:
    """The losses of a worker without a group."""
    return work(SoloCollectives())


def as_a_process(device: torch.device, work: Work) -> list[float]:
    """The losses of this process, a group of one."""
    try:
        with (
            tempfile.TemporaryDirectory(prefix="cser-bench-") as scratch,
            joined(str(device), WAIT_SECONDS, f"file://{scratch}/rendezvous", 0, 1),
        ):
            return work(ProcessGroupCollectives())
    finally:  # after a failure too, so that the next check can have a group
        if dist.is_initialized():
            dist.destroy_process_group()


def learns(device: torch.device, scale: Scale, algorithm: str, run: Callable[[Work], list[float]] = alone) -> Outcome:
    """Whether all losses are finite, and the last is less than half the first."""
    config = config_of(algorithm, scale)
    model = initial_model(config, device)
    num_steps = scale.num_steps * config.settings.get("accumulation_steps", 1)

    def work(collectives: Collectives) -> list[float]:
        prepare_thread(str(device))
        trainee = trainee_of(config, model, collectives)
        return torch.stack([trainee.step() for _ in range(num_steps)]).tolist()

    with peak_bytes(device) as peak:
        losses = run(work)
    passed = all(map(math.isfinite, losses)) and losses[-1] < losses[0] / 2
    measured = {"first loss": losses[0], "last loss": losses[-1], "peak bytes": peak.bytes}
    return Outcome(passed, "finite losses, the last less than half the first", measured)
