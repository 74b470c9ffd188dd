"""Seeds of independent streams, derived by sha256.

So runs with the same seed are paired across algorithms.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed of a stream.

    Different parts give independent streams, for instance a run's seed and "order".
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """Return a CPU generator of its own for the stream."""
    return torch.Generator().manual_seed(derive_seed(*parts))
