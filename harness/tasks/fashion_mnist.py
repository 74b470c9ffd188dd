"""Fashion-MNIST at full size: 60,000 + 10,000 grey images of 28 x 28, ten classes (Xiao et al., arXiv 1708.07747)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from harness.spec import TaskSpec
from harness.tasks.fashion_mnist_files import locate, read_idx
from harness.tasks.fetching import cache_folder
from harness.tasks.task import TensorSamples, subset

MEAN, STANDARD_DEVIATION = 0.2860, 0.3530
"""Of the training set's pixels, scaled to [0, 1]."""


@dataclass(frozen=True)
class FashionMNIST:
    num_train: int = 60_000
    num_test: int = 10_000
    num_classes: int = 10
    input_shape: tuple[int, ...] = (1, 28, 28)
    survives_fork: bool = True
    trains_on_fewer: bool = True

    def prepare(self, data: Path | None) -> None:
        locate(data, cache_folder("fashion-mnist"))

    def load(self, data: Path | None, spec: TaskSpec, device: torch.device) -> TensorSamples:
        folder = locate(data, cache_folder("fashion-mnist"))
        train = _read(folder, "train", device)
        return subset(train, spec) if spec.held_out else subset(train, spec, _read(folder, "t10k", device))


def _read(folder: Path, split: str, device: torch.device) -> tuple[Tensor, Tensor]:
    pixels = torch.from_numpy(read_idx(folder / f"{split}-images-idx3-ubyte.gz")).to(device)
    images = pixels.to(torch.float32).div_(255).sub_(MEAN).div_(STANDARD_DEVIATION).unsqueeze(1)
    labels = torch.from_numpy(read_idx(folder / f"{split}-labels-idx1-ubyte.gz")).to(device, torch.int64)
    return images, labels


TASK = FashionMNIST()
