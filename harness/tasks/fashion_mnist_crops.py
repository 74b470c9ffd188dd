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
    """The same images, shifted and mirrored as they are trained on."""

    def load(  # type: ignore[override]
        self, data: Path | None, spec: TaskSpec, device: torch.device
    ) -> CroppedSamples:
        train_images, train_labels, test_images, test_labels = contents(data)
        train = as_tensors(train_images, train_labels)
        test = None if spec.num_validation else as_tensors(test_images, test_labels)
        return CroppedSamples.of(
            train, test, spec, device, (MEAN,), (STANDARD_DEVIATION,)
        )


TASK = FashionMNISTCrops()
