"""All workers of a run in one thread: replicas whose parameters are rows of stacked ones, and batched passes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Replicas:
    """A model of each worker, and the parameters that an optimiser of stacked workers takes.

    `stacked[k][rank]` is parameter k of `models[rank]`, once `attach` has been called.
    """

    models: list[nn.Module]
    stacked: list[nn.Parameter]

    def attach(self) -> None:
        """Make the replicas' parameters and gradients views of the stacked ones: after an optimiser has moved those."""
        for rank, model in enumerate(self.models):
            for own, all_workers in zip(model.parameters(), self.stacked, strict=True):
                assert all_workers.grad is not None
                own.data, own.grad = all_workers.data[rank], all_workers.grad[rank]


def replicas_of(model: nn.Module, num_workers: int) -> Replicas:
    """The model once for each worker, each with buffers of its own."""
    stacked = [
        nn.Parameter(parameter.detach().expand(num_workers, *parameter.shape).clone())
        for parameter in model.parameters()
    ]
    return Replicas([copy.deepcopy(model) for _ in range(num_workers)], stacked)


def batched_backward(replicas: Replicas) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Forward and backward pass of all workers at once, with the bits of one after the other.

    None where a layer has no batched form. The function takes inputs of shape (num_workers * batch, ...) and labels of
    shape (num_workers * batch,), adds to the gradients, and returns the workers' mean losses, of shape (num_workers,).
    """
    model, num_workers = replicas.models[0], len(replicas.models)
    if not isinstance(model, nn.Sequential) or not all(type(layer) in _BATCHED for layer in model):
        return None

    counts = [len(list(layer.parameters())) for layer in model]

    def backward(inputs: Tensor, labels: Tensor) -> Tensor:
        hidden = inputs.view(num_workers, -1, math.prod(inputs.shape[1:]))
        own = iter(replicas.stacked)
        for layer, count in zip(model, counts, strict=True):
            hidden = _BATCHED[type(layer)](hidden, *islice(own, count))
        scores = functional.log_softmax(hidden.flatten(0, 1), dim=1)
        batch = labels.numel() // num_workers
        (functional.nll_loss(scores, labels, reduction="sum") / batch).backward()  # type: ignore[no-untyped-call]
        # One by one, since the order of a sum's additions depends on its length.
        pairs = zip(scores.detach().view(num_workers, batch, -1), labels.view(num_workers, batch), strict=True)
        return torch.stack([functional.nll_loss(own_scores, own_labels) for own_scores, own_labels in pairs])

    return backward


class _StackedLinear(torch.autograd.Function):
    """Hidden (num_workers, batch, in), weight (num_workers, out, in), bias (num_workers, out): as `Linear` does.

    Autograd's own gradient of `baddbmm` would lay a weight's gradient out transposed.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        return torch.baddbmm(bias.unsqueeze(1), hidden, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        (gradient,), (hidden, weight) = gradients, ctx.saved_tensors
        of_hidden = torch.bmm(gradient, weight) if ctx.needs_input_grad[0] else None
        return of_hidden, torch.bmm(gradient.transpose(1, 2), hidden), gradient.sum(1)


_BATCHED: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Flatten: lambda hidden: hidden,
    nn.Linear: _StackedLinear.apply,
    nn.ReLU: torch.relu,
}
"""Layers of hidden values of shape (num_workers, batch, features), with their stacked parameters."""
