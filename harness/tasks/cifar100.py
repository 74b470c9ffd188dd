"""CIFAR-100: 50,000 + 10,000 colour images of 32 x 32, 100 classes, in memory, augmented on the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from harness.seeds import generator
from harness.spec import TaskSpec
from harness.tasks.augment import draw_shifts, moved, normalised, shifted_crops
from harness.tasks.cifar100_files import Bytes, Release, locate, read_split
from harness.tasks.errors import DataError
from harness.tasks.fetching import cache_folder
from harness.tasks.task import Batch, Check, held_out_indices

MEAN, STANDARD_DEVIATION = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
"""Per channel, of pixels scaled to [0, 1]; those of the paper's released scripts."""

SIDE, PADDING = 32, 4


@dataclass(frozen=True)
class CIFAR100:
    """The official release; `release` is another one in tests alone."""

    release: Release = field(default_factory=Release)
    input_shape: tuple[int, ...] = (3, SIDE, SIDE)

    @property
    def num_train(self) -> int:
        return self.release.num_train

    @property
    def num_test(self) -> int:
        return self.release.num_test

    @property
    def num_classes(self) -> int:
        return self.release.num_classes

    def prepare(self, data: Path | None) -> None:
        place = locate(data, cache_folder("cifar100"), self.release)
        for split in ("train", "test"):
            read_split(place, split, self.release)

    def load(self, data: Path | None, spec: TaskSpec, device: torch.device) -> CIFAR100Samples:
        place = locate(data, cache_folder("cifar100"), self.release)
        train = _on_device(*read_split(place, "train", self.release), device)
        if not spec.held_out:
            evaluation = _on_device(*read_split(place, "test", self.release), device)
            return CIFAR100Samples(padded(train[0]), train[1], *evaluation)
        kept, held_out = (index.to(device) for index in held_out_indices(self.num_train, spec.held_out))
        images, labels = train
        return CIFAR100Samples(padded(images[kept]), labels[kept], images[held_out], labels[held_out])

    def check(self, data: Path | None) -> list[Check]:
        """What a preflight wants to know, for each split."""
        lines = []
        try:
            place = locate(data, cache_folder("cifar100"), self.release)
        except DataError as error:
            return [Check("CIFAR-100 is at hand", False, str(error))]
        for split in ("train", "test"):
            what = f"CIFAR-100 {split} is complete"
            try:
                images, _ = read_split(place, split, self.release)
                lines.append(Check(what, True, f"{len(images):,} images of {self.num_classes} classes in {place.path}"))
            except DataError as error:
                lines.append(Check(what, False, str(error)))
        return lines


@dataclass(frozen=True)
class CIFAR100Samples:
    """Bytes on the device.

    Attributes:
        padded: training images with a border of zeros, shape (n, 3, 40, 40), so that a crop is a gather.
        evaluation_images: shape (n, 3, 32, 32).
    """

    padded: Tensor
    train_labels: Tensor
    evaluation_images: Tensor
    evaluation_labels: Tensor

    def training_batches(self, indices: Iterable[Tensor], seed: int, rank: int, first_step: int) -> Iterator[Batch]:
        for step, index in enumerate(indices, first_step):
            shifts = draw_shifts(generator(seed, "augmentation", rank, step), len(index), PADDING)
            index, shifts = moved(index, shifts, self.padded.device)
            crops = shifted_crops(self.padded, index, shifts, SIDE)
            yield normalised(crops, MEAN, STANDARD_DEVIATION), self.train_labels[index]

    def evaluation_batches(self, indices: Tensor) -> Iterator[Batch]:
        for index in torch.split(indices.to(self.padded.device), 1000):
            if len(index):
                images = self.evaluation_images[index]
                yield normalised(images, MEAN, STANDARD_DEVIATION), self.evaluation_labels[index]


def _on_device(images: Bytes, labels: object, device: torch.device) -> tuple[Tensor, Tensor]:
    # Copied because an array over the file's bytes is read-only, which torch warns about.
    return torch.from_numpy(images.copy()).to(device), torch.as_tensor(labels, device=device)


def padded(images: Tensor) -> Tensor:
    """Images of shape (n, 3, 32, 32) as `CIFAR100Samples.padded` wants them."""
    return torch.nn.functional.pad(images.contiguous(), [PADDING] * 4)


TASK = CIFAR100()
check = TASK.check
