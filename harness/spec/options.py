"""What a spec gives by name, held against the function or class that takes it."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from cser_bench.harness.spec.errors import SpecError


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
    check_values(where, given, types, required)


def check_values(
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
