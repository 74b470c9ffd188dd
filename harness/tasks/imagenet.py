"""ImageNet (ILSVRC-2012): 1,281,167 + 50,000 JPEGs in a thousand class folders, read and augmented as they are used."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.seeds import generator
from harness.spec import TaskSpec
from harness.tasks import DataError
from harness.tasks.augment import Draws, draw, normalised, photometric
from harness.tasks.image_files import (
    READING_SECONDS,
    ImageIndex,
    image_index,
    in_order,
    num_readers,
    own_cores,
    read_file,
    read_images,
)
from harness.tasks.task import Batch, cache_folder, held_out_indices, to_device

MEAN, STANDARD_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Per channel, of pixels scaled to [0, 1]; those of GluonCV and torchvision."""

JITTER, LIGHTING = 0.4, 0.1

EVALUATION_BATCH = 100
SAMPLED = 32
"""Images of each split that `prepare` decodes."""

Read = tuple[Tensor, dict[int, str]]
"""See `image_files.read_images`."""


@dataclass(frozen=True)
class ImageNet:
    """The folders train/ and val/ of class folders, in DATA or in $XDG_CACHE_HOME/cser-bench/imagenet.

    Attributes:
        side: of the crops; the shorter side is resized to `resize` before a central crop.
        max_undecodable: so many training images may be undecodable; the next one of the index stands in for such an
            image. An undecodable image among those evaluated is always an error, since each must be scored once.
    """

    num_train: int = 1_281_167
    num_test: int = 50_000
    num_classes: int = 1_000
    side: int = 224
    resize: int = 256
    max_undecodable: int = 0

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (3, self.side, self.side)

    def prepare(self, data: Path | None) -> None:
        indices = [self._index(data, split) for split in ("train", "val")]
        _same_classes(*indices)
        for index in indices:
            self._sample(index)

    def load(self, data: Path | None, spec: TaskSpec, device: torch.device) -> ImageNetSamples:
        train = self._index(data, "train")
        kept, held_out = held_out_indices(self.num_train, spec.held_out, spec.num_train)
        scored = train.part(held_out) if spec.held_out else self._index(data, "val")
        _same_classes(train, scored)
        return ImageNetSamples(self, train.part(kept), scored, device)

    def expected_reading_rate(self, cores: int) -> tuple[float, int]:
        """Training images a second of a worker's readers on so many cores, if files come as fast, and their number."""
        return num_readers(cores) / READING_SECONDS, num_readers(cores)

    def measured_reading_rate(self, data: Path | None, seconds: float) -> tuple[float, int]:
        """Training images a second that this process's readers deliver now, and the number of readers.

        The images are drawn anew each time, so that few are in a cache. What cannot be decoded counts as read.

        Raises:
            DataError: the data is missing or incomplete, or a file cannot be read.
        """
        draws = draw(generator(0, "reading rate"), SAMPLED, JITTER, LIGHTING)
        batches = self._files_a_second(data, seconds, lambda paths: read_images(paths, self.side, self.resize, draws))
        return batches, num_readers(own_cores())

    def measured_opening_rate(self, data: Path | None, seconds: float) -> float:
        """Training files a second that this process opens and reads with as many threads as it reads images with.

        Raises:
            DataError: the data is missing or incomplete, or a file cannot be read.
        """
        return self._files_a_second(data, seconds, lambda paths: [read_file(path) for path in paths])

    def _files_a_second(self, data: Path | None, seconds: float, take: Callable[[list[str]], object]) -> float:
        index, random = self._index(data, "train"), np.random.default_rng()
        started = time.monotonic()

        def calls() -> Iterator[Callable[[], object]]:
            while time.monotonic() < started + seconds:
                yield partial(take, [index.path(int(number)) for number in random.integers(len(index), size=SAMPLED)])

        return SAMPLED * sum(1 for _ in in_order(calls())) / (time.monotonic() - started)

    def _index(self, data: Path | None, split: str) -> ImageIndex:
        """The index of "train" or "val", of the expected size.

        Raises:
            DataError: missing or incomplete.
        """
        root = (cache_folder("imagenet") if data is None else data.expanduser()) / split
        if not root.is_dir():
            raise DataError(
                f"ImageNet is not at hand: {root} is not a folder; ILSVRC-2012 may not be fetched by programs, so get "
                "it from image-net.org, extract it to train/ and val/ of class folders, and name their folder with "
                "DATA=FOLDER"
            )
        index = image_index(root)
        expected = self.num_train if split == "train" else self.num_test
        if len(index.classes) != self.num_classes:
            raise DataError(
                f"{root} holds {len(index.classes):,} class folders where {self.num_classes:,} are expected; "
                "extract ILSVRC-2012 again, and keep other folders out of it"
            )
        if len(index) != expected:
            sizes = torch.bincount(index.labels, minlength=len(index.classes))
            raise DataError(
                f"{root} holds {len(index):,} images where {expected:,} are expected (the fewest, {int(sizes.min()):,} "
                f"of {index.classes[int(sizes.argmin())]}); extract ILSVRC-2012 again"
            )
        return index

    def _sample(self, index: ImageIndex) -> None:
        """Decode some images, evenly spaced. Raises DataError where more than `max_undecodable` of them cannot be."""
        paths = index.paths(torch.linspace(0, len(index) - 1, min(SAMPLED, len(index)), dtype=torch.float64).long())
        _, failures = read_images(paths, self.side, self.resize)
        if len(failures) > self.max_undecodable:
            position, reason = next(iter(failures.items()))
            raise _undecodable(paths[position], reason)


