"""The arguments that all optimisers have, as types, and the checks of what parameter groups say."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from numbers import Real
from typing import Any, Literal, Required, TypedDict, get_args

import torch
from torch import nn

from algorithms.core.collectives import Collectives

LocalStepName = Literal["sgd", "adamw"]


class Common(TypedDict, total=False):
    """As in `DistributedOptimizer`."""

    lr: Required[float]
    momentum: float | None
    weight_decay: float
    collectives: Collectives | None
    seed: int
    wire: torch.dtype | None
    model: nn.Module | None
    local_step: LocalStepName
    betas: tuple[float, float]
    eps: float


NUMBERS: dict[str, tuple[str, ...]] = {
    "sgd": ("lr", "momentum", "weight_decay"),
    "adamw": ("lr", "betas", "eps", "weight_decay"),
}
"""What each group has, by local step."""

_RANGES = {
    "lr": ("the learning rate must be a number from 0 up", inf),
    "momentum": ("the momentum must lie in [0, 1)", 1.0),
    "weight_decay": ("the weight decay must be a number from 0 up", inf),
    "eps": ("eps must be a number above 0", inf),
}

_OTHERS = {
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


def group_defaults(
    method: str,
    local_step: LocalStepName,
    given: dict[str, Any],
    without_momentum: str | None,
    sgd_alone: str | None,
) -> dict[str, Any]:
    """What groups have that do not say otherwise: the numbers of this local step, `given` or by default.

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
    usual = {"momentum": 0.0 if without_momentum is None else 0.9, "betas": (0.9, 0.999), "eps": 1e-8}
    chosen = {key: usual[key] if given[key] is None else given[key] for key in NUMBERS[local_step]}
    if chosen.get("momentum") == 0 and without_momentum is not None:
        raise ValueError(f"{method}: the momentum must not be 0; without momentum the method is {without_momentum}")
    return chosen


def _foreign(key: str, local_step: str) -> str:
    owner = next(name for name, numbers in NUMBERS.items() if key in numbers)
    return f"{key} belongs to local_step = {owner!r}, and local_step is {local_step!r}; leave {key} out"


def check_numbers(groups: Iterable[dict[str, Any]]) -> None:
    """Raises ValueError where a group's learning rate, momentum, betas, eps or weight decay is out of range."""
    for group in groups:
        in_range = 0 <= group["lr"] < inf and 0 <= group["weight_decay"] < inf
        if "betas" in group:
            in_range = in_range and all(0 <= beta < 1 for beta in group["betas"]) and 0 < group["eps"] < inf
        elif not 0 <= group["momentum"] < 1:
            in_range = False
        if not in_range:
            _refuse_number(group)


def _refuse_number(group: dict[str, Any]) -> None:
    for key, (sentence, limit) in _RANGES.items():
        if key in group and not 0 <= group[key] < limit:
            raise ValueError(f"{sentence}, not {group[key]}")
    if "betas" in group and not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"betas must lie in [0, 1), not {group['betas']}")
    if group.get("eps") == 0:
        raise ValueError("eps must be a number above 0, not 0")


def check_options(groups: Iterable[dict[str, Any]], local_step: LocalStepName) -> None:
    """Raises ValueError where a group is not what these optimisers can do."""
    for number, group in enumerate(groups):
        for key in NUMBERS[local_step]:
            _check_plain(number, key, group[key])
        _refuse_number({key: group[key] for key in NUMBERS[local_step]})
        for key, done in _OTHERS.items():
            if group.get(key, done) not in (done, None):
                raise ValueError(
                    f"group {number}: {key} = {group[key]!r} is an option of torch.optim that these optimisers do "
                    f"not have (they minimise, {_DONE[local_step]}, in one fused pass); leave it out"
                )
        foreign = [key for keys in NUMBERS.values() for key in keys if key in group and key not in NUMBERS[local_step]]
        if foreign:
            raise ValueError(f"group {number}: {_foreign(foreign[0], local_step)}")


_DONE = {"sgd": "with Nesterov's momentum", "adamw": "with Adam's two moments"}


def _check_plain(number: int, key: str, value: Any) -> None:
    is_pair = key == "betas"
    if is_pair and not (isinstance(value, tuple | list) and len(value) == 2):
        raise ValueError(f"group {number}: betas must be two numbers, not {value!r}")
    for each in value if is_pair else [value]:
        if isinstance(each, bool) or not isinstance(each, Real):
            raise ValueError(f"group {number}: {key} must be a plain number, not {each!r}")
