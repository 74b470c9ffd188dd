"""A made-up task for trying things and for tests: noisy copies of ten fixed patterns.

It needs no data.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cser_bench.harness.seeds import generator
from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks.task import Inputs, TensorSamples, subset


@dataclass(frozen=True)
class Blobs:
    """Images of 8 x 8, a pattern for each class."""

    num_train: int = 1_600
    num_test: int = 500
    num_classes: int = 10
    input_shape: tuple[int, ...] = (1, 8, 8)
    inputs: Inputs = "images"
    metrics: tuple[str, ...] = ()

    def prepare(self, data: Path | None) -> None:
        pass

    def load(
        self, data: Path | None, spec: TaskSpec, device: torch.device
    ) -> TensorSamples:
        test = (
            None
            if spec.num_validation
            else self._made_up("test", self.num_test, device)
        )
        return subset(self._made_up("train", self.num_train, device), spec, test)

    def _made_up(
        self, split: str, count: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        patterns = torch.randn(
            (self.num_classes, *self.input_shape),
            generator=generator("blobs", "patterns"),
        )
        labels = torch.arange(count) % self.num_classes
        noise = torch.randn(
            (count, *self.input_shape), generator=generator("blobs", split)
        )
        # Noise of twice a pattern's deviation, so that a network has something to learn and to get
        # wrong.
        return (patterns[labels] + 2 * noise).to(device), labels.to(device)


TASK = Blobs()
