"""Checks of the parameters that an optimiser is given, and of the model that holds them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from cser_bench.algorithms.core.warn import warn_script

_SHARDED = {
    "_fsdp_flattened": "FullyShardedDataParallel",
    "device_mesh": "fully_shard or tensor parallelism, which make DTensors",
}
"""Makers of sharded parameters, by an attribute that such a parameter has. Looked up by name, since
importing the classes takes long."""


def types_of(groups: Iterable[Mapping[str, Any]]) -> list[torch.dtype]:
    """Return the dtypes of the groups' parameters, the one of most numbers first.

    Raises:
        ValueError: there is none, one is a shard, as each worker here holds a whole model, or one
            cannot lie in a flat vector; the message says which and why.
    """
    tensors = [parameter for group in groups for parameter in group["params"]]
    if not tensors:
        raise ValueError("there is no parameter to train: every group is empty")
    frozen = [
        number for number, tensor in enumerate(tensors) if not tensor.requires_grad
    ]
    if frozen:
        warn_script(
            f"parameter {frozen[0]} does not require a gradient, nor do {len(frozen) - 1} more, "
            "yet they are sent; give only those that will be trained at some time"
        )
    # Two parameters in one memory would be two stretches of the flat vector, and trained apart.
    addresses: dict[int, int] = {}
    numels: Counter[torch.dtype] = Counter()
    for number, parameter in enumerate(tensors):
        _refuse_shard(parameter)
        if parameter.device != tensors[0].device:
            raise ValueError(
                f"parameter {number} is on {parameter.device}, parameter 0 on {tensors[0].device}; "
                "an optimiser takes parameters on one device"
            )
        if not parameter.is_floating_point():
            raise ValueError(
                f"parameter {number} is {parameter.dtype}; an optimiser takes real floating-point "
                "numbers"
            )
        has_memory = not parameter.is_meta and not isinstance(parameter, FakeTensor)
        if has_memory and parameter.numel():
            # The first parameter that began at this address.
            other = addresses.setdefault(parameter.data_ptr(), number)
            if other != number:
                _refuse_same_memory(tensors, other, number)
        numels[parameter.dtype] += parameter.numel()
    # Between dtypes of equally many numbers, the one that comes first in the groups: equal on all
    # workers.
    return [dtype for dtype, _ in numels.most_common()]


def _refuse_shard(parameter: Tensor) -> None:
    for attribute, who in _SHARDED.items():
        if getattr(parameter, attribute, None):
            raise ValueError(
                f"a parameter of shape {tuple(parameter.shape)} is a shard by {who}; these "
                "optimisers average whole models: give them the module as it was before, or "
                "keep torch's own optimiser, whose gradients "
                "examples/fsdp2_compressed_gradients.py compresses under fully_shard"
            )


def _refuse_same_memory(tensors: Sequence[Tensor], first: int, second: int) -> None:
    if tensors[first] is tensors[second]:
        raise ValueError(
            f"parameters {first} and {second} are one and the same Parameter; give each once"
        )
    raise ValueError(
        f"parameters {first} and {second} share memory, which they could not do any more; make "
        "them one Parameter that both modules hold"
    )


def refuse_module(method: str, params: object) -> None:
    """Raise TypeError where a model was given in the place of its parameters."""
    if isinstance(params, nn.Module):
        raise TypeError(
            f"{method} takes a model's parameters first, not the {type(params).__name__} itself; "
            f"write {method}(model.parameters(), ...), and model=model where it is to be watched"
        )


def check_model(model: object) -> None:
    """Raise TypeError if the model is no `nn.Module`."""
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be the torch.nn.Module that has the parameters, not a {type(model).__name__}"
        )


def refuse_other_model(
    model: nn.Module | None, groups: Iterable[Mapping[str, Any]]
) -> None:
    """Raise ValueError if the model, where one is given, lacks one of the groups' parameters."""
    if model is None:
        return
    tensors = [parameter for group in groups for parameter in group["params"]]
    missing = _missing(model, tensors)
    if missing:
        raise ValueError(
            f"model does not have {len(missing)} of the {len(tensors)} parameters that are given, "
            f"number {missing[0]} first; give model= the module whose parameters these are, or "
            "leave it out"
        )


def _missing(model: nn.Module, tensors: Sequence[Tensor]) -> list[int]:
    """Return the numbers of the parameters that the model does not have."""
    # By identity: another Parameter of equal values is another one to train.
    held = set(map(id, model.parameters()))
    return [
        number for number, parameter in enumerate(tensors) if id(parameter) not in held
    ]


def check_parameters(model: nn.Module | None, tensors: Sequence[Tensor]) -> None:
    """Raise RuntimeError if the model, where known, does not hold the optimiser's parameters."""
    if model is None:
        return
    missing = _missing(model, tensors)
    if missing:
        raise RuntimeError(
            f"the model has another Parameter in place of number {missing[0]} than when the "
            "optimiser was made (load_state_dict with assign=True, or an assignment), so this "
            "optimiser would train one that the model lost; make the optimiser afterwards, or "
            "load with assign=False (averages of its weights, as an EMA, go to consensus(model, "
            "averages=[ema]))"
        )
