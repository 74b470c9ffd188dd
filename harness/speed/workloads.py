"""What one worker computes in a step, and how long a device takes: from sources, from arithmetic, or measured."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from harness.bench.methods import MOMENTUM, SMALL_CNN, short_run
from harness.plan.step_time import RESNET50_FORWARD_FLOPS, forward_flops, published_rate
from harness.records.timings import Workload
from harness.spec import ModelSpec, Precision, RunConfig, SpecError
from harness.tasks.task import find_task
from harness.train.build import build_model, lay_out
from harness.train.precision import MixedPrecision
from harness.train.stopwatch import seconds_to_idle
from harness.train.trainee import random_batch

FORWARD_SHARE = 1 / 3
"""Of the two passes' time: an assumption, since a backward pass has twice the forward pass's arithmetic."""
ASSUMPTION = "forward to backward as 1 to 2 (an assumption)"
MIN_STEPS, MAX_STEPS, MAX_SECONDS = 5, 200, 3.0


@dataclass(frozen=True)
class Problem:
    """A model, the task whose images or sentences it takes, and how many of them one worker has in a step."""

    task: str
    model: ModelSpec
    batch_size: int
    precision: Precision = "fp32"
    """That its experiment trains in on GPUs."""


FASHION_MNIST = Problem("fashion_mnist", SMALL_CNN, 16)
RESNET50 = Problem("imagenet", ModelSpec(name="resnet50"), 32, "fp16")
WIDE_RESNET = Problem("cifar100", ModelSpec(name="wide_resnet", options={"depth": 40, "width": 8}), 16)
TRANSFORMER = {"width": 64, "num_heads": 4, "num_layers": 1, "feedforward": 128}
CMUDICT = Problem("cmudict", ModelSpec(name="transformer", options=TRANSFORMER), 32)
PROBLEMS = {
    "fashion_mnist": FASHION_MNIST,
    "cmudict": CMUDICT,
    "resnet50": RESNET50,
    "wide_resnet_40_8": WIDE_RESNET,
    "resnet50_v100": RESNET50,
    "wide_resnet_40_8_v100": WIDE_RESNET,
}
"""By the workload's name."""
EMULATED = {"resnet50_v100": "mixed", "wide_resnet_40_8_v100": "fp32"}
"""Workloads with the times of a V100, by the precision of what is published of it; the others are measured."""


def problem_of(name: str) -> Problem:
    """Raises SpecError where there is no such workload; the message names those there are."""
    if name not in PROBLEMS:
        raise SpecError(f"unknown workload {name!r}; the workloads are {', '.join(PROBLEMS)}")
    return PROBLEMS[name]


def computes_in(name: str, device: torch.device) -> Precision:
    """The precision of a workload's passes: its experiment's on a GPU, fp32 on a CPU.

    Losses are not scaled: what is timed is the passes, and an overflow would leave a step out.
    """
    return problem_of(name).precision if device.type == "cuda" else "fp32"


def run_config(
    name: str, algorithm: str = "sgd", settings: dict[str, Any] | None = None, momentum: float = MOMENTUM
) -> RunConfig:
    """The workload as a run of one method."""
    problem = problem_of(name)
    return short_run(problem.task, problem.model, problem.batch_size, algorithm, settings or {}, momentum=momentum)


def workload(name: str, device: str) -> Workload:
    """The workload with its times: those of a published device where it has one, else measured on `device` now.

    Raises:
        SpecError: there is no such workload.
    """
    return _published(name) if is_emulated(name) else calibrate(name, device)


def is_emulated(name: str) -> bool:
    """Whether its times are those of a published device.

    Raises:
        SpecError: there is no such workload.
    """
    problem_of(name)
    return name in EMULATED


def _published(name: str) -> Workload:
    rate = published_rate(EMULATED[name])
    source, seconds = rate.source, problem_of(name).batch_size / rate.images_per_second
    if problem_of(name) is not RESNET50:
        source = f"modelled: scaled by arithmetic from {source}"
        seconds = forward_flops(run_config(name)) / (RESNET50_FORWARD_FLOPS * rate.images_per_second)
    forward = FORWARD_SHARE * seconds
    device = f"{rate.device}, {rate.precision}"
    return _workload(name, device, forward, seconds - forward, f"{source}; {ASSUMPTION}")


def _workload(name: str, device: str, forward: float, backward: float, source: str) -> Workload:
    problem = problem_of(name)
    model = build_model(problem.model, find_task(problem.task), 0, torch.device("meta"))
    return Workload(
        name=name,
        model=problem.model.name,
        batch_size=problem.batch_size,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        device=device,
        forward_seconds=forward,
        backward_seconds=backward,
        source=source,
    )


def calibrate(name: str, device: str) -> Workload:
    """The workload with its times as measured here: one worker alone on one core or GPU, random images, medians.

    Raises:
        SpecError: there is no such workload.
    """
    problem, place = problem_of(name), torch.device(device)
    torch.set_num_threads(1)
    task = find_task(problem.task)
    model = build_model(problem.model, task, 0, place)
    lay_out(model)
    generator = torch.Generator().manual_seed(0)
    inputs, labels = random_batch(task, problem.batch_size, generator, torch.empty(0, device=place))
    precision, loss = MixedPrecision(computes_in(name, place), place, scales=False), torch.zeros(())

    def forward_pass() -> None:
        nonlocal loss
        loss = precision.loss(model, inputs, labels)

    def backward_pass() -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    forward: list[float] = []
    backward: list[float] = []
    began = time.perf_counter()
    while len(forward) < MIN_STEPS or (len(forward) < MAX_STEPS and time.perf_counter() - began < MAX_SECONDS):
        model.zero_grad()
        forward.append(seconds_to_idle(forward_pass, place))
        backward.append(seconds_to_idle(backward_pass, place))
    where = torch.cuda.get_device_name(place) if place.type == "cuda" else "CPU core"
    source = f"measured here: medians of {len(forward) - 1} steps of one worker alone, on random images, "
    source += computes_in(name, place)
    return _workload(name, where, median(forward[1:]), median(backward[1:]), source)
