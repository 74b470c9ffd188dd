"""What a method is given.

The numbers of its parameter groups, the settings of its own, and their checks.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from numbers import Real
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

LocalStepName = Literal["sgd", "adamw", "muon"]

REQUIRED = inspect.Parameter.empty
"""The default of what must be given."""

_ADAM = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
# As torch.optim has them, but for AdamW's weight decay, which is 0.01 there.
NUMBERS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": REQUIRED, "momentum": 0.0, "weight_decay": 0.0},
    "adamw": {"lr": REQUIRED, **_ADAM},
    "muon": {"lr": REQUIRED, "momentum": 0.95, **_ADAM},
}
"""The numbers that each parameter group has, by local step, and their defaults."""

_RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "lr": ("the learning rate must be a number from 0 up", lambda value: 0 <= value < inf),
    "momentum": ("the momentum must lie in [0, 1)", lambda value: 0 <= value < 1),
    "weight_decay": ("the weight decay must be a number from 0 up", lambda value: 0 <= value < inf),
    "betas": ("betas must lie in [0, 1)", lambda pair: all(0 <= beta < 1 for beta in pair)),
    "eps": ("eps must be a number above 0", lambda value: 0 < value < inf),
}

_NOT_TAKEN: dict[str, Any] = {"dampening": 0, "nesterov": True, "fused": True} | dict.fromkeys(
    ("maximize", "foreach", "differentiable", "amsgrad", "capturable"), False
)
"""Options of torch.optim.SGD and AdamW that are not taken, with the value that says what is done
anyway."""
_OTHER_RULES = {
    "momentum_decay": "NAdam",
    "rho": "Adadelta",
    "lr_decay": "Adagrad",
    "centered": "RMSprop",
    "lambd": "ASGD",
    "etas": "Rprop",
    "beta2_decay": "Adafactor",
    "ns_steps": "Muon",
}
"""Whose groups they are, by an option that only that optimiser of torch.optim has."""
_DONE = {
    "sgd": "with Nesterov's momentum",
    "adamw": "with Adam's two moments",
    "muon": "by Muon's rule",
}


# The numbers of parameter groups.


def group_defaults(method: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of groups that do not say otherwise.

    Those of its local step, `given` or by default.

    Args:
        method: the optimiser. One that is called otherwise without momentum has some by default.
        given: all numbers; None where the user gave none.

    Raises:
        ValueError: no such local step, one that the method cannot have, or numbers of another one.
    """
    name = method.name
    local_step = method.local_step
    without_momentum = method.without_momentum
    if local_step not in get_args(LocalStepName):
        raise ValueError(
            f"{name}: local_step must be one of {', '.join(NUMBERS)}, not {local_step!r}"
        )
    if local_step != "sgd" and method.sgd_alone is not None:
        raise ValueError(
            f"{name}: local_step = {local_step!r} cannot be, since {method.sgd_alone}; leave "
            "local_step out"
        )
    chosen = {key: value for key, value in given.items() if value is not None}
    _refuse_foreign(name, chosen, local_step)
    usual = dict(NUMBERS[local_step])
    if local_step == "sgd" and without_momentum is not None:
        usual["momentum"] = 0.9
    chosen = usual | chosen
    if local_step == "sgd":
        check_has_momentum(method, [chosen])
    if local_step == "muon":
        chosen["muon"] = True
    return chosen


