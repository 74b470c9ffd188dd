"""Random-k: coordinates that all workers draw alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from algorithms.core.compressors import FLOAT_BITS, SharedSupport, check_numel, check_ratio, num_kept
from algorithms.core.layout import Indices, Layout
from algorithms.core.randomness import Draw


@dataclass(frozen=True)
class RandomK(SharedSupport):
    """k = d / R coordinates drawn without replacement from shared randomness; no index is sent."""

    kind: ClassVar[str] = "random_k"

    ratio: float

    def __post_init__(self) -> None:
        check_ratio("random-k", self.ratio)

    def check(self, layout: Layout) -> None:
        check_numel("random-k", self.ratio, layout)

    def payload_bits(self, layout: Layout, draw: Draw, float_bits: int = FLOAT_BITS) -> int:
        return float_bits * num_kept(layout.numel, self.ratio)

    def support(self, layout: Layout, draw: Draw) -> Indices:
        return Indices(draw.choose_many(layout.numel, num_kept(layout.numel, self.ratio)))
