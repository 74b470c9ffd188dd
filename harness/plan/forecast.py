"""Forecast of a plan, before any run: hours, dollars, and the power of its contrasts.

A step's time is measured by dry steps on a GPU, or on a CPU if that is quick, and else computed
from published rates. In a dry step one worker trains on random images, alone and without data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from cser_bench.algorithms import SoloCollectives
from cser_bench.harness.cores import usable_cores
from cser_bench.harness.measures.hardware import Machine, TrainingRate, hardware
from cser_bench.harness.plan.plan import Plan
from cser_bench.harness.records.experiment import Contrast, Experiment, Row
from cser_bench.harness.spec.run import RunConfig
from cser_bench.harness.tasks.task import find_task
from cser_bench.harness.train.build import build_model, trainable
from cser_bench.harness.train.passes import DryTraining, seconds_to_idle
from cser_bench.harness.train.schedule import num_steps_of

MAX_STEPS = 20
MAX_SECONDS = 1.0
"""Number and duration of dry steps, at most."""

DRY_FLOPS = 2e9
"""Up to so much work in a forward pass a CPU is timed; beyond, the answer would take longer than a
plan should."""
MEASURED = "measured on dry steps on random images"
CPU = "CPU core"

RESNET50_FORWARD_FLOPS = 8.2e9
"""Per image of 224 x 224: 4.1 G multiply-adds (He et al., CVPR 2016, table 1: 3.8 G, v1.5 a little
more)."""

LEVEL = 0.05
_POINTS = 200
"""Quantiles of each estimated variance that a test's power is averaged over."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one worker's forward and backward pass and update, on what, and how this is known.

    `activation_bytes`: memory that they need in addition to parameters, gradients and momentum, where it
        was measured.
    """

    seconds: float
    device: str
    basis: str
    activation_bytes: int | None = None


def published_rate(precision: str) -> TrainingRate:
    """Return what one V100 takes for ResNet-50: "mixed", or "fp32"."""
    return next(
        rate
        for rate in hardware().training
        if rate.gpus == 1 and rate.precision == precision
    )


def step_times(config: RunConfig) -> tuple[StepTime, ...]:
    """Return the times of a worker's step without data, the fastest first.

    It is the measured one, or one by each published rate of eight GPUs together.
    """
    key = (
        config.model.model_dump_json(),
        config.task.name,
        config.batch_size,
        config.precision,
    )
    if key not in _STEP_TIMES:
        _STEP_TIMES[key] = _step_times(config)
    return _STEP_TIMES[key]


_STEP_TIMES: dict[tuple[str, str, int, str], tuple[StepTime, ...]] = {}
"""By what a step's time depends on: model, task, batch size and precision."""


def _step_times(config: RunConfig) -> tuple[StepTime, ...]:
    if torch.cuda.is_available():
        return (dry_steps(config, torch.device("cuda", 0)),)
    flops = forward_flops(config)
    if flops <= DRY_FLOPS:
        return (dry_steps(config, torch.device("cpu")),)
    # A V100 has no bf16.
    precision = "mixed" if config.precision == "fp16" else "fp32"
    times = []
    for rate in hardware().training:
        if (rate.gpus, rate.precision, rate.batch_size) != (8, precision, None):
            continue
        # What so many operations of a forward pass take at the rate published for ResNet-50.
        flops_per_second = RESNET50_FORWARD_FLOPS * rate.images_per_second / rate.gpus
        basis = f"scaled by arithmetic from {rate.source}"
        times.append(StepTime(flops / flops_per_second, rate.device, basis))
    return tuple(sorted(times, key=lambda time: time.seconds))


def forward_flops(config: RunConfig) -> float:
    """Return the floating-point operations of one worker's forward pass.

    They are counted on a model without memory.
    """
    task = find_task(config.task.name)
    model = build_model(config.model, task, 0, torch.device("meta"))
    # On the meta device operations are counted and not done.
    inputs = torch.zeros((config.batch_size, *task.input_shape), device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs)
    return float(counter.get_total_flops())


def dry_steps(config: RunConfig, device: torch.device) -> StepTime:
    """Take steps on the device as training takes them there, and return their time.

    They are of the config's model, batch and precision, with plain SGD.
    """
    # As in training, where a worker keeps one core.
    torch.set_num_threads(1)
    plain = config.with_everything_sent()
    training = DryTraining(plain, trainable(plain, device), SoloCollectives())
    if device.type != "cuda":
        return StepTime(_median_seconds(training, device), CPU, MEASURED)
    torch.cuda.reset_peak_memory_stats(device)
    # What is there before a step: parameters, gradients, momentum, batches.
    held_bytes = torch.cuda.memory_allocated(device)
    seconds = _median_seconds(training, device)
    activation_bytes = torch.cuda.max_memory_allocated(device) - held_bytes
    return StepTime(
        seconds, torch.cuda.get_device_name(device), MEASURED, activation_bytes
    )


def _median_seconds(training: DryTraining, device: torch.device) -> float:
    training.step()  # The first one sets things up.
    times = [seconds_to_idle(training.step, device)]
    while len(times) < MAX_STEPS and sum(times) < MAX_SECONDS:
        times.append(seconds_to_idle(training.step, device))
    return median(times)


