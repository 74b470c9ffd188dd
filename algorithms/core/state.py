"""Saved states: which worker may go on from one, and the workers' average that fits them all."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

OTHER_TYPES = "other types"
"""Key of a state under which the parameters of all dtypes but the first have theirs."""
UNSENT = ("error", "accumulated", "delayed")
"""Buffers of what was not sent yet, or was sent and has not arrived."""

FORMER_SETTINGS = {"released_order": "False"}
"""Settings that no longer exist, with the value at which older states fit."""
FORMER_FIELDS = ", second_error=True"
"""A field that compressors in older states have, at the value at which they fit."""


def check_state(
    state: Mapping[str, Any],
    own: Mapping[str, Any],
    defaults: Mapping[str, Any],
    may_be_missing: Mapping[str, tuple[int, ...]],
) -> None:
    """Raise ValueError where `state` is not like `own`, which this worker would save now.

    Both are the part "flat" of a state.

    A setting that a state does not know was at its default when it was saved: the method did not
    have it yet. Momentum, which is made when it is needed, and parameters, of this shape, may be
    missing.
    """
    refused = f"this state does not fit {own['method']}"
    if not state:
        raise ValueError(
            f'{refused}: there is no "flat" in its first group, which is a worker\'s own; '
            "get_state_dict() keeps that without flatten_optimizer_state_dict and "
            "full_state_dict, and consensus_checkpoint() saves it for all"
        )
    if state.get("method") != own["method"]:
        raise ValueError(f"{refused}: its method is {state.get('method')!r}")
    settings = own["settings"]
    # Compared as texts: a state is plain data, and holds no objects of ours.
    saved = {key: repr(value) for key, value in defaults.items()}
    for key, value in state["settings"].items():
        if FORMER_SETTINGS.get(key) != value:
            saved[key] = value.replace(FORMER_FIELDS, "")
    # A setting that either side lacks counts as None, and so differs.
    for key in sorted(saved.keys() | settings.keys()):
        if saved.get(key) != settings.get(key):
            raise ValueError(
                f"{refused}: it was saved with {key} = {saved.get(key)}, this has "
                f"{settings.get(key)}"
            )
    # A state without a rank fits any worker.
    if state["rank"] is not None:
        if state["world_size"] != own["world_size"]:
            raise ValueError(
                f"{refused}: it is one of {state['world_size']} workers', here are "
                f"{own['world_size']}; what consensus_checkpoint() saves fits any number"
            )
        if state["rank"] != own["rank"]:
            raise ValueError(
                f"{refused}: it is worker {state['rank']}'s, this is worker {own['rank']}; each "
                "worker must save a file of its own and load that"
            )
    # What may be missing counts as there, of the shape that it would have.
    saved_shapes = {**may_be_missing, **_shapes(state)}
    shapes = {**may_be_missing, **_shapes(own)}
    if saved_shapes != shapes:
        raise ValueError(f"{refused}: it holds {saved_shapes}, this has {shapes}")


def _shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors and lists."""
    shapes: dict[str, tuple[int, ...]] = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            shapes[key] = tuple(value.shape)
        elif isinstance(value, list):
            shapes[key] = (len(value),)
    return shapes


def check_still_loaded(loaded: Tensor | None, parameters: Tensor) -> None:
    """Raise RuntimeError where a state's parameters were loaded, and the model lost them."""
    if loaded is not None and not torch.allclose(
        loaded, parameters, 0, 0, equal_nan=True
    ):
        raise RuntimeError(
            "the parameters are not those of the state that this optimiser loaded, which are this "
            "worker's own; make any DistributedDataParallel first, as it sends worker 0's, load "
            "the model next and the optimiser last (after a change that is meant, call "
            "optimizer.reanchor() on all workers)"
        )


def common_state(states: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return a state that fits any number of workers: the first one, with all workers' mean vectors.

    It has no parameters: the model has them. The mean of equal vectors is that vector.
    """
    groups: list[dict[str, Any]] = []
    sums: dict[tuple[int, str], Tensor] = {}
    num_workers = 0
    for state in states:
        groups = groups or state["param_groups"]
        num_workers += 1
        for number, part in enumerate(_parts(state["param_groups"])):
            for key, value in part.items():
                if isinstance(value, Tensor):
                    # In float64, so that the mean of equal numbers is that number.
                    sums[number, key] = value.double() + sums.get((number, key), 0)
    for number, part in enumerate(_parts(groups)):
        for key, value in part.items():
            if isinstance(value, Tensor):
                part[key] = sums[number, key].div_(num_workers).to(value)
        part |= {"rank": None, "world_size": None}
        part.pop("parameters", None)
    return {"state": {}, "param_groups": groups}


def _parts(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what a state holds for parameters of each type."""
    flat: dict[str, Any] = groups[0]["flat"]
    return [flat, *flat.get(OTHER_TYPES, {}).values()]
