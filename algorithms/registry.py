"""Finds the algorithms: every module of this package that defines a `DistributedOptimizer`. Nothing lists them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from functools import cache
from pathlib import Path
from typing import Any

from algorithms.core.compressors import Compressor, Gathered, SharedSupport
from algorithms.core.optimizer import DistributedOptimizer
from algorithms.core.settings import own_parameters


@cache
def algorithms() -> dict[str, type[DistributedOptimizer]]:
    """All algorithms by the name that specs use, sorted."""
    found: dict[str, type[DistributedOptimizer]] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.ispkg or module.name in ("registry", "__main__"):
            continue
        for _, item in inspect.getmembers(importlib.import_module(f"algorithms.{module.name}"), inspect.isclass):
            if issubclass(item, DistributedOptimizer) and item.__module__ == f"algorithms.{module.name}":
                if item.name in found:
                    raise ValueError(f"two algorithms are named {item.name!r}: {found[item.name]} and {item}")
                found[item.name] = item
    return dict(sorted(found.items()))


@cache
def compressors() -> dict[str, type[Compressor]]:
    """All compressors by the name that specs use, sorted."""
    kinds: list[type[Compressor]] = [*SharedSupport.__subclasses__(), *Gathered.__subclasses__()]
    return dict(sorted((kind.kind, kind) for kind in kinds))


def settings(algorithm: type[DistributedOptimizer]) -> dict[str, tuple[Any, bool]]:
    """The method's own settings, by name: the type it declares, and whether it must be given."""
    hints = typing.get_type_hints(algorithm.__init__)
    return {
        key: (hints[key], parameter.default is inspect.Parameter.empty)
        for key, parameter in own_parameters(algorithm).items()
    }
