"""Fashion-MNIST with random crops and flips, as the paper's recipe has them for CIFAR-100."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks.augment import CroppedSamples
from cser_bench.harness.tasks.fashion_mnist import (
    MEAN,
    STANDARD_DEVIATION,
    FashionMNIST,
    as_tensors,
    contents,
)


@dataclass(frozen=True)
class FashionMNISTCrops(FashionMNIST):
    def load(self, data: Path | None, spec: TaskSpec, device: torch.device) -> CroppedSamples:  # type: ignore[override]
        files = contents(data)
        test = None if spec.held_out else as_tensors(*files[2:])
        return CroppedSamples.of(
            as_tensors(*files[:2]), test, spec, device, (MEAN,), (STANDARD_DEVIATION,)
        )


TASK = FashionMNISTCrops()
