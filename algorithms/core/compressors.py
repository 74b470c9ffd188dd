"""What a compressor is: its type says how its messages may travel, and it states its payload in bits."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from algorithms.core.layout import Layout, Support, Windows, whole
from algorithms.core.randomness import Draw
from algorithms.core.traffic import Entry

FLOAT_BITS = 32
INDEX_BITS = 32


class Compressor(ABC):
    """C in the papers. A method says in its signature whether it takes any, or only one with shared support."""

    kind: ClassVar[str]
    """What a spec calls it."""

    def check(self, layout: Layout) -> None:  # noqa: B027 (most work on any)
        """Raises ValueError, in one sentence, where this compressor cannot work on such a vector."""

    @abstractmethod
    def payload_bits(self, layout: Layout, draw: Draw, float_bits: int = FLOAT_BITS) -> int:
        """Bits that one worker sends for this draw; 0 means that no collective takes place.

        `float_bits`: of a number on the wire, where the compressor leaves that open (`Gathered` ones have a format).
        """

    def cost(self, layout: Layout, draw: Callable[[int], Draw], steps: range, float_bits: int = FLOAT_BITS) -> Entry:
        """Closed form of what one worker sends at these steps. Here for a payload of constant size."""
        if not steps:
            return Entry()
        bits = self.payload_bits(layout, draw(steps[0]), float_bits)
        all_bits = bits * len(steps)
        return Entry(all_bits, len(steps) if bits else 0, all_bits if isinstance(self, Gathered) else 0)

    def mean_cost(self, layout: Layout, num_draws: int, float_bits: int = FLOAT_BITS) -> Entry:
        """As `cost`, as the mean over all draws where the payload depends on the draw."""
        return self.cost(layout, lambda step: Draw(0, step, ""), range(num_draws), float_bits)


class SharedSupport(Compressor):
    """Keeps coordinates that all workers draw alike: linear, so its payload is dense and may be all-reduced."""

    @abstractmethod
    def support(self, layout: Layout, draw: Draw) -> Support:
        """The coordinates kept in this draw, the same on every worker."""


class Gathered(Compressor):
    """Differs between workers or is not linear: its messages must be all-gathered and decoded one by one."""

    @abstractmethod
    def encode(self, vector: Tensor, draw: Draw, rank: int) -> Tensor:
        """The message for `vector` (float32 or float64, shape (d,)): uint8 tensor of payload_bits / 8 bytes."""

    @abstractmethod
    def decode(self, message: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
        """C(vector), of shape (numel,), from a message."""


@dataclass(frozen=True)
class Identity(SharedSupport):
    """Sends everything."""

    kind: ClassVar[str] = "identity"

    def payload_bits(self, layout: Layout, draw: Draw, float_bits: int = FLOAT_BITS) -> int:
        return float_bits * layout.numel

    def support(self, layout: Layout, draw: Draw) -> Windows:
        return whole(layout.numel)


@dataclass(frozen=True)
class Zero(SharedSupport):
    """Sends nothing."""

    kind: ClassVar[str] = "zero"

    def payload_bits(self, layout: Layout, draw: Draw, float_bits: int = FLOAT_BITS) -> int:
        return 0

    def support(self, layout: Layout, draw: Draw) -> Windows:
        return Windows(())


def num_kept(numel: int, ratio: float) -> int:
    """k = d / R, at least 1."""
    return max(1, int(numel / ratio))


def check_ratio(name: str, ratio: float) -> None:
    """Raises ValueError unless the ratio is a finite number from 1 up."""
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 1 <= ratio < math.inf:
        raise ValueError(f"the ratio of {name} must be a number from 1 up, not {ratio!r}")


def check_numel(name: str, ratio: float, layout: Layout) -> None:
    """Raises ValueError where not even one coordinate would be kept."""
    if ratio > layout.numel:
        raise ValueError(f"{name} at ratio {ratio} keeps no coordinate of the model's {layout.numel}; lower the ratio")
