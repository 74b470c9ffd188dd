"""Which worker's state may go on where: what a saved state says of itself, and what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from algorithms.core.collectives import Collectives


def flat_state(
    method: str,
    num_steps: int,
    seed: int,
    worker: Collectives | None,
    settings: Mapping[str, str],
    vectors: Mapping[str, Tensor],
    counts: Mapping[str, list[int]],
) -> dict[str, Any]:
    """The part "flat" of a state: of one worker, or None where it fits any and any number of them."""
    return {
        "method": method,
        "num_steps": num_steps,
        "seed": seed,
        "rank": None if worker is None else worker.rank,
        "world_size": None if worker is None else worker.world_size,
        "settings": settings,
        **vectors,
        **counts,
    }


def check_state(
    state: Mapping[str, Any],
    method: str,
    worker: Collectives,
    settings: Mapping[str, str],
    defaults: Mapping[str, Any],
) -> None:
    """Raises ValueError where `state`, the part "flat" of a state, is not for this worker of this method.

    A setting that a state does not know was at its default when it was saved: the method did not have it yet.
    """
    refused = f"this state does not fit {method}"
    if state.get("method") != method:
        raise ValueError(f"{refused}: its method is {state.get('method')!r}")
    if "settings" not in state:
        warnings.warn(
            "this state was saved before states said whose they are, so whether it is this worker's is not checked",
            stacklevel=4,
        )
        return
    saved = {**{key: repr(value) for key, value in defaults.items()}, **state["settings"]}
    rank, world_size = worker.rank, worker.world_size
    for key in sorted(saved.keys() | settings.keys()):
        if saved.get(key) != settings.get(key):
            raise ValueError(f"{refused}: it was saved with {key} = {saved.get(key)}, this has {settings.get(key)}")
    if state["rank"] is None:
        return
    if state["world_size"] != world_size:
        raise ValueError(
            f"{refused}: it is one of {state['world_size']} workers', here are {world_size}; to change their number, "
            "save optimizer.consensus_state_dict() and load that on all workers"
        )
    if state["rank"] != rank:
        raise ValueError(
            f"{refused}: it is worker {state['rank']}'s, this is worker {rank}; each worker must save a file of its "
            "own and load that"
        )


def check_vectors(
    vectors: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    common: Mapping[str, Tensor],
    parameters: Tensor,
    method: str,
) -> None:
    """Raises ValueError unless a state's vectors are as the optimiser's; momentum is made when it is needed.

    Args:
        buffers: of the parameters' shape; `common`: of any shape.
    """
    shape = tuple(parameters.shape)
    shapes = dict.fromkeys(vectors, shape) | {key: tuple(value.shape) for key, value in common.items()}
    wrong = {key: tuple(value.shape) for key, value in vectors.items() if tuple(value.shape) != shapes[key]}
    held = {*buffers, *common}
    different = (vectors.keys() ^ held) - {"momentum", "parameters"}
    if wrong or different:
        raise ValueError(
            f"this state does not fit {method}: it holds {wrong or sorted(vectors)}, this has {sorted(held)} of "
            f"shape {shape}"
        )


def counts_of(state: Mapping[str, Any], own: Mapping[str, list[int]], method: str) -> dict[str, list[int]]:
    """What the local optimiser counted. Raises ValueError where a state does not have that of so many tensors."""
    for key, counts in own.items():
        saved = state.get(key)
        if not isinstance(saved, list) or len(saved) != len(counts):
            raise ValueError(f"this state does not fit {method}: its {key} is {saved}, not {len(counts)} numbers")
    return {key: list(state[key]) for key in own}


def check_still_loaded(loaded: Tensor | None, parameters: Tensor) -> None:
    """Raises RuntimeError where a state's parameters were loaded, and are not the model's any more."""
    if loaded is not None and not torch.allclose(loaded, parameters, 0, 0, equal_nan=True):
        raise RuntimeError(
            "the parameters are not those of the state that this optimiser loaded, which are this worker's own; load "
            "the model first and then the optimiser (after a change that is meant, call "
            "optimizer.load_state_dict(optimizer.state_dict()))"
        )
