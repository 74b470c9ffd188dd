"""What workers must have in common when an optimiser is made: whether they agree on it, and how they are made equal."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from algorithms.core.arguments import NUMBERS, LocalStepName
from algorithms.core.collectives import Collectives
from algorithms.core.flat import FlatBuffers
from algorithms.core.traffic import Purpose

NUM_SLOTS, DIGEST_BYTES, TEXT_BYTES = 16, 8, 120
"""Each field has a slot, and the last slot is for all fields beyond; messages must be of one size on all workers."""


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
    """What workers must have in common beside the method's settings: what is trained, with which numbers, and how."""
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
