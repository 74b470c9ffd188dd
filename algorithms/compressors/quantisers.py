"""Quantisers: every coordinate in a few bits, rounded at random or to the nearest."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from cser_bench.algorithms.core.compressors import (
    FLOAT_BITS,
    Draw,
    Gathered,
    Reduced,
    pack_bits,
    rounded,
    unpack_bits,
)
from cser_bench.algorithms.core.layout import Layout
from cser_bench.algorithms.core.settings import Count


@dataclass(frozen=True)
class ScaledSign(Gathered):
    """sign(v) * mean|v|: one bit a coordinate and one 32-bit scale (Karimireddy 2019).

    Zero counts as positive. Messages are all-gathered, so that traffic grows with the number of
    workers: n / 64 of DDP's in fp32 between n of them.

    DeepSpeed has another scale: see `QuantisedBlocks`.
    """

    kind: ClassVar[str] = "sign"

    def payload_bits(
        self, layout: Layout, draw: Draw, float_bits: int = FLOAT_BITS
    ) -> int:
        # Signs travel in whole bytes.
        sign_bits = 8 * math.ceil(layout.numel / 8)
        return sign_bits + FLOAT_BITS

    def encode(self, vector: Tensor, draw: Draw, rank: int) -> Tensor:
        mean_magnitude = vector.abs().mean()
        scale = mean_magnitude.to(torch.float32).reshape(1)
        signs = (vector >= 0).to(torch.uint8)
        # 4 bytes of the scale, then ceil(d / 8) of signs.
        packed = pack_bits(signs, 1)
        return torch.cat([scale.view(torch.uint8), packed])

    def decode(self, message: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
        # A clone, as a part of a message need not lie where floats may.
        scale_bytes = message[:4].clone()
        scale = scale_bytes.view(torch.float32).to(dtype)
        signs = unpack_bits(message[4:], 1, numel).to(dtype)
        signs.mul_(2).sub_(1)
        return signs.mul_(scale)


@dataclass(frozen=True)
class QSGD(Gathered):
    """QSGD (Alistarh 2017).

    Per bucket, v is rounded at random, without bias, to s = 2^(bits-1) - 1 levels of its norm.

    Messages are all-gathered, so that traffic grows with the number of workers: with 4 bits about
    n / 16 of DDP's in fp32 between n of them. That of `QuantisedBlocks` does not.

    Where rounding may take more than there was (buckets of 4 s^2 numbers or more), feedback takes C
    / (1 + omega).

    Args:
        bits: of one code, sign included: 2, 4 or 8.
        bucket_size: coordinates that share one 32-bit norm.
    """

    kind: ClassVar[str] = "qsgd"

    bits: Literal[2, 4, 8]
    bucket_size: Count = 512

    @property
    def levels(self) -> int:
        """The number of levels above 0, s."""
        return (1 << self.bits - 1) - 1

    def variance(self, layout: Layout) -> float:
        """Return sqrt(B) / s - 1, of buckets of B >= 4 s^2 numbers all alike.

        A number of a levels, f above a whole one, varies by f (1 - f) <= a - a^2, in squared
        levels, and all a^2 add up to s^2. So the sum is at most s sqrt(B) - s^2; and at most B / 4,
        which in smaller buckets is below s^2.
        """
        largest_bucket = min(self.bucket_size, layout.numel)
        omega = math.sqrt(largest_bucket) / self.levels - 1
        return omega if omega >= 1 else 0.0

    def payload_bits(
        self, layout: Layout, draw: Draw, float_bits: int = FLOAT_BITS
    ) -> int:
        num_buckets = math.ceil(layout.numel / self.bucket_size)
        num_bytes = math.ceil(layout.numel * self.bits / 8)
        return FLOAT_BITS * num_buckets + 8 * num_bytes

    def encode(self, vector: Tensor, draw: Draw, rank: int) -> Tensor:
        # (buckets, B), the last one filled up with zeros, which add nothing to its norm
        buckets = _buckets(vector, self.bucket_size)
        # At least fp32: a norm of finite fp16 numbers may lie beyond fp16.
        buckets = buckets.to(torch.promote_types(vector.dtype, torch.float32))
        norms = buckets.norm(dim=1).to(torch.float32)
        levels = self.levels
        # An all-zero bucket has norm 0; any positive divisor leaves its codes at 0.
        divisors = norms.clamp(min=torch.finfo(torch.float32).tiny)
        # s v / |v|, in [-s, s]
        scaled = buckets / divisors[:, None] * levels
        generator = draw.generator(vector.device, rank)
        # floor(a + u) with u uniform in [0, 1) is a on average: unbiased.
        noise = torch.empty_like(scaled).uniform_(generator=generator)
        # Clamped, as rounding may carry a number past the last level. Codes have no sign: the
        # lowest level is sent as 0.
        codes = (scaled + noise).floor().clamp(-levels, levels) + levels
        flat_codes = codes.to(torch.uint8).view(-1)
        packed = pack_bits(flat_codes[: vector.numel()], self.bits)
        return torch.cat([norms.view(torch.uint8), packed])

    def decode(self, message: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
        split = 4 * math.ceil(numel / self.bucket_size)
        norm_bytes = message[:split].clone()
        wide = torch.promote_types(dtype, torch.float32)
        norms = norm_bytes.view(torch.float32).to(wide)
        levels = self.levels
        codes = unpack_bits(message[split:], self.bits, numel).to(wide)
        codes.sub_(levels).div_(levels)
        # v is about |v| * code / s.
        shares = _buckets(codes, self.bucket_size)
        numbers = shares * norms[:, None]
        # A level may lie beyond fp16, as the norm may.
        return rounded(numbers.view(-1)[:numel], dtype)


@dataclass(frozen=True)
class QuantisedBlocks(Reduced):
    """Each block of coordinates in integers of its own scale.

    Its largest magnitude over L = 2^(bits-1) - 1.

    Messages are all-reduced in two stages: with 4 bits traffic is 0.13 of DDP's in fp32, whatever
    the number of workers.

    With one bit they are signs, and the scale is the mean magnitude. Rounding is to the nearest, so
    C leaves out less than there was; it is biased, and meant for methods that keep what is not
    sent. The all-reduce is that of `core.exchange`; source of the blocks: Dettmers et al., "8-bit
    optimizers via block-wise quantization", ICLR 2022.

    DeepSpeed's 1-bit optimisers (deepspeed/runtime/comm/nccl.py) scale signs by the norm: a
    tensor's, over the root of its number of coordinates, in the first stage, and a worker's share
    of it in the second. For v with d coordinates let rho = |v|_1 / (sqrt(d) |v|_2), at most 1. That
    scale leaves out 2 (1 - rho) |v|_2^2, which is more than there was if rho < 1/2. The mean
    magnitude leaves out (1 - rho^2) |v|_2^2, the least of all scales.

    Args:
        bits: of a number: 1, 4 or 8.
        block_size: coordinates that share one 32-bit scale, a multiple of 8.
    """

    kind: ClassVar[str] = "quantised_blocks"

    bits: Literal[1, 4, 8] = 8
    block_size: Count = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_size % 8:
            raise ValueError(
                f"quantised_blocks: block_size must be a multiple of 8, not {self.block_size!r}"
            )

    @property
    def _levels(self) -> int:
        # With one bit the formula gives none, and signs need one level on each side of 0.
        levels = (1 << self.bits - 1) - 1
        return max(1, levels)

    def payload_bits(
        self, layout: Layout, draw: Draw, float_bits: int = FLOAT_BITS
    ) -> int:
        num_blocks = math.ceil(layout.numel / self.block_size)
        block_bits = FLOAT_BITS + self.block_size * self.bits
        return num_blocks * block_bits

    def encode(self, vector: Tensor, draw: Draw | None = None, rank: int = 0) -> Tensor:
        *lead, numel = vector.shape
        size = self.block_size
        levels = self._levels
        num_blocks = math.ceil(numel / size)
        missing = num_blocks * size - numel
        padded = torch.nn.functional.pad(vector, (0, missing))
        # (..., blocks, size)
        padded = padded.view(*lead, num_blocks, size)
        # At least fp32: fp16 has too few digits for a mean, and no room for a small scale.
        padded = padded.to(torch.promote_types(vector.dtype, torch.float32))
        if self.bits == 1:
            # What fills the last block up must not lower its mean.
            starts = size * torch.arange(num_blocks, device=vector.device)
            filled = (numel - starts).clamp(max=size)
            # Divided before they are added, so that the sum of finite numbers is finite.
            scales = (padded.abs() / filled[:, None]).sum(dim=-1)
            scales = scales.to(torch.float32)
            codes = padded >= 0
        else:
            scales = padded.abs().amax(dim=-1) / levels
            scales = scales.to(torch.float32)
            # A block of zeros has scale 0; any positive divisor leaves its codes at 0.
            divisors = scales.clamp(min=torch.finfo(torch.float32).tiny)
            scaled = padded / divisors[..., None]
            codes = scaled.round_().clamp_(-levels, levels).add_(levels)
        packed = pack_bits(codes.to(torch.uint8).view(-1), self.bits)
        packed = packed.view(*lead, num_blocks, size * self.bits // 8)
        # (..., blocks, 4)
        scale_bytes = scales[..., None].view(torch.uint8)
        return torch.cat([scale_bytes, packed], dim=-1)

    def decode(self, message: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
        *lead, num_blocks, _ = message.shape
        # Cloned, as a part of a message need not lie where floats may.
        scale_bytes = message[..., :4].reshape(-1).clone()
        scales = scale_bytes.view(torch.float32)
        # At least fp32: of a scale that is rounded to fp16 the largest code may lie beyond it.
        wide = torch.promote_types(dtype, torch.float32)
        scales = scales.view(*lead, num_blocks, 1).to(wide)
        packed = message[..., 4:].reshape(-1)
        shape = (*lead, num_blocks, self.block_size)
        codes = unpack_bits(packed, self.bits, math.prod(shape))
        codes = codes.view(shape).to(wide)
        if self.bits == 1:
            codes.mul_(2)  # signs are -1 and 1
        numbers = codes.sub_(self._levels).mul_(scales)
        padded = numbers.view(*lead, num_blocks * self.block_size)
        return rounded(padded[..., :numel], dtype)


def _buckets(vector: Tensor, size: int) -> Tensor:
    missing = -vector.numel() % size
    padded = torch.nn.functional.pad(vector, (0, missing))
    return padded.view(-1, size)
