"""CIFAR-100: 50,000 + 10,000 colour images of 32 x 32, 100 classes, in memory, augmented on the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision import datasets

from harness.seeds import generator
from harness.spec import TaskSpec
from harness.tasks import DataError
from harness.tasks.augment import draw_shifts, moved, normalised, shifted_crops
from harness.tasks.task import Batch, cache_folder, held_out_indices

MEAN, STANDARD_DEVIATION = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
"""Per channel, of pixels scaled to [0, 1]; those of the paper's released scripts."""

SIDE, PADDING = 32, 4


@dataclass(frozen=True)
class CIFAR100:
    """The official release, as torchvision reads and verifies it; `release` is another one in tests alone."""

    num_train: int = 50_000
    num_test: int = 10_000
    num_classes: int = 100
    input_shape: tuple[int, ...] = (3, SIDE, SIDE)
    release: type[datasets.CIFAR100] = datasets.CIFAR100

    def prepare(self, data: Path | None) -> None:
        self._read(data, "train")

    def load(self, data: Path | None, spec: TaskSpec, device: torch.device) -> CIFAR100Samples:
        images, labels = self._read(data, "train")
        kept, held_out = held_out_indices(self.num_train, spec.held_out, spec.num_train)
        scored = (images[held_out], labels[held_out]) if spec.held_out else self._read(data, "test")
        tensors = padded(images[kept]), labels[kept], *scored
        return CIFAR100Samples(*(each.to(device) for each in tensors))

    def _read(self, data: Path | None, split: str) -> tuple[Tensor, Tensor]:
        """Images, bytes of shape (n, 3, 32, 32), and labels; fetched into the user's cache where no folder is given.

        Raises:
            DataError: missing, damaged, or not to be fetched.
        """
        root = cache_folder("cifar100") if data is None else data.expanduser()
        names = f"the folder {self.release.base_folder}/ or {self.release.filename}"
        try:
            # Into the user's own folder nothing is fetched, but an archive that lies there is extracted.
            fetch = data is None or (root / self.release.filename).is_file()
            dataset = self.release(str(root), train=split == "train", download=fetch)
        except (RuntimeError, OSError, EOFError) as error:
            raise DataError(
                f"CIFAR-100 is not at hand: {root} holds no undamaged release ({error}); put {names} from "
                f"{self.release.url} there, or name the folder that has it with DATA=FOLDER"
            ) from None
        images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
        return images, torch.tensor(dataset.targets)


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


def padded(images: Tensor) -> Tensor:
    """Images of shape (n, 3, 32, 32) as `CIFAR100Samples.padded` wants them."""
    return torch.nn.functional.pad(images.contiguous(), [PADDING] * 4)


TASK = CIFAR100()
