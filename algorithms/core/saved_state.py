"""Which worker's state may go on where: what a saved state says of itself, and what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from algorithms.core.collectives import Collectives
from algorithms.core.traffic import Purpose

Errors = Literal["average", "drop"]

UNSENT = ("error", "accumulated")
"""Buffers that hold what a worker has not sent yet."""


def check_state(state: Mapping[str, Any], method: str, rank: int, world_size: int, settings: Mapping[str, Any]) -> None:
    """Raises ValueError where `state`, the part "flat" of a state, is not for this worker of this method."""
    refused = f"this state does not fit {method}"
    if state.get("method") != method:
        raise ValueError(f"{refused}: its method is {state.get('method')!r}")
    if "settings" not in state:
        warnings.warn(
            "this state was saved before states said whose they are, so whether it is this worker's is not checked",
            stacklevel=4,
        )
        return
    saved = state["settings"]
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


def consensus_buffers(buffers: Mapping[str, Tensor], errors: Errors, collectives: Collectives) -> dict[str, Tensor]:
    """New vectors: the workers' averages; of what was not sent yet zeros, where that is to be dropped."""
    common = {}
    for key in sorted(buffers):
        common[key] = buffers[key].clone()
        if key in UNSENT and errors == "drop":
            common[key].zero_()
        else:
            collectives.all_reduce_mean_(common[key], Purpose.CONTROL)
    return common
