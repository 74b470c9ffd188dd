"""What a method is given: the arguments that all have, the settings of its own, and their checks."""

import difflib
import inspect
import math
from collections.abc import Iterable, Mapping
from math import inf
from numbers import Real
from typing import Any, Literal, Required, TypedDict, get_args

import torch
from torch import nn

from algorithms.core.collectives import Collectives

LocalStepName = Literal["sgd", "adamw", "muon"]


class Common(TypedDict, total=False):
    """The arguments that all methods have; see `DistributedOptimizer`."""

    lr: Required[float]
    momentum: float | None
    weight_decay: float
    collectives: Collectives | None
    seed: int
    communication_dtype: torch.dtype | None
    model: nn.Module | None
    local_step: LocalStepName
    betas: tuple[float, float]
    eps: float


NUMBERS: dict[str, tuple[str, ...]] = {
    "sgd": ("lr", "momentum", "weight_decay"),
    "adamw": ("lr", "betas", "eps", "weight_decay"),
    "muon": ("lr", "momentum", "betas", "eps", "weight_decay"),
}
"""The numbers that each parameter group has, by local step."""

_RANGES = {
    "lr": ("the learning rate must be a number from 0 up", inf),
    "momentum": ("the momentum must lie in [0, 1)", 1.0),
    "weight_decay": ("the weight decay must be a number from 0 up", inf),
    "eps": ("eps must be a number above 0", inf),
}

_NOT_TAKEN = {
    "dampening": 0,
    "nesterov": True,
    "maximize": False,
    "foreach": False,
    "differentiable": False,
    "fused": True,
    "amsgrad": False,
    "capturable": False,
}
"""Options of torch.optim.SGD and AdamW that are not taken, with the value that says what is done anyway."""
_DONE = {"sgd": "with Nesterov's momentum", "adamw": "with Adam's two moments", "muon": "by Muon's rule"}


# The numbers of parameter groups.


def group_defaults(
    method: str,
    local_step: LocalStepName,
    given: dict[str, Any],
    without_momentum: str | None,
    sgd_alone: str | None,
) -> dict[str, Any]:
    """Returns the numbers of groups that do not say otherwise: those of this local step, `given` or by default.

    Args:
        given: all numbers; None where the user gave none.
        without_momentum: what the method is called without momentum, if that is another one. It then has some by
            default: 0.9, where others have 0.
        sgd_alone: why the method has no local step but SGD's, if it has not.

    Raises:
        ValueError: no such local step, one that the method cannot have, or numbers of another one.
    """
    if local_step not in get_args(LocalStepName):
        raise ValueError(f"{method}: local_step must be one of {', '.join(NUMBERS)}, not {local_step!r}")
    if local_step != "sgd" and sgd_alone is not None:
        raise ValueError(f"{method}: local_step = {local_step!r} cannot be, since {sgd_alone}; leave local_step out")
    foreign = [key for key, value in given.items() if value is not None and key not in NUMBERS[local_step]]
    if foreign:
        raise ValueError(f"{method}: {_foreign(foreign[0], local_step)}")
    momentum = 0.95 if local_step == "muon" else 0.0 if without_momentum is None else 0.9
    usual = {"momentum": momentum, "betas": (0.9, 0.999), "eps": 1e-8}
    chosen = {key: usual[key] if given[key] is None else given[key] for key in NUMBERS[local_step]}
    if chosen.get("momentum") == 0 and without_momentum is not None:
        raise ValueError(f"{method}: the momentum must not be 0; without momentum the method is {without_momentum}")
    return {**chosen, "muon": True} if local_step == "muon" else chosen


def _foreign(key: str, local_step: str) -> str:
    owner = next(name for name, numbers in NUMBERS.items() if key in numbers)
    return f"{key} belongs to local_step = {owner!r}, and local_step is {local_step!r}; leave {key} out"


def check_numbers(groups: Iterable[Mapping[str, Any]]) -> None:
    """Raises ValueError where a group's learning rate, momentum, betas, eps or weight decay is out of range."""
    for group in groups:
        for key, (sentence, limit) in _RANGES.items():
            if key in group and not 0 <= group[key] < limit:
                raise ValueError(f"{sentence}, not {group[key]}")
        if "betas" in group and not all(0 <= beta < 1 for beta in group["betas"]):
            raise ValueError(f"betas must lie in [0, 1), not {group['betas']}")
        if group.get("eps") == 0:
            raise ValueError("eps must be a number above 0, not 0")


