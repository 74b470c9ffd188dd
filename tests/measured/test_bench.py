"""Benchmarks: the time of a step over that of PyTorch's fused one on this machine, with its aim.

`make bench` runs them on an otherwise idle machine and ends in one table; `make test` leaves them
out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from statistics import median

import pytest
import torch

from cser_bench.algorithms.core.largest import places_of_largest
from cser_bench.harness.train.passes import seconds_to_idle
from cser_bench.harness.workers.attempt import prepare_thread
from tests.measured import subjects

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

Record = Callable[[str, object], None]
INTERVALS = 5
"""Repetitions, each a whole reset interval of steps, so that resets weigh what they do in
training."""
BUSY = 0.3
"""Load per core from which figures are not to be trusted."""
TOP_K_LIMIT = 0.5
"""Most share of the time of `torch.topk`, twice what was seen."""
WITHIN = 1.07
"""Factor of the traffic limit that a method's step should not exceed."""


@pytest.fixture(scope="module", autouse=True)
def idle() -> None:
    """Figures of a busy machine are no figures."""
    load = os.getloadavg()[0]
    if load > BUSY * len(os.sched_getaffinity(0)):
        print(
            f"the load was {load:.1f} before this began: measure again when the machine is idle"
        )


@pytest.fixture(scope="module")
def step_ratios() -> dict[str, list[float]]:
    """Each method's time of a reset interval over that of PyTorch's fused step, by repetition."""
    prepare_thread()
    steppers = {
        f"torch {momentum}": subjects.torch_stepper(
            momentum, subjects.random_parameters()
        )
        for momentum in (0.9, 0.0)
    }
    steppers |= {
        name: subjects.own_stepper(name, subjects.random_parameters())
        for name in subjects.PASSES
    }
    cpu = torch.device("cpu")
    timings = subjects.interval_seconds(steppers, INTERVALS, cpu)
    plain = {
        name: f"torch {subjects.config_of(name).momentum}" for name in subjects.PASSES
    }
    return {
        name: [
            own / fused
            for own, fused in zip(timings[name], timings[plain[name]], strict=True)
        ]
        for name in subjects.PASSES
    }


@pytest.mark.parametrize("name", subjects.PASSES)
def test_a_step_takes_no_more_than_its_traffic(
    step_ratios: dict[str, list[float]], name: str, record_property: Record
) -> None:
    """Over PyTorch's fused step, at 25.6 M parameters on one thread: vectors read and written, and
    7 % more."""
    ratio = median(step_ratios[name])
    passes_of_torch = 3 if name in subjects.WITHOUT_MOMENTUM else 5
    limit = subjects.PASSES[name] / passes_of_torch
    record_property("over torch fused", ratio)
    record_property("traffic limit", limit)
    record_property("all", sorted(step_ratios[name]))
    assert ratio <= WITHIN * limit


def test_top_k_takes_less_than_half_of_torch_topk(record_property: Record) -> None:
    """One in 192 of ResNet-50's 25.6 M numbers, on one thread; both in turn in one run."""
    prepare_thread()
    device = torch.device("cpu")
    generator = torch.Generator().manual_seed(1)
    numbers = torch.randn(25_600_000, generator=generator).abs()
    count = len(numbers) // 192
    calls = {
        "own": lambda: seconds_to_idle(
            lambda: places_of_largest(numbers, count), device
        ),
        "torch": lambda: seconds_to_idle(
            lambda: numbers.topk(count, sorted=False), device
        ),
    }
    found = subjects.interleave(calls, INTERVALS)
    ratio = median(
        own / plain for own, plain in zip(found["own"], found["torch"], strict=True)
    )
    record_property("over torch.topk", ratio)
    record_property("limit", TOP_K_LIMIT)
    assert ratio <= TOP_K_LIMIT


def test_passes_in_ddp_with_each_hook(record_property: Record) -> None:
    """On ResNet-50's parameters, over DDP's all-reduce in fp32: two processes over gloo, whose
    messages only cross this machine's memory."""
    device = torch.device("cpu")
    found, _ = subjects.on_processes(subjects.hook_seconds, device, None, INTERVALS)
    plain, *hooks = subjects.HOOKS
    for name in hooks:
        pairs = zip(found[name], found[plain], strict=True)
        ratios = sorted(own / whole for own, whole in pairs)
        record_property(f"{name}, over the all-reduce", median(ratios))
        record_property(f"{name}, all", ratios)
    for name in subjects.HOOKS:
        assert len(found[name]) == INTERVALS
