"""Shared randomness: a stateless function of (seed, step, purpose), the same on every worker."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy
import torch

Integers = numpy.ndarray[tuple[int], numpy.dtype[numpy.uint64]]


@dataclass(frozen=True)
class Draw:
    """One occasion to draw: equal draws give equal numbers, on any worker, after any restart."""

    seed: int
    step: int
    purpose: str

    def key(self, *extra: int) -> int:
        """A 128-bit key, by sha256; `extra` (a rank, a tensor's number) gives independent streams."""
        text = repr((self.seed, self.step, self.purpose, *extra))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")

    def integers(self, count: int, *extra: int) -> Integers:
        """`count` raw 64-bit integers of the Philox stream, whose values numpy guarantees for ever. Read only."""
        return _raw_integers(self, count, extra)

    def choose(self, population: int, count: int, *extra: int) -> list[int]:
        """`count` of range(population), without replacement, ascending; costs O(population)."""
        if count == population:
            return list(range(population))
        if count == 1:
            return [int(self.integers(1, *extra)[0]) % population]
        order = numpy.argsort(self.integers(population, *extra), kind="stable")
        return sorted(order[:count].tolist())

    def choose_many(self, population: int, count: int) -> torch.Tensor:
        """As `choose`, for large numbers: int64 of shape (count,), ascending; costs O(count) for small shares."""
        generator = numpy.random.Generator(numpy.random.Philox(key=self.key()))
        chosen = generator.choice(population, count, replace=False, shuffle=False)
        return torch.from_numpy(numpy.sort(chosen))

    def normal(self, shape: tuple[int, ...], *extra: int) -> torch.Tensor:
        """Standard normal numbers of the Philox stream: float32 of this shape, on the CPU."""
        generator = numpy.random.Generator(numpy.random.Philox(key=self.key(*extra)))
        return torch.from_numpy(generator.standard_normal(shape).astype(numpy.float32))

    def generator(self, device: torch.device, *extra: int) -> torch.Generator:
        """A torch generator of its own on `device`; never the global one."""
        return torch.Generator(device).manual_seed(self.key(*extra) & (2**63 - 1))


@functools.lru_cache(maxsize=8)
def _raw_integers(draw: Draw, count: int, extra: tuple[int, ...]) -> Integers:
    # Kept for a moment: a payload's size and its support are asked for one after the other.
    raw: Integers = numpy.random.Philox(key=draw.key(*extra)).random_raw(count)
    raw.flags.writeable = False
    return raw
