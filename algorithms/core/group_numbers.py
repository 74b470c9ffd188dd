"""The numbers of parameter groups, such as learning rates: defaults, ranges, and what is refused."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from math import inf
from typing import Any

from cser_bench.algorithms.core.local_step import (
    REQUIRED,
    LocalStep,
    local_step_named,
    local_steps,
    which_read,
)
from cser_bench.algorithms.core.settings import plain_number

DEFAULT = "sgd"
"""The local step where none is asked for; saved settings leave it out."""

RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "lr": (
        "the learning rate must be a number from 0 up",
        lambda value: 0 <= value < inf,
    ),
    "momentum": ("the momentum must lie in [0, 1)", lambda value: 0 <= value < 1),
    "weight_decay": (
        "the weight decay must be a number from 0 up",
        lambda value: 0 <= value < inf,
    ),
    "betas": (
        "betas must lie in [0, 1)",
        lambda pair: all(0 <= beta < 1 for beta in pair),
    ),
    "eps": ("eps must be a number above 0", lambda value: 0 < value < inf),
}
"""The numbers that parameter groups may have, each with a sentence on its range and the range.
Those that a local step reads, and their defaults, are `LocalStep.numbers`."""

_NOT_TAKEN: dict[str, Any] = {
    "dampening": 0,
    "nesterov": True,
    "fused": True,
} | dict.fromkeys(
    ("maximize", "foreach", "differentiable", "amsgrad", "capturable"), False
)
"""Options of torch.optim.SGD and AdamW that are not taken, with the value that is right anyway."""
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
"""Optimisers of torch.optim whose groups are refused, by an option that only they have."""


def group_defaults(method: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return default hyperparameters for parameter groups: those given, or the local step's.

    Args:
        method: the optimiser. If it has another name without momentum, its momentum is 0.9 by
            default.
        given: all numbers; None where the user gave none.

    Raises:
        ValueError: no such local step, one that the method cannot have, or numbers of another one.
    """
    name = method.name
    local_step = method.local_step
    without_momentum = method.without_momentum
    try:
        step = local_step_named(local_step)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if local_step != DEFAULT and method.sgd_alone is not None:
        raise ValueError(
            f"{name}: local_step = {local_step!r} cannot be, since {method.sgd_alone}; leave "
            "local_step out"
        )
    chosen = {key: value for key, value in given.items() if value is not None}
    # Before the defaults are added, as these belong to the local step.
    _refuse_foreign(name, chosen, local_step)
    # The local step's own defaults; REQUIRED where there is none.
    usual = dict(step.numbers)
    if local_step == DEFAULT and without_momentum is not None:
        usual["momentum"] = 0.9
    chosen = usual | chosen
    if local_step == DEFAULT:
        check_has_momentum(method, [chosen])
    return {**chosen, **step.options}


