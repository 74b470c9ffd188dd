"""Hardware as others published it, with sources.

What training on it takes, its memory, its links and its price.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

from cser_bench.harness.records.store import Record


class TrainingRate(Record):
    """Images a second of ResNet-50 training on `gpus` devices together.

    `precision`: "mixed" is fp16 with fp32.

    `batch_size`: images a GPU, where they are too many for the rate to be that of an experiment's
        smaller batches.
    """

    device: str
    precision: str
    gpus: int
    images_per_second: float
    source: str
    batch_size: int | None = None


class Memory(Record):
    """A device's memory; `device` is a part of its name."""

    device: str
    bytes_per_second: float
    source: str


class Machine(Record):
    """A machine that can be rented, with its links' rates in one direction.

    The rate inside it is 0 where it has one GPU. `device` is a part of its GPUs' name as torch
    gives it.
    """

    name: str
    device: str
    gpus: int
    dollars_per_hour: float
    bits_per_second: float
    inside_bits_per_second: float
    source: str


class Hardware(Record):
    """What hardware.toml holds."""

    training: list[TrainingRate]
    memory: list[Memory]
    machines: list[Machine]


@cache
def hardware() -> Hardware:
    """Return all that is known of hardware."""
    return Hardware.model_validate(
        tomllib.loads((Path(__file__).parent / "hardware.toml").read_text())
    )
