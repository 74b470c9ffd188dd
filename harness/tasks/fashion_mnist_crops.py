"""Fashion-MNIST with random crops and flips, as the paper's recipe has them for CIFAR-100."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.spec import TaskSpec
from harness.tasks.augment import CroppedSamples
from harness.tasks.cifar100 import PADDING
from harness.tasks.fashion_mnist import MEAN, STANDARD_DEVIATION, FashionMNIST, contents
from harness.tasks.task import held_out_indices


@dataclass(frozen=True)
class FashionMNISTCrops(FashionMNIST):
    def load(self, data: Path | None, spec: TaskSpec, device: torch.device) -> CroppedSamples:  # type: ignore[override]
        def split(images: bytes, labels: bytes) -> tuple[Tensor, Tensor]:
            pixels, classes = (torch.from_numpy(np.frombuffer(each, np.uint8).copy()) for each in (images, labels))
            return pixels[16:].view(-1, *self.input_shape), classes[8:].to(torch.int64)

        files = contents(data)
        images, labels = split(*files[:2])
        kept, held_out = held_out_indices(self.num_train, spec.held_out, spec.num_train)
        scored = (images[held_out], labels[held_out]) if spec.held_out else split(*files[2:])
        padded = torch.nn.functional.pad(images[kept], [PADDING] * 4).to(device)
        evaluated, classes = (each.to(device) for each in scored)
        return CroppedSamples(padded, labels[kept].to(device), evaluated, classes, (MEAN,), (STANDARD_DEVIATION,))


TASK = FashionMNISTCrops()