@dataclass(frozen=True)
class ImageNetSamples:
    """Indices of files; `undecodable` are those training images met so far."""

    task: ImageNet
    train: ImageIndex
    evaluated: ImageIndex
    device: torch.device
    undecodable: set[str] = field(default_factory=set)

    @property
    def train_labels(self) -> Tensor:
        return self.train.labels

    def training_batches(self, indices: Iterable[Tensor], seed: int, rank: int, first_step: int) -> Iterator[Batch]:
        pending: list[tuple[Tensor, Draws]] = []

        def calls() -> Iterator[Callable[[], Read]]:
            for step, places in enumerate(indices, first_step):
                draws = draw(generator(seed, "augmentation", rank, step), len(places), JITTER, LIGHTING)
                pending.append((places, draws))
                yield partial(read_images, self.train.paths(places), self.task.side, self.task.resize, draws)

        for images, failures in in_order(calls()):
            places, draws = pending.pop(0)
            places = self._replaced(images, failures, places, draws)
            yield self._batch(images, self.train.labels[places], draws)

    def evaluation_batches(self, indices: Tensor) -> Iterator[Batch]:
        batches = [places for places in torch.split(indices.cpu(), EVALUATION_BATCH) if len(places)]
        paths = map(self.evaluated.paths, batches)
        calls = (partial(read_images, each, self.task.side, self.task.resize) for each in paths)
        for places, (images, failures) in zip(batches, in_order(calls), strict=True):
            for position, reason in failures.items():
                raise _undecodable(self.evaluated.path(int(places[position])), reason)
            yield self._batch(images, self.evaluated.labels[places], None)

    def _replaced(self, images: Tensor, failures: dict[int, str], places: Tensor, draws: Draws) -> Tensor:
        """Fill what could not be decoded with the next image that can be, under the same draws; the places then shown.

        Raises:
            DataError: more than `max_undecodable` images could not be decoded.
        """
        places = places.clone()
        for position, failure in failures.items():
            reason, own = failure, draws.row(position)
            while reason:
                self._count(self.train.path(int(places[position])), reason)
                places[position] = (places[position] + 1) % len(self.train)
                path = self.train.path(int(places[position]))
                again, failed = read_images([path], self.task.side, self.task.resize, own)
                images[position], reason = again[0], failed.get(0, "")
        return places

    def _count(self, path: str, reason: str) -> None:
        known, allowed = path in self.undecodable, self.task.max_undecodable
        self.undecodable.add(path)
        if len(self.undecodable) > allowed:
            raise _undecodable(path, reason, f", or raise max_undecodable = {allowed} in the spec's [task]")
        if not known:
            print(f"{path} is no image that can be decoded ({reason}); the next one stands in for it", flush=True)

    def _batch(self, images: Tensor, labels: Tensor, draws: Draws | None) -> Batch:
        """Bytes go to the device, where the arithmetic on pixels is done."""
        images, labels = to_device(images, self.device), to_device(labels, self.device)
        if draws is None:
            return normalised(images, MEAN, STANDARD_DEVIATION), labels
        return photometric(images, draws, MEAN, STANDARD_DEVIATION), labels


def _same_classes(train: ImageIndex, test: ImageIndex) -> None:
    """Labels are places among the sorted classes, so both splits must have the same.

    Raises:
        DataError: a class is in one of them alone.
    """
    if test.classes != train.classes:
        odd = min(set(test.classes) ^ set(train.classes))
        raise DataError(f"class {odd} is in only one of {train.root} and {test.root}; extract both again")


def _undecodable(path: str, reason: str, otherwise: str = "") -> DataError:
    return DataError(
        f"{path} is no image that can be decoded ({reason}); put an undamaged copy in its place{otherwise}"
    )


TASK = ImageNet()
