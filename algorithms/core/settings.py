"""The settings that a method has of its own: which they are, and what is refused."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from algorithms.core.arguments import Common
from algorithms.core.compressors import Compressor, Gathered, SharedSupport
from algorithms.core.layout import Layout


def own_parameters(algorithm: type[Optimizer]) -> dict[str, inspect.Parameter]:
    """The arguments that a method has and others have not, by name: its settings."""
    return {
        key: parameter
        for key, parameter in inspect.signature(algorithm.__init__).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and key not in Common.__annotations__
    }


def own_defaults(algorithm: type[Optimizer]) -> dict[str, Any]:
    """Those of its settings that need not be given."""
    parameters = own_parameters(algorithm).items()
    return {key: each.default for key, each in parameters if each.default is not inspect.Parameter.empty}


def require_interval(name: str, key: str, interval: int) -> None:
    """Raises ValueError unless `interval` is an integer from 1 up."""
    if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
        raise ValueError(f"{name}: {key} must be an integer from 1 up, not {interval!r}")


def nearest_factors(product: int) -> tuple[int, int]:
    """The two integers of this product that are nearest to each other, the smaller one first."""
    smaller = next(each for each in range(math.isqrt(product), 0, -1) if product % each == 0)
    return smaller, product // smaller


def require_shared_support(name: str, **compressors: Compressor) -> None:
    """Raises ValueError for a compressor whose messages cannot be all-reduced."""
    for key, compressor in compressors.items():
        if not isinstance(compressor, SharedSupport):
            raise ValueError(
                f"{name}: {key} must have a support that all workers share (block, per-tensor block, random-k, "
                f"identity, zero), {type(compressor).__name__} has not"
            )


def check_compressors(
    name: str, layout: Layout, wire: torch.dtype | None, compressors: Mapping[str, Compressor]
) -> None:
    """Raises ValueError where one of them cannot work on such a vector, with such numbers on the wire."""
    for key, compressor in compressors.items():
        if not isinstance(compressor, Compressor):
            raise ValueError(f"{name}: {key} must be a compressor, not {compressor!r}")
        if wire is not None and isinstance(compressor, Gathered):
            raise ValueError(f"{name}: {key}: messages of {compressor.kind} have a format of their own; wire is fp32")
        try:
            compressor.check(layout)
        except ValueError as error:
            raise ValueError(f"{name}: {key}: {error}") from None
