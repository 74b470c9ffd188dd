"""Sparsifiers of single coordinates: random ones that all workers draw alike, and the largest, each worker its own."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from algorithms.core.compressors import FLOAT_BITS, INDEX_BITS, Draw, Gathered, SharedSupport, check_numel, num_kept
from algorithms.core.layout import Indices, Layout
from algorithms.core.settings import Ratio


@dataclass(frozen=True)
class RandomK(SharedSupport):
    """k = d / R coordinates drawn without replacement from shared randomness; no index is sent."""

    kind: ClassVar[str] = "random_k"

    ratio: Ratio

    def check(self, layout: Layout) -> None:
        check_numel(self.kind, self.ratio, layout)

    def payload_bits(self, layout: Layout, draw: Draw, float_bits: int = FLOAT_BITS) -> int:
        return float_bits * num_kept(layout.numel, self.ratio)

    def support(self, layout: Layout, draw: Draw) -> Indices:
        return Indices(draw.choose_many(layout.numel, num_kept(layout.numel, self.ratio)))


@dataclass(frozen=True)
class TopK(Gathered):
    """k = d / R coordinates of largest magnitude, each worker its own; 32 bits of index go with each number."""

    kind: ClassVar[str] = "top_k"

    ratio: Ratio

    def check(self, layout: Layout) -> None:
        check_numel(self.kind, self.ratio, layout)

    def payload_bits(self, layout: Layout, draw: Draw, float_bits: int = FLOAT_BITS) -> int:
        return (FLOAT_BITS + INDEX_BITS) * num_kept(layout.numel, self.ratio)

    def encode(self, vector: Tensor, draw: Draw, rank: int) -> Tensor:
        index = vector.abs().topk(num_kept(vector.numel(), self.ratio), sorted=False).indices
        values = vector[index].to(torch.float32)
        return torch.cat([values.view(torch.uint8), index.to(torch.int32).view(torch.uint8)])

    def decode(self, message: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
        values, index = message.view(2, -1)
        dense = torch.zeros(numel, dtype=dtype, device=message.device)
        return dense.index_copy_(0, index.view(torch.int32).long(), values.view(torch.float32).to(dtype))
