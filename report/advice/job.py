"""A job that someone wants advice for, and how its numbers are written on a command line."""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report.accuracy.records import UsageError

_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}

CLUSTERS = Path(__file__).parents[2] / "slurm/clusters"
"""Where a cluster's profile is looked for by its name."""


@dataclass(frozen=True)
class TrainingJob:
    """A training job as far as advice needs to know it.

    Attributes:
        compute_seconds: forward and backward pass of one worker's batch.
        bits_per_second: of a machine's link to the others, each way; `inside`: of a worker's link inside its machine,
            0 for no limit.
        latency_seconds: of a hop.
        margin: loss that counts as none, a share.
        gap: between a worker alone and SGD, a share; None takes the regime map's own.
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


def quantity(text: str, unit: str = "") -> float:
    """ "25.6M" is 25.6 million, "10Gb/s" with the unit "b/s" ten thousand million.

    Raises:
        UsageError: anything else, or not above 0.
    """
    match = re.fullmatch(rf"([0-9.]+(?:e[0-9]+)?)\s*([kMGBT]?)({re.escape(unit)})?", text.strip())
    try:
        value = float(match[1]) * _PREFIXES[match[2]] if match else math.nan
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        example = f"10G{unit}" if unit else "450000 or 25.6M"
        raise UsageError(f"{text!r} is no number above 0; write it as {example}")
    return value


def count(text: str, what: str) -> int:
    """A whole number, as of parameters, steps or workers.

    Raises:
        UsageError: anything else, or below 1.
    """
    value = quantity(text)
    if abs(value - round(value)) > 1e-6 * value:
        raise UsageError(f"{text} {what}: that is no whole number")
    return round(value)


def layout(text: str) -> tuple[int, int]:
    """Machines and workers a machine, of "2x4".

    Raises:
        UsageError: anything else.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", text.strip())
    if not match:
        raise UsageError(f"{text!r} is no layout; write machines x workers a machine, as 2x4")
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class Cluster:
    """What advice takes from a cluster's profile; None where it does not say."""

    num_machines: int
    workers_per_machine: int
    bits_per_second: float | None


def cluster(name: str) -> Cluster:
    """Machines, workers and links of a profile of `python -m slurm`: NAME, NAME:VARIANT, or a TOML file.

    Raises:
        UsageError: there is no such profile or variant, or it does not say how many workers there are.
    """
    stem, _, variant = name.partition(":")
    path = Path(stem) if stem.endswith(".toml") else CLUSTERS / f"{stem}.toml"
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text())
    except OSError:
        raise UsageError(f"there is no cluster profile {path}; give the path of a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    variants = table.get("variants", {})
    if variant and variant not in variants:
        raise UsageError(f"{path} has no variant {variant!r}; it has {', '.join(variants) or 'none'}")
    table |= variants.get(variant, {})
    machines, each = table.get("nodes"), table.get("workers_per_node") or table.get("gpus_per_node")
    if not isinstance(machines, int) or not isinstance(each, int) or min(machines, each) < 1:
        raise UsageError(f"{path} does not say how many workers there are; give it nodes and gpus_per_node")
    link = table.get("link_gigabits_per_second")
    return Cluster(machines, each, 1e9 * link if isinstance(link, int | float) and link > 0 else None)
