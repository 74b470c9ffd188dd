"""What a plan's runs will take, and what its contrasts can show: hours, dollars and power, before any run."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2, nct, norm, t

from harness.plan.footprint import CPU, StepTime, step_times
from harness.plan.plan import Plan
from harness.records.experiment import Contrast, Experiment, Row
from harness.records.hardware import Machine, hardware
from harness.spec import RunConfig
from harness.train.build import num_steps_of

LEVEL = 0.05
_POINTS = 2000
"""Quantiles of the estimated variance that an equivalence test's power is averaged over."""


@dataclass(frozen=True)
class Effort:
    """Of all runs of a plan, one after the other.

    Attributes:
        configs: of the runs that differ.
        compute: hours by each step's time that is known; least first.
        link_bits: what crosses a worker's link in all runs.
        link_bits_per_second: of a node; None where nothing passes one, or nobody knows.
    """

    configs: list[RunConfig]
    compute: list[tuple[StepTime, float]]
    link_bits: float
    link_bits_per_second: float | None

    def hours(self, link_bits_per_second: float | None) -> tuple[float, float]:
        """At the fastest that is known with all communication hidden, and at the slowest with none hidden."""
        return self.compute[0][1], self.compute[-1][1] + hours_on(self.link_bits, link_bits_per_second)


def effort_of(plan: Plan, link_bits_per_second: float | None = None) -> Effort:
    """Reckon; where there is a GPU or the network is small, by dry steps.

    Args:
        link_bits_per_second: of a node, 0 where nothing passes one or nobody knows; None for such GPUs' usual link.
    """
    bits = {row.row: link_bits_of(row) for row in plan.experiment.rows}
    runs = {run.run_id: run for run in plan.runs}.values()
    steps = [(step_times(run.config), num_steps_of(run.config)[1]) for run in runs]
    compute = [
        (time, sum(times[place].seconds * num_steps for times, num_steps in steps) / 3600)
        for place, time in enumerate(steps[0][0])
    ]
    device = compute[0][0].device
    link = link_bits_per_second
    if link is None:
        link = next((machine.bits_per_second for machine in _with(device) if machine.gpus == 1), None)
    link = link if link and device != CPU else None
    return Effort([run.config for run in runs], compute, sum(bits[run.row] for run in runs), link)


def link_bits_of(row: Row) -> float:
    """What crosses a worker's link in a run of the row."""
    return (row.link_models or 0.0) * 32 * row.num_parameters


def hours_on(bits: float, link_bits_per_second: float | None) -> float:
    """Hours that bits take on a link at its full rate; none where there is no link."""
    return bits / link_bits_per_second / 3600 if link_bits_per_second else 0.0


def _with(device: str) -> list[Machine]:
    """The machines of the price table that have such GPUs."""
    return [machine for machine in hardware().machines if machine.device in device]


def cost_sentences(effort: Effort) -> list[str]:
    """Runs, memory, and hours and dollars of all runs."""
    (known, hours), config = effort.compute[0], effort.configs[0]
    activations = "without activations (a GPU would measure them)"
    if known.activation_bytes is not None:
        activations = (
            f"to which activations add {known.activation_bytes / 1e6:,.0f} MB ({known.basis}: {config.batch_size} of "
            f"them, {config.precision})"
        )
    each = f"{len(effort.configs)} runs; {1e3 * known.seconds:.3g} ms of compute a step"
    first = f"{each}; memory: parameters, gradients and optimiser state, {activations}"
    if known.device == CPU:
        hours, num_cores = hours * config.num_workers, len(os.sched_getaffinity(0))
        return [
            first,
            f"{hours:,.1f} CPU core hours for forward and backward passes and updates ({known.basis}); communication, "
            "data and evaluation come on top",
            f"about {60 * hours / num_cores:.0f} min on the {num_cores} cores of this machine",
        ]
    return [first, *_hours_sentences(effort), *_price_sentences(effort)]


def _hours_sentences(effort: Effort) -> list[str]:
    """Hours of a run and of all, by each figure that is known, and in sum."""
    link, num_runs, num_workers = effort.link_bits_per_second, len(effort.configs), effort.configs[0].num_workers
    lines = [f"hours on {num_workers} GPUs, of a run and of all {num_runs} one after the other:"]
    for time, hours in effort.compute:
        lines.append(f"  {_in_words(hours / num_runs)} and {_in_words(hours)} ({time.device}; {time.basis})")
    if link:
        added = hours_on(effort.link_bits, link)
        lines.append(
            f"  modelled communication at {link / 1e9:g} Gb/s, at line rate and with nothing hidden: "
            f"{_in_words(added / num_runs)} more on average, {_in_words(added)} in all; by row above"
        )
    span = " to ".join(map(_in_words, effort.hours(link)))
    return [*lines, f"  so {span} in all; evaluation comes on top"]


def _in_words(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def _price_sentences(effort: Effort) -> list[str]:
    """Dollars on each kind of machine in the price table, with its own link between machines."""
    device, num_workers = effort.compute[0][0].device, effort.configs[0].num_workers
    lines = []
    for machine in _with(device):
        count = -(-num_workers // machine.gpus)
        hours = effort.hours(machine.bits_per_second if count > 1 else None)
        low, high = (each * count * machine.dollars_per_hour for each in hours)
        lines.append(f"about {low:,.0f} to {high:,.0f} dollars on {count} x {machine.name} ({machine.source})")
    return lines or [f"no price: harness/records/hardware.toml has none for {device}"]


@dataclass(frozen=True)
class Power:
    """The chance that a contrast's claim is shown. `alone`: judged at 5 % by itself; `first`: at Holm's first step.

    It is the chance of two rows that are equal, and for superiority of two that are the margin apart.
    """

    contrast: Contrast
    alone: float
    first: float


def powers(experiment: Experiment, deviation: float) -> list[Power]:
    """By declared contrast, with scores that have this standard deviation between seeds in every row.

    The degrees of freedom are those of the two rows alone; a variance pooled over rows has more, and more power.
    """
    contrasts = experiment.contrasts or []
    seeds = {row.row: len(row.runs) for row in experiment.rows}
    found = []
    for contrast in contrasts:
        row, reference = seeds[contrast.row], seeds[contrast.reference]
        error, degrees = deviation * math.sqrt(1 / row + 1 / reference), row + reference - 2
        alone, first = (_power(contrast, error, degrees, level) for level in (LEVEL, LEVEL / len(contrasts)))
        found.append(Power(contrast, alone, first))
    return found


def _power(contrast: Contrast, error: float, degrees: int, level: float) -> float:
    if degrees < 1:
        return 0.0
    away, two_sided = contrast.margin / error, contrast.kind == "superiority"
    critical = float(t.isf(level / 2 if two_sided else level, degrees))
    if contrast.kind == "equivalence":
        # Both one-sided tests hold where |difference| < margin - critical * (its estimated error), averaged over that.
        shares = (np.arange(_POINTS) + 0.5) / _POINTS
        room = away - critical * np.sqrt(chi2.ppf(shares, degrees) / degrees)
        return float(np.maximum(2 * norm.cdf(room) - 1, 0).mean())
    other_side = float(nct.cdf(-critical, degrees, away)) if two_sided else 0.0
    return float(nct.sf(critical, degrees, away)) + other_side
