"""Settings of methods and compressors, and constructors' arguments: types, ranges and checks."""

import difflib
import inspect
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import inf
from numbers import Integral, Real
from types import SimpleNamespace
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np

from cser_bench.algorithms.core.local_step import REQUIRED


@dataclass(frozen=True)
class Range:
    """The range of a setting.

    Attributes:
        words: what an error says after "must".
        holds: whether a number is in the range.
    """

    words: str
    holds: Callable[[Any], bool]

    def checked(self, name: str, value: object) -> Any:
        """Return the value as Python's own number. Raise ValueError unless it is one in this range."""
        number = plain_number(value)
        if number is None or not self.holds(number):
            raise ValueError(f"{name} must {self.words}, not {value!r}")
        return number


def plain_number(value: object) -> int | float | None:
    """Return a number of any type, such as numpy's, as Python's own; None for what is no number.

    Booleans are none. Neither are tensors, for whose values a host would wait.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral):
        return operator.index(value)
    if isinstance(value, Real):
        return float(value)
    return None


def plain_boolean(name: str, value: object) -> bool:
    """Return True or False as Python's own. Raise ValueError for anything else, such as text."""
    # Text would count as True, "no" included.
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, not {value!r}")
    return bool(value)


FROM_0_UP = Range(
    "be an integer from 0 up", lambda value: isinstance(value, int) and value >= 0
)
FROM_1_UP = Range(
    "be an integer from 1 up", lambda value: isinstance(value, int) and value >= 1
)
FROM_2_UP = Range(
    "be an integer from 2 up", lambda value: isinstance(value, int) and value >= 2
)
Count = Annotated[int, FROM_1_UP]
CountFromZero = Annotated[int, FROM_0_UP]
Ratio = Annotated[float, Range("be a number from 1 up", lambda value: 1 <= value < inf)]
Positive = Annotated[float, Range("be a number above 0", lambda value: 0 < value < inf)]
NotNegative = Annotated[
    float, Range("be a number from 0 up", lambda value: 0 <= value < inf)
]
FROM_0_TO_1 = Range("be a number above 0 and up to 1", lambda value: 0 < value <= 1)
ConsensusStep = Annotated[float, FROM_0_TO_1]
BelowOne = Annotated[float, Range("lie in [0, 1)", lambda value: 0 <= value < 1)]
Share = Annotated[float, Range("lie in [0, 1]", lambda value: 0 <= value <= 1)]


@dataclass(frozen=True)
class Fixed:
    """The value that `fixed` leaves in a class."""

    value: Any


def fixed(value: Any, *, init: Literal[False] = False) -> Any:
    """Fix an inherited setting to a value, in a method's class."""
    return Fixed(value)


def argument(*, kw_only: bool = True) -> Any:
    """Declare an argument of all methods, for type checkers."""


@dataclass(frozen=True)
class Setting:
    """A setting of a method or compressor: its type, default, and the range of its type, if any."""

    declared: Any
    default: Any
    within: Range | None

    @property
    def is_required(self) -> bool:
        """Whether it must be given."""
        return self.default is REQUIRED

    def admits(self, kind: type[Any]) -> bool:
        """Return whether its type is of this kind, or a union with one that is."""
        kinds = (self.declared, *get_args(self.declared))
        return any(
            isinstance(other, type) and issubclass(other, kind) for other in kinds
        )

    def checked(self, name: str, value: Any) -> Any:
        """Return the value, numbers and booleans as Python's own.

        Raises:
            ValueError: a number is out of range, a value is not listed, or a boolean is none.
        """
        choices = get_args(self.declared)
        if get_origin(self.declared) is Literal:
            return _chosen(name, value, choices)
        if self.declared is bool:
            return plain_boolean(name, value)
        if self.within is None or (value is None and type(None) in choices):
            return value
        return self.within.checked(name, value)


def _chosen(name: str, value: object, choices: Collection[Any]) -> Any:
    """Return the choice that the value is. Raise ValueError if it is none."""
    number = plain_number(value)
    plain = value if number is None else number
    for choice in choices:
        # By type as well: True == 1, and 4.0 == 4.
        is_of_its_type = isinstance(plain, type(choice)) and not isinstance(plain, bool)
        if is_of_its_type and plain == choice:
            return choice
    raise ValueError(
        f"{name} must be one of {', '.join(map(str, choices))}, not {value!r}"
    )


