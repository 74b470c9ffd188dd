"""CIFAR-100: 50,000 + 10,000 colour images of 32 x 32, 100 classes.

They are in memory, and are augmented on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision import datasets

from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks.augment import CroppedSamples
from cser_bench.harness.tasks.cifar import read_split
from cser_bench.harness.tasks.samples import Batch
from cser_bench.harness.tasks.task import Inputs, cache_folder

MEAN = (0.4914, 0.4822, 0.4465)
STANDARD_DEVIATION = (0.2023, 0.1994, 0.2010)
"""Per channel, of pixels scaled to [0, 1]; those of the paper's released scripts."""


@dataclass(frozen=True)
class CIFAR100:
    """The official release, as torchvision reads and verifies it.

    `release` is another one in tests alone.
    """

    num_train: int = 50_000
    num_test: int = 10_000
    num_classes: int = 100
    input_shape: tuple[int, ...] = (3, 32, 32)
    inputs: Inputs = "images"
    metrics: tuple[str, ...] = ()
    release: type[datasets.CIFAR100] = datasets.CIFAR100

    def prepare(self, data: Path | None) -> None:
        # Either will do: torchvision verifies the files of both splits whichever it reads.
        self._read(data, "train")

    def load(
        self, data: Path | None, spec: TaskSpec, device: torch.device
    ) -> CroppedSamples:
        test = None if spec.num_validation else self._read(data, "test")
        return CroppedSamples.of(
            self._read(data, "train"), test, spec, device, MEAN, STANDARD_DEVIATION
        )

    def _read(self, data: Path | None, split: str) -> Batch:
        """Read a split, which is fetched where no folder is given."""
        root = cache_folder("cifar100") if data is None else data.expanduser()
        return read_split(self.release, root, split, "CIFAR-100", fetch=data is None)


TASK = CIFAR100()