@dataclass(frozen=True)
class Effort:
    """What all runs of a plan take, one after the other.

    Attributes:
        configs: of the runs that differ.
        compute: hours by each step's time that is known; least first.
        link_bits: what crosses a worker's link in all runs.
        link_bits_per_second: of a node; 0 where nothing passes one, or nobody knows.
    """

    configs: list[RunConfig]
    compute: list[tuple[StepTime, float]]
    link_bits: float
    link_bits_per_second: float

    def hours(self, link_bits_per_second: float) -> tuple[float, float]:
        """Return the fewest and the most hours on such a link.

        The fewest are at the fastest step known with all communication hidden, the most at the
        slowest with none hidden.
        """
        _, least = self.compute[0]
        _, most = self.compute[-1]
        return least, most + hours_on(self.link_bits, link_bits_per_second)


def effort_of(plan: Plan, link_bits_per_second: float | None = None) -> Effort:
    """Return what the plan's runs take; where there is a GPU or the network is small, by dry steps.

    Args:
        link_bits_per_second: of a node, 0 where nothing passes one or nobody knows; None for such
            GPUs' usual link.
    """
    bits = {row.row: link_bits_of(row) for row in plan.experiment.rows}
    runs = list(plan.by_id.values())
    # One for each kind of device, alike in all runs of a plan.
    times_by_device = step_times(runs[0].config)
    compute = []
    for place, time in enumerate(times_by_device):
        seconds = 0.0
        for run in runs:
            _, num_steps = num_steps_of(run.config)
            seconds += step_times(run.config)[place].seconds * num_steps
        compute.append((time, seconds / 3600))
    device = times_by_device[0].device
    if link_bits_per_second is None:
        link_bits_per_second = _usual_link(device)
    return Effort(
        configs=[run.config for run in runs],
        compute=compute,
        link_bits=sum(bits[run.row] for run in runs),
        # Workers on a CPU are rows of one process, and nothing passes a link.
        link_bits_per_second=0.0 if device == CPU else link_bits_per_second,
    )


def _usual_link(device: str) -> float:
    """Return the usual link of machines with one such GPU, in bits a second.

    It is 0 where none is known.
    """
    for machine in _with(device):
        if machine.gpus == 1:
            return machine.bits_per_second
    return 0.0


def link_bits_of(row: Row) -> float:
    """Return what crosses a worker's link in a run of the row."""
    return (row.link_models or 0.0) * 32 * row.num_parameters


def hours_on(bits: float, link_bits_per_second: float) -> float:
    """Return the hours that bits take on a link at its full rate.

    There are none where there is no link.
    """
    if not link_bits_per_second:
        return 0.0
    return bits / link_bits_per_second / 3600


def _with(device: str) -> list[Machine]:
    """Return the machines of the price table that have such GPUs."""
    return [machine for machine in hardware().machines if machine.device in device]


def cost_sentences(effort: Effort) -> list[str]:
    """Return sentences on runs, memory, and hours and dollars of all runs."""
    time, hours = effort.compute[0]
    config = effort.configs[0]
    activations = "without activations (a GPU would measure them)"
    if time.activation_bytes is not None:
        activations = (
            f"to which activations add {time.activation_bytes / 1e6:,.0f} MB ({time.basis}: "
            f"{config.batch_size} of them, {config.precision})"
        )
    first = (
        f"{len(effort.configs)} runs; {1e3 * time.seconds:.3g} ms of compute a step; memory: "
        f"parameters, gradients and optimiser state, {activations}"
    )
    if time.device == CPU:
        return [first, *_cpu_sentences(time, hours * config.num_workers)]
    return [first, *_gpu_sentences(effort), *_dollar_sentences(effort)]


def _cpu_sentences(time: StepTime, core_hours: float) -> list[str]:
    num_cores = len(usable_cores())
    return [
        f"{core_hours:,.1f} CPU core hours for forward and backward passes and updates "
        f"({time.basis}); communication, data and evaluation come on top",
        f"about {60 * core_hours / num_cores:.0f} min on the {num_cores} cores of this machine",
    ]


def _gpu_sentences(effort: Effort) -> list[str]:
    num_workers = effort.configs[0].num_workers
    num_runs = len(effort.configs)
    lines = [
        f"hours on {num_workers} GPUs, of a run and of all {num_runs} one after the other:"
    ]
    for time, hours in effort.compute:
        of_run = _hours_in_words(hours / num_runs)
        lines.append(
            f"  {of_run} and {_hours_in_words(hours)} ({time.device}; {time.basis})"
        )
    link = effort.link_bits_per_second
    if link:
        added = hours_on(effort.link_bits, link)
        lines.append(
            f"  modelled communication at {link / 1e9:g} Gb/s, at line rate and with nothing "
            f"hidden: {_hours_in_words(added / num_runs)} more on average, {_hours_in_words(added)} in all; by "
            "row above"
        )
    low, high = effort.hours(link)
    lines.append(
        f"  so {_hours_in_words(low)} to {_hours_in_words(high)} in all; evaluation comes on top"
    )
    return lines


