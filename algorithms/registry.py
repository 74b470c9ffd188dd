"""Finds algorithms, baselines and compressors: each is a module that defines its class.

Nothing lists them.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TypeVar

from cser_bench.algorithms.core.compressors import (
    Compressor,
    Identity,
    Zero,
)
from cser_bench.algorithms.core.optimizer import DistributedOptimizer

T = TypeVar("T")


@cache
def algorithms() -> dict[str, type[DistributedOptimizer]]:
    """All algorithms by the name that specs use, sorted."""
    found = _classes("cser_bench.algorithms", DistributedOptimizer)  # type: ignore[type-abstract]
    return _by_name([(item.name, item) for item in found])


@cache
def baselines() -> dict[str, type[DistributedOptimizer]]:
    """All baselines, whose workers must be processes, by the name that specs use, sorted."""
    found = _classes("cser_bench.algorithms.baselines", DistributedOptimizer)  # type: ignore[type-abstract]
    return _by_name([(item.name, item) for item in found])


def methods() -> dict[str, type[DistributedOptimizer]]:
    """Algorithms and baselines: all that a spec, a benchmark or a timing can name."""
    return _by_name([*algorithms().items(), *baselines().items()])


@cache
def compressors() -> dict[str, type[Compressor]]:
    """All compressors by the name that specs use, sorted."""
    own = _classes("cser_bench.algorithms.compressors", Compressor)  # type: ignore[type-abstract]
    found: list[type[Compressor]] = [Identity, Zero, *own]
    return _by_name([(item.kind, item) for item in found])


def _classes(package: str, base: type[T]) -> Iterator[type[T]]:
    """Return the classes of this base that the package's own modules define."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if module.ispkg or module.name in ("registry", "__main__"):
            continue
        name = f"{package}.{module.name}"
        for _, item in inspect.getmembers(importlib.import_module(name), inspect.isclass):
            if issubclass(item, base) and item.__module__ == name:
                yield item


def _by_name(found: Sequence[tuple[str, type[T]]]) -> dict[str, type[T]]:
    """Raise ValueError where two have the same name."""
    named: dict[str, type[T]] = {}
    for name, item in found:
        if name in named:
            raise ValueError(
                f"two classes are named {name!r}: {named[name]} and {item}; rename one, or, if its "
                "file was renamed, remove the folder build/ and install again"
            )
        named[name] = item
    return dict(sorted(named.items()))
