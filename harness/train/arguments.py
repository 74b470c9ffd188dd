"""From the settings of a spec to the arguments of a method's class, and back.

A class declares its settings, and a compressor or network its options; what a spec gives is held
against that.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from cser_bench.algorithms import Compressor, DistributedOptimizer
from cser_bench.algorithms.registry import compressors
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.settings import (
    RUN_LENGTH,
    CompressorSettings,
    MethodSettings,
)


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
        elif value == RUN_LENGTH and key.endswith("_interval"):
            # Such an event falls on the last step, and on no other.
            arguments[key] = num_steps
        else:
            arguments[key] = value
    _check(f"algorithm {algorithm.name}", arguments, types, required)
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


def settings_at_traffic(
    method: type[DistributedOptimizer], share: float, world_size: int
) -> MethodSettings:
    """Return a method's settings at a share of DDP's traffic.

    See `DistributedOptimizer.at_traffic`.
    """
    values = dict(method.at_traffic(share, world_size=world_size))
    for key, value in values.items():
        if isinstance(value, Compressor):
            values[key] = _described(value)
    return MethodSettings(values)


def usual_settings(
    method: type[DistributedOptimizer], share: float, world_size: int
) -> MethodSettings:
    """Return settings of a method that nobody gave any: those by traffic, or else its defaults.

    Raises SpecError: it does not say how it reaches that traffic, and has settings without a default.
    """
    try:
        return settings_at_traffic(method, share, world_size)
    except ValueError:
        required = [
            key for key, setting in method.declared.items() if setting.is_required
        ]
    if required:
        raise SpecError(
            f"{method.name} does not say how it sends {share:.3g} of DDP's traffic between "
            f"{world_size} workers; give it _at_traffic, or its {', '.join(required)}, as `try` "
            "takes them by --settings 'sync_interval = 24' or 'compressor = { kind = \"top_k\", "
            "ratio = 192 }'"
        )
    return MethodSettings()


def _described(compressor: Compressor) -> CompressorSettings:
    """Return what `build_compressor` makes this compressor of, defaults left out."""
    options = {}
    for parameter in inspect.signature(type(compressor)).parameters.values():
        value = getattr(compressor, parameter.name)
        # A default that is written out would give the same compressor another run id.
        if value != parameter.default:
            options[parameter.name] = value
    return CompressorSettings(kind=compressor.kind, **options)


def check_options(
    where: str, given: Mapping[str, Any], function: Callable[..., Any]
) -> None:
    """Check the options of a function that a spec names.

    It is a network's function, where they follow the task's shape and classes, or a compressor.

    Raises SpecError: one is unknown, missing, or not of its type.
    """
    options = list(inspect.signature(function).parameters.values())
    if not inspect.isclass(function):
        # The shape of a sample and the number of classes are the task's.
        options = options[2:]
    required = [
        option.name for option in options if option.default is inspect.Parameter.empty
    ]
    hints = typing.get_type_hints(function, include_extras=True)
    types = {option.name: hints.get(option.name, Any) for option in options}
    _check(where, given, types, required)


def _check(
    where: str, given: Mapping[str, Any], types: Mapping[str, Any], required: list[str]
) -> None:
    """Raise SpecError where given values do not fit what is declared.

    A name is none of these, one lacks, or a value is not of its type.
    """
    unknown = [key for key in given if key not in types]
    if unknown:
        raise SpecError(
            f"{where} has no setting {unknown[0]!r}; it has {', '.join(types) or 'none'}"
        )
    missing = [key for key in required if key not in given]
    if missing:
        raise SpecError(f"{where} needs the setting {missing[0]!r}")
    # Pydantic converts nothing here.
    config = ConfigDict(strict=True, arbitrary_types_allowed=True)
    for key, value in given.items():
        try:
            TypeAdapter(types[key], config=config).validate_python(value)
        except ValidationError as error:
            complaint = error.errors()[0]["msg"]
            raise SpecError(f"{where}: {key}: {complaint} (given: {value!r})") from None


@contextmanager
def refused(where: str) -> Iterator[None]:
    """Turn errors that a value of a spec raises into SpecErrors."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        raise SpecError(f"{where}{error}") from None
