"""Mixed precision of one worker: autocast, and loss scaling for fp16. Parameters and optimiser state stay fp32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from algorithms import DistributedOptimizer
from harness.spec import Precision

AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}


class MixedPrecision:
    """What surrounds a step.

    Each worker has a loss scale of its own and takes it out of its own gradients; whether a step is skipped is decided
    by all workers together, in the optimiser, which then changes nothing of its state.
    """

    def __init__(self, precision: Precision, device: torch.device, label_smoothing: float = 0.0) -> None:
        self._device, self._label_smoothing = device.type, label_smoothing
        self._dtype = AUTOCAST.get(precision)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def autocast(self) -> torch.autocast:
        """Inside, a network computes in the run's precision."""
        return torch.autocast(self._device, dtype=self._dtype, enabled=self._dtype is not None)

    def outputs(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """The network's, in training and evaluation alike; in fp32 where it computed in less."""
        with self.autocast():
            outputs: Tensor = model(inputs)
        return outputs if self._dtype is None else outputs.float()

    def loss(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over the labels that count, from `outputs`."""
        outputs = self.outputs(model, inputs)
        return nn.functional.cross_entropy(outputs, labels, label_smoothing=self._label_smoothing)

    def backward(self, loss: Tensor) -> None:
        """Backward pass, with the loss scaled."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def both_passes(self, model: nn.Module, inputs: Tensor, labels: Tensor, weight: float | None = None) -> Tensor:
        """One worker's, of its loss times `weight`, which is returned: gradients are added to what there is."""
        loss = self.loss(model, inputs, labels)
        loss = loss if weight is None else weight * loss
        self.backward(loss)
        return loss.detach()

    def step(self, optimizer: DistributedOptimizer) -> None:
        """The step; skipped on all workers where any worker's gradients are not finite."""
        self.scaler.step(optimizer)
        self.scaler.update()

    def tally(self, loss: Tensor) -> Tensor:
        """What a step adds to the sum of losses and to their number: float64, of the loss's shape and then 2.

        A loss that is not finite makes the run diverge, unless loss scaling is on, which skips such steps.
        """
        value = loss.detach().double()
        one = torch.ones_like(value)
        if self.scaler.is_enabled():
            finite = torch.isfinite(value)
            return torch.stack([torch.where(finite, value, torch.zeros_like(value)), finite.double()], dim=-1)
        return torch.stack([value, one], dim=-1)

    def state_dict(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state)
