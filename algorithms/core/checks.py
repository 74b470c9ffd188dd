"""What is checked when an optimiser is made and at its first step, so that nothing goes wrong in silence."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from algorithms.core.collectives import Collectives
from algorithms.core.flat import FlatBuffers
from algorithms.core.overlap import Reducer
from algorithms.core.process_group import ProcessGroupCollectives
from algorithms.core.settings import NUMBERS, LocalStepName
from algorithms.core.traffic import Purpose

_SHARDED = {
    "_fsdp_flattened": "FullyShardedDataParallel",
    "device_mesh": "fully_shard or tensor parallelism, which make DTensors",
}
"""By an attribute of a parameter that is a shard: who made it so. Asked by name, since importing them takes long."""

NUM_SLOTS, DIGEST_BYTES, TEXT_BYTES = 16, 8, 120
"""Each field has a slot, and the last slot is for all fields beyond; messages must be of one size on all workers."""


def check_whole(groups: Iterable[Mapping[str, Any]]) -> None:
    """Raises ValueError where a parameter is a shard: each worker here holds a whole model, and averages it."""
    for parameter in (each for group in groups for each in group["params"]):
        for attribute, who in _SHARDED.items():
            if getattr(parameter, attribute, None):
                raise ValueError(
                    f"a parameter of shape {tuple(parameter.shape)} is a shard by {who}; these optimisers average "
                    "whole models: give them the module as it was before, or keep torch's own optimiser"
                )


def check_agreement(collectives: Collectives, fields: Mapping[str, object]) -> None:
    """Compare the fields over all workers, which must call it together; the first ones should say what the others are.

    Raises:
        ValueError: on every worker, naming the first field that differs, its values and the ranks that have them.
    """
    texts = [f"{name} = {value}" for name, value in fields.items()]
    slots = [*texts[: NUM_SLOTS - 1], "; ".join(texts[NUM_SLOTS - 1 :])]
    slots += [""] * (NUM_SLOTS - len(slots))
    digests = b"".join(hashlib.sha256(slot.encode()).digest()[:DIGEST_BYTES] for slot in slots)
    table = _gathered(collectives, digests)
    if len(set(table)) == 1:
        return
    first = next(byte for byte in range(len(digests)) if len({row[byte] for row in table}) > 1) // DIGEST_BYTES
    values = _gathered(collectives, slots[first].encode()[:TEXT_BYTES].ljust(TEXT_BYTES))
    ranks: dict[bytes, list[int]] = {}
    for rank, row in enumerate(table):
        ranks.setdefault(row[first * DIGEST_BYTES : (first + 1) * DIGEST_BYTES], []).append(rank)
    said = "; ".join(
        f"{values[group[0]].decode(errors='ignore').strip()} on rank{'s' * (len(group) > 1)} "
        f"{', '.join(map(str, group))}"
        for group in ranks.values()
    )
    raise ValueError(f"the workers' optimisers differ ({said}); give all workers the same model, settings and seed")


def to_agree_on(
    method: str,
    seed: int,
    flat: FlatBuffers,
    groups: Sequence[Mapping[str, Any]],
    local_step: LocalStepName,
    collectives: Collectives,
) -> dict[str, object]:
    """Returns what workers must have in common beside the method's settings: what is trained, with which numbers."""
    tensors = flat.layout.tensors
    shapes = "; ".join(f"{each.shape} strides {each.strides}" for each in tensors)
    kind = f"{str(flat.parameters.dtype).removeprefix('torch.')} on {flat.parameters.device.type}"
    numbers = NUMBERS[local_step]
    return {
        "method": method,
        "seed": seed,
        "parameters": f"{flat.layout.numel:,} in {len(tensors)} tensors, {kind}: {shapes}",
        f"{', '.join(numbers)} of each group": [tuple(_plain(group[key]) for key in numbers) for group in groups],
        "overlap": collectives.early is not None,
    }


def _plain(number: Any) -> float | tuple[float, ...]:
    return tuple(map(float, number)) if isinstance(number, tuple | list) else float(number)


def _gathered(collectives: Collectives, message: bytes) -> list[bytes]:
    own: Tensor = torch.frombuffer(bytearray(message), dtype=torch.uint8).unsqueeze(0)
    return [bytes(row) for row in collectives.all_gather(own, Purpose.CONTROL).tolist()]


