"""A training job that someone wants advice for, and how its numbers are written on a command line."""

import argparse
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields

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


def _number(unit: str = "", in_one: float = 1.0) -> Callable[[str], float]:
    """What reads a number above 0: "25.6M" is 25.6 million, "10Gb/s" with the unit "b/s" ten thousand million.

    Args:
        in_one: so many of the option's units are one of the job's, as 1,000 milliseconds are a second.
    """
    pattern = rf"([0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?|\.[0-9]+)\s*([kMGBT]?)({re.escape(unit)})?"

    def read(text: str) -> float:
        match = re.fullmatch(pattern, text.strip())
        value = float(match[1]) * _PREFIXES[match[2]] if match else math.nan
        if not 0 < value < math.inf:
            example = f"10G{unit}" if unit else "450000 or 25.6M"
            raise argparse.ArgumentTypeError(f"{text!r} is no number above 0; write it as {example}")
        return value / in_one

    return read


def _count(text: str) -> int:
    value = _number()(text)
    if abs(value - round(value)) > 1e-6 * value:
        raise argparse.ArgumentTypeError(f"{value:g} is no whole number")
    return round(value)


def _layout(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no layout; write machines x workers a machine, as 2x4")
    return int(match[1]), int(match[2])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options, each put where the job has it."""
    percent, link = _number(in_one=100), _number("b/s")

    def add(option: str, name: str, kind: Callable[[str], object], what: str, is_required: bool = False) -> None:
        default = getattr(TrainingJob, name, None)
        metavar = option.strip("-").replace("-", "_").upper()
        parser.add_argument(
            option, dest=name, type=kind, default=default, required=is_required, metavar=metavar, help=what
        )

    add("--parameters", "num_parameters", _count, "of the network, as 25.6M", True)
    add("--steps", "num_steps", _count, "of the whole job, as 450000", True)
    add("--workers", "workers", _count, "one a machine; or give --layout")
    add("--layout", "layout", _layout, "machines x workers a machine, as 2x4")
    add("--compute-ms", "compute_seconds", _number(in_one=1e3), "both passes of one worker's batch, as 27", True)
    add("--bandwidth", "bits_per_second", link, "of a machine's link, each way, as 10Gb/s", True)
    add("--inside", "inside_bits_per_second", link, "of a worker's link inside its machine (default: no limit)")
    add("--latency-us", "latency_seconds", _number(in_one=1e6), "of a hop (default: 50)")
    add("--margin", "margin", percent, "loss that counts as none, in points (default: 0.5)")
    add("--gap", "gap", percent, "points between a worker alone and SGD in this job (default: the map's)")
    add("--dollars-per-hour", "dollars_per_hour", _number(), "of all machines together")


def job_of(options: argparse.Namespace) -> TrainingJob:
    """The job that the options tell.

    Raises:
        UsageError: one worker alone, no number of workers, or workers and layout that disagree.
    """
    machines, each = options.layout or (options.workers, 1)
    if machines is None:
        raise UsageError("how many workers? give --workers 8, or --layout 2x4")
    if options.workers not in (None, machines * each):
        raise UsageError(f"--workers {options.workers} and --layout {machines}x{each} disagree; leave one out")
    if machines * each < 2:
        raise UsageError("one worker sends nothing; give two workers or more")
    told = vars(options) | {"num_machines": machines, "workers_per_machine": each}
    return TrainingJob(**{field.name: told[field.name] for field in fields(TrainingJob)})
