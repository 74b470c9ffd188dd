"""Whether workers agree: fields that they compare, and errors that name who differs."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cser_bench.algorithms.core.collectives import (
    CollectiveError,
    Collectives,
    StackedCollectives,
)
from cser_bench.algorithms.core.flat import FlatBuffers, integers
from cser_bench.algorithms.core.traffic import Purpose

DIGEST_BYTES = 8
"""Bytes of SHA-256 that are compared: two sets of fields have the same with odds of 1 in 2^64."""
TEXT_LENGTH = 160
"""Characters of a value that an error shows."""

STEPS = "steps done"
FROZEN = "frozen parameters"
LOADED = "a state was loaded"
DIGEST = "sum of the bits of all parameters"
"""Names of fields that must be equal on all workers whenever they meet."""


def digest_of(fields: Mapping[str, object]) -> bytes:
    """Return a digest of the fields, of `DIGEST_BYTES` bytes."""
    return hashlib.sha256(json.dumps(texts_of(fields)).encode()).digest()[:DIGEST_BYTES]


def are_apart(collectives: Collectives) -> bool:
    """Return whether there are several workers in processes or threads of their own."""
    return (
        not isinstance(collectives, StackedCollectives) and collectives.world_size > 1
    )


def texts_of(fields: Mapping[str, object]) -> list[str]:
    """Return each field in words, as workers compare them."""
    return [f"{name} = {value}" for name, value in fields.items()]


def check_agreement(
    collectives: Collectives,
    fields: Mapping[str, object],
    remedies: Mapping[str, str] = {},
) -> None:
    """Compare the fields over all workers, which must call it together.

    The error names the first field that differs, so causes stand before what follows from them.

    Args:
        remedies: what to do where a field differs, by its name.

    Raises:
        ValueError: on every worker, naming the first field that differs, its values and the ranks
            that have them.
    """
    # A digest first, as it is short: the texts themselves are sent only where it differs.
    if len(set(_gathered(collectives, digest_of(fields)))) == 1:
        return
    texts = json.dumps(texts_of(fields)).encode()
    # All messages of an all-gather are of one length.
    length = max(int(text) for text in _gathered(collectives, b"%12d" % len(texts)))
    # Filled up with spaces, which JSON allows at its end.
    everyones = [json.loads(row) for row in _gathered(collectives, texts.ljust(length))]
    raise ValueError(difference(fields, dict(enumerate(everyones)), remedies))


def difference(
    fields: Iterable[str],
    texts: Mapping[int, Sequence[str]],
    remedies: Mapping[str, str],
) -> str:
    """Return the first field in which workers differ, its values, who has them and what to do.

    Args:
        fields: their names.
        texts: what `texts_of` gives, by rank; some of them differ.
        remedies: as in `check_agreement`.
    """
    # A worker at another call may have other fields, and fewer.
    # (name, the workers' values) each
    rows = zip_longest(fields, zip_longest(*texts.values()))
    name, values = next((name, values) for name, values in rows if len(set(values)) > 1)
    # Ranks by the value that they have, for the error.
    ranks: dict[object, list[str]] = {}
    for rank, value in zip(texts, values, strict=True):
        ranks.setdefault(value, []).append(str(rank))
    differences = []
    for value, having in ranks.items():
        plural = "s" if len(having) > 1 else ""
        differences.append(
            f"{str(value)[:TEXT_LENGTH]} on rank{plural} {', '.join(having)}"
        )
    remedy = remedies.get(
        name, "give all workers the same model, settings, seed and packages"
    )
    return f"the workers' optimisers differ ({'; '.join(differences)}); {remedy}"


def in_step(
    num_steps: int,
    groups: Iterable[Mapping[str, Any]],
    keys: Iterable[str],
    frozen: Sequence[Sequence[int]],
) -> dict[str, object]:
    """Return the fields that must be equal on all workers whenever they meet, as the host knows them.

    Args:
        keys: the numbers that each group has.
        frozen: the numbers of frozen parameters, of each type.
    """
    fields: dict[str, object] = {STEPS: num_steps}
    for number, group in enumerate(groups):
        for key in keys:
            # As plain floats, so that 0.1 and a tensor of 0.1 are the same text.
            fields[f"{key} of group {number}"] = np.asarray(group[key], float).tolist()
    fields[FROZEN] = frozen
    return fields


def remedies_for(fields: Iterable[str]) -> dict[str, str]:
    """Return what to do if a field of `in_step` differs, by the field's name."""
    remedies = dict.fromkeys(
        fields,
        "set it alike on all workers, and step a scheduler that looks at a loss, such as "
        "ReduceLROnPlateau, on a number that all of them have (the mean of their losses, or the "
        "average model's loss on the same data)",
    )
    return remedies | {
        "call": "have all workers make the same calls in the same order",
        STEPS: "call step() equally often on all workers",
        FROZEN: "freeze and thaw the same parameters on all workers, before the same step",
        LOADED: "load on all workers, on each the state that it saved itself, or on none",
        DIGEST: (
            "this method keeps all workers' parameters equal, so change them alike on all, or call "
            "optimizer.reanchor() on all, which sends worker 0's"
        ),
    }


def check_in_step(collectives: Collectives, fields: Mapping[str, object]) -> None:
    """Compare the fields of `in_step` over all workers, which must call it together.

    Raises:
        ValueError: something differs; the message says what, on which workers, and what to do.
    """
    check_agreement(collectives, fields, remedies_for(fields))


def digest_of_parameters(flats: Iterable[FlatBuffers]) -> list[int]:
    """Return a digest of the parameters of each dtype; waits for a GPU."""
    # Sums of bits read as integers do not depend on the order.
    return [int(integers(flat.parameters).sum()) for flat in flats]


def enter_together(
    collectives: Collectives, call: str, fields: Mapping[str, object] = {}
) -> None:
    """Compare whether all workers are at this call, with equal fields.

    So one worker's message is not taken for another worker's message of another call.

    Args:
        fields: what `in_step` gives, and more like it.

    Raises:
        CollectiveError: another worker does something else, has something else, or did not come
            within the group's time-out.
    """
    try:
        check_in_step(collectives, {"call": call, **fields})
    except CollectiveError as error:
        raise CollectiveError(
            f"all workers must enter {call}, and some did not: {error}"
        ) from error
    except ValueError as error:
        raise CollectiveError(
            f"all workers must enter {call} together and alike: {error}"
        ) from error


def _gathered(collectives: Collectives, message: bytes) -> list[bytes]:
    row: Tensor = torch.frombuffer(bytearray(message), dtype=torch.uint8).unsqueeze(0)
    rows = collectives.all_gather(row, Purpose.CONTROL)
    return [bytes(codes) for codes in rows.tolist()]