def check_has_momentum(method: Any, groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError if all groups have momentum 0, where the method without it has another name."""
    has_none = all(group["momentum"] == 0 for group in groups)
    if has_none and method.without_momentum is not None:
        raise ValueError(
            f"{method.name}: the momentum must not be 0; without momentum the method is "
            f"{method.without_momentum}"
        )


def _refuse_foreign(where: str, given: Iterable[str], local_step: str) -> None:
    for key in given:
        owners = which_read(key)
        if owners and local_step not in owners:
            belongs = " or ".join(map(repr, owners))
            raise ValueError(
                f"{where}: {key} belongs to local_step = {belongs}, not {local_step!r}; leave {key} out"
            )


def check_numbers(groups: Iterable[Mapping[str, Any]]) -> None:
    """Raise ValueError if a group's number is out of range, such as its learning rate or momentum."""
    for group in groups:
        for key, (sentence, holds) in RANGES.items():
            try:
                is_right = key not in group or holds(group[key])
            # Text or None, which nothing but a script could have put there.
            except TypeError:
                is_right = False
            if not is_right:
                raise ValueError(f"{sentence}, not {group[key]!r}")


def check_options(groups: Iterable[dict[str, Any]], local_step: str) -> None:
    """Raise ValueError if a group has an option that these optimisers do not have."""
    step = local_step_named(local_step)
    for number, group in enumerate(groups):
        _refuse_other_rules(number, group)
        _refuse_foreign(f"group {number}", group, local_step)
        for key in step.numbers:
            value = group[key]
            if value is REQUIRED:
                raise ValueError(
                    f"group {number}: {key} is missing; give a number by name, as in {key}=0.1, or "
                    "one to each group"
                )
            numbers = [value]
            # A pair; all other numbers are one.
            if key == "betas":
                if not (isinstance(value, tuple | list) and len(value) == 2):
                    raise ValueError(
                        f"group {number}: betas must be two numbers, not {value!r}"
                    )
                numbers = list(value)
            if any(plain_number(each) is None for each in numbers):
                raise ValueError(
                    f"group {number}: {key} must be a plain number, not {value!r}"
                )
        check_numbers([group])
        _refuse_added_decay(number, group)
        _refuse_options(number, group, step)
        _check_booleans(number, group, step)


def check_options_now(groups: Iterable[dict[str, Any]], local_step: str) -> None:
    """Raise ValueError if a script has since given a group an option that is not taken.

    It costs a look at the names in each group.
    """
    for number, group in enumerate(groups):
        if not _NOT_TAKEN.keys().isdisjoint(group):
            _refuse_options(number, group, local_step_named(local_step))


def _refuse_options(
    number: int, group: Mapping[str, Any], step: type[LocalStep]
) -> None:
    """Raise ValueError if a group has one of torch.optim's options that would have to do something."""
    for key, done in _NOT_TAKEN.items():
        # torch.optim.SGD's groups always have `nesterov`; without momentum it says nothing.
        if key == "nesterov" and group.get("momentum") == 0:
            continue
        # None in torch's own groups leaves a choice to torch, such as whether to fuse.
        if group.get(key, done) not in (done, None):
            raise ValueError(
                f"group {number}: {key} = {group[key]!r} is an option of torch.optim that "
                f"these optimisers do not have (they minimise, {step.rule}, in one "
                "fused pass); leave it out"
            )


def _check_booleans(
    number: int, group: Mapping[str, Any], step: type[LocalStep]
) -> None:
    """Raise ValueError if a group has another local step's option, or its own as no boolean."""
    for owner, other in local_steps().items():
        for key in other.options.keys() & group.keys():
            if key not in step.options or not isinstance(group[key], bool):
                raise ValueError(
                    f"group {number}: {key} is True or False, for local_step = {owner!r} alone; "
                    "leave it out"
                )


def _refuse_other_rules(number: int, group: Mapping[str, Any]) -> None:
    """Raise ValueError if a group comes from an optimiser with another update rule."""
    rule = next((rule for key, rule in _OTHER_RULES.items() if key in group), None)
    # RAdam and Adamax have no option of their own. They have betas and `foreach`, but not the
    # `amsgrad` of Adam and AdamW.
    if rule is None and {"betas", "foreach"} <= group.keys() and "amsgrad" not in group:
        rule = "RAdam or Adamax"
    if rule is not None:
        raise ValueError(
            f"group {number} is of torch.optim's {rule}, by whose rule no local step goes; give "
            "the parameters themselves or the groups of torch.optim's SGD or AdamW, and the local "
            "step that is meant"
        )


def _refuse_added_decay(number: int, group: Mapping[str, Any]) -> None:
    """Raise ValueError if a group comes from torch.optim.Adam with weight decay, unlike AdamW's."""
    # Groups of torch 2.6 do not have this key.
    adds_decay = group.get("decoupled_weight_decay") is False
    if adds_decay and group["weight_decay"] != 0:
        raise ValueError(
            f"group {number}: weight_decay = {group['weight_decay']!r} is of torch.optim.Adam, "
            "which adds it to the gradient, and local_step = 'adamw' decays the weights "
            "themselves; take the groups of torch.optim.AdamW, or leave weight_decay out"
        )


def check_no_settings(
    groups: Iterable[Mapping[str, Any]], settings: Collection[str]
) -> None:
    """Raise ValueError if a group holds one of these settings of the whole optimiser.

    In a group it would have no effect. `ZeroRedundancyOptimizer` puts all settings there.
    """
    for number, group in enumerate(groups):
        for key in group:
            if key in settings:
                raise ValueError(
                    f"group {number}: {key} is a setting of the whole optimiser, not of a group; "
                    "give it by name, and make the optimiser directly, with all parameters: in a "
                    "ZeroRedundancyOptimizer each worker would have other ones"
                )
