"""Codes of few bits, packed into bytes."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Pack uint8 codes below 2^bits (bits 1, 2, 4 or 8), lowest first, into ceil(len * bits / 8) bytes."""
    per_byte = 8 // bits
    padded = torch.nn.functional.pad(codes, (0, -codes.numel() % per_byte)).view(-1, per_byte)
    packed = padded[:, 0].clone()
    for place in range(1, per_byte):
        packed |= padded[:, place] << (place * bits)
    return packed


def unpack_bits(packed: Tensor, bits: int, numel: int) -> Tensor:
    """The inverse of `pack_bits`: the first `numel` codes, uint8."""
    shifts = range(0, 8, bits)
    parts = [(packed >> shift) & (2**bits - 1) for shift in shifts]
    return torch.stack(parts, dim=1).view(-1)[:numel]
