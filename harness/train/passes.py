"""Forward and backward passes of the workers at this end.

A `DryTraining` has random batches: it is what is timed, estimated and checked where no data set is
wanted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cser_bench.algorithms import Collectives, DistributedOptimizer
from cser_bench.harness.spec.run import Precision, RunConfig
from cser_bench.harness.tasks.pairs import NUM_SPECIAL
from cser_bench.harness.tasks.task import Task, find_task
from cser_bench.harness.train.build import local_workers, module_to_train

AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}


def batched_backward(
    model: nn.Module, stacked: Sequence[Tensor]
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return what does both passes of all workers at once, with the bits of one after the other.

    None where a layer is neither linear, with a bias, nor a ReLU nor flattens. The function takes
    inputs of shape (num_workers * batch, ...) and labels of shape (num_workers * batch,), adds to
    the gradients, and returns the workers' mean losses, of shape (num_workers,). Autograd would
    take half as long again: most of its time goes into the layout of such gradients. `stacked` are
    the parameters of all workers, of shape (num_workers, ...) each.
    """
    if not isinstance(model, nn.Sequential) or not all(map(_has_batched_form, model)):
        return None
    num_workers = len(stacked[0])
    layers = _stacked_layers(model, stacked)

    @torch.no_grad()
    def backward(inputs: Tensor, labels: Tensor) -> Tensor:
        # (num_workers, batch, features)
        flat_inputs = inputs.view(num_workers, -1, math.prod(inputs.shape[1:]))
        # Outputs: (num_workers, batch, classes); log-softmax is over rows of all workers.
        *layer_inputs, outputs = _forward(layers, flat_inputs)
        scores = functional.log_softmax(outputs.flatten(0, 1), dim=1)
        batch_size = labels.numel() // num_workers
        gradient = _of_mean_loss(scores, labels, batch_size).view_as(outputs)
        _add_gradients(layers, layer_inputs, gradient)
        # One by one, since the order of a sum's additions depends on its length.
        losses = [
            functional.nll_loss(worker_scores, worker_labels)
            for worker_scores, worker_labels in zip(
                scores.view_as(outputs), labels.view(num_workers, -1), strict=True
            )
        ]
        return torch.stack(losses)

    return backward


StackedLayer = tuple[Tensor, Tensor] | None
"""Weights and biases of all workers' linear layer, of shapes (num_workers, outputs, inputs) and
(num_workers, outputs); None for a ReLU."""


def _stacked_layers(
    model: nn.Sequential, stacked: Sequence[Tensor]
) -> list[StackedLayer]:
    """Return the layers that compute; their parameters come as a weight and a bias each."""
    # In the model's order: weight, bias, weight, bias, ...
    pairs = iter(zip(stacked[::2], stacked[1::2], strict=True))
    layers: list[StackedLayer] = []
    for layer in model:
        if isinstance(layer, nn.Linear):
            layers.append(next(pairs))
        elif isinstance(layer, nn.ReLU):
            layers.append(None)
    return layers


def _forward(layers: Sequence[StackedLayer], inputs: Tensor) -> list[Tensor]:
    """Return the input of each layer, and at last what comes out."""
    hidden = [inputs]
    for layer in layers:
        before = hidden[-1]
        if layer is None:
            hidden.append(before.relu())
        else:
            weight, bias = layer
            # h W^T + b, for each worker: (num_workers, batch, outputs).
            hidden.append(
                torch.baddbmm(bias.unsqueeze(1), before, weight.transpose(1, 2))
            )
    return hidden


def _add_gradients(
    layers: Sequence[StackedLayer], inputs: Sequence[Tensor], gradient: Tensor
) -> None:
    """Add the gradients of all layers, from that of the outputs, to what there is."""
    for number in reversed(range(len(layers))):
        layer = layers[number]
        if layer is None:
            # Autograd's own operator: a product with a mask makes nan of an infinite gradient.
            gradient = torch.ops.aten.threshold_backward(gradient, inputs[number], 0)
            continue
        weight, bias = layer
        assert weight.grad is not None and bias.grad is not None
        # dW <- dW + dy^T h;   db <- db + sum over the batch of dy;   dh = dy W
        torch.baddbmm(
            weight.grad, gradient.transpose(1, 2), inputs[number], out=weight.grad
        )
        bias.grad.add_(gradient.sum(1))
        # Nobody asks for the gradient of the first layer's inputs.
        if number:
            gradient = torch.bmm(gradient, weight)


def _has_batched_form(layer: nn.Module) -> bool:
    # By the very type: a class that is derived from one of these may compute something else.
    if type(layer) is nn.Linear:
        return layer.bias is not None
    return type(layer) in (nn.ReLU, nn.Flatten)


def _of_mean_loss(scores: Tensor, labels: Tensor, batch: int) -> Tensor:
    """Return the gradient of the mean cross-entropy by the outputs.

    The mean is over `batch` samples; `scores` are the log-softmax of the outputs.
    """
    # By autograd's own operator: exp(scores) less one at the label would be rounded otherwise.
    of_scores = torch.zeros_like(scores).scatter_(1, labels.unsqueeze(1), -1 / batch)
    return torch.ops.aten._log_softmax_backward_data(of_scores, scores, 1, scores.dtype)  # type: ignore[no-any-return]


