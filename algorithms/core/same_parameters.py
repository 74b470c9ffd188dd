"""Checks that all workers hold the same parameters in the same order.

Names and shapes are compared, and initial values, since not every script gives names. One case is
not seen: another order of unnamed parameters of one shape and dtype, on a worker that begins with
values of its own.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from cser_bench.algorithms.core.collectives import Collectives
from cser_bench.algorithms.core.flat import FlatBuffers
from cser_bench.algorithms.core.traffic import Purpose

REMEDY = (
    "give all workers the same model, and its parameters in the same order and groups"
)

Groups = Sequence[Mapping[str, Any]]
"""Parameter groups of an optimiser, as torch has them."""


def parameters_in_words(
    flats: Sequence[FlatBuffers], groups: Groups, model: nn.Module | None
) -> dict[str, str]:
    """Return texts that must be equal on all workers: a summary of the parameters, then each one.

    Args:
        flats: the parameters of each dtype.
        model: the source of their names; groups given by `named_parameters()` have them too.
    """
    names = _names(groups, model)
    group_of: dict[int, int] = {}
    for number, group in enumerate(groups):
        # By identity, as tensors compare by their values.
        group_of |= dict.fromkeys(map(id, group["params"]), number)
    fields = {"parameters": "; ".join(map(_summary, flats))}
    for flat in flats:
        for number, (tensor, window) in enumerate(
            zip(flat.tensors, flat.layout.tensors, strict=True)
        ):
            name = names.get(id(tensor), "one without a name")
            fields[_called(flat, number)] = (
                f"{name} in group {group_of[id(tensor)]}, of shape {window.shape} and strides "
                f"{window.strides}"
            )
    return fields


def rest_in_words(model: nn.Module | None, groups: Groups) -> dict[str, str]:
    """Return texts that must be equal on all workers, of the model's frozen parameters and buffers."""
    rest = list(rest_of(model, groups))
    fields = {"rest of the model": "no model is given"}
    if model is not None:
        fields["rest of the model"] = f"{len(rest)} tensors"
    for number, (name, tensor) in enumerate(rest):
        fields[f"tensor {number} of the rest"] = (
            f"{name}, {_short(tensor.dtype)} of shape {tuple(tensor.shape)}"
        )
    return fields


def rest_of(model: nn.Module | None, groups: Groups) -> Iterator[tuple[str, Tensor]]:
    """Yield the model's tensors that are in no group, with names: frozen parameters and buffers."""
    if model is None:
        return
    in_groups = {id(parameter) for group in groups for parameter in group["params"]}
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if id(tensor) not in in_groups:
            yield name, tensor


def check_order(collectives: Collectives, flats: Sequence[FlatBuffers]) -> None:
    """Compare the values that workers begin with, parameter by parameter.

    Raises:
        ValueError: on every worker, if some worker has the initial values of worker 0's parameters
            in other parameters of the same shape and dtype; the message names one.
    """
    # On a meta device and in torch's fake mode there are no values.
    if flats[0].parameters.is_meta or type(flats[0].parameters) is not Tensor:
        return
    # (1, tensors)
    sums = torch.cat([flat.bit_sums(flat.parameters) for flat in flats], dim=1)
    first, *others = collectives.all_gather(sums, Purpose.CONTROL).tolist()
    names: list[str] = []
    # Only parameters of one dtype and shape can be taken for each other.
    alike: dict[object, list[int]] = defaultdict(list)
    for flat in flats:
        for number, window in enumerate(flat.layout.tensors):
            alike[flat.parameters.dtype, window.shape].append(len(names))
            names.append(_called(flat, number))
    for rank, own in enumerate(others, 1):
        for places in alike.values():
            exchanged = _exchanged(places, first, own)
            if exchanged:
                here = exchanged[0]
                there = next(place for place in exchanged if first[place] == own[here])
                raise ValueError(
                    f"the workers' optimisers differ ({names[here]} has on rank {rank} the values "
                    f"that {names[there]} has on rank 0); {REMEDY}, or where they are in the same "
                    "order already let all workers begin with the same values"
                )


def _exchanged(
    places: Sequence[int], first: Sequence[int], own: Sequence[int]
) -> list[int]:
    """Return the places at which a worker has worker 0's values in another order.

    Args:
        places: places of parameters of one shape, in `first` and in `own`.
    """
    left = [place for place in places if own[place] != first[place]]
    num_left = len(places) + 1
    # Until nothing is left, or only a cycle. A chain is no exchange: with seeds of rank + layer,
    # each layer begins as worker 0's next one, and is in its place all the same.
    while len(left) < num_left:
        num_left = len(left)
        common = {own[place] for place in left} & {first[place] for place in left}
        left = [
            place for place in left if own[place] in common and first[place] in common
        ]
    return left


def _names(groups: Groups, model: nn.Module | None) -> dict[int, str]:
    """Return known names of parameters, by the parameters' identities."""
    names: dict[int, str] = {}
    for group in groups:
        given = group.get("param_names", ())
        names |= zip(map(id, group["params"]), given, strict=False)
    # The model's names win: those in groups may be relative to a part of it.
    if model is not None:
        names |= {id(parameter): name for name, parameter in model.named_parameters()}
    return names


def _summary(flat: FlatBuffers) -> str:
    kind = f"{_short(flat.parameters.dtype)} on {flat.parameters.device.type}"
    return f"{flat.layout.numel:,} in {len(flat.tensors)} tensors, {kind}"


def _called(flat: FlatBuffers, number: int) -> str:
    return f"{_short(flat.parameters.dtype)} parameter {number}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
