"""Finds algorithms, baselines and compressors: each is a module that defines its class.

Nothing lists them.
"""

from functools import cache

from cser_bench.algorithms.core.compressors import Compressor, Identity, Zero
from cser_bench.algorithms.core.discovery import by_name, classes_in
from cser_bench.algorithms.core.optimizer import DistributedOptimizer


@cache
def algorithms() -> dict[str, type[DistributedOptimizer]]:
    """All algorithms by the name that specs use, sorted."""
    classes = classes_in("cser_bench.algorithms", DistributedOptimizer)  # type: ignore[type-abstract]
    return by_name([(method.name, method) for method in classes])


@cache
def baselines() -> dict[str, type[DistributedOptimizer]]:
    """All baselines, whose workers must be processes, by the name that specs use, sorted."""
    package = "cser_bench.algorithms.baselines"
    classes = classes_in(package, DistributedOptimizer)  # type: ignore[type-abstract]
    return by_name([(method.name, method) for method in classes])


def methods() -> dict[str, type[DistributedOptimizer]]:
    """Algorithms and baselines: all that a spec, a benchmark or a timing can name."""
    return by_name([*algorithms().items(), *baselines().items()])


@cache
def compressors() -> dict[str, type[Compressor]]:
    """All compressors by the name that specs use, sorted."""
    package = "cser_bench.algorithms.compressors"
    in_files = classes_in(package, Compressor)  # type: ignore[type-abstract]
    classes: list[type[Compressor]] = [Identity, Zero, *in_files]
    return by_name([(compressor.kind, compressor) for compressor in classes])
