"""What a plan's runs will take, and what its contrasts can show: hours, dollars and power, before any run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2, nct, norm, t

from harness.plan.footprint import StepTime, step_times
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
    """Of all runs of a plan.

    Attributes:
        configs: of the runs that differ.
        compute: hours of all runs one after the other, and the step that they come from; least first.
        link_models: models of 32 d bits that cross a worker's link in all runs.
        model_bits: 32 d.
    """

    configs: list[RunConfig]
    compute: list[tuple[StepTime, float]]
    link_models: float
    model_bits: int

    @property
    def low(self) -> float:
        """Hours at the fastest that is known, were all communication hidden behind it."""
        return self.compute[0][1]

    def high(self, link_bits_per_second: float | None) -> float:
        """Hours at the slowest that is known, were no communication hidden."""
        return self.compute[-1][1] + _hours_on(self.link_models * self.model_bits, link_bits_per_second)


def effort_of(plan: Plan) -> Effort:
    """Reckon; where there is a GPU or the network is small, by dry steps."""
    rows = {row.row: row for row in plan.experiment.rows}
    runs = {run.run_id: run for run in plan.runs}.values()
    steps = [(step_times(run.config), num_steps_of(run.config)[1]) for run in runs]
    compute = [
        (time, sum(times[place].seconds * num_steps for times, num_steps in steps) / 3600)
        for place, time in enumerate(steps[0][0])
    ]
    crossing = sum(rows[run.row].link_models or 0.0 for run in runs)
    return Effort([run.config for run in runs], compute, crossing, 32 * plan.experiment.rows[0].num_parameters)


def row_hours(row: Row, link_bits_per_second: float) -> float:
    """Hours that what a run of the row sends takes on a worker's link at its full rate, if nothing hides it."""
    return _hours_on((row.link_models or 0.0) * 32 * row.num_parameters, link_bits_per_second)


def _hours_on(bits: float, link_bits_per_second: float | None) -> float:
    return bits / link_bits_per_second / 3600 if link_bits_per_second else 0.0


def usual_link(device: str) -> float | None:
    """The link of the machine in the price table that has one such GPU."""
    return next((machine.bits_per_second for machine in _with(device) if machine.gpus == 1), None)


def _with(device: str) -> list[Machine]:
    return [machine for machine in hardware().machines if machine.device in device]


def hours_sentences(effort: Effort, link_bits_per_second: float | None) -> list[str]:
    """Hours of a run and of all, by each figure that is known, and in sum."""
    num_runs, num_workers = len(effort.configs), effort.configs[0].num_workers
    lines = [f"hours on {num_workers} GPUs, of a run and of all {num_runs} one after the other:"]
    names = ["low", *["between"] * (len(effort.compute) - 2), "likely"] if len(effort.compute) > 1 else ["compute"]
    for name, (time, hours) in zip(names, effort.compute, strict=True):
        lines.append(f"  {name}: {_in_words(hours / num_runs)} and {_in_words(hours)} ({time.device}; {time.basis})")
    if link_bits_per_second:
        added = effort.high(link_bits_per_second) - effort.compute[-1][1]
        lines.append(
            f"  modelled communication at {link_bits_per_second / 1e9:g} Gb/s, at line rate and with nothing hidden: "
            f"{_in_words(added / num_runs)} more on average, {_in_words(added)} in all; by row above"
        )
    span = f"{_in_words(effort.low)} to {_in_words(effort.high(link_bits_per_second))}"
    return [*lines, f"  so {span} in all; evaluation comes on top"]


def _in_words(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def price_sentences(effort: Effort) -> list[str]:
    """Dollars on each kind of machine in the price table, with its own link between machines."""
    device, num_workers = effort.compute[0][0].device, effort.configs[0].num_workers
    lines = []
    for machine in _with(device):
        count = -(-num_workers // machine.gpus)
        link = machine.bits_per_second if count > 1 else None
        low, high = (hours * count * machine.dollars_per_hour for hours in (effort.low, effort.high(link)))
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
