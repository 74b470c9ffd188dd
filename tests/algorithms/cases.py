"""What a method is held to: transcriptions that it follows, and methods that it is."""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from tests.algorithms import definitions as package
from tests.algorithms.transcription import Problem, State

NUM_WORKERS = 4
Follow = Callable[[Problem], Iterator[State]]


@dataclass(frozen=True)
class Case:
    """A method with settings, and the transcription that it must follow with these."""

    method: str
    settings: dict[str, Any]
    definition: Follow
    momentum: float = 0.9
    local: dict[str, Any] = field(default_factory=dict)
    """Another local step or learning rate than the problem's own."""


def by(definition: Callable[..., Iterator[State]], *given: Any, **more: Any) -> Follow:
    """The transcription with these arguments, which takes the problem alone."""
    return lambda problem: definition(problem, *given, **more)


@dataclass(frozen=True)
class Relation:
    """A method with these settings, whatever the rest, trains what another does with its own and
    the same rest."""

    method: str
    settings: dict[str, Any]
    other: str
    other_settings: dict[str, Any] = field(default_factory=dict)
    exact: bool = True
    """To the bit, or else up to rounding."""
    num_workers: int = NUM_WORKERS
    compressors: Sequence[str] = ("block", "random_k", "top_k", "per_tensor", "chunks")
    """Those that settings left open are tried with, of `COMPRESSORS`."""


def definitions() -> list[ModuleType]:
    """The files of methods in `tests/algorithms/definitions`."""
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    return [
        importlib.import_module(f"{package.__name__}.{name}") for name in sorted(names)
    ]
