"""The workers' average: in the parameters' place for a while, or as vectors of a state that fits any worker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from algorithms.core.collectives import Collectives
from algorithms.core.traffic import Purpose

Errors = Literal["average", "drop"]

UNSENT = ("error", "accumulated")
"""Buffers that hold what a worker has not sent yet."""


@contextmanager
def averaged(parameters: Tensor, model: nn.Module | None, collectives: Collectives) -> Iterator[None]:
    """Inside, the parameters, and the model's floating-point buffers, are the workers' averages; then what they were.

    All workers must enter.
    """
    buffers: list[Tensor] = [] if model is None else list(filter(Tensor.is_floating_point, model.buffers()))
    tensors = [parameters, *(buffer.unsqueeze(0) for buffer in buffers)]
    own = [tensor.clone() for tensor in tensors]
    try:
        with torch.no_grad():
            for tensor in tensors:
                mean = tensor.contiguous()
                collectives.all_reduce_mean_(mean, Purpose.EVALUATION)
                tensor.copy_(mean)
        yield
    finally:
        with torch.no_grad():
            for tensor, values in zip(tensors, own, strict=True):
                tensor.copy_(values)


def consensus_buffers(buffers: Mapping[str, Tensor], errors: Errors, collectives: Collectives) -> dict[str, Tensor]:
    """New vectors: the workers' averages; of what was not sent yet zeros, where that is to be dropped.

    Raises:
        ValueError: `errors` is neither.
    """
    if errors not in ("average", "drop"):
        raise ValueError(f'errors must be "average" or "drop", not {errors!r}')
    common = {}
    for key in sorted(buffers):
        common[key] = buffers[key].clone()
        if key in UNSENT and errors == "drop":
            common[key].zero_()
        else:
            collectives.all_reduce_mean_(common[key], Purpose.CONTROL)
    return common


def consensus_counts(
    counts: Mapping[str, Sequence[int]], parameters: Tensor, collectives: Collectives
) -> dict[str, list[int]]:
    """The workers' averages, rounded; `parameters` say where workers have theirs."""
    common = {}
    for key in sorted(counts):
        own = torch.tensor(counts[key], dtype=torch.float64, device=parameters.device)
        mean = own.repeat(len(parameters), 1)
        collectives.all_reduce_mean_(mean, Purpose.CONTROL)
        common[key] = [round(each) for each in mean[0].tolist()]
    return common
