"""What a run will send, hold and take, from its settings alone: the optimiser is made on a model without memory.

A step's arithmetic is measured on dry steps on a GPU, or where that is quick, else reckoned from published rates. In a
dry step one worker trains on random images, alone and without data.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from algorithms import DistributedOptimizer, SoloCollectives, StackedCollectives
from algorithms.baselines.ddp import DDP
from algorithms.core.topology import spectral_gap
from algorithms.registry import methods
from harness.plan.peak import peak_models
from harness.records.hardware import TrainingRate, hardware
from harness.spec import ModelSpec, RunConfig, ScheduleSpec, Spec, SpecError
from harness.tasks.task import find_task
from harness.train.build import build_model, build_optimizer, num_steps_of, trainable
from harness.train.local_workers import Trainee, seconds_to_idle
from harness.train.training import check_restart, planned_traffic

MAX_STEPS, MAX_SECONDS = 20, 1.0
"""Dry steps at the most."""

DRY_FLOPS = 2e9
"""Up to so much work in a forward pass a CPU is timed; beyond, the answer would take longer than a plan should."""
MEASURED, CPU = "measured on dry steps on random images", "CPU core"

RESNET50_FORWARD_FLOPS = 8.2e9
"""Per image of 224 x 224: 4.1 G multiply-adds (He et al., CVPR 2016, table 1: 3.8 G, v1.5 a little more)."""


@dataclass(frozen=True)
class Footprint:
    """Of one worker, in a whole run.

    `gathered_bits` of the payload bits go by all-gathers, and `neighbour_bits` straight to neighbours.
    """

    formula: str
    num_parameters: int
    num_steps: int
    num_workers: int
    bits: int
    gathered_bits: int
    neighbour_bits: int
    memory_bytes: int
    peak_models: float
    """The most that a step holds, in models; see `harness.plan.peak`."""
    checkpoint_bytes: int
    """Of one generation: the model's state and the optimiser's."""
    averages_models: bool
    """Whether what comes of the run is the workers' average, and not each worker's own model."""
    final_exchange: bool
    """Whether that average is still to be taken when the run is over."""
    spectral_gap: float | None
    """Of the topology, where workers talk to their neighbours alone."""
    num_rounds: int
    """Steps after which such a topology begins anew, to which the gap then belongs."""

    @property
    def ratio(self) -> float:
        """d / (numbers sent per step), a number being 32 bits."""
        return self.num_steps / (self.bits / self._model_bits) if self.bits else float("inf")

    @property
    def models_in_training(self) -> float:
        return self.bits / self._model_bits

    @property
    def models_sent(self) -> float:
        """In models of 32 d bits, the final exchange included."""
        return self.models_in_training + self.final_exchange

    @property
    def link_models(self) -> float:
        """What one worker's link carries for that.

        Of a ring all-reduce 2 (n-1)/n times the payload, of an all-gather n-1 times; what goes to neighbours once.
        """
        n = self.num_workers
        gathered, to_neighbours = self.gathered_bits / self._model_bits, self.neighbour_bits / self._model_bits
        return 2 * (n - 1) / n * (self.models_sent - gathered - to_neighbours) + (n - 1) * gathered + to_neighbours

    @property
    def _model_bits(self) -> int:
        return 32 * self.num_parameters


def check_common(spec: Spec) -> None:
    """Look at what all rows have in common; raises SpecError for a task, model, metric or beam that cannot be."""
    task = spec.task.name
    known = getattr(find_task(task), "metrics", ())
    _model_without_memory(spec.model.model_dump_json(), task)
    every = ("accuracy", "loss", *known)
    if spec.statistics.metric not in every:
        raise SpecError(
            f"statistics.metric: task {task} is not scored by {spec.statistics.metric!r}; give one of "
            f"{', '.join(every)}"
        )
    if spec.evaluation.beam > 1 and not known:
        raise SpecError(f"evaluation.beam: task {task} has no sentences to decode; remove it")


def footprint_of(config: RunConfig) -> Footprint:
    """Check the settings, and count; rates and seeds change nothing here. Raises SpecError: a setting is of no use."""
    same: dict[str, Any] = {"seed": 0, "repeat": 0}
    if not getattr(methods().get(config.algorithm), "traffic_follows_rate", False):
        same |= {"learning_rate": 1.0, "schedule": ScheduleSpec(kind="constant")}
    return _footprint(config.model_copy(update=same).model_dump_json())


@cache
def _footprint(config_json: str) -> Footprint:
    config = RunConfig.model_validate_json(config_json)
    per_epoch, num_steps = num_steps_of(config)
    evaluation = config.evaluation  # More scores than steps would silently be fewer.
    if evaluation.num_scores is not None and evaluation.num_scores > num_steps:
        raise SpecError(f"evaluation.num_scores = {evaluation.num_scores} is more than the run's {num_steps} steps")
    if evaluation.num_scores is None and evaluation.per_epoch > per_epoch:
        raise SpecError(f"evaluation.per_epoch = {evaluation.per_epoch} is more than the {per_epoch} steps of an epoch")
    empty = _model_without_memory(config.model.model_dump_json(), config.task.name)
    # All workers stacked, since what a worker sends to neighbours depends on how many there are.
    expanded = (each.detach().expand(config.num_workers, *each.shape) for each in empty.parameters())
    stacked = [nn.Parameter(tensor) for tensor in expanded]
    optimizer = build_optimizer(config, empty, StackedCollectives(config.num_workers), num_steps, stacked)
    layout = optimizer.flat.layout
    element = optimizer.flat.parameters.element_size()
    if config.restart is not None:
        check_restart(config.restart, optimizer, num_steps, config.num_workers)
    has_tail = config.restart is not None and config.restart.everything_sent
    traffic, rounds = planned_traffic(config, optimizer, num_steps), optimizer.rounds
    return Footprint(
        formula=optimizer.formula.replace("32 ", f"{optimizer.float_bits} "),
        num_parameters=layout.numel,
        num_steps=num_steps,
        num_workers=config.num_workers,
        bits=traffic.training_bits,
        gathered_bits=sum(entry.gathered_bits for entry in traffic.training().values()),
        neighbour_bits=sum(entry.neighbour_bits for entry in traffic.training().values()),
        memory_bytes=round((2 + optimizer.memory_in_parameters()) * layout.numel) * element,
        peak_models=peak_models(config, empty, num_steps),
        checkpoint_bytes=_bytes_of(empty.state_dict().values()) + _worker_bytes(optimizer, config.num_workers),
        averages_models=optimizer.averages_models,
        final_exchange=optimizer.averages_models and not (has_tail or optimizer.agree_after(num_steps)),
        spectral_gap=spectral_gap(rounds) if rounds else None,
        num_rounds=len(rounds) or 1,
    )


def _worker_bytes(optimizer: DistributedOptimizer, num_workers: int) -> int:
    """Of the state that one worker saves, where all of them are stacked."""
    stacked = optimizer.flat.parameters.shape
    state = [each for each in optimizer.state_dict()["param_groups"][0]["flat"].values() if isinstance(each, Tensor)]
    in_hook = optimizer.hook_numel if isinstance(optimizer, DDP) else 0
    return _bytes_of(each[0] if each.shape == stacked else each for each in state) + 4 * in_hook


def _bytes_of(state: Iterable[object]) -> int:
    return sum(each.numel() * each.element_size() for each in state if isinstance(each, Tensor))


@cache
def _model_without_memory(model: str, task: str) -> nn.Module:
    """The model on the meta device, built once for all the rows that it is checked with, which leave it as it is."""
    return build_model(ModelSpec.model_validate_json(model), find_task(task), 0, torch.device("meta"))


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
    return next(rate for rate in hardware().training if rate.gpus == 1 and rate.precision == precision)


def step_times(config: RunConfig) -> tuple[StepTime, ...]:
    """A worker's step, measured, or by each rate published of eight GPUs together, the fastest first; without data."""
    key = (config.model.model_dump_json(), config.task.name, config.batch_size, config.precision)
    if key not in _KNOWN_TIMES:
        _KNOWN_TIMES[key] = _step_times(config)
    return _KNOWN_TIMES[key]


_KNOWN_TIMES: dict[tuple[str, str, int, str], tuple[StepTime, ...]] = {}
"""By what a step's time depends on: model, task, batch size and precision."""


def _step_times(config: RunConfig) -> tuple[StepTime, ...]:
    if torch.cuda.is_available():
        return (dry_steps(config, torch.device("cuda", 0)),)
    flops = forward_flops(config)
    if flops <= DRY_FLOPS:
        return (dry_steps(config, torch.device("cpu")),)
    wanted = "mixed" if config.precision == "fp16" else "fp32"  # A V100 has no bf16.
    rates = [rate for rate in hardware().training if (rate.gpus, rate.precision, rate.batch_size) == (8, wanted, None)]
    # What so many operations of a forward pass take at the rate published for ResNet-50.
    seconds = [flops / (RESNET50_FORWARD_FLOPS * rate.images_per_second / rate.gpus) for rate in rates]
    times = zip(seconds, rates, strict=True)
    found = [StepTime(each, rate.device, f"scaled by arithmetic from {rate.source}") for each, rate in times]
    return tuple(sorted(found, key=lambda time: time.seconds))


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
    name = torch.cuda.get_device_name(device) if cuda else CPU
    return StepTime(median(times), name, MEASURED, peak)
