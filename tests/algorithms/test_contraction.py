"""What compressors leave out of a million numbers, of 16 bits too, is at most what they may.

A contraction C has |v - C(v)|^2 <= (1 - delta) |v|^2, on average over its draws. Numbers are uniform
in [-1, 1] times a magnitude, so that 1 - delta is known: they are |v|^2 = d / 3 long, in magnitudes.
"""

import functools
import math

import pytest
import torch
from torch import Tensor

from cser_bench.algorithms import (
    QSGD,
    BlockSparsifier,
    ChunkTopK,
    Compressor,
    Identity,
    PerTensorBlockSparsifier,
    Purpose,
    QuantisedBlocks,
    RandomK,
    ScaledSign,
    StackedCollectives,
    TopK,
    Zero,
)
from cser_bench.algorithms.core.compressors import Draw, Scaled
from cser_bench.algorithms.core.exchange import Sending
from cser_bench.algorithms.core.layout import Layout
from cser_bench.algorithms.registry import compressors

NUMEL = 2**20
LAYOUT = Layout.flat(slice(0, NUMEL))
SIGN = 1 - (1 / 2) ** 2 * 3
"""1 - |v|_1^2 / (d |v|_2^2)."""


def of_bins(bits: int) -> float:
    """Bins 6 sigma / 2^bits wide, with sigma^2 = 1 / 3: a number varies by at most a quarter of the
    squared width about its bin's mean."""
    width = 6 / 2**bits * math.sqrt(1 / 3)
    return 3 * width**2 / 4


def of_levels(levels: int) -> float:
    """Rounding to the nearest of so many levels on either side is at most half a level off."""
    return 3 / (2 * levels) ** 2


MAY_LEAVE_OUT: dict[Compressor, float] = {
    Identity(): 0,
    Zero(): 1,
    BlockSparsifier(4): 1 - 1 / 4,
    PerTensorBlockSparsifier(3): 1 - 1 / 3,
    RandomK(5): 1 - 1 / 5,
    TopK(192): 1 - 1 / 192,
    ChunkTopK(64, 4096, 32): 1 - 64 / 4096,
    ChunkTopK(64, 4096, 8): 1 - 64 / 4096,
    ChunkTopK(64, 4096, 4): 1 - 64 / 4096,
    ChunkTopK(64, 4096, 2): 1 - 64 / 4096,
    ChunkTopK(4096, 4096, 8): of_bins(8),
    ChunkTopK(4096, 4096, 4): of_bins(4),
    ChunkTopK(4096, 4096, 2): of_bins(2),
    ScaledSign(): SIGN,
    QuantisedBlocks(1): SIGN,
    QuantisedBlocks(4): of_levels(7),
    QuantisedBlocks(8): of_levels(127),
    # Alistarh 2017, lemma 3.1: min(B / s^2, sqrt(B) / s) for buckets of B and s levels.
    QSGD(2, 16): math.sqrt(16) / 1,
    QSGD(4, 16): 16 / 7**2,
    QSGD(8, 512): 512 / 127**2,
    # As feedback takes it, with omega = sqrt(B) / s - 1.
    Scaled(QSGD(2), math.sqrt(512) - 1): 1 - 1 / math.sqrt(512),
}
NUMBERS = [
    (torch.float32, 1.0),
    (torch.bfloat16, 1.0),
    (torch.float16, 1.0),
    (torch.float16, 6e4),
]
"""Types and magnitudes; the last is near fp16's end."""


@functools.cache
def numbers(dtype: torch.dtype, magnitude: float) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    uniform = torch.rand(NUMEL, generator=generator, dtype=torch.float64) * 2 - 1
    return (magnitude * uniform).to(dtype)[None]  # of one worker: (1, d)


def share_left_out(compressor: Compressor, vector: Tensor) -> float:
    """|v - C(v)|^2 / |v|^2."""
    collectives = StackedCollectives(1)
    draw = Draw(0, 1, "gradient")
    sent = Sending(collectives).exchange(
        vector, compressor, LAYOUT, draw, Purpose.GRADIENT
    )
    rest = vector.double()
    sent.support.add_(rest, sent.own.double(), alpha=-1)
    return float(rest.square().sum() / vector.double().square().sum())


def test_each_compressor_is_here() -> None:
    kinds = {type(each) for each in MAY_LEAVE_OUT} - {Scaled}
    assert kinds == set(compressors().values())


@pytest.mark.parametrize(("dtype", "magnitude"), NUMBERS, ids=str)
@pytest.mark.parametrize("compressor", MAY_LEAVE_OUT, ids=str)
def test_a_million_numbers_of_any_type_keep_their_share(
    compressor: Compressor, dtype: torch.dtype, magnitude: float
) -> None:
    vector = numbers(dtype, magnitude)
    # Where the share is of an average, a million numbers are off by a few thousandths.
    most = MAY_LEAVE_OUT[compressor] * 1.01
    # What is decoded is rounded to the vector's type.
    rounding = torch.finfo(dtype).eps ** 2
    assert share_left_out(compressor, vector) <= most + rounding
