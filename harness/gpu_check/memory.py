"""Check: the most memory that a step of each method takes at ResNet-50's size, against what is counted for plans."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from algorithms import SoloCollectives, algorithms
from harness.bench import methods
from harness.gpu_check.problem import Scale
from harness.gpu_check.record import Checks, Outcome

TEMPORARY = 1.0
"""Allowed beside parameters, gradients and state, in units of the parameters' size: for messages and their sums."""


@dataclass
class Peak:
    """Bytes beyond those held at the start; None on a CPU, where they are not counted."""

    bytes: int | None = None


@contextmanager
def peak_bytes(device: torch.device) -> Iterator[Peak]:
    """Fills in the peak of what is allocated inside, at the end."""
    peak = Peak()
    if device.type != "cuda":
        yield peak
        return
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    yield peak
    peak.bytes = torch.cuda.max_memory_allocated(device) - held


def checks(device: torch.device, scale: Scale) -> Checks:
    for name in algorithms():
        yield f"memory: {name}", partial(step_memory, device, scale, name)


def step_memory(device: torch.device, scale: Scale, algorithm: str) -> Outcome:
    """Three steps of a worker that is alone, a reset or synchronisation among them."""
    with peak_bytes(device) as peak:
        parameters = scale.parameters(device)
        optimizer = methods.build(algorithm, parameters, SoloCollectives())
        methods.skip_to_reset(optimizer)
        for _ in range(3):
            methods.fill_gradients(parameters)
            optimizer.step()
    unit = 4 * methods.numel_of(parameters)
    counted = 2 + optimizer.memory_in_parameters()
    expected = f"a peak of at most {TEMPORARY:g} more than is counted"
    measured = {"peak / parameters": None if peak.bytes is None else peak.bytes / unit, "counted / parameters": counted}
    passed = peak.bytes is None or peak.bytes / unit <= counted + TEMPORARY
    return Outcome(passed, expected, measured)
