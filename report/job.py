"""A training job that someone wants advice for, and how its numbers are written on a command line."""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import dataclass

from report.frame import UsageError

_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}


@dataclass(frozen=True)
class TrainingJob:
    """A training job as far as advice needs to know it.

    Attributes:
        compute_seconds: forward and backward pass of one worker's batch.
        bits_per_second: of a machine's link to the others, each way; `inside`: of a worker's link inside its machine,
            0 for no limit.
        latency_seconds: of a hop.
        margin: loss that counts as none, a share.
        gap: between a worker alone and SGD, a share; None takes the map's own.
    """

    num_parameters: int
    num_steps: int
    num_machines: int
    workers_per_machine: int
    compute_seconds: float
    bits_per_second: float
    inside_bits_per_second: float = 0.0
    latency_seconds: float = 50e-6
    margin: float = 0.005
    gap: float | None = None
    dollars_per_hour: float | None = None

    @property
    def num_workers(self) -> int:
        return self.num_machines * self.workers_per_machine


def quantity(options: argparse.Namespace, option: str, unit: str = "") -> float:
    """An option's number: "25.6M" is 25.6 million, "10Gb/s" with the unit "b/s" ten thousand million.

    Raises:
        UsageError: anything else, or not above 0.
    """
    text = getattr(options, option.replace("-", "_"))
    match = re.fullmatch(rf"([0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?|\.[0-9]+)\s*([kMGBT]?)({re.escape(unit)})?", text.strip())
    value = float(match[1]) * _PREFIXES[match[2]] if match else math.nan
    if not 0 < value < math.inf:
        example = f"10G{unit}" if unit else "450000 or 25.6M"
        raise UsageError(f"--{option}: {text!r} is no number above 0; write it as {example}")
    return value


def count(options: argparse.Namespace, option: str) -> int:
    """An option's whole number, as of parameters, steps or workers.

    Raises:
        UsageError: anything else, or below 1.
    """
    value = quantity(options, option)
    if abs(value - round(value)) > 1e-6 * value:
        raise UsageError(f"--{option}: {value:g} is no whole number")
    return round(value)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--parameters", help="of the network, as 25.6M")
    parser.add_argument("--steps", help="of the whole job, as 450000")
    parser.add_argument("--workers", help="one a machine; or give --layout")
    parser.add_argument("--layout", help="machines x workers a machine, as 2x4")
    parser.add_argument("--compute-ms", help="forward and backward pass of one worker's batch")
    parser.add_argument("--bandwidth", help="of a machine's link, each way, as 10Gb/s")
    parser.add_argument("--inside", help="of a worker's link inside its machine, as 1200Gb/s (default: no limit)")
    parser.add_argument("--latency-us", default="50", help="of a hop (default: 50)")
    parser.add_argument("--margin", default="0.5", help="loss that counts as none, in points (default: 0.5)")
    parser.add_argument("--gap", help="points between a worker alone and SGD in this job (default: the map's)")
    parser.add_argument("--dollars-per-hour", help="of all machines together")


def job_of(options: argparse.Namespace) -> TrainingJob:
    """The job that the options tell.

    Raises:
        UsageError: a number that is missing or cannot be read, or workers and layout that disagree.
    """
    machines, each = _shape(options)
    if machines * each < 2:
        raise UsageError("one worker sends nothing; give two workers or more")
    for option, example in (
        ("parameters", "25.6M"),
        ("steps", "450000"),
        ("compute-ms", "27"),
        ("bandwidth", "10Gb/s"),
    ):
        if getattr(options, option.replace("-", "_")) is None:
            raise UsageError(f"--{option} is missing; give it, as --{option} {example}")
    return TrainingJob(
        num_parameters=count(options, "parameters"),
        num_steps=count(options, "steps"),
        num_machines=machines,
        workers_per_machine=each,
        compute_seconds=quantity(options, "compute-ms") / 1e3,
        bits_per_second=quantity(options, "bandwidth", "b/s"),
        inside_bits_per_second=quantity(options, "inside", "b/s") if options.inside else 0.0,
        latency_seconds=quantity(options, "latency-us") / 1e6,
        margin=quantity(options, "margin") / 100,
        gap=quantity(options, "gap") / 100 if options.gap else None,
        dollars_per_hour=quantity(options, "dollars-per-hour") if options.dollars_per_hour else None,
    )


def _shape(options: argparse.Namespace) -> tuple[int, int]:
    """Machines and workers of each: of the layout, or as many machines as workers."""
    workers = count(options, "workers") if options.workers else None
    if not options.layout:
        if workers is None:
            raise UsageError("how many workers? give --workers 8, or --layout 2x4")
        return workers, 1
    match = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", options.layout.strip())
    if not match:
        raise UsageError(f"{options.layout!r} is no layout; write machines x workers a machine, as 2x4")
    machines, each = int(match[1]), int(match[2])
    if workers not in (None, machines * each):
        raise UsageError(f"--workers {workers} and --layout {options.layout} disagree; leave one out")
    return machines, each