class MixedPrecision:
    """A worker's passes: autocast, and loss scaling for fp16.

    Parameters and optimiser state stay fp32.

    Each worker has a loss scale of its own and takes it out of its own gradients; whether a step is
    skipped is decided by all workers together, in the optimiser, which then changes nothing of its
    state.
    """

    def __init__(
        self, precision: Precision, device: torch.device, label_smoothing: float = 0.0
    ) -> None:
        self._device = device.type
        self._label_smoothing = label_smoothing
        self._dtype = AUTOCAST.get(precision)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def autocast(self) -> torch.autocast:
        """Have a network compute in the run's precision."""
        return torch.autocast(
            self._device, dtype=self._dtype, enabled=self._dtype is not None
        )

    def outputs(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Return the network's outputs, in training and evaluation alike.

        They are in fp32 where it computed in less.
        """
        with self.autocast():
            outputs: Tensor = model(inputs)
        return outputs if self._dtype is None else outputs.float()

    def loss(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy over the labels that count, from `outputs`."""
        outputs = self.outputs(model, inputs)
        return nn.functional.cross_entropy(
            outputs, labels, label_smoothing=self._label_smoothing
        )

    def both_passes(
        self,
        model: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        weight: float | None = None,
    ) -> Tensor:
        """Do both passes of one worker, of its loss times `weight`, and return that loss.

        Scaled gradients are added to what there is.
        """
        loss = self.loss(model, inputs, labels)
        if weight is not None:
            loss = weight * loss
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def step(self, optimizer: DistributedOptimizer) -> None:
        """Take the step; skipped on all workers where any worker's gradients are not finite."""
        self.scaler.step(optimizer)
        self.scaler.update()

    def tally(self, loss: Tensor) -> Tensor:
        """Return what a step adds to the sum of losses and to their number.

        It is float64, of the loss's shape and then 2.

        A loss that is not finite makes the run diverge, unless loss scaling is on, which skips such
        steps.
        """
        value = loss.detach().double()
        if not self.scaler.is_enabled():
            return torch.stack([value, torch.ones_like(value)], dim=-1)
        finite = torch.isfinite(value)
        # A step that is skipped counts neither in the sum nor in the number.
        counted = torch.where(finite, value, torch.zeros_like(value))
        return torch.stack([counted, finite.double()], dim=-1)

    def state_dict(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state)


def random_batch(
    task: Task, batch_size: int, generator: torch.Generator, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Return random images, or windows or pairs of a text task, and labels for them.

    Images are standard normal, of the task's shape; they are of the type and on the device of
    `like`. They are drawn on the CPU, so they are the same on every device. For a text task they
    are windows, or pairs of full length, as `harness.tasks.pairs.Pairs.batch` returns them.
    """
    if task.inputs == "symbols":
        windows = (batch_size, task.input_shape[0] + 1)
        # A label is the symbol after its input, so a window has one symbol more than is fed.
        symbols = torch.randint(task.num_classes, windows, generator=generator).to(
            like.device
        )
        return symbols[:, :-1], symbols[:, 1:]
    if task.inputs == "pairs":
        # (batch, source and target, length + 1): no PAD, so that every sentence costs as much as
        # any may.
        shape = (batch_size, 2, task.input_shape[1] + 1)
        tokens = torch.randint(
            NUM_SPECIAL, task.num_classes, shape, generator=generator
        )
        tokens = tokens.to(like.device)
        # The target is fed up to a token, and that token is the label: teacher forcing.
        return tokens[:, :, :-1], tokens[:, 1, 1:]
    inputs = torch.randn((batch_size, *task.input_shape), generator=generator).to(like)
    labels = torch.randint(task.num_classes, (batch_size,), generator=generator).to(
        like.device
    )
    return inputs, labels


class DryTraining:
    """The workers at this end, one or all of them stacked, with a random batch of its own each.

    Args:
        config: names the method, its settings, batch size and precision.
        model: is trained, or copied where workers are stacked; floating, on the device to train on.
    """

    def __init__(
        self, config: RunConfig, model: nn.Module, collectives: Collectives
    ) -> None:
        self.models, self.optimizer = local_workers(
            config, model, collectives, num_steps=0
        )
        self._trained = [
            module_to_train(self.optimizer, model) for model in self.models
        ]
        like = self.optimizer.flat.parameters
        self.precision = MixedPrecision(
            config.precision, like.device, config.label_smoothing
        )
        task = find_task(config.task.name)
        # Drawn once: what a step of training takes must not hold the making of its batch.
        self.batches = [
            random_batch(
                task, config.batch_size, torch.Generator().manual_seed(rank), like
            )
            for rank in collectives.own_ranks
        ]

    def step(self) -> Tensor:
        """Train once, each worker on its batch.

        Returns the workers' losses before, of shape (local workers,).
        """
        self.optimizer.zero_grad()
        losses = [
            self.precision.both_passes(model, *batch)
            for model, batch in zip(self._trained, self.batches, strict=True)
        ]
        self.precision.step(self.optimizer)
        return torch.stack(losses)


def seconds_to_idle(work: Callable[[], object], device: torch.device) -> float:
    """Do the work, and return how long until the device had done what was asked of it."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        # The host hands work over and goes on: without this the time would be that of the calls.
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
