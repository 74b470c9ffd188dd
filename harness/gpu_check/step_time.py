"""Check: the time of a step of every method at ResNet-50's size, against PyTorch's fused SGD."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from algorithms import algorithms
from harness.bench import methods
from harness.bench.measurement import ratio
from harness.bench.optimizer_step import own_step, torch_step
from harness.gpu_check.problem import Scale
from harness.gpu_check.record import Checks, Outcome
from harness.train.stopwatch import interleave, seconds_on, sums

FUSED, PLAIN = "torch fused", "torch fused, no momentum"


def checks(device: torch.device, scale: Scale) -> Checks:
    yield "step time", partial(step_times, device, scale)


def step_times(device: torch.device, scale: Scale) -> Outcome:
    """Milliseconds of a step, and its ratio to PyTorch's with the same momentum: medians and quartiles.

    Each repetition is a whole reset interval, so that resets weigh what they do in training.
    """
    calls: dict[str, Callable[[], object]] = {
        FUSED: torch_step(scale.parameters(device), methods.MOMENTUM, fused=True),
        PLAIN: torch_step(scale.parameters(device), 0.0, fused=True),
    }
    for name in algorithms():
        calls[name] = own_step(scale.parameters(device), name)
    steps = interleave(calls, scale.num_intervals * methods.RESET_INTERVAL, seconds_on(device))
    timings = {name: sums(seconds, methods.RESET_INTERVAL) for name, seconds in steps.items()}
    measured: dict[str, dict[str, object]] = {}
    for name, seconds in timings.items():
        measured[name] = {"ms": 1e3 * median(seconds) / methods.RESET_INTERVAL}
        if name in algorithms():
            below = PLAIN if name in methods.WITHOUT_MOMENTUM else FUSED
            figure = ratio(name, below, timings, name, below)
            measured[name] |= {"ratio": figure.measured, "quartiles": figure.quartiles}
    passed = all(min(seconds) > 0 for seconds in timings.values())
    return Outcome(passed, "times of steps, which are to be kept", measured)
