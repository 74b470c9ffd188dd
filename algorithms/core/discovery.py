"""Finds classes by the modules that define them, so that nothing lists them."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def classes_in(package: str, base: type[T]) -> Iterator[type[T]]:
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


def by_name(classes: Sequence[tuple[str, type[T]]]) -> dict[str, type[T]]:
    """Return classes by name, sorted. Raise ValueError where two have the same name."""
    named: dict[str, type[T]] = {}
    for name, item in classes:
        if name in named:
            raise ValueError(
                f"two classes are named {name!r}: {named[name]} and {item}; rename one, or, if its "
                "file was renamed, remove the folder build/ and install again"
            )
        named[name] = item
    return dict(sorted(named.items()))
