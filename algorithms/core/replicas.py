"""An optimiser's replicas together, one for each dtype of its parameters: sums, and one state."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cser_bench.algorithms.core.replica import Replica
from cser_bench.algorithms.core.state import OTHER_TYPES


def tensors_of(replicas: Sequence[Replica]) -> list[Tensor]:
    """Return the parameters, dtype by dtype."""
    return [tensor for replica in replicas for tensor in replica.flat.tensors]


def numel_of(replicas: Sequence[Replica]) -> int:
    """Return d, over all dtypes."""
    return sum(replica.flat.layout.numel for replica in replicas)


def error_of(replicas: Sequence[Replica]) -> Tensor | None:
    """Return the errors, of shape (local workers, d); None if the method keeps none."""
    errors = []
    for replica in replicas:
        if "error" in replica.buffers:
            errors.append(replica.buffers["error"])
    if not errors:
        return None
    # The buffer itself, not a copy, if there is one dtype.
    if len(errors) == 1:
        return errors[0]
    return torch.cat(errors, dim=1)


def memory_in_parameters(replicas: Sequence[Replica]) -> float:
    """Return the size of a worker's state, parameters and gradients aside, in parameters' sizes."""
    parameter_bytes = 0
    state_bytes = 0
    for replica in replicas:
        # Row 0 alone: the workers' buffers are alike, and this is one worker's share.
        parameter_bytes += replica.flat.parameters[0].nbytes
        state_bytes += sum(buffer[0].nbytes for buffer in replica.buffers.values())
        state_bytes += sum(tensor.nbytes for tensor in replica.common.values())
    return state_bytes / parameter_bytes


def state_of(replicas: Sequence[Replica]) -> dict[str, Any]:
    """Return the state of all: the first dtype's own, with those of the others under one key."""
    first, *others = replicas
    flat = first.state()
    if others:
        flat[OTHER_TYPES] = {str(replica.dtype): replica.state() for replica in others}
    return flat


def states_for(
    replicas: Sequence[Replica], flat: Mapping[str, Any], method: str
) -> list[dict[str, Any]]:
    """Return the state of each replica out of what `state_of` gave, after a check that it fits.

    Nothing is changed.

    Raises:
        ValueError: it is another method's, model's or worker's, or of other settings.
    """
    first = dict(flat)
    others = first.pop(OTHER_TYPES, {})
    names = [str(replica.dtype) for replica in replicas[1:]]
    if list(others) != names:
        raise ValueError(
            f"this state does not fit {method}: the parameters of its other dtypes are of "
            f"{list(others)}, here of {names}; load the state of the same model"
        )
    # In the order of replicas, which the names were held against.
    states = [first, *others.values()]
    for replica, state in zip(replicas, states, strict=True):
        replica.check_state(state)
    return states
