"""The arguments that all optimisers have, as types, and the checks of what parameter groups say."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from numbers import Real
from typing import Any, Required, TypedDict

import torch
from torch import nn

from algorithms.core.collectives import Collectives


class Common(TypedDict, total=False):
    """As in `DistributedOptimizer`."""

    lr: Required[float]
    momentum: float
    weight_decay: float
    collectives: Collectives | None
    seed: int
    wire: torch.dtype | None
    model: nn.Module | None


_RANGES = {
    "lr": ("the learning rate must be a number from 0 up", inf),
    "momentum": ("the momentum must lie in [0, 1)", 1.0),
    "weight_decay": ("the weight decay must be a number from 0 up", inf),
}

_OTHERS = {
    "dampening": 0,
    "nesterov": True,
    "maximize": False,
    "foreach": False,
    "differentiable": False,
    "fused": True,
}
"""Options of torch.optim.SGD that are not taken, with the value that says what is done anyway."""


def chosen_momentum(given: float | None, method: str, without: str | None) -> float:
    """The momentum, by default 0, and 0.9 for a method that is called `without` where it has none.

    Raises:
        ValueError: it is 0, and without momentum the method is another.
    """
    if given is None:
        return 0.0 if without is None else 0.9
    if given == 0 and without is not None:
        raise ValueError(f"{method}: the momentum must not be 0; without momentum the method is {without}")
    return given


def check_numbers(groups: Iterable[dict[str, Any]]) -> None:
    """Raises ValueError where a group's learning rate, momentum or weight decay is out of range."""
    for group in groups:
        if not (0 <= group["lr"] < inf and 0 <= group["momentum"] < 1 and 0 <= group["weight_decay"] < inf):
            _refuse_number(group)


def _refuse_number(group: dict[str, Any]) -> None:
    for key, (sentence, limit) in _RANGES.items():
        if not 0 <= group[key] < limit:
            raise ValueError(f"{sentence}, not {group[key]}")


def check_options(groups: Iterable[dict[str, Any]]) -> None:
    """Raises ValueError where a group is not what these optimisers can do."""
    for number, group in enumerate(groups):
        for key in _RANGES:
            value = group[key]
            if isinstance(value, bool) or not isinstance(value, Real):
                raise ValueError(f"group {number}: {key} must be a plain number, not {value!r}")
        _refuse_number(group)
        for key, done in _OTHERS.items():
            if group.get(key, done) not in (done, None):
                raise ValueError(
                    f"group {number}: {key} = {group[key]!r} is an option of torch.optim.SGD that these optimisers do "
                    f"not have (they minimise, with Nesterov's momentum, in one fused pass); leave it out"
                )
