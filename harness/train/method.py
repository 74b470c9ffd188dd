"""The method of a run: its class, and what its constructor takes of a spec's settings.

A class declares its settings, and a compressor its options; what a spec gives is held against that.
"""

from __future__ import annotations

import typing
from typing import Any

from cser_bench.algorithms import Compressor, DistributedOptimizer
from cser_bench.algorithms.core.method_file import MethodFileError, methods_in
from cser_bench.algorithms.core.settings import is_interval
from cser_bench.algorithms.registry import compressors, methods
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.options import check_options, check_values, refused
from cser_bench.harness.spec.run import (
    RUN_LENGTH,
    CompressorSettings,
    MethodSettings,
    MethodSource,
    RunConfig,
)


def method_of(config: RunConfig) -> type[DistributedOptimizer]:
    """Return the class of the run's method.

    Raises SpecError: there is none of its name, or its recorded source does not run here.
    """
    source = config.method_source
    if source is not None:
        return method_in(source, config.algorithm)
    shipped = methods()
    if config.algorithm not in shipped:
        raise SpecError(
            f"unknown algorithm {config.algorithm!r}; the algorithms are {', '.join(shipped)}, and "
            "a method of your own is named by --methods FILE.py"
        )
    return shipped[config.algorithm]


def method_in(source: MethodSource, name: str) -> type[DistributedOptimizer]:
    """Return the method of this name that a source defines.

    Raises SpecError: it defines none of that name, or does not run here.
    """
    try:
        return methods_in(source.source, source.file)[name]
    except MethodFileError as error:
        raise SpecError(str(error)) from None
    except KeyError:
        raise SpecError(f"{source.file} has no method {name!r}") from None


def arguments_of(
    algorithm: type[DistributedOptimizer], settings: MethodSettings, num_steps: int
) -> dict[str, Any]:
    """Return the settings as the algorithm takes them, in a run of this many steps.

    Raises SpecError: one of them cannot be taken.
    """
    declared = algorithm.declared
    types = {key: setting.declared for key, setting in declared.items()}
    required = [key for key, setting in declared.items() if setting.is_required]
    arguments: dict[str, Any] = {}
    for key, value in settings.root.items():
        where = f"{algorithm.name}: {key}"
        kinds = _compressor_classes(types.get(key, Any))
        if kinds and value is not None:
            arguments[key] = _fitting_compressor(where, value, kinds)
        elif value == RUN_LENGTH and is_interval(key):
            # Such an event falls on the last step, and on no other.
            arguments[key] = num_steps
        else:
            arguments[key] = value
    check_values(f"algorithm {algorithm.name}", arguments, types, required)
    return arguments


def _compressor_classes(declared: Any) -> tuple[type[Compressor], ...]:
    """Return the classes of compressors among a setting's declared types."""
    # A union has its members as arguments.
    choices = (declared, *typing.get_args(declared))
    return tuple(
        choice
        for choice in choices
        if isinstance(choice, type) and issubclass(choice, Compressor)
    )


def _fitting_compressor(
    where: str, value: Any, kinds: tuple[type[Compressor], ...]
) -> Compressor:
    """Return the compressor that a setting asks for, of one of these classes."""
    compressor = build_compressor(where, value)
    if not isinstance(compressor, kinds):
        takes = [
            name for name, kind in compressors().items() if issubclass(kind, kinds)
        ]
        raise SpecError(
            f"{where} cannot be {compressor.kind!r}; it takes {', '.join(takes)}"
        )
    return compressor


def build_compressor(where: str, settings: Any) -> Compressor:
    """Return the compressor that a spec describes.

    Raises SpecError: it describes none.
    """
    classes = compressors()
    # A word or a number in the place of a table is told as an unknown compressor is.
    if not isinstance(settings, CompressorSettings) or settings.kind not in classes:
        given = settings
        if isinstance(settings, CompressorSettings):
            given = settings.model_dump()
        raise SpecError(
            f"{where}: unknown compressor {given!r}; give a table whose kind is one of "
            f"{', '.join(classes)}"
        )
    compressor = classes[settings.kind]
    check_options(f"{where}: compressor {settings.kind}", settings.options, compressor)
    with refused(f"{where}: "):
        return compressor(**settings.options)