@torch.no_grad()
def make_equal_(collectives: Collectives, flat: FlatBuffers, model: nn.Module | None) -> None:
    """Send worker 0's parameters, and of what else the model has, if given: frozen parameters and buffers."""
    collectives.broadcast_(flat.parameters, Purpose.CONTROL)
    if model is None:
        return
    known = set(map(id, flat.tensors))
    for tensor in [*model.parameters(), *model.buffers()]:
        if id(tensor) not in known:
            message = tensor.detach().contiguous().unsqueeze(0)
            collectives.broadcast_(message, Purpose.CONTROL)
            tensor.copy_(message[0])


class FirstStep:
    """The checks of the first step, and what must be noted before it for them.

    Args:
        averaged: the method's own backward pass averages gradients, so that they may be equal on all workers.
    """

    def __init__(self, flat: FlatBuffers, collectives: Collectives, averaged: bool) -> None:
        self._flat, self._collectives = flat, collectives
        self._own = torch.zeros(len(flat.tensors), dtype=torch.float64, device=flat.parameters.device)
        """The sum of each gradient's numbers, as the backward pass left it on this worker."""
        several = isinstance(collectives, ProcessGroupCollectives) and collectives.world_size > 1
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._note, number))  # type: ignore[no-untyped-call]
            for number, parameter in enumerate(flat.tensors)
            if several and not averaged
        ]

    @torch.no_grad()
    def _note(self, number: int, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._own[number] = parameter.grad.sum(dtype=torch.float64)

    def check(self, model: nn.Module | None) -> None:
        """Warns where parameters have no gradient.

        Raises:
            RuntimeError: the model has other parameters by now, or its gradients are averaged already.
        """
        for hook in self._hooks:
            hook.remove()
        check_parameters(model, self._flat)
        gradients = self._flat.gradients
        if type(gradients) is Tensor and not gradients.is_meta and not gradients.any():
            warnings.warn(
                "no parameter has a gradient at the optimiser's first step; where the model got other ones since it "
                "was made (load_state_dict with assign=True, to_empty), make the optimiser afterwards",
                stacklevel=4,
            )
        if self._hooks:
            self._hooks = []
            self._check_own()

    def _check_own(self) -> None:
        """Sums that differed between workers after the backward pass, and are equal now, were averaged by someone."""
        windows = self._flat.layout.tensors
        now = torch.stack([window.view(self._flat.gradients[0]).sum(dtype=torch.float64) for window in windows])
        sums = self._collectives.all_gather(torch.stack([self._own, now]).unsqueeze(0), Purpose.CONTROL)
        before, after = (bool((part == part[0]).all()) for part in sums.unbind(1))
        if after and not before:
            raise RuntimeError(
                "every worker has the same gradients, though the backward pass gave each its own: they are averaged in "
                "full before this optimiser sees them, so that nothing is saved; where the model is in a "
                "DistributedDataParallel, take the wrapper off: call the module itself (ddp.module)"
            )


def check_parameters(model: nn.Module | None, flat: FlatBuffers) -> None:
    """Raises RuntimeError where the model, if it is known, does not hold the optimiser's parameters any more."""
    if model is None:
        return
    held = set(map(id, model.parameters()))
    missing = [number for number, parameter in enumerate(flat.tensors) if id(parameter) not in held]
    if missing:
        raise RuntimeError(
            f"the model has another Parameter in place of number {missing[0]} than when the optimiser was made "
            "(load_state_dict with assign=True, or an assignment), so this optimiser would train one that the "
            "model lost; make the optimiser afterwards, or load with assign=False"
        )


def overflowed(optimizer: Optimizer, gradients: Tensor, collectives: Collectives, reducer: Reducer | None) -> bool:
    """Returns whether, under a `GradScaler`, any worker's gradients overflowed; if none, takes the scale out of these.

    A worker that skipped alone would leave the others waiting, or drift from them.

    Args:
        optimizer: for the time of a step the scaler sets its `found_inf`, above 0 where this worker's gradients are not
            finite, and `grad_scale`, by which they were multiplied, None where they no longer are.
        reducer: is told to send nothing early.
    """
    found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
    if found_inf is None:
        return False
    if reducer is not None:
        reducer.stop("a GradScaler takes the scale out of the gradients in step()")
    found = found_inf.detach().float().reshape(1, 1).repeat(len(gradients), 1)
    collectives.all_reduce_sum_(found, Purpose.CONTROL)
    if found[0].item() > 0:
        return True
    grad_scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    if grad_scale is not None:
        gradients.div_(grad_scale)
    return False