def _dollar_sentences(effort: Effort) -> list[str]:
    time, _ = effort.compute[0]
    machines = _with(time.device)
    if not machines:
        return [f"no price: harness/measures/hardware.toml has none for {time.device}"]
    lines = []
    for machine in machines:
        low, high = _dollars_on(machine, effort)
        lines.append(
            f"about {low:,.0f} to {high:,.0f} dollars on {_num_machines(machine, effort)} x "
            f"{machine.name} ({machine.source})"
        )
    return lines


def _num_machines(machine: Machine, effort: Effort) -> int:
    # Rounded up.
    return -(-effort.configs[0].num_workers // machine.gpus)


def _dollars_on(machine: Machine, effort: Effort) -> tuple[float, float]:
    """Return the fewest and the most dollars on as many such machines as the workers need."""
    count = _num_machines(machine, effort)
    # Each kind of machine with its own link, which one alone does not need.
    low, high = effort.hours(machine.bits_per_second if count > 1 else 0.0)
    dollars_per_hour = count * machine.dollars_per_hour
    return low * dollars_per_hour, high * dollars_per_hour


def next_stage_sentence(
    plan: Plan, link_bits_per_second: float | None = None
) -> str | None:
    """Say what the stage after the plan's own adds, and what that takes; None where there is none.

    Args:
        link_bits_per_second: as of `effort_of`.
    """
    if plan.next_stage is None:
        return None
    effort = effort_of(plan.next_stage, link_bits_per_second)
    num_workers = effort.configs[0].num_workers
    num_runs = len(effort.configs)
    added = f"the next stage, {plan.next_stage.stage}, adds {num_runs} run{'s' if num_runs > 1 else ''}"
    time, hours = effort.compute[0]
    if time.device == CPU:
        return f"{added}: {hours * num_workers:,.1f} CPU core hours"
    low, high = effort.hours(effort.link_bits_per_second)
    taken = (
        f"{_hours_in_words(low)} to {_hours_in_words(high)} hours on {num_workers} GPUs"
    )
    dollars = [_dollars_on(machine, effort) for machine in _with(time.device)]
    if dollars:
        least = min(low for low, _ in dollars)
        most = max(high for _, high in dollars)
        taken += f", about {least:,.0f} to {most:,.0f} dollars"
    return f"{added}: {taken}"


def _hours_in_words(hours: float) -> str:
    if hours >= 10:
        return f"{hours:,.0f}"
    return f"{hours:.2g}"


def powers(
    experiment: Experiment, deviation: float
) -> list[tuple[Contrast, float, float]]:
    """Return each declared contrast with two chances that its claim is shown.

    The first is the chance were it alone, the second that at the first step of Holm's procedure.
    Each is of two rows that are equal, and for superiority of two that are the margin apart, where
    scores have this standard deviation between seeds in every row. As in reports each row has its
    own variance, and all one-sided tests of the experiment share `LEVEL`.
    """
    contrasts = experiment.contrasts or []
    num_tests = sum(contrast.num_tests for contrast in contrasts)
    num_seeds = {row.row: len(row.runs) for row in experiment.rows}
    results = []
    for contrast in contrasts:
        counts = (num_seeds[contrast.row], num_seeds[contrast.reference])
        # Alone it shares the level among its own tests, at Holm's first step among all.
        alone = _power(contrast, deviation, counts, LEVEL / contrast.num_tests)
        first = _power(contrast, deviation, counts, LEVEL / num_tests)
        results.append((contrast, alone, first))
    return results


def _power(
    contrast: Contrast, deviation: float, seeds: tuple[int, int], level: float
) -> float:
    """Return the power of Welch's t-test, for a mean that is normal.

    It is averaged over quantiles of the two variances, which are estimated.
    """
    # Most of a second to import.
    from scipy.stats import chi2, norm, t

    if min(seeds) < 2:
        return 0.0
    # Midpoints of _POINTS parts of equal chance.
    shares = (np.arange(_POINTS) + 0.5) / _POINTS
    count, other_count = seeds
    # Squares of the two means' estimated errors, in squared deviations: a column, and a row.
    square = (chi2.ppf(shares, count - 1) / (count - 1) / count)[:, None]
    other_square = chi2.ppf(shares, other_count - 1) / (other_count - 1) / other_count
    # Welch and Satterthwaite: (a + b)^2 / (a^2 / (n - 1) + b^2 / (m - 1)), a and b the squares.
    degrees = (square + other_square) ** 2 / (
        square**2 / (count - 1) + other_square**2 / (other_count - 1)
    )
    error = math.sqrt(1 / count + 1 / other_count)
    needed = t.isf(level, degrees) * np.sqrt(square + other_square) / error
    away = contrast.margin / deviation / error
    # Both tests must succeed; it is below 0 where no estimate passes both.
    if contrast.kind == "equivalence":
        return float(np.maximum(2 * norm.cdf(away - needed) - 1, 0).mean())
    power = float(norm.cdf(away - needed).mean())
    # A difference in the other direction is one too.
    if contrast.kind == "superiority":
        power += float(norm.cdf(-away - needed).mean())
    return power
