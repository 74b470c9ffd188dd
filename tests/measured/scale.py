"""What checks of GPUs train: random images of CIFAR's shape, a batch for each worker, to be learnt by heart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from algorithms import Compressor
from algorithms.registry import methods, settings
from harness.spec import ModelSpec, Precision, RunConfig
from harness.timing.workloads import Problem, short_run
from harness.workers.attempt import prepare_thread
from harness.workers.process_group import device_groups, joined
from harness.workers.processes import Worker, start_workers

RATIO, INTERVAL = 4, 4
"""Little compression and short intervals, so that a few steps show whether a method learns."""
ACCUMULATION_STEPS = 2
WAIT_SECONDS = 120.0
"""For a worker that does not come."""
T = TypeVar("T")


@dataclass(frozen=True)
class Scale:
    """How large the checks are.

    Attributes:
        model: trained by every method.
        batch_size: images of a worker.
        num_steps: of a training.
        shapes: of the parameters whose updates are timed; None for ResNet-50's.
        num_intervals: how many reset intervals are timed.
    """

    model: ModelSpec
    batch_size: int
    num_steps: int
    shapes: tuple[tuple[int, ...], ...] | None
    num_intervals: int


FULL = Scale(ModelSpec(name="wide_resnet", options={"depth": 40, "width": 8}), 16, 40, None, 5)
TINY = Scale(ModelSpec(name="wide_resnet", options={"depth": 10, "width": 1}), 4, 12, ((64, 32), (48,), (3, 3, 16)), 2)


def config_of(algorithm: str, scale: Scale, precision: Precision = "fp32", **own: Any) -> RunConfig:
    """A run of two workers with this algorithm; `own` are settings besides those that it requires."""
    # A dampened momentum steps 1 - 0.9 times as far.
    rate = 0.05 if methods()[algorithm].nesterov else 0.5
    more = {"num_workers": 2, "learning_rate": rate, "precision": precision}
    problem = Problem("cifar100", scale.model, scale.batch_size)
    return short_run(problem, algorithm, _required(algorithm) | own, **more)


def _required(algorithm: str) -> dict[str, Any]:
    method = methods()[algorithm]
    # For what is neither a compressor nor an interval, what the method itself says that it is to be tried with.
    table = {**(method.no_compression or {}), **method.tried_with}
    table = {key: table.get(key) for key, (_, required) in settings(method).items() if required}
    for key, (kind, _) in settings(method).items():
        if key in table and isinstance(kind, type) and issubclass(kind, Compressor):
            table[key] = {"kind": "block", "ratio": RATIO}
        elif key in table and kind is int:
            table[key] = ACCUMULATION_STEPS if key == "accumulation_steps" else INTERVAL
    return table


def on_processes(work: Callable[..., T], device: torch.device, *arguments: object, most: int = 2) -> list[T]:
    """What `work(device, *arguments)` gives on each of a group's processes: as many as there are GPUs, at most `most`.

    On a CPU there are two, over gloo.
    """
    world_size = min(most, torch.cuda.device_count()) if device.type == "cuda" else min(most, 2)
    devices = device_groups(device.type, world_size, torch.cuda.device_count())[0]
    with start_workers(_join_and, [(work, own, *arguments) for own in devices]) as workers:
        return workers.hear_all()


def _join_and(worker: Worker, work: Callable[..., T], device: str, *arguments: object) -> T:
    prepare_thread(device)
    with joined(device, WAIT_SECONDS, worker.init_method, worker.rank, worker.world_size):
        return work(torch.device(device), *arguments)