def check_options(groups: Iterable[dict[str, Any]], local_step: LocalStepName) -> None:
    """Raises ValueError where a group asks for something that these optimisers do not do."""
    for number, group in enumerate(groups):
        for key in NUMBERS[local_step]:
            _check_plain(number, key, group[key])
        check_numbers([{key: group[key] for key in NUMBERS[local_step]}])
        for key, done in _NOT_TAKEN.items():
            if group.get(key, done) not in (done, None):
                raise ValueError(
                    f"group {number}: {key} = {group[key]!r} is an option of torch.optim that these optimisers do "
                    f"not have (they minimise, {_DONE[local_step]}, in one fused pass); leave it out"
                )
        if "muon" in group and (local_step != "muon" or not isinstance(group["muon"], bool)):
            raise ValueError(f"group {number}: muon is True or False, for local_step = 'muon' alone; leave it out")
        foreign = [key for keys in NUMBERS.values() for key in keys if key in group and key not in NUMBERS[local_step]]
        if foreign:
            raise ValueError(f"group {number}: {_foreign(foreign[0], local_step)}")


def _check_plain(number: int, key: str, value: Any) -> None:
    is_pair = key == "betas"
    if is_pair and not (isinstance(value, tuple | list) and len(value) == 2):
        raise ValueError(f"group {number}: betas must be two numbers, not {value!r}")
    for each in value if is_pair else [value]:
        if isinstance(each, bool) or not isinstance(each, Real):
            raise ValueError(f"group {number}: {key} must be a plain number, not {each!r}")


# The settings of a method's own.


def check_arguments(algorithm: type[Any], given: Mapping[str, Any]) -> None:
    """Raises TypeError, by the method's own name, where an argument is missing or is none that it has."""
    own, name = own_parameters(algorithm), algorithm.__name__
    known = {"params", *own, *Common.__annotations__}
    for key in given.keys() - known:
        near = difflib.get_close_matches(key, known, 1)
        meant = f"; did you mean {near[0]}?" if near else f"; it takes {', '.join(['lr', *own])} and what all take"
        raise TypeError(f"{name} has no argument {key}{meant}")
    missing = [key for key, each in own.items() if each.default is inspect.Parameter.empty and key not in given]
    if missing := [*missing, *(["lr"] if "lr" not in given else [])]:
        raise TypeError(f"{name} needs {', '.join(missing)} by name, as in {name}(model.parameters(), lr=0.1, ...)")


def own_parameters(algorithm: type[Any]) -> dict[str, inspect.Parameter]:
    """Returns the arguments that a method has and others have not, by name: its settings."""
    return {
        key: parameter
        for key, parameter in inspect.signature(algorithm.__init__).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and key not in Common.__annotations__
    }


def own_defaults(algorithm: type[Any]) -> dict[str, Any]:
    """Returns the settings that need not be given, with their values then."""
    parameters = own_parameters(algorithm).items()
    return {key: each.default for key, each in parameters if each.default is not inspect.Parameter.empty}


def require_interval(name: str, key: str, interval: int) -> None:
    """Raises ValueError unless `interval` is an integer from 1 up."""
    if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
        raise ValueError(f"{name}: {key} must be an integer from 1 up, not {interval!r}")


def require_gamma(name: str, gamma: float) -> None:
    """Raises ValueError unless `gamma`, the consensus step, is a number in (0, 1]."""
    if isinstance(gamma, bool) or not isinstance(gamma, int | float) or not 0 < gamma <= 1:
        raise ValueError(f"{name}: gamma must be a number above 0 and up to 1, not {gamma!r}")


def require_outer(name: str, outer_lr: float, outer_momentum: float = 0.0) -> None:
    """Raises ValueError unless the rate of an outer step is a number above 0 and its momentum lies in [0, 1)."""
    if isinstance(outer_lr, bool) or not isinstance(outer_lr, int | float) or not 0 < outer_lr < math.inf:
        raise ValueError(f"{name}: outer_lr must be a number above 0, not {outer_lr!r}")
    if isinstance(outer_momentum, bool) or not isinstance(outer_momentum, int | float) or not 0 <= outer_momentum < 1:
        raise ValueError(f"{name}: outer_momentum must lie in [0, 1), not {outer_momentum!r}")


def nearest_factors(product: int) -> tuple[int, int]:
    """Returns the two integers of this product that are nearest to each other, the smaller one first."""
    smaller = next(each for each in range(math.isqrt(product), 0, -1) if product % each == 0)
    return smaller, product // smaller
