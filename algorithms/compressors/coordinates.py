"""Sparsifiers of single coordinates: at random, alike on all workers, or the largest."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from cser_bench.algorithms.core.compressors import (
    FLOAT_BITS,
    Draw,
    Gathered,
    SharedSupport,
    check_numel,
    pack_bits,
    unpack_bits,
)
from cser_bench.algorithms.core.largest import places_of_largest
from cser_bench.algorithms.core.layout import Indices, Layout
from cser_bench.algorithms.core.settings import Count, Ratio

INDEX_BITS = 32
MOST_INDICES = 2 ** (INDEX_BITS - 1)
"""Number of indices that an int32 can tell apart; indices travel as int32."""
SIGMAS = 6
"""Bins span so many standard deviations of the numbers that are sent."""


@dataclass(frozen=True)
class RandomK(SharedSupport):
    """k = d / R coordinates drawn without replacement from shared randomness; no index is sent.

    R need not be whole, and k is rounded down, to 1 or more.
    """

    kind: ClassVar[str] = "random_k"

    ratio: Ratio

    def check(self, layout: Layout) -> None:
        check_numel(self.kind, self.ratio, layout)

    def payload_bits(
        self, layout: Layout, draw: Draw, float_bits: int = FLOAT_BITS
    ) -> int:
        return float_bits * _num_kept(layout.numel, self.ratio)

    def support(self, layout: Layout, draw: Draw) -> Indices:
        num_kept = _num_kept(layout.numel, self.ratio)
        chosen = draw.choose_many(layout.numel, num_kept)
        return Indices(chosen)


@dataclass(frozen=True)
class TopK(Gathered):
    """k = d / R coordinates of largest magnitude, each worker its own.

    R need not be whole, and k is rounded down, to 1 or more.

    32 bits of index go with each number. All workers' messages are all-gathered, so a link carries
    n / R of DDP's traffic in fp32 between n workers: with `TopK(192)` 1/96 at 2 workers, 1/48 at 4,
    1/24 at 8 and 1/12 at 16.
    """

    kind: ClassVar[str] = "top_k"

    ratio: Ratio

    def check(self, layout: Layout) -> None:
        check_numel(self.kind, self.ratio, layout)
        if layout.numel > MOST_INDICES:
            raise ValueError(
                f"top_k sends indices as int32, which reaches {MOST_INDICES:,} parameters, and the "
                f"model has {layout.numel:,}; take chunk_top_k, whose indices are within a chunk"
            )

    def payload_bits(
        self, layout: Layout, draw: Draw, float_bits: int = FLOAT_BITS
    ) -> int:
        num_kept = _num_kept(layout.numel, self.ratio)
        return (FLOAT_BITS + INDEX_BITS) * num_kept

    def encode(self, vector: Tensor, draw: Draw, rank: int) -> Tensor:
        num_kept = _num_kept(vector.numel(), self.ratio)
        # In no order: the decoder adds nothing up, so the order decides no bit of the result.
        index = places_of_largest(vector.abs(), num_kept)
        values = vector[index].to(torch.float32)
        value_bytes = values.view(torch.uint8)
        index_bytes = index.to(torch.int32).view(torch.uint8)
        return torch.cat([value_bytes, index_bytes])

    def decode(self, message: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
        # Halves, as a number and its index are of 32 bits each.
        value_bytes, index_bytes = message.view(2, -1)
        values = value_bytes.view(torch.float32).to(dtype)
        index = index_bytes.view(torch.int32).long()
        dense = torch.zeros(numel, dtype=dtype, device=message.device)
        return dense.index_copy_(0, index, values)


@dataclass(frozen=True)
class ChunkTopK(Gathered):
    """The `kept` coordinates of largest magnitude in each chunk, each worker its own.

    Indices are within the chunk. Messages are all-gathered, so that traffic grows with the number of
    workers; see `TopK`.

    Source: Sarfi et al., arXiv 2508.15706; the quantiser is that of the authors' earlier release,
    CCLoco. What is sent falls into bins of width 6 sigma / 2^bits, the middle one, number 2^(bits -
    1), lying about the mean and the outer ones open; each number becomes the mean of its bin.
    Deviations: chunks are of the flat vector, with one table of means, where the release cuts each
    tensor and has a table for each.

    Args:
        kept: numbers sent of a chunk; of the last one, which may be shorter, as many or all.
        chunk_size: coordinates of a chunk.
        bits: of a number: 2, 4 or 8; or 32, which are exact.
    """

    kind: ClassVar[str] = "chunk_top_k"

    kept: Count = 64
    chunk_size: Count = 4096
    bits: Literal[2, 4, 8, 32] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kept > self.chunk_size:
            raise ValueError(
                f"chunk_top_k keeps {self.kept} numbers of a chunk of {self.chunk_size}; lower kept"
            )

    @property
    def _index_bits(self) -> int:
        return (self.chunk_size - 1).bit_length()

    def _num_sent(self, numel: int) -> int:
        chunks, rest = divmod(numel, self.chunk_size)
        num_last = min(rest, self.kept)
        return chunks * self.kept + num_last

    def _bytes(self, numel: int) -> list[int]:
        """Return the bytes of a message's parts.

        The table of means, the numbers or their bins, and the indices.
        """
        table_bits = 0
        if self.bits != FLOAT_BITS:
            # A mean for each of 2^bits bins.
            table_bits = FLOAT_BITS << self.bits
        num_sent = self._num_sent(numel)
        bits = (table_bits, num_sent * self.bits, num_sent * self._index_bits)
        return [math.ceil(part / 8) for part in bits]

    def payload_bits(
        self, layout: Layout, draw: Draw, float_bits: int = FLOAT_BITS
    ) -> int:
        return 8 * sum(self._bytes(layout.numel))

    def encode(self, vector: Tensor, draw: Draw, rank: int) -> Tensor:
        missing = -vector.numel() % self.chunk_size
        # With -1, which is below every magnitude, so that it is kept last of all.
        padded = torch.nn.functional.pad(vector.abs(), (0, missing), value=-1)
        # Sorted, so that what pads the last chunk comes last and is cut off.
        # (chunks, kept)
        largest = padded.view(-1, self.chunk_size).topk(self.kept).indices
        num_sent = self._num_sent(vector.numel())
        places = largest.view(-1)[:num_sent]
        # (numbers sent,), like places
        values = vector[self._starts(places) + places]
        # The shifts have no name, so that they are freed before the peak of memory.
        digits = (
            places[:, None] >> torch.arange(self._index_bits, device=vector.device)
        ) & 1
        # Digits are (numbers sent, bits of an index), lowest first.
        indices = pack_bits(digits.view(-1).to(torch.uint8), 1)
        if self.bits == FLOAT_BITS:
            numbers = values.to(torch.float32).view(torch.uint8)
            return torch.cat([numbers, indices])
        # Numbers of 16 bits have too few digits for a bin's sum, and fp16 no room for one.
        values = values.to(torch.promote_types(vector.dtype, torch.float32))
        means, bins = _quantised(values, 1 << self.bits)
        table = means.to(torch.float32).view(torch.uint8)
        numbers = pack_bits(bins, self.bits)
        return torch.cat([table, numbers, indices])

    def decode(self, message: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
        num_sent = self._num_sent(numel)
        table, numbers, indices = torch.split(message, self._bytes(numel))
        # Clones, as parts of a message need not lie where floats may.
        if self.bits == FLOAT_BITS:
            values = numbers.clone().view(torch.float32)
        else:
            means = table.clone().view(torch.float32)
            bins = unpack_bits(numbers, self.bits, num_sent)
            values = means[bins.long()]
        digits = unpack_bits(indices, 1, num_sent * self._index_bits)
        rows = digits.view(num_sent, self._index_bits)
        places = (rows << torch.arange(self._index_bits, device=message.device)).sum(
            dim=1
        )
        index = self._starts(places) + places
        dense = torch.zeros(numel, dtype=dtype, device=message.device)
        return dense.index_copy_(0, index, values.to(dtype))

    def _starts(self, places: Tensor) -> Tensor:
        """Return where the chunk of each number that is sent begins."""
        # Every chunk but the last sends `kept` numbers, so its place in the message tells a number's chunk.
        order = torch.arange(len(places), device=places.device)
        chunks = order // self.kept
        return chunks * self.chunk_size


def _quantised(values: Tensor, num_bins: int) -> tuple[Tensor, Tensor]:
    """Return the bins' means, of shape (num_bins,), and each value's bin, in uint8.

    The values are of 32 bits or more. The mean is 0 where a bin is empty.
    """
    # Bin j lies about mean + (j - bins / 2) * width.
    centred = values - values.mean()
    width = centred.new_zeros(())
    if len(values) > 1:
        # A single number has no deviation: torch's would be nan.
        width = SIGMAS * centred.std() / num_bins
    # The width is 0 where all values are alike, or there is a single one.
    scaled = (centred / width).nan_to_num(0.0, 0.0, 0.0)
    bins = (scaled + num_bins // 2).round().clamp(0, num_bins - 1).long()
    sums = values.new_zeros(num_bins).index_add_(0, bins, values)
    # In integers: floats stop counting, those of 32 bits at 2^24.
    counts = torch.zeros_like(sums, dtype=torch.int64)
    counts.index_add_(0, bins, torch.ones_like(bins))
    # At least 1, since an empty bin's sum is 0 and its mean is to be that, too.
    means = sums / counts.clamp(min=1)
    return means, bins.to(torch.uint8)


def _num_kept(numel: int, ratio: float) -> int:
    """Return k = d / R, at least 1."""
    return max(1, int(numel / ratio))
