"""Block sparsifiers: of the flat vector (the paper's GRBS), and tensor by tensor, as released."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from cser_bench.algorithms.core.compressors import FLOAT_BITS, Draw, SharedSupport
from cser_bench.algorithms.core.layout import Layout, Window, Windows
from cser_bench.algorithms.core.settings import Count, Ratio
from cser_bench.algorithms.core.traffic import Entry


@dataclass(frozen=True)
class BlockSparsifier(SharedSupport):
    """The paper's block sparsifier (GRBS).

    B / R of B blocks of the flat vector, drawn anew each time.

    Blocks are of equal length; where B does not divide d the last is shorter (and there may be
    fewer than B), and its message is filled up with zeros, so that the payload is the same in every
    draw.

    Args:
        ratio: R, at least 1.
        num_blocks: B, a multiple of R; by default R, so that one block is sent, which is a slice.
    """

    kind: ClassVar[str] = "block"

    ratio: Count
    num_blocks: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks % self.ratio:
            raise ValueError(
                f"block: num_blocks = {self.blocks} must be a multiple of the ratio {self.ratio}"
            )

    @property
    def blocks(self) -> int:
        return self.ratio if self.num_blocks is None else self.num_blocks

    def check(self, layout: Layout) -> None:
        if self.blocks > layout.numel:
            raise ValueError(
                f"a block sparsifier of {self.blocks} blocks needs at least as many parameters, "
                f"the model has {layout.numel}; lower its ratio or num_blocks"
            )

    def support(self, layout: Layout, draw: Draw) -> Windows:
        numel = layout.numel
        size = math.ceil(numel / self.blocks)
        count = math.ceil(numel / size)
        chosen = draw.choose(count, min(self.blocks // self.ratio, count))
        windows = []
        padding = 0
        for block in chosen:
            start = block * size
            length = min(size, numel - start)
            windows.append(Window(start, (length,), (1,)))
            padding += size - length
        return Windows(tuple(windows), padding)


@dataclass(frozen=True)
class PerTensorBlockSparsifier(SharedSupport):
    """The block sparsifier of the authors' released code.

    Each tensor keeps a block of its rows, or nothing.

    Along axis 0 the block has k = max(1, round(size / row_ratio)) rows and starts at a multiple of
    k, so the last may be shorter; tensors of two or more axes are cut likewise along axis 1 by
    `column_ratio`; a coin with probability 1 / tensor_ratio decides for each tensor whether it
    takes part, so a draw may send nothing and payloads differ.
    """

    kind: ClassVar[str] = "per_tensor_block"

    row_ratio: Ratio
    column_ratio: Ratio = 1.0
    tensor_ratio: Ratio = 1.0

    def payload_bits(
        self,
        layout: Layout,
        draw: Draw,
        float_bits: int = FLOAT_BITS,
    ) -> int:
        numel = 0
        for tensor, spans in self._chosen(layout, draw):
            numel += math.prod(_cut_shape(tensor, spans))
        return float_bits * numel

    def cost(
        self,
        layout: Layout,
        draw: Callable[[int], Draw] | None,
        steps: range,
        float_bits: int = FLOAT_BITS,
    ) -> Entry:
        if draw is not None:
            bits = [self.payload_bits(layout, draw(step), float_bits) for step in steps]
            return Entry(sum(bits), sum(1 for message in bits if message))
        filled = [tensor for tensor in layout.tensors if tensor.numel]
        # The sum's terms in this order: its rounding decides bits of plans.
        numel = sum(self._mean_numel(tensor) for tensor in filled)
        silent = (1 - 1 / self.tensor_ratio) ** len(filled)
        mean_bits = round(len(steps) * float_bits * numel / self.tensor_ratio)
        return Entry(mean_bits, round(len(steps) * (1 - silent)))

    def _mean_numel(self, tensor: Window) -> float:
        """Return how many numbers of a tensor that takes part are sent, on average."""
        lengths = [_mean_block(size, ratio) for size, ratio in self._axes(tensor)]
        return math.prod(lengths) * math.prod(tensor.shape[2:])

    def _axes(self, tensor: Window) -> Iterator[tuple[int, float]]:
        """Return the size and the ratio of each axis that is cut."""
        return zip(tensor.shape[:2], (self.row_ratio, self.column_ratio), strict=False)

    def support(self, layout: Layout, draw: Draw) -> Windows:
        windows = []
        for tensor, spans in self._chosen(layout, draw):
            offset = tensor.offset
            for (low, _), stride in zip(spans, tensor.strides, strict=False):
                offset += low * stride
            windows.append(Window(offset, _cut_shape(tensor, spans), tensor.strides))
        return Windows(tuple(windows))

    def _chosen(self, layout: Layout, draw: Draw) -> Iterator[tuple[Window, list[tuple[int, int]]]]:
        """Yield each tensor that takes part and is not empty.

        With it comes the range that is kept along its first one or two axes.
        """
        raw = draw.integers(3 * len(layout.tensors)).reshape(-1, 3).tolist()
        for tensor, (coin, *places) in zip(layout.tensors, raw, strict=True):
            if tensor.numel and coin * self.tensor_ratio < 2**64:
                spans = []
                for (size, ratio), place in zip(self._axes(tensor), places, strict=False):
                    spans.append(_aligned_block(size, ratio, place))
                yield tensor, spans


def _cut_shape(tensor: Window, spans: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Return the shape of what is kept: along the first axes these ranges."""
    lengths = tuple(high - low for low, high in spans)
    return lengths + tensor.shape[len(spans) :]


def _aligned_block(size: int, ratio: float, place: int) -> tuple[int, int]:
    length = max(1, round(size / ratio))
    start = length * (place % math.ceil(size / length))
    return start, min(start + length, size)


def _mean_block(size: int, ratio: float) -> float:
    length = max(1, round(size / ratio))
    return size / math.ceil(size / length)
