"""Checks of parameters, and of agreement between workers: at the start, the first step, later."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from cser_bench.algorithms.core.collectives import (
    CollectiveError,
    Collectives,
    StackedCollectives,
)
from cser_bench.algorithms.core.flat import FlatBuffers, dense, integers, unexpanded
from cser_bench.algorithms.core.same_parameters import rest_of
from cser_bench.algorithms.core.traffic import Purpose
from cser_bench.algorithms.core.warn import warn_script

_SHARDED = {
    "_fsdp_flattened": "FullyShardedDataParallel",
    "device_mesh": "fully_shard or tensor parallelism, which make DTensors",
}
"""Makers of sharded parameters, by an attribute that such a parameter has. Looked up by name, since
importing the classes takes long."""

DIGEST_BYTES = 8
TEXT_LENGTH = 160
"""Characters of a value that an error shows."""

STEPS = "steps done"
FROZEN = "frozen parameters"
LOADED = "a state was loaded"
DIGEST = "sum of the bits of all parameters"
"""Names of fields that must be equal on all workers whenever they meet."""


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


@torch.no_grad()
def equalise_(
    collectives: Collectives,
    flat: FlatBuffers,
    groups: Sequence[Mapping[str, Any]],
    model: nn.Module | None,
) -> None:
    """Send worker 0's parameters to all, and the model's frozen parameters and buffers, if given."""
    collectives.broadcast_(flat.parameters, Purpose.CONTROL)
    for _, tensor in rest_of(model, groups):
        written = unexpanded(tensor.detach())
        message = written.contiguous().unsqueeze(0)
        collectives.broadcast_(message, Purpose.CONTROL)
        written.copy_(message[0])


class FirstStep:
    """The checks of the first step, and what they need noted before it.

    Make it once all workers hold the same parameters.

    Args:
        flats: parameters and gradients of each dtype.
        averaged: whether the method's own backward pass averages gradients, which then may be equal
            on all workers.
    """

    was_loaded = False
    """Whether a state was loaded since. Then changed parameters are expected, and may differ between
    workers."""

    def __init__(
        self, flats: Sequence[FlatBuffers], collectives: Collectives, averaged: bool
    ) -> None:
        self._flats = flats
        self._collectives = collectives
        self._tensors = [tensor for flat in flats for tensor in flat.tensors]
        self._own = torch.zeros(
            len(self._tensors), dtype=torch.int64, device=flats[0].parameters.device
        )
        """Bit sum of each gradient, as the backward pass left it on this worker."""
        self._start = self._sums(flat.parameters for flat in flats)
        is_watched = not averaged and not isinstance(collectives, StackedCollectives)
        self._silent: set[int] = set()
        """Numbers of watched parameters that no backward pass has reached yet."""
        self._hooks = []
        for number, tensor in enumerate(self._tensors):
            if is_watched and tensor.requires_grad:
                self._silent.add(number)
                hook = partial(self._note, number)
                handle = tensor.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
                self._hooks.append(handle)

    def _sums(self, vectors: Iterable[Tensor]) -> Tensor:
        """Return bit sums of shape (local workers, tensors), dtype by dtype."""
        pairs = zip(self._flats, vectors, strict=True)
        return torch.cat([flat.bit_sums(vector) for flat, vector in pairs], dim=1)

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def _note(self, number: int, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._silent.discard(number)
        self._own[number] = integers(dense(parameter.grad)).sum()

    def check(
        self,
        model: nn.Module | None,
        may_differ: bool,
        num_steps: int,
        fields: Mapping[str, object],
    ) -> bool:
        """Return whether any worker's parameters changed since the start; warn of missing gradients.

        Args:
            may_differ: whether workers' parameters may differ, once a state was loaded.
            num_steps: steps that this worker's state has done.
            fields: what `in_step` returns.

        Raises:
            RuntimeError: the model has other parameters by now or had none when the optimiser was
                made, or its gradients are averaged already, or workers went on from states or
                models that do not belong together.
            ValueError: workers differ in `fields`.
        """
        check_parameters(model, self._tensors)
        if self._flats[0].parameters.is_meta:
            raise RuntimeError(
                "the model was on the meta device when the optimiser was made, so this trains "
                "nothing; make the optimiser after to_empty() and the initialisation"
            )
        if type(self._flats[0].parameters) is not Tensor:
            return False
        none = not any(flat.gradients.any() for flat in self._flats)
        numbers = []
        for number in sorted(self._silent):
            gradient = self._tensors[number].grad
            if gradient is None or not gradient.any():
                numbers.append(str(number))
        if none or numbers:
            which = "no parameter has a gradient"
            if not none:
                which = f"parameters {', '.join(numbers)} have no gradient"
            warn_script(
                f"{which} at the optimiser's first step; where the model got other ones since it "
                "was made (a new head, to_empty, load_state_dict with assign=True), make the "
                "optimiser afterwards"
            )
        return self._compare(may_differ, num_steps, {**fields, LOADED: self.was_loaded})

    def _compare(
        self, may_differ: bool, num_steps: int, fields: Mapping[str, object]
    ) -> bool:
        """Compare over all workers: bit sums before and now, the number of steps, and the fields."""
        gradients = self._sums(flat.gradients for flat in self._flats)
        parameters = self._sums(flat.parameters for flat in self._flats)
        # One message for all six: the first step waits for the others once.
        steps = torch.full_like(gradients, num_steps)
        # Signed, as int64 is: without a sign half of all digests would not fit.
        digest = int.from_bytes(digest_of(fields), signed=True)
        own = self._own.expand_as(gradients)
        rows = [
            own,
            gradients,
            self._start,
            parameters,
            steps,
            torch.full_like(gradients, digest),
        ]
        sums = torch.stack(rows, dim=1)  # (local workers, 6, tensors)
        # Stacked workers are all here already.
        if len(sums) < self._collectives.world_size:
            sums = self._collectives.all_gather(sums, Purpose.CONTROL)
        # Whether all workers are equal in each of the six.
        before, after, _, same, in_step, alike = (
            bool((part == part[0]).all()) for part in sums.unbind(1)
        )
        if self._hooks and after and not before:
            # Sums that differed after the backward pass, and are equal now, were averaged by
            # someone.
            raise RuntimeError(
                "every worker has the same gradients, though the backward pass gave each its own: "
                "they are averaged in full before this optimiser sees them, so that nothing is "
                "saved; take the DistributedDataParallel off, or call "
                "ddp.register_comm_hook(None, algorithms.noop_hook) (see "
                "docs/in-your-own-script.md)"
            )
        if not in_step:
            raise RuntimeError(
                f"the workers have done {sums[:, 4, 0].tolist()} steps; each must load the state "
                "that it saved itself"
            )
        if not alike:
            check_in_step(self._collectives, fields)
        if self.was_loaded and not may_differ and not same:
            raise RuntimeError(
                "the workers' parameters differ, which this method keeps equal; load the same "
                "model on all workers, or call optimizer.reanchor() on all, which sends worker 0's"
            )
        # Parameters at the start against parameters now, on any worker.
        return not self.was_loaded and not torch.equal(sums[:, 2], sums[:, 3])


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


def check_parameters(model: nn.Module | None, tensors: Sequence[Tensor]) -> None:
    """Raise RuntimeError if the model, where known, does not hold the optimiser's parameters."""
    if model is None:
        return
    held = set(map(id, model.parameters()))
    missing = [
        number for number, parameter in enumerate(tensors) if id(parameter) not in held
    ]
    if missing:
        raise RuntimeError(
            f"the model has another Parameter in place of number {missing[0]} than when the "
            "optimiser was made (load_state_dict with assign=True, or an assignment), so this "
            "optimiser would train one that the model lost; make the optimiser afterwards, or "
            "load with assign=False (averages of its weights, as an EMA, go to consensus(model, "
            "averages=[ema]))"
        )