def check_has_momentum(method: Any, groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError where a method that has momentum in its name would have none at all."""
    has_none = all(group["momentum"] == 0 for group in groups)
    if has_none and method.without_momentum is not None:
        raise ValueError(
            f"{method.name}: the momentum must not be 0; without momentum the method is "
            f"{method.without_momentum}"
        )


def _refuse_foreign(where: str, given: Iterable[str], local_step: str) -> None:
    for owner, numbers in NUMBERS.items():
        for key in given:
            if key in numbers and key not in NUMBERS[local_step]:
                raise ValueError(
                    f"{where}: {key} belongs to local_step = {owner!r}, not {local_step!r}; leave {key} "
                    "out"
                )


def check_numbers(groups: Iterable[Mapping[str, Any]]) -> None:
    """Raise ValueError where a group's number is out of range.

    Its learning rate, say, or its momentum.
    """
    for group in groups:
        for key, (sentence, holds) in _RANGES.items():
            if key in group and not holds(group[key]):
                raise ValueError(f"{sentence}, not {group[key]}")


def check_options(groups: Iterable[dict[str, Any]], local_step: LocalStepName) -> None:
    """Raise ValueError where a group asks for something that these optimisers do not do."""
    for number, group in enumerate(groups):
        _refuse_other_rules(number, group)
        _refuse_foreign(f"group {number}", group, local_step)
        for key in NUMBERS[local_step]:
            value = group[key]
            numbers = [value]
            if key == "betas":
                if not (isinstance(value, tuple | list) and len(value) == 2):
                    raise ValueError(f"group {number}: betas must be two numbers, not {value!r}")
                numbers = list(value)
            if not all(map(_is_plain_number, numbers)):
                raise ValueError(f"group {number}: {key} must be a plain number, not {value!r}")
        check_numbers([group])
        _refuse_added_decay(number, group)
        for key, done in _NOT_TAKEN.items():
            # torch.optim.SGD's groups always say whether it is Nesterov's, and without momentum it
            # is neither.
            if key == "nesterov" and group.get("momentum") == 0:
                continue
            # torch's own groups have None where it is left to torch whether to fuse, say.
            if group.get(key, done) not in (done, None):
                raise ValueError(
                    f"group {number}: {key} = {group[key]!r} is an option of torch.optim that "
                    f"these optimisers do not have (they minimise, {_DONE[local_step]}, in one "
                    "fused pass); leave it out"
                )
        if "muon" in group and (local_step != "muon" or not isinstance(group["muon"], bool)):
            raise ValueError(
                f"group {number}: muon is True or False, for local_step = 'muon' alone; leave it "
                "out"
            )


def _refuse_other_rules(number: int, group: Mapping[str, Any]) -> None:
    """Raise ValueError where a group is of an optimiser that steps by another rule than these."""
    rule = next((rule for key, rule in _OTHER_RULES.items() if key in group), None)
    # Adam's and AdamW's have `amsgrad`; of the others with betas and `foreach` these have no option
    # of their own.
    if rule is None and {"betas", "foreach"} <= group.keys() and "amsgrad" not in group:
        rule = "RAdam or Adamax"
    if rule is not None:
        raise ValueError(
            f"group {number} is of torch.optim's {rule}, by whose rule no local step goes; give "
            "the parameters themselves or the groups of torch.optim's SGD or AdamW, and the local "
            "step that is meant"
        )


def _refuse_added_decay(number: int, group: Mapping[str, Any]) -> None:
    """Raise ValueError where a group is of torch.optim.Adam with weight decay, which is not AdamW's."""
    # Groups of torch 2.6 do not say it.
    adds_decay = group.get("decoupled_weight_decay") is False
    if adds_decay and group["weight_decay"] != 0:
        raise ValueError(
            f"group {number}: weight_decay = {group['weight_decay']!r} is of torch.optim.Adam, "
            "which adds it to the gradient, and local_step = 'adamw' decays the weights "
            "themselves; take the groups of torch.optim.AdamW, or leave weight_decay out"
        )


def check_no_settings(groups: Iterable[Mapping[str, Any]], settings: Collection[str]) -> None:
    """Raise ValueError where a group holds a setting of the whole optimiser, of these names.

    There it would change nothing. `ZeroRedundancyOptimizer` puts all settings there.
    """
    for number, group in enumerate(groups):
        for key in group:
            if key in settings:
                raise ValueError(
                    f"group {number}: {key} is a setting of the whole optimiser, not of a group; "
                    "give it by name, and make the optimiser directly, with all parameters: in a "
                    "ZeroRedundancyOptimizer each worker would have other ones"
                )


def _is_plain_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


# The settings of a method's own.


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may be.

    The words after "must", and whether a number is one of them.
    """

    words: str
    holds: Callable[[Any], bool]

    def check(self, name: str, value: Any) -> None:
        """Raise ValueError unless the value is a number in this range."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.holds(value):
            raise ValueError(f"{name} must {self.words}, not {value!r}")


FROM_1_UP = Range("be an integer from 1 up", lambda value: isinstance(value, int) and value >= 1)
FROM_2_UP = Range("be an integer from 2 up", lambda value: isinstance(value, int) and value >= 2)
Count = Annotated[int, FROM_1_UP]
Ratio = Annotated[float, Range("be a number from 1 up", lambda value: 1 <= value < inf)]
Positive = Annotated[float, Range("be a number above 0", lambda value: 0 < value < inf)]
NotNegative = Annotated[float, Range("be a number from 0 up", lambda value: 0 <= value < inf)]
FROM_0_TO_1 = Range("be a number above 0 and up to 1", lambda value: 0 < value <= 1)
ConsensusStep = Annotated[float, FROM_0_TO_1]
BelowOne = Annotated[float, Range("lie in [0, 1)", lambda value: 0 <= value < 1)]
Share = Annotated[float, Range("lie in [0, 1]", lambda value: 0 <= value <= 1)]


@dataclass(frozen=True)
class Fixed:
    """What `fixed` leaves in a class."""

    value: Any


def fixed(value: Any, *, init: Literal[False] = False) -> Any:
    """Declare, in a method's class, that a setting which it inherits is always this."""
    return Fixed(value)


def argument(*, kw_only: bool = True) -> Any:
    """Declare, for type checkers, an argument of all methods that need not be given by name."""


@dataclass(frozen=True)
class Setting:
    """A setting of a method.

    Its type, its default, and the range that goes with the type, if any.
    """

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
        return any(isinstance(other, type) and issubclass(other, kind) for other in kinds)

    def check(self, name: str, value: Any) -> None:
        """Raise ValueError where a number is out of range, or a value is not listed."""
        choices = get_args(self.declared)
        # True equals 1, which may be one of the choices, and would pass for it.
        if get_origin(self.declared) is Literal and (
            isinstance(value, bool) or value not in choices
        ):
            raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, not {value!r}")
        if self.within is not None and not (value is None and type(None) in choices):
            self.within.check(name, value)


def declared_settings(
    declaring: type[Any], inherited: Mapping[str, Setting] = {}
) -> dict[str, Setting]:
    """Return the settings of a method or compressor by name.

    Those inherited, and what its class annotates.
    """
    settings = dict(inherited)
    hints = inspect.get_annotations(declaring, eval_str=True)
    # Takes the ranges off the types. Of the class itself it would also look at all bases, from
    # which settings are inherited in their own way.
    plain = get_type_hints(SimpleNamespace(__annotations__=hints))
    for key, hint in hints.items():
        default = vars(declaring).get(key, REQUIRED)
        if isinstance(default, Fixed):
            del settings[key]
            setattr(declaring, key, default.value)
        elif ClassVar not in (hint, get_origin(hint)):
            settings[key] = Setting(plain[key], default, _range_of(hint))
    return settings


def _range_of(hint: Any) -> Range | None:
    """Return the range that goes with a type, or with one of a union's, if any."""
    for part in (hint, *get_args(hint)):
        for annotation in getattr(part, "__metadata__", ()):
            if isinstance(annotation, Range):
                return annotation
    return None


def check_arguments(
    method: type[Any], unnamed: Collection[object], given: Mapping[str, Any]
) -> None:
    """Raise TypeError where an argument is missing, has no name or is none that the method has.

    The error names the method.

    Args:
        unnamed: those after the parameters that were given by position.
    """
    known = inspect.signature(method).parameters
    name = method.__name__
    if unnamed:
        raise TypeError(
            f"{name} takes all but the parameters by name, as in {name}(model.parameters(), lr=0.1, "
            "...)"
        )
    for key in given.keys() - known.keys():
        hint = f"it takes {', '.join(['lr', *method.declared])} and what all take"
        near = difflib.get_close_matches(key, known, 1)
        if key in ("group", "process_group"):
            hint = "give collectives=ProcessGroupCollectives(group)"
        elif near:
            hint = f"did you mean {near[0]}?"
        raise TypeError(f"{name} has no argument {key}; {hint}")
    required = [key for key, parameter in known.items() if parameter.default is REQUIRED]
    missing = [key for key in required if key not in (*given, "params")]
    if missing:
        raise TypeError(
            f"{name} needs {', '.join(missing)} by name, as in {name}(model.parameters(), lr=0.1, "
            "...)"
        )


def nearest_factors(product: int) -> tuple[int, int]:
    """Return the two integers of this product that are nearest to each other, smaller first."""
    smaller = math.isqrt(product)
    while product % smaller:
        smaller -= 1
    return smaller, product // smaller
