"""The block sparsifier: a share of the blocks of the flat vector (the paper's GRBS)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from algorithms.core.compressors import FLOAT_BITS, SharedSupport
from algorithms.core.layout import Layout, Window, Windows
from algorithms.core.randomness import Draw


@dataclass(frozen=True)
class BlockSparsifier(SharedSupport):
    """The paper's block sparsifier (GRBS): B / R of B blocks of the flat vector, drawn anew each time.

    Blocks are of equal length; where B does not divide d the last is shorter (and there may be fewer than B), and its
    message is filled up with zeros, so that the payload is the same in every draw.

    Args:
        ratio: R, at least 1.
        num_blocks: B, a multiple of R; by default R, so that one block is sent, which is a slice.
    """

    kind: ClassVar[str] = "block"

    ratio: int
    num_blocks: int | None = None

    def __post_init__(self) -> None:
        if type(self.ratio) is not int or self.ratio < 1:
            raise ValueError(f"a block sparsifier's ratio must be an integer of at least 1, not {self.ratio!r}")
        if type(self.blocks) is not int or self.blocks < 1 or self.blocks % self.ratio:
            raise ValueError(f"num_blocks = {self.blocks} must be a positive multiple of the ratio {self.ratio}")

    @property
    def blocks(self) -> int:
        return self.ratio if self.num_blocks is None else self.num_blocks

    def check(self, layout: Layout) -> None:
        if self.blocks > layout.numel:
            raise ValueError(
                f"a block sparsifier of {self.blocks} blocks needs at least as many parameters, the model has "
                f"{layout.numel}; lower its ratio or num_blocks"
            )

    def block_numel(self, layout: Layout) -> int:
        return math.ceil(layout.numel / self.blocks)

    def payload_bits(self, layout: Layout, draw: Draw, float_bits: int = FLOAT_BITS) -> int:
        return float_bits * self._num_chosen(layout) * self.block_numel(layout)

    def _num_chosen(self, layout: Layout) -> int:
        return min(self.blocks // self.ratio, math.ceil(layout.numel / self.block_numel(layout)))

    def support(self, layout: Layout, draw: Draw) -> Windows:
        size, numel = self.block_numel(layout), layout.numel
        chosen = draw.choose(math.ceil(numel / size), self._num_chosen(layout))
        windows = tuple(Window(block * size, (min(size, numel - block * size),), (1,)) for block in chosen)
        return Windows(windows, padding=len(chosen) * size - sum(window.numel for window in windows))
