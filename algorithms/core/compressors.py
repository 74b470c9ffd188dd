"""What a compressor is.

Its type says how its messages travel, it states its payload, and draws alike everywhere.
"""

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy
import torch
from torch import Tensor

from cser_bench.algorithms.core.layout import Layout, Support, Windows, whole
from cser_bench.algorithms.core.settings import declared_settings
from cser_bench.algorithms.core.traffic import Entry

Integers = numpy.ndarray[tuple[int], numpy.dtype[numpy.uint64]]


@dataclass(frozen=True)
class Draw:
    """One occasion to draw: equal draws give equal numbers, on any worker, after any restart."""

    seed: int
    step: int
    purpose: str

    def key(self, *extra: int) -> int:
        """Return a 128-bit key, by sha256.

        `extra` (a rank, a tensor's number) gives independent streams.
        """
        text = repr((self.seed, self.step, self.purpose, *extra))
        digest = hashlib.sha256(text.encode()).digest()
        # 16 bytes, as Philox takes keys of 128 bits.
        return int.from_bytes(digest[:16], "little")

    def integers(self, count: int, *extra: int) -> Integers:
        """`count` raw 64-bit integers of the Philox stream, whose values numpy guarantees for ever.

        Read only.
        """
        return _raw_integers(self, count, extra)

    def choose(self, population: int, count: int, *extra: int) -> list[int]:
        """`count` of range(population), without replacement, ascending; costs O(population)."""
        if count == population:
            return list(range(population))
        if count == 1:
            (number,) = self.integers(1, *extra)
            # 64 bits, so that the bias of the remainder is too small to be seen.
            return [int(number) % population]
        # The places of the `count` smallest of `population` random numbers. Stable, so that equal
        # numbers are ordered alike on every worker.
        numbers = self.integers(population, *extra)
        order = numpy.argsort(numbers, kind="stable")
        return sorted(order[:count].tolist())

    def choose_many(self, population: int, count: int) -> torch.Tensor:
        """Do as `choose`, for large numbers: int64 of shape (count,), ascending.

        Costs O(count) for small shares.
        """
        generator = _philox(self.key())
        chosen = generator.choice(population, count, replace=False, shuffle=False)
        return torch.from_numpy(numpy.sort(chosen))

    def normal(self, shape: tuple[int, ...], *extra: int) -> torch.Tensor:
        """Return standard normal numbers of the Philox stream, in float32, on the CPU."""
        numbers = _philox(self.key(*extra)).standard_normal(shape)
        return torch.from_numpy(numbers.astype(numpy.float32))

    def generator(self, device: torch.device, *extra: int) -> torch.Generator:
        """Return a torch generator of its own on `device`; never the global one."""
        if device.type == "meta":  # in a dry step nothing is drawn
            device = torch.device("cpu")
        # 63 bits, which fit torch's seeds as a signed integer.
        seed = self.key(*extra) & (2**63 - 1)
        return torch.Generator(device).manual_seed(seed)


def _philox(key: int) -> numpy.random.Generator:
    bits = numpy.random.Philox(key=key)
    return numpy.random.Generator(bits)


@functools.lru_cache(maxsize=8)
def _raw_integers(draw: Draw, count: int, extra: tuple[int, ...]) -> Integers:
    # Cached, since a payload's size and its support are asked for one after the other.
    philox = numpy.random.Philox(key=draw.key(*extra))
    raw: Integers = philox.random_raw(count)
    # The cache hands out this same array again.
    raw.flags.writeable = False
    return raw


def digest_of_draws() -> str:
    """Return a digest of draws, so that workers can compare their versions of numpy.

    Two versions may draw differently. Few of many coordinates are drawn by another algorithm than a
    large share of them, so the digest covers both.
    """
    draw = Draw(0, 0, "digest")
    digest = hashlib.sha256()
    for count in (100, 10_000):
        digest.update(draw.choose_many(20_000, count).numpy().tobytes())
    digest.update(draw.normal((1000,)).numpy().tobytes())
    return digest.hexdigest()[:8]


FLOAT_BITS = 32
"""Bits of a number in a message, unless messages have another dtype."""


class Compressor(ABC):
    """A compressor, C in the papers.

    A method's annotation says whether it takes any compressor, or only one with shared support.
    """

    kind: ClassVar[str]
    """The compressor's name in specs."""

    def __post_init__(self) -> None:
        for key, setting in declared_settings(type(self)).items():
            value = setting.checked(f"{self.kind}: {key}", getattr(self, key))
            # Past the dataclass, which is frozen.
            object.__setattr__(self, key, value)

    def variance(self, layout: Layout) -> float:
        """Return omega if it is 1 or more, else 0.

        omega is the least number with E |C(v) - v|^2 <= omega |v|^2 for every v. From 1 up, more
        may be left out than there was, and error feedback diverges.
        """
        return 0.0

    def check(self, layout: Layout) -> None:  # noqa: B027 (most work on any)
        """Raise ValueError where this compressor cannot work on such a vector."""

    @abstractmethod
    def payload_bits(
        self, layout: Layout, draw: Draw, float_bits: int = FLOAT_BITS
    ) -> int:
        """Bits that one worker sends for this draw; 0 means that no collective takes place.

        `float_bits`: of a number in a message, where the compressor leaves that open (`Encoded`
            ones have a format).
        """

    def cost(
        self,
        layout: Layout,
        draw: Callable[[int], Draw] | None,
        steps: range,
        float_bits: int = FLOAT_BITS,
    ) -> Entry:
        """Return what one worker sends at these steps, in closed form.

        This one is for a payload of constant size.

        Args:
            draw: the draw of each step; None for the mean over draws.
        """
        # All draws have the same payload.
        bits = self.payload_bits(layout, Draw(0, 0, ""), float_bits)
        if not bits:
            return Entry()
        all_bits = bits * len(steps)
        gathered_bits = all_bits if isinstance(self, Gathered) else 0
        return Entry(all_bits, len(steps), gathered_bits)


