"""The arguments that all optimisers have, as types, and the checks of what parameter groups say."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from numbers import Real
from typing import Any, Required, TypedDict

import torch
from torch import nn

from algorithms.core.collectives import Collectives


class CommonButMomentum(TypedDict, total=False):
    """As in `DistributedOptimizer`, without the momentum, for methods that say something of their own about it."""

    lr: Required[float]
    weight_decay: float
    collectives: Collectives | None
    seed: int
    wire: torch.dtype | None
    model: nn.Module | None


class Common(CommonButMomentum, total=False):
    """As in `DistributedOptimizer`."""

    momentum: float


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
