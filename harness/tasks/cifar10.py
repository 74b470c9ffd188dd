"""CIFAR-10: 50,000 + 10,000 colour images of 32 x 32, ten classes.

They are torchvision's files, or one archive of JPEGs where the folder has that alone. JPEG loses a
little, so a record says when the archive was read, and its digest.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torchvision import datasets
from torchvision.io import ImageReadMode, decode_jpeg

from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks import DataError
from cser_bench.harness.tasks.augment import CroppedSamples
from cser_bench.harness.tasks.cifar import is_there, read_split
from cser_bench.harness.tasks.samples import Batch, Modality
from cser_bench.harness.tasks.task import Inputs, cache_folder

MEAN = (0.4914, 0.4822, 0.4465)
STANDARD_DEVIATION = (0.2470, 0.2435, 0.2616)
"""Statistics of the training set's pixels per channel, scaled to [0, 1]."""

ARCHIVE = "cifar10_jpeg.npz"
"""Of each split, train and test: `SPLIT_jpeg` is all files one after the other as bytes,
`SPLIT_ends` where each ends, `SPLIT_labels` its class by number."""


@dataclass(frozen=True)
class CIFAR10:
    """The official release, as torchvision reads and verifies it, or the archive.

    `release` is another one in tests alone.
    """

    num_train: int = 50_000
    num_test: int = 10_000
    num_classes: int = 10
    input_shape: tuple[int, ...] = (3, 32, 32)
    inputs: Inputs = "images"
    metrics: tuple[str, ...] = ()
    release: type[datasets.CIFAR10] = datasets.CIFAR10

    def prepare(self, data: Path | None) -> None:
        # torchvision verifies the files of both splits whichever it reads, the archive does not.
        for split in ("train", "test"):
            self._read(data, split)

    def load(
        self, data: Path | None, spec: TaskSpec, device: torch.device
    ) -> CroppedSamples:
        test = None if spec.num_validation else self._read(data, "test")
        train = self._read(data, "train")
        return CroppedSamples.of(
            train, test, spec, device, MEAN, STANDARD_DEVIATION, self._modality(data)
        )

    def _modality(self, data: Path | None) -> Modality:
        """Say which archive was read; of the official release there is one alone."""
        archive = self._archive(data)
        if archive is None:
            return Modality()
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        return Modality(data_name=archive.name, sha256=digest)

    def _read(self, data: Path | None, split: str) -> Batch:
        archive = self._archive(data)
        if archive is not None:
            count = self.num_train if split == "train" else self.num_test
            return read_archive(archive, split, count, self.num_classes)
        return read_split(
            self.release, _folder(data), split, "CIFAR-10", fetch=data is None
        )

    def _archive(self, data: Path | None) -> Path | None:
        """Name the archive, where the folder has it and not torchvision's files."""
        folder = _folder(data)
        archive = folder / ARCHIVE
        if is_there(self.release, folder) or not archive.is_file():
            return None
        return archive


def _folder(data: Path | None) -> Path:
    return cache_folder("cifar10") if data is None else data.expanduser()


def read_archive(path: Path, split: str, count: int, num_classes: int) -> Batch:
    """Read images, bytes of shape (n, 3, 32, 32), and labels, int64 of shape (n,).

    Args:
        split: "train" or "test".
        count: images that the split has.

    Raises:
        DataError: the archive is damaged, or holds something else.
    """
    try:
        with np.load(path) as arrays:
            files, ends, labels = (
                arrays[f"{split}_{part}"] for part in ("jpeg", "ends", "labels")
            )
        images = _decoded(files, ends)
    except (KeyError, ValueError, RuntimeError, OSError, zipfile.BadZipFile) as error:
        raise _unusable(path, str(error).splitlines()[0]) from None
    shape = (count, 3, 32, 32)
    if images.shape != shape or labels.shape != (count,) or labels.max() >= num_classes:
        raise _unusable(
            path,
            f"its {split} images are {tuple(images.shape)} and its labels {labels.shape}, expected "
            f"{shape} and ({count},) below {num_classes}",
        )
    return images, torch.from_numpy(labels.astype(np.int64))


def _decoded(files: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> torch.Tensor:
    """Decode files of images that are of one size."""
    each = torch.from_numpy(files).tensor_split(torch.from_numpy(ends))
    # The last piece is what lies behind the last end: nothing, in a whole archive.
    return torch.stack([decode_jpeg(file, ImageReadMode.RGB) for file in each[:-1]])


def _unusable(path: Path, problem: str) -> DataError:
    return DataError(
        f"{path} cannot be used ({problem}); put an undamaged copy there, or torchvision's files, or "
        "name another folder with DATA=FOLDER"
    )


TASK = CIFAR10()
