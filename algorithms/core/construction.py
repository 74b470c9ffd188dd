"""How an optimiser is made: its replicas, and workers that begin alike."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from cser_bench.algorithms.core.agreement import are_apart, check_agreement
from cser_bench.algorithms.core.compressors import Compressor, Draw, digest_of_draws
from cser_bench.algorithms.core.facts import MethodFacts
from cser_bench.algorithms.core.finite import FiniteWatch
from cser_bench.algorithms.core.flat import unexpanded
from cser_bench.algorithms.core.group_numbers import (
    DEFAULT,
    RANGES,
    check_has_momentum,
    check_no_settings,
    check_options,
)
from cser_bench.algorithms.core.local_step import local_step_named
from cser_bench.algorithms.core.parameters import types_of
from cser_bench.algorithms.core.replica import Replica, described
from cser_bench.algorithms.core.same_parameters import (
    REMEDY,
    check_order,
    parameters_in_words,
    rest_in_words,
    rest_of,
)
from cser_bench.algorithms.core.traffic import Purpose


def check_groups(method: MethodFacts) -> None:
    """Raise ValueError where a group holds what is no number of a group."""
    settings = inspect.signature(type(method)).parameters.keys()
    check_no_settings(method.param_groups, settings - {"params", *RANGES})
    check_options(method.param_groups, method.local_step)
    if method.local_step == DEFAULT:
        check_has_momentum(method, method.param_groups)


def dtypes_of(method: MethodFacts) -> list[torch.dtype]:
    """Return the dtypes of the parameters, the one of most numbers first.

    Raises:
        ValueError: parameters that cannot be trained, or several dtypes where the method takes one.
    """
    dtypes = types_of(method.param_groups)
    # A baseline's DDP averages one vector.
    if method.averages_in_backward and len(dtypes) > 1:
        raise ValueError(
            f"{method.name}: parameters must have one type, and here are {dtypes[0]} and {dtypes[1]}"
        )
    return dtypes


def replica_of(
    method: MethodFacts,
    dtype: torch.dtype,
    is_first: bool,
    communication_dtype: torch.dtype | None,
    watch: FiniteWatch,
) -> Replica:
    """Return the replica of the parameters of one dtype.

    Other dtypes than the first have draws of their own, and nothing is sent early for them.
    """
    groups = []
    for group in method.param_groups:
        groups.append(
            [parameter for parameter in group["params"] if parameter.dtype == dtype]
        )
    collectives = method.collectives
    seed = method.seed
    if not is_first:
        collectives = collectives.without_overlap()
        # Independent of the first dtype's draws, and equal on all workers.
        seed = Draw(seed, 0, str(dtype)).key()
    return Replica(
        method, groups, collectives, seed, communication_dtype, watch, is_first
    )


@contextmanager
def naming_dtype(replica: Replica, is_first: bool) -> Iterator[None]:
    """Have a ValueError say which dtype's parameters it is about, unless these are the first."""
    try:
        yield
    except ValueError as error:
        if is_first:
            raise
        raise ValueError(
            f"{error} (of the parameters of type {replica.dtype}, which have messages of their own)"
        ) from None


def check_compressors(method: MethodFacts, replica: Replica) -> None:
    """Raise ValueError where a compressor that was given cannot work."""
    for key, setting in method.declared.items():
        value = getattr(method, key)
        # An optional compressor may be None.
        is_left_out = value is None and setting.admits(type(None))
        if setting.admits(Compressor) and not is_left_out:
            replica.check_compressor(key, value)


def make_equal(
    method: MethodFacts, replicas: Sequence[Replica], model: nn.Module | None
) -> None:
    """Compare the workers' optimisers, and send worker 0's parameters to all."""
    if method.collectives.world_size == 1:
        return
    if are_apart(method.collectives):
        _compare_methods(method, replicas, model)
    # After the comparison, which says what differs; broadcasts of other sizes would hang.
    send_first_workers(method, replicas, model)


@torch.no_grad()
def send_first_workers(
    method: MethodFacts, replicas: Sequence[Replica], model: nn.Module | None
) -> None:
    """Send worker 0's parameters to all workers, and the rest of the model."""
    collectives = method.collectives
    for replica in replicas:
        collectives.broadcast_(replica.flat.parameters, Purpose.CONTROL)
    # The rest: the model's frozen parameters and buffers, which belong to no type.
    for _, tensor in rest_of(model, method.param_groups):
        written = unexpanded(tensor.detach())
        message = written.contiguous().unsqueeze(0)  # (1, *shape)
        collectives.broadcast_(message, Purpose.CONTROL)
        written.copy_(message[0])


def _compare_methods(
    method: MethodFacts, replicas: Sequence[Replica], model: nn.Module | None
) -> None:
    """Compare parameters, numbers and settings, which must be equal on all workers."""
    collectives = method.collectives
    groups = method.param_groups
    first, *others = replicas
    flats = [replica.flat for replica in replicas]
    keys = local_step_named(method.local_step).numbers
    numbers = []
    for group in groups:
        # As floats: 1 and 1.0 are one learning rate.
        numbers.append([np.asarray(group[key], float).tolist() for key in keys])
    parameters = parameters_in_words(flats, groups, model)
    rest = rest_in_words(model, groups)
    fields = {
        "method": method.name,
        "seed": method.seed,
        **parameters,
        f"{', '.join(keys)} of each group": numbers,
        "frozen parameters": first.flat.frozen,
        "overlap": collectives.early is not None,
        "skip_nonfinite": method.skip_nonfinite,
        "what numpy draws from one seed": digest_of_draws(),
        "frozen parameters of other types": [replica.flat.frozen for replica in others],
        **described(first.chosen),
        **rest,
    }
    check_agreement(collectives, fields, dict.fromkeys([*parameters, *rest], REMEDY))
    check_order(collectives, flats)