def is_interval(name: str) -> bool:
    """Return whether a setting of this name counts the steps after which something is done again.

    By its name, so that methods from outside, which declare it as any `Count`, have intervals too.
    """
    return name.endswith(("_interval", "_steps"))


def declared_settings(
    declaring: type[Any], inherited: Mapping[str, Setting] = {}
) -> dict[str, Setting]:
    """Return a method's or compressor's settings by name: those inherited, and its annotations."""
    settings = dict(inherited)
    hints = inspect.get_annotations(declaring, eval_str=True)
    # Strips the ranges from the types. Called on the class itself, it would also visit all bases,
    # whose settings are inherited in another way.
    plain = get_type_hints(SimpleNamespace(__annotations__=hints))
    for key, hint in hints.items():
        default = vars(declaring).get(key, REQUIRED)
        # No setting any more: an attribute of the class.
        if isinstance(default, Fixed):
            del settings[key]
            setattr(declaring, key, default.value)
        elif ClassVar not in (hint, get_origin(hint)):
            settings[key] = Setting(plain[key], default, _range_of(hint))
    return settings


def _range_of(hint: Any) -> Range | None:
    """Return the range of a type, or of a member of a union; None if there is none."""
    for part in (hint, *get_args(hint)):
        for annotation in getattr(part, "__metadata__", ()):
            if isinstance(annotation, Range):
                return annotation
    return None


def check_arguments(
    method: type[Any], unnamed: Collection[object], given: Mapping[str, Any]
) -> None:
    """Raise TypeError, naming the method, if an argument is missing, unnamed or unknown.

    Args:
        unnamed: arguments given by position, after the parameters.
    """
    taken = inspect.signature(method).parameters
    name = method.__name__
    if unnamed:
        raise TypeError(
            f"{name} takes all but the parameters by name, as in {name}(model.parameters(), lr=0.1, "
            "...)"
        )
    for key in given.keys() - taken.keys():
        hint = f"it takes {', '.join(['lr', *method.declared])} and what all take"
        near = difflib.get_close_matches(key, taken, 1)
        # Other libraries' names of it.
        if key in ("group", "process_group", "device_mesh", "mesh"):
            hint = "give it as collectives="
        elif near:
            hint = f"did you mean {near[0]}?"
        raise TypeError(f"{name} has no argument {key}; {hint}")
    required = [
        key for key, parameter in taken.items() if parameter.default is REQUIRED
    ]
    missing = [key for key in required if key not in (*given, "params")]
    if missing:
        raise TypeError(
            f"{name} needs {', '.join(missing)} by name, as in {name}(model.parameters(), lr=0.1, "
            "...)"
        )


def signature_of(common: type[Any], method: type[Any]) -> inspect.Signature:
    """Return the constructor's: the arguments that all methods have, and the method's settings.

    Args:
        common: the class that annotates the arguments of all methods.
    """
    arguments: dict[str, tuple[Any, Any]] = {}
    for key, hint in inspect.get_annotations(common).items():
        # An InitVar's `type` is what it was annotated with.
        arguments[key] = (getattr(common, key, REQUIRED), hint.type)
    for key, setting in method.declared.items():
        arguments[key] = (setting.default, setting.declared)
    parameters = []
    for key, (default, hint) in arguments.items():
        parameter = inspect.Parameter(
            key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint
        )
        if key == "params":
            # As torch's own optimisers take them.
            kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
            parameter = parameter.replace(kind=kind, default=REQUIRED)
        parameters.append(parameter)
    return inspect.Signature(parameters)


def arguments_of(
    method: type[Any], unnamed: Collection[object], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the constructor's arguments by name, those that were not given by their defaults.

    Args:
        unnamed: arguments given by position, after the parameters.

    Raises:
        TypeError: one is missing, unnamed or unknown.
        ValueError: a setting is out of range.
    """
    check_arguments(method, unnamed, given)
    arguments: dict[str, Any] = {}
    for key, parameter in inspect.signature(method).parameters.items():
        arguments[key] = given.get(key, parameter.default)
    for key, setting in method.declared.items():
        arguments[key] = setting.checked(f"{method.name}: {key}", arguments[key])
    return arguments
