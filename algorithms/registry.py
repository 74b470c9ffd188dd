"""Finds algorithms, baselines and compressors: each is a module that defines its class.

Nothing lists them.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TypeVar

from cser_bench.algorithms.core.compressors import Compressor, Identity, Zero
from cser_bench.algorithms.core.optimizer import DistributedOptimizer

T = TypeVar("T")


@cache
def algorithms() -> dict[str, type[DistributedOptimizer]]:
    """All algorithms by the name that specs use, sorted."""
    classes = _classes("cser_bench.algorithms", DistributedOptimizer)  # type: ignore[type-abstract]
    return _by_name([(method.name, method) for method in classes])


@cache
def baselines() -> dict[str, type[DistributedOptimizer]]:
    """All baselines, whose workers must be processes, by the name that specs use, sorted."""
    package = "cser_bench.algorithms.baselines"
    classes = _classes(package, DistributedOptimizer)  # type: ignore[type-abstract]
    return _by_name([(method.name, method) for method in classes])


def methods() -> dict[str, type[DistributedOptimizer]]:
    """Algorithms and baselines: all that a spec, a benchmark or a timing can name."""
    return _by_name([*algorithms().items(), *baselines().items()])


@cache
def compressors() -> dict[str, type[Compressor]]:
    """All compressors by the name that specs use, sorted."""
    package = "cser_bench.algorithms.compressors"
    in_files = _classes(package, Compressor)  # type: ignore[type-abstract]
    classes: list[type[Compressor]] = [Identity, Zero, *in_files]
    return _by_name([(compressor.kind, compressor) for compressor in classes])


def _classes(package: str, base: type[T]) -> Iterator[type[T]]:
    """Return the classes of this base that the package's own modules define."""
    folder = importlib.import_module(package).__path__
    for info in pkgutil.iter_modules(folder):
        if info.ispkg or info.name in ("registry", "__main__"):
            continue
        name = f"{package}.{info.name}"
        module = importlib.import_module(name)
        for _, item in inspect.getmembers(module, inspect.isclass):
            # Modules also hold the classes that they import.
            is_its_own = item.__module__ == name
            if is_its_own and issubclass(item, base):
                yield item


def _by_name(classes: Sequence[tuple[str, type[T]]]) -> dict[str, type[T]]:
    """Raise ValueError where two have the same name."""
    named: dict[str, type[T]] = {}
    for name, item in classes:
        if name in named:
            raise ValueError(
                f"two classes are named {name!r}: {named[name]} and {item}; rename one, or, if its "
                "file was renamed, remove the folder build/ and install again"
            )
        named[name] = item
    return dict(sorted(named.items()))
