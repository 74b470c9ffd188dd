"""Scaled sign: one bit a coordinate, and one scale."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from algorithms.core.bits import pack_bits, unpack_bits
from algorithms.core.compressors import FLOAT_BITS, Gathered
from algorithms.core.layout import Layout
from algorithms.core.randomness import Draw


@dataclass(frozen=True)
class ScaledSign(Gathered):
    """sign(v) * mean|v|: one bit a coordinate and one 32-bit scale (Karimireddy 2019). Zero counts as positive."""

    kind: ClassVar[str] = "sign"

    def payload_bits(self, layout: Layout, draw: Draw, float_bits: int = FLOAT_BITS) -> int:
        return 8 * math.ceil(layout.numel / 8) + FLOAT_BITS

    def encode(self, vector: Tensor, draw: Draw, rank: int) -> Tensor:
        scale = vector.abs().mean().to(torch.float32).reshape(1)
        return torch.cat([scale.view(torch.uint8), pack_bits((vector >= 0).to(torch.uint8), 1)])

    def decode(self, message: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
        scale = message[:4].clone().view(torch.float32).to(dtype)
        signs = unpack_bits(message[4:], 1, numel).to(dtype).mul_(2).sub_(1)
        return signs.mul_(scale)
