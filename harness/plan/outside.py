"""Methods from outside this package, as they are found before a run: in files and installed packages."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from cser_bench.algorithms.core.method_file import MethodFileError, methods_in
from cser_bench.algorithms.registry import methods
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.run import MethodSource

GROUP = "cser_bench.methods"
"""The group of entry points by which installed packages name their modules with methods."""

Outside = dict[str, MethodSource]
"""Methods from outside this package, by name."""


def outside_methods(words: Iterable[str]) -> Outside:
    """Return the methods in files, and in installed packages that name them by entry points.

    Args:
        words: paths of files, which end in .py, and names of entry points.

    Raises SpecError: a file cannot be read or has no method, there is no such entry point, or a
    name is taken.
    """
    outside: Outside = {}
    for word in words:
        source = (
            _file_source(Path(word))
            if word.endswith(".py")
            else _installed_source(word)
        )
        try:
            found = methods_in(source.source, source.file)
        except MethodFileError as error:
            raise SpecError(str(error)) from None
        # Rows and records call a method by its name alone.
        for name in found:
            _refuse_taken(name, source, outside)
            outside[name] = source
    return outside


def _refuse_taken(name: str, source: MethodSource, outside: Outside) -> None:
    by = None
    if name in methods():
        by = "a method that ships"
    elif name in outside:
        by = f"one in {outside[name].file}"
    if by is not None:
        raise SpecError(
            f"{source.file} has a method named {name!r}, as {by} is; give it another `name`"
        )


def _file_source(path: Path) -> MethodSource:
    try:
        return MethodSource.of(path.name, path.read_text())
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SpecError(f"{path} is no Python file: it is not UTF-8") from None


def _installed_source(name: str) -> MethodSource:
    """Return the source of the module that an installed package's entry point names."""
    found = entry_points(group=GROUP)
    matching = [entry for entry in found if entry.name == name]
    if not matching:
        names = sorted(entry.name for entry in found)
        raise SpecError(
            f"no installed package has an entry point {name!r} in the group {GROUP} (there are "
            f"{', '.join(names) or 'none'}); a file's name ends in .py"
        )
    path = _module_file(matching[0])
    distribution = matching[0].dist
    package = None
    if distribution is not None:
        package = f"{distribution.name} {distribution.version}"
    return MethodSource.of(path.name, path.read_text(), package)


def _module_file(entry: EntryPoint) -> Path:
    try:
        # Found, not imported: a run has the method from the recorded text, and what is recorded
        # must be what runs.
        spec = importlib.util.find_spec(entry.module)
    except ImportError as error:
        raise SpecError(
            f"the entry point {entry.name!r} names {entry.module}: {error}"
        ) from None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise SpecError(
            f"the entry point {entry.name!r} names {entry.module}, which is no module"
        )
    return Path(spec.origin)
