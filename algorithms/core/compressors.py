"""Compressors: what of a vector is sent. Their type says how it may travel, and each states its payload in bits."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from algorithms.core.layout import Indices, Layout, Support, Window, Windows, whole
from algorithms.core.randomness import Draw
from algorithms.core.traffic import Entry

FLOAT_BITS = 32
INDEX_BITS = 32


class Compressor(ABC):
    """C in the papers. A method says in its signature whether it takes any, or only one with shared support."""

    kind: ClassVar[str]
    """What a spec calls it."""

    @abstractmethod
    def check(self, layout: Layout) -> None:
        """Raises ValueError, in one sentence, where this compressor cannot work on such a vector."""

    @abstractmethod
    def payload_bits(self, layout: Layout, draw: Draw, float_bits: int = FLOAT_BITS) -> int:
        """Bits that one worker sends for this draw; 0 means that no collective takes place.

        `float_bits`: of a number on the wire, where the compressor leaves that open (`Gathered` ones have a format).
        """

    def cost(self, layout: Layout, draw: Callable[[int], Draw], steps: range, float_bits: int = FLOAT_BITS) -> Entry:
        """Closed form of what one worker sends at these steps. Here for a payload of constant size."""
        if not steps:
            return Entry()
        bits = self.payload_bits(layout, draw(steps[0]), float_bits)
        all_bits = bits * len(steps)
        return Entry(all_bits, len(steps) if bits else 0, all_bits if isinstance(self, Gathered) else 0)

    def mean_cost(self, layout: Layout, num_draws: int, float_bits: int = FLOAT_BITS) -> Entry:
        """As `cost`, as the mean over all draws where the payload depends on the draw."""
        return self.cost(layout, lambda step: Draw(0, step, ""), range(num_draws), float_bits)


class SharedSupport(Compressor):
    """Keeps coordinates that all workers draw alike: linear, so its payload is dense and may be all-reduced."""

    @abstractmethod
    def support(self, layout: Layout, draw: Draw) -> Support:
        """The coordinates kept in this draw, the same on every worker."""


class Gathered(Compressor):
    """Differs between workers or is not linear: its messages must be all-gathered and decoded one by one."""

    @abstractmethod
    def encode(self, vector: Tensor, draw: Draw, rank: int) -> Tensor:
        """The message for `vector` (float32 or float64, shape (d,)): uint8 tensor of payload_bits / 8 bytes."""

    @abstractmethod
    def decode(self, message: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
        """C(vector), of shape (numel,), from a message."""


@dataclass(frozen=True)
class Identity(SharedSupport):
    """Sends everything."""

    kind: ClassVar[str] = "identity"

    def check(self, layout: Layout) -> None:
        pass

    def payload_bits(self, layout: Layout, draw: Draw, float_bits: int = FLOAT_BITS) -> int:
        return float_bits * layout.numel

    def support(self, layout: Layout, draw: Draw) -> Windows:
        return whole(layout.numel)


@dataclass(frozen=True)
class Zero(SharedSupport):
    """Sends nothing."""

    kind: ClassVar[str] = "zero"

    def check(self, layout: Layout) -> None:
        pass

    def payload_bits(self, layout: Layout, draw: Draw, float_bits: int = FLOAT_BITS) -> int:
        return 0

    def support(self, layout: Layout, draw: Draw) -> Windows:
        return Windows(())


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


@dataclass(frozen=True)
class PerTensorBlockSparsifier(SharedSupport):
    """The block sparsifier of the authors' released code: each tensor keeps a block of its rows, or nothing.

    Along axis 0 the block has k = max(1, round(size / row_ratio)) rows and starts at a multiple of k, so the last may
    be shorter; tensors of two or more axes are cut likewise along axis 1 by `column_ratio`; a coin with probability
    1 / tensor_ratio decides for each tensor whether it takes part, so a draw may send nothing and payloads differ.
    """

    kind: ClassVar[str] = "per_tensor_block"

    row_ratio: float
    column_ratio: float = 1.0
    tensor_ratio: float = 1.0

    def __post_init__(self) -> None:
        for key in ("row_ratio", "column_ratio", "tensor_ratio"):
            _check_ratio(f"a per-tensor block sparsifier ({key})", getattr(self, key))

    def check(self, layout: Layout) -> None:
        pass

    def payload_bits(self, layout: Layout, draw: Draw, float_bits: int = FLOAT_BITS) -> int:
        return float_bits * sum(
            math.prod(hi - lo for lo, hi in spans) * rest for spans, rest in self._spans(layout, draw)
        )

    def cost(self, layout: Layout, draw: Callable[[int], Draw], steps: range, float_bits: int = FLOAT_BITS) -> Entry:
        bits = [self.payload_bits(layout, draw(step), float_bits) for step in steps]
        return Entry(sum(bits), sum(1 for message in bits if message))

    def mean_cost(self, layout: Layout, num_draws: int, float_bits: int = FLOAT_BITS) -> Entry:
        numel = sum(
            math.prod(_mean_block(size, ratio) for size, ratio in self._axes(tensor)) * math.prod(tensor.shape[2:])
            for tensor in layout.tensors
        )
        silent = (1 - 1 / self.tensor_ratio) ** len(layout.tensors)
        return Entry(round(num_draws * float_bits * numel / self.tensor_ratio), round(num_draws * (1 - silent)))

    def _axes(self, tensor: Window) -> Iterator[tuple[int, float]]:
        """The size and the ratio of each axis that is cut."""
        return zip(tensor.shape[:2], (self.row_ratio, self.column_ratio), strict=False)

    def support(self, layout: Layout, draw: Draw) -> Windows:
        windows = []
        for tensor, spans in self._chosen(layout, draw):
            shape = tuple(hi - lo for lo, hi in spans) + tensor.shape[len(spans) :]
            start = sum(lo * stride for (lo, _), stride in zip(spans, tensor.strides, strict=False))
            windows.append(Window(tensor.offset + start, shape, tensor.strides))
        return Windows(tuple(windows))

    def _spans(self, layout: Layout, draw: Draw) -> Iterator[tuple[list[tuple[int, int]], int]]:
        for tensor, spans in self._chosen(layout, draw):
            yield spans, math.prod(tensor.shape[len(spans) :])

    def _chosen(self, layout: Layout, draw: Draw) -> Iterator[tuple[Window, list[tuple[int, int]]]]:
        """Of each tensor that takes part, the range kept along its first one or two axes."""
        raw = draw.integers(3 * len(layout.tensors)).reshape(-1, 3).tolist()
        for tensor, (coin, *places) in zip(layout.tensors, raw, strict=True):
            if coin * self.tensor_ratio < 2**64:
                axes = zip(tensor.shape[:2], (self.row_ratio, self.column_ratio), places, strict=False)
                yield tensor, [_aligned_block(size, ratio, place) for size, ratio, place in axes]


@dataclass(frozen=True)
class RandomK(SharedSupport):
    """k = d / R coordinates drawn without replacement from shared randomness; no index is sent."""

    kind: ClassVar[str] = "random_k"

    ratio: float

    def __post_init__(self) -> None:
        _check_ratio("random-k", self.ratio)

    def check(self, layout: Layout) -> None:
        _check_numel("random-k", self.ratio, layout)

    def payload_bits(self, layout: Layout, draw: Draw, float_bits: int = FLOAT_BITS) -> int:
        return float_bits * _kept(layout.numel, self.ratio)

    def support(self, layout: Layout, draw: Draw) -> Indices:
        return Indices(draw.choose_many(layout.numel, _kept(layout.numel, self.ratio)))


@dataclass(frozen=True)
class TopK(Gathered):
    """k = d / R coordinates of largest magnitude, each worker its own; 32 bits of index go with each number."""

    kind: ClassVar[str] = "top_k"

    ratio: float

    def __post_init__(self) -> None:
        _check_ratio("top-k", self.ratio)

    def check(self, layout: Layout) -> None:
        _check_numel("top-k", self.ratio, layout)

    def payload_bits(self, layout: Layout, draw: Draw, float_bits: int = FLOAT_BITS) -> int:
        return (FLOAT_BITS + INDEX_BITS) * _kept(layout.numel, self.ratio)

    def encode(self, vector: Tensor, draw: Draw, rank: int) -> Tensor:
        index = vector.abs().topk(_kept(vector.numel(), self.ratio), sorted=False).indices
        values = vector[index].to(torch.float32)
        return torch.cat([values.view(torch.uint8), index.to(torch.int32).view(torch.uint8)])

    def decode(self, message: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
        values, index = message.view(2, -1)
        dense = torch.zeros(numel, dtype=dtype, device=message.device)
        return dense.index_copy_(0, index.view(torch.int32).long(), values.view(torch.float32).to(dtype))


@dataclass(frozen=True)
class ScaledSign(Gathered):
    """sign(v) * mean|v|: one bit a coordinate and one 32-bit scale (Karimireddy 2019). Zero counts as positive."""

    kind: ClassVar[str] = "sign"

    def check(self, layout: Layout) -> None:
        pass

    def payload_bits(self, layout: Layout, draw: Draw, float_bits: int = FLOAT_BITS) -> int:
        return 8 * math.ceil(layout.numel / 8) + FLOAT_BITS

    def encode(self, vector: Tensor, draw: Draw, rank: int) -> Tensor:
        scale = vector.abs().mean().to(torch.float32).reshape(1)
        return torch.cat([scale.view(torch.uint8), pack_bits((vector >= 0).to(torch.uint8), 1)])

    def decode(self, message: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
        scale = message[:4].clone().view(torch.float32).to(dtype)
        signs = unpack_bits(message[4:], 1, numel).to(dtype).mul_(2).sub_(1)
        return signs.mul_(scale)


@dataclass(frozen=True)
class QSGD(Gathered):
    """QSGD (Alistarh 2017): per bucket, v is rounded at random, without bias, to s = 2^(bits-1) - 1 levels of its norm.

    Args:
        bits: of one code, sign included: 2, 4 or 8.
        bucket_size: coordinates that share one 32-bit norm.
    """

    kind: ClassVar[str] = "qsgd"

    bits: int
    bucket_size: int = 512

    def __post_init__(self) -> None:
        if type(self.bits) is not int or self.bits not in (2, 4, 8):
            raise ValueError(f"QSGD takes codes of 2, 4 or 8 bits, not {self.bits!r}")
        if type(self.bucket_size) is not int or self.bucket_size < 1:
            raise ValueError(f"QSGD's bucket_size must be an integer of at least 1, not {self.bucket_size!r}")

    def check(self, layout: Layout) -> None:
        pass

    def payload_bits(self, layout: Layout, draw: Draw, float_bits: int = FLOAT_BITS) -> int:
        num_buckets = math.ceil(layout.numel / self.bucket_size)
        return FLOAT_BITS * num_buckets + 8 * math.ceil(layout.numel * self.bits / 8)

    def encode(self, vector: Tensor, draw: Draw, rank: int) -> Tensor:
        buckets = _buckets(vector, self.bucket_size)
        norms = buckets.norm(dim=1).to(torch.float32)
        levels = 2 ** (self.bits - 1) - 1
        # An all-zero bucket has norm 0; any positive divisor leaves its codes at 0.
        scaled = buckets / norms.clamp(min=torch.finfo(torch.float32).tiny)[:, None] * levels
        noise = torch.empty_like(scaled).uniform_(generator=draw.generator(vector.device, rank))
        codes = (scaled + noise).floor().clamp(-levels, levels) + levels
        packed = pack_bits(codes.to(torch.uint8).view(-1)[: vector.numel()], self.bits)
        return torch.cat([norms.view(torch.uint8), packed])

    def decode(self, message: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
        split = 4 * math.ceil(numel / self.bucket_size)
        norms = message[:split].clone().view(torch.float32).to(dtype)
        levels = 2 ** (self.bits - 1) - 1
        codes = unpack_bits(message[split:], self.bits, numel).to(dtype).sub_(levels).div_(levels)
        return (_buckets(codes, self.bucket_size) * norms[:, None]).view(-1)[:numel]


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


def _buckets(vector: Tensor, size: int) -> Tensor:
    return torch.nn.functional.pad(vector, (0, -vector.numel() % size)).view(-1, size)


def _aligned_block(size: int, ratio: float, place: int) -> tuple[int, int]:
    length = max(1, round(size / ratio))
    start = length * (place % math.ceil(size / length))
    return start, min(start + length, size)


def _mean_block(size: int, ratio: float) -> float:
    return size / math.ceil(size / max(1, round(size / ratio)))


def _kept(numel: int, ratio: float) -> int:
    return max(1, int(numel / ratio))


def _check_ratio(name: str, ratio: float) -> None:
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 1 <= ratio < math.inf:
        raise ValueError(f"the ratio of {name} must be a number from 1 up, not {ratio!r}")


def _check_numel(name: str, ratio: float, layout: Layout) -> None:
    if ratio > layout.numel:
        raise ValueError(f"{name} at ratio {ratio} keeps no coordinate of the model's {layout.numel}; lower the ratio")
