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
        if self.num_blocks is None:
            return self.ratio
        return self.num_blocks

    def check(self, layout: Layout) -> None:
        if self.blocks > layout.numel:
            raise ValueError(
                f"a block sparsifier of {self.blocks} blocks needs at least as many parameters, "
                f"the model has {layout.numel}; lower its ratio or num_blocks"
            )

    def support(self, layout: Layout, draw: Draw) -> Windows:
        numel = layout.numel
        # Rounded up, so that all blocks but the last are full.
        size = math.ceil(numel / self.blocks)
        count = math.ceil(numel / size)
        # Rounding the size up can leave fewer blocks than were asked for.
        num_kept = min(self.blocks // self.ratio, count)
        chosen = draw.choose(count, num_kept)
        windows = []
        padding = 0
        for block in chosen:
            start = block * size
            length = min(size, numel - start)
            windows.append(Window.block(start, length))
            # So that the payload is the same whether or not the shorter last block is drawn.
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
        self, layout: Layout, draw: Draw, float_bits: int = FLOAT_BITS
    ) -> int:
        numel = 0
        for tensor, spans in self._chosen(layout, draw):
            shape = _cut_shape(tensor, spans)
            numel += math.prod(shape)
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
            # A draw that keeps nothing takes no collective.
            num_sent = sum(1 for message in bits if message)
            return Entry(sum(bits), num_sent)
        filled = [tensor for tensor in layout.tensors if tensor.numel]
        # The sum's terms in this order: its rounding decides bits of plans.
        numel = sum(self._mean_numel(tensor) for tensor in filled)
        # The share of draws in which every tensor's coin says no.
        silent = (1 - 1 / self.tensor_ratio) ** len(filled)
        mean_bits = round(len(steps) * float_bits * numel / self.tensor_ratio)
        num_sent = round(len(steps) * (1 - silent))
        return Entry(mean_bits, num_sent)

    def _mean_numel(self, tensor: Window) -> float:
        """Return how many numbers of a tensor that takes part are sent, on average."""
        lengths = [_mean_block(size, ratio) for size, ratio in self._axes(tensor)]
        uncut = math.prod(tensor.shape[2:])
        return math.prod(lengths) * uncut

    def _axes(self, tensor: Window) -> Iterator[tuple[int, float]]:
        """Return the size and the ratio of each axis that is cut."""
        ratios = (self.row_ratio, self.column_ratio)
        # Not strict: a tensor of one axis has no columns.
        return zip(tensor.shape[:2], ratios, strict=False)

    def support(self, layout: Layout, draw: Draw) -> Windows:
        windows = []
        for tensor, spans in self._chosen(layout, draw):
            offset = tensor.offset
            for (low, _), stride in zip(spans, tensor.strides, strict=False):
                # In numbers of the flat vector, as strides are.
                offset += low * stride
            shape = _cut_shape(tensor, spans)
            windows.append(Window(offset, shape, tensor.strides))
        return Windows(tuple(windows))

    def _chosen(
        self, layout: Layout, draw: Draw
    ) -> Iterator[tuple[Window, list[tuple[int, int]]]]:
        """Yield each tensor that takes part and is not empty.

        With it comes the range that is kept along its first one or two axes.
        """
        # A coin and two places for every tensor, also where they are not needed: so what one
        # tensor draws does not depend on the others' shapes.
        numbers = draw.integers(3 * len(layout.tensors))
        rows = numbers.reshape(-1, 3).tolist()
        for tensor, (coin, *places) in zip(layout.tensors, rows, strict=True):
            # Raw integers are of 64 bits.
            takes_part = coin * self.tensor_ratio < 2**64
            if not takes_part or not tensor.numel:
                continue
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
    num_blocks = math.ceil(size / length)
    start = length * (place % num_blocks)
    stop = min(start + length, size)
    return start, stop


def _mean_block(size: int, ratio: float) -> float:
    length = max(1, round(size / ratio))
    num_blocks = math.ceil(size / length)
    return size / num_blocks
