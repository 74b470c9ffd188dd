"""All workers of a run in one thread: replicas whose parameters are rows of stacked ones, and batched passes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

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
    stacked = [nn.Parameter(_rows_of(parameter.detach(), num_workers)) for parameter in model.parameters()]
    return Replicas([copy.deepcopy(model) for _ in range(num_workers)], stacked)


def _rows_of(tensor: Tensor, num_rows: int) -> Tensor:
    """As many copies along a new first axis, each in the tensor's own order in memory."""
    rows = torch.empty_strided(
        (num_rows, *tensor.shape), (tensor.numel(), *tensor.stride()), dtype=tensor.dtype, device=tensor.device
    )
    return rows.copy_(tensor)


def batched_backward(replicas: Replicas) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Forward and backward pass of all workers at once, with the bits of one after the other.

    None where a layer has no batched form. The function takes inputs of shape (num_workers * batch, ...) and labels of
    shape (num_workers * batch,), adds to the gradients, and returns the workers' mean losses, of shape (num_workers,).
    Autograd would take half as long again: most of its time goes into the layout of such gradients.
    """
    model, num_workers = replicas.models[0], len(replicas.models)
    if not isinstance(model, nn.Sequential) or not all(type(layer) in _BATCHED for layer in model):
        return None
    counts = [len(list(layer.parameters())) for layer in model]

    @torch.no_grad()
    def backward(inputs: Tensor, labels: Tensor) -> Tensor:
        hidden = inputs.view(num_workers, -1, math.prod(inputs.shape[1:]))
        own, taken = iter(replicas.stacked), []
        for layer, count in zip(model, counts, strict=True):
            passes, parameters = _BATCHED[type(layer)], tuple(islice(own, count))
            taken.append((passes, parameters, hidden))
            hidden = passes.forward(hidden, *parameters)
        scores = functional.log_softmax(hidden.flatten(0, 1), dim=1)
        gradient = _of_mean_loss(scores, labels, labels.numel() // num_workers).view_as(hidden)
        for number, (passes, parameters, before) in reversed(list(enumerate(taken))):
            gradient = passes.backward(gradient, before, parameters, number > 0)
        # One by one, since the order of a sum's additions depends on its length.
        pairs = zip(scores.view(*hidden.shape), labels.view(num_workers, -1), strict=True)
        return torch.stack([functional.nll_loss(own_scores, own_labels) for own_scores, own_labels in pairs])

    return backward


def _of_mean_loss(scores: Tensor, labels: Tensor, batch: int) -> Tensor:
    """Gradient of the mean cross-entropy of `batch` samples by the outputs whose log-softmax is `scores`."""
    of_scores = torch.zeros_like(scores).scatter_(1, labels.unsqueeze(1), -1 / batch)
    return torch.ops.aten._log_softmax_backward_data(of_scores, scores, 1, scores.dtype)  # type: ignore[no-any-return]


class _Linear:
    """Hidden (num_workers, batch, in), weight (num_workers, out, in), bias (num_workers, out)."""

    @staticmethod
    def forward(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.baddbmm(bias.unsqueeze(1), hidden, weight.transpose(1, 2))

    @staticmethod
    def backward(gradient: Tensor, hidden: Tensor, parameters: Sequence[Tensor], is_wanted: bool) -> Tensor:
        weight, bias = parameters
        assert weight.grad is not None and bias.grad is not None
        torch.baddbmm(weight.grad, gradient.transpose(1, 2), hidden, out=weight.grad)
        bias.grad.add_(gradient.sum(1))
        return torch.bmm(gradient, weight) if is_wanted else gradient


class _ReLU:
    @staticmethod
    def forward(hidden: Tensor) -> Tensor:
        return hidden.relu()

    @staticmethod
    def backward(gradient: Tensor, hidden: Tensor, parameters: Sequence[Tensor], is_wanted: bool) -> Tensor:
        return torch.ops.aten.threshold_backward(gradient, hidden, 0)  # type: ignore[no-any-return]


class _Flatten:
    """Nothing is left to do: inputs come flat."""

    @staticmethod
    def forward(hidden: Tensor) -> Tensor:
        return hidden

    @staticmethod
    def backward(gradient: Tensor, hidden: Tensor, parameters: Sequence[Tensor], is_wanted: bool) -> Tensor:
        return gradient


_BATCHED: dict[type[nn.Module], type[_Linear | _ReLU | _Flatten]] = {
    nn.Linear: _Linear,
    nn.ReLU: _ReLU,
    nn.Flatten: _Flatten,
}
"""Layers of hidden values of shape (num_workers, batch, features), with their stacked parameters."""