class SharedSupport(Compressor):
    """A compressor that keeps the same coordinates on all workers.

    It is linear, so its payload is dense and can be all-reduced.
    """

    def payload_bits(
        self, layout: Layout, draw: Draw, float_bits: int = FLOAT_BITS
    ) -> int:
        return float_bits * self.support(layout, draw).payload_numel

    @abstractmethod
    def support(self, layout: Layout, draw: Draw) -> Support:
        """Return the coordinates kept in this draw, the same on every worker."""


class Encoded(Compressor):
    """A compressor that is not linear: its messages are bytes in a format of its own."""

    @abstractmethod
    def encode(self, vector: Tensor, draw: Draw, rank: int) -> Tensor:
        """Return the message for `vector` (float32 or float64, shape (d,)).

        Uint8 tensor of payload_bits / 8 bytes.
        """

    @abstractmethod
    def decode(self, message: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
        """C(vector), of shape (numel,), from a message."""


class Gathered(Encoded):
    """A compressor whose messages must be all-gathered and decoded one by one."""


class Reduced(Encoded):
    """A compressor that rounds block by block, and draws nothing.

    Each worker adds a share of all messages and rounds the sum again. The error of that second
    rounding counts as sent by the worker that added the share, so that it is fed back. A message
    has shape (..., blocks, bytes), for a vector of shape (..., d).
    """

    block_size: int
    """Coordinates of a block; the last block is filled up."""


@dataclass(frozen=True)
class Identity(SharedSupport):
    """Sends everything."""

    kind: ClassVar[str] = "identity"

    def support(self, layout: Layout, draw: Draw) -> Windows:
        return whole(layout.numel)


@dataclass(frozen=True)
class Zero(SharedSupport):
    """Sends nothing."""

    kind: ClassVar[str] = "zero"

    def support(self, layout: Layout, draw: Draw) -> Windows:
        return Windows(())


@dataclass(frozen=True)
class Scaled(Gathered):
    """C / (1 + omega) for an unbiased C of variance omega.

    It leaves out less than there was, so error feedback converges.

    Source: Beznosikov et al., "On biased compression for distributed learning", JMLR 2023.
    """

    kind: ClassVar[str] = "scaled"

    unscaled: Gathered
    omega: float

    def payload_bits(
        self, layout: Layout, draw: Draw, float_bits: int = FLOAT_BITS
    ) -> int:
        return self.unscaled.payload_bits(layout, draw, float_bits)

    def encode(self, vector: Tensor, draw: Draw, rank: int) -> Tensor:
        return self.unscaled.encode(vector, draw, rank)

    def decode(self, message: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
        # Unscaled, a number may lie beyond fp16.
        wide = torch.promote_types(dtype, torch.float32)
        numbers = self.unscaled.decode(message, numel, wide)
        return rounded(numbers.div_(1 + self.omega), dtype)


def check_numel(kind: str, ratio: float, layout: Layout) -> None:
    """Raise ValueError where not even one coordinate would be kept."""
    if ratio > layout.numel:
        raise ValueError(
            f"{kind} at ratio {ratio} keeps no coordinate of the model's {layout.numel}; lower the "
            "ratio"
        )


def rounded(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the numbers in another dtype, or themselves if it is their own.

    A finite number beyond the dtype's range becomes the largest number of its sign. Infinities and
    NaN stay.
    """
    short = numbers.to(dtype)
    largest = torch.finfo(dtype).max
    # A dtype of at least the same range holds every number.
    if largest >= torch.finfo(numbers.dtype).max:
        return short
    return torch.where(numbers.isinf(), short, short.clamp(-largest, largest))


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Pack uint8 codes of 1, 2, 4 or 8 bits, lowest first, into ceil(len * bits / 8) bytes."""
    per_byte = 8 // bits
    missing = -codes.numel() % per_byte
    # (bytes, per byte)
    padded = torch.nn.functional.pad(codes, (0, missing)).view(-1, per_byte)
    packed = padded[:, 0].clone()  # (bytes,)
    # Code k of a byte stands in its bits from k * bits up.
    for place in range(1, per_byte):
        packed |= padded[:, place] << (place * bits)
    return packed


def unpack_bits(packed: Tensor, bits: int, numel: int) -> Tensor:
    """Return the inverse of `pack_bits`: the first `numel` codes, uint8."""
    mask = 2**bits - 1
    parts = [(packed >> shift) & mask for shift in range(0, 8, bits)]  # (bytes,) each
    codes = torch.stack(parts, dim=1).view(-1)  # byte after byte
    # The last byte may hold more codes than were packed.
    return codes[:numel]
