"""ImageNet (ILSVRC-2012): 1,281,167 + 50,000 JPEGs in a thousand class folders.

They are read and augmented as they are used. Threads read, decode and crop batches ahead of their
use: decoding and resizing hold no lock of Python's.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torchvision.datasets import DatasetFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional

from cser_bench.harness.seeds import generator
from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks import DataError
from cser_bench.harness.tasks.augment import Draws, crop_box, draw, jittered, normalised
from cser_bench.harness.tasks.cores import own_cores
from cser_bench.harness.tasks.samples import Batch, Modality
from cser_bench.harness.tasks.task import (
    Inputs,
    cache_folder,
    to_device,
    training_and_validation_indices,
)

MEAN = (0.485, 0.456, 0.406)
STANDARD_DEVIATION = (0.229, 0.224, 0.225)
"""Per channel, of pixels scaled to [0, 1]; those of GluonCV and torchvision."""

JITTER = 0.4
LIGHTING = 0.1
"""Strengths of the paper's augmentation; see `augment.draw`."""

EVALUATION_BATCH = 100
SAMPLED = 32
"""Images of each split that `prepare` decodes."""

T = TypeVar("T")


@dataclass(frozen=True)
class ImageNet:
    """The folders train/ and val/ of class folders.

    They are in DATA or in $XDG_CACHE_HOME/cser-bench/imagenet. Crops have sides of `side`; before a
    central one the shorter side is resized to `resize`.
    """

    num_train: int = 1_281_167
    num_test: int = 50_000
    num_classes: int = 1_000
    inputs: Inputs = "images"
    metrics: tuple[str, ...] = ()
    side: int = 224
    resize: int = 256

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (3, self.side, self.side)

    def prepare(self, data: Path | None) -> None:
        for folder in self._splits(data):
            paths = [path for path, _ in folder.samples]
            # Evenly over the folders, as a copy that broke off lacks the last ones.
            read_images(paths[:: max(1, len(paths) // SAMPLED)], self.side, self.resize)

    def load(
        self, data: Path | None, spec: TaskSpec, device: torch.device
    ) -> ImageNetSamples:
        train, val = self._splits(data)
        kept, validation = training_and_validation_indices(
            self.num_train, spec.num_validation, spec.num_train
        )
        trained = Images.of(train, kept)
        if spec.num_validation:
            return ImageNetSamples(self, trained, Images.of(train, validation), device)
        return ImageNetSamples(
            self, trained, Images.of(val, torch.arange(self.num_test)), device
        )

    def _splits(self, data: Path | None) -> tuple[DatasetFolder, DatasetFolder]:
        """Look through both folders, as torchvision's `ImageFolder` does.

        Raises:
            DataError: they are not whole.
        """
        root = cache_folder("imagenet") if data is None else data.expanduser()
        train = self._split(root / "train", self.num_train)
        val = self._split(root / "val", self.num_test)
        if odd := set(train.classes) ^ set(val.classes):
            raise DataError(
                f"class {min(odd)} is in only one of {train.root} and {val.root}; extract both "
                "again"
            )
        return train, val

    def _split(self, root: Path, num_images: int) -> DatasetFolder:
        if not root.is_dir():
            raise DataError(
                f"ImageNet is not at hand: {root} is not a folder; ILSVRC-2012 may not be fetched "
                "by programs, so get it from image-net.org, extract it to train/ and val/ of "
                "class folders, and name their folder with DATA=FOLDER"
            )
        try:
            folder = DatasetFolder(str(root), decode_image, (".jpeg", ".jpg"))
        except OSError as error:
            advice = f"it must hold one folder per class, as in {root.name}/n01440764/NAME.JPEG"
            raise DataError(
                f"{root} cannot be used ({error.strerror or error}); {advice}"
            ) from None
        if len(folder.classes) != self.num_classes:
            raise DataError(
                f"{root} holds {len(folder.classes):,} class folders where {self.num_classes:,} are "
                "expected; extract ILSVRC-2012 again, and keep other folders out of it"
            )
        if len(folder) != num_images:
            # Where images lack, the smallest class says which archive was cut.
            labels = torch.tensor(folder.targets)
            fewest, label = torch.bincount(labels, minlength=self.num_classes).min(0)
            raise DataError(
                f"{root} holds {len(folder):,} images where {num_images:,} are expected (the "
                f"fewest, {int(fewest):,} of {folder.classes[int(label)]}); extract ILSVRC-2012 "
                "again"
            )
        return folder


@dataclass(frozen=True)
class Images:
    """JPEG files and their labels."""

    paths: list[str]
    labels: Tensor

    @classmethod
    def of(cls, folder: DatasetFolder, numbers: Tensor) -> Images:
        """Take these images of the folder, in this order."""
        chosen = [folder.samples[number] for number in numbers.tolist()]
        return cls(
            [path for path, _ in chosen], torch.tensor([label for _, label in chosen])
        )

    def chosen(self, places: Tensor) -> list[str]:
        """List the paths of the images at these places."""
        return [self.paths[place] for place in places.tolist()]


@dataclass(frozen=True)
class ImageNetSamples:
    """Files, which are read when they are used."""

    task: ImageNet
    train: Images
    evaluated: Images
    device: torch.device

    @property
    def modality(self) -> Modality:
        return Modality()

    @property
    def train_labels(self) -> Tensor:
        return self.train.labels

    def training_batches(
        self, indices: Iterable[Tensor], seed: int, rank: int, first_step: int
    ) -> Iterator[Batch]:
        # `calls` runs ahead of the batches that are yielded, so what belongs to each waits here.
        # First in, first out: batches come back in the order in which they were asked for.
        pending: deque[tuple[Tensor, Draws]] = deque()

        def calls() -> Iterator[Callable[[], Tensor]]:
            for step, places in enumerate(indices, first_step):
                random = generator(seed, "augmentation", rank, step)
                draws = draw(random, len(places), JITTER, LIGHTING)
                pending.append((self.train.labels[places], draws))
                paths = self.train.chosen(places)
                yield partial(
                    read_images, paths, self.task.side, self.task.resize, draws
                )

        # Bytes go to the device, where the arithmetic on pixels is done.
        for images in in_order(calls()):
            labels, draws = pending.popleft()
            there = to_device(images, self.device)
            pixels = jittered(there, draws.orders, draws.factors, draws.lighting)
            yield (
                normalised(pixels, MEAN, STANDARD_DEVIATION),
                to_device(labels, self.device),
            )

    def evaluation_batches(self, indices: Tensor) -> Iterator[Batch]:
        batches = [
            places
            for places in torch.split(indices.cpu(), EVALUATION_BATCH)
            if len(places)
        ]
        calls = (
            partial(
                read_images,
                self.evaluated.chosen(places),
                self.task.side,
                self.task.resize,
            )
            for places in batches
        )
        for places, images in zip(batches, in_order(calls), strict=True):
            pixels = normalised(
                to_device(images, self.device), MEAN, STANDARD_DEVIATION
            )
            yield pixels, to_device(self.evaluated.labels[places], self.device)


class Readers(NamedTuple):
    """Threads, and how many there are."""

    number: int
    pool: ThreadPoolExecutor


@cache
def readers() -> Readers:
    """Start the reading threads of this process: one for each core that falls to it."""
    # Not before the first batch, as workers say only when they meet which cores are theirs.
    number = own_cores()
    # Set in each reader, since torch counts for each thread apart: the main thread keeps its own
    # number, and no reader starts a team beside the other readers.
    return Readers(
        number, ThreadPoolExecutor(number, "reader", lambda: torch.set_num_threads(1))
    )


def in_order(calls: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Yield what the calls return, in their order.

    They are made ahead by `readers`, so that every one of these has work.
    """
    waiting = iter(calls)
    ahead: deque[Future[T]] = deque()
    number, pool = readers()
    try:
        while True:
            # One more than there are readers: while the oldest batch is used, the reader that made
            # it has another to go on with.
            for call in itertools.islice(waiting, number + 1 - len(ahead)):
                ahead.append(pool.submit(call))
            if not ahead:
                return
            # An error of a reader is raised here, at the batch that it is of.
            yield ahead.popleft().result()
    finally:
        for future in ahead:
            # What has begun ends by itself; what has not is not begun.
            future.cancel()


def read_images(
    paths: Sequence[str], side: int, resize: int, draws: Draws | None = None
) -> Tensor:
    """Read images as uint8 of shape (batch, 3, side, side).

    They are random resized crops by these draws, or else central ones after resizing.

    Raises:
        DataError: a file cannot be read or decoded.
    """
    # Bytes: a quarter of what fp32 would take to keep ahead and to send to a GPU.
    images = torch.empty((len(paths), 3, side, side), dtype=torch.uint8)
    for position, path in enumerate(paths):
        try:
            raw = Path(path).read_bytes()
        except OSError as error:
            raise DataError(
                f"{path} cannot be read ({error.strerror}); put it back, or make it readable"
            ) from None
        try:
            pixels = decoded(raw)
            if draws is None:
                resized = functional.resize(pixels, [resize])
                images[position] = functional.center_crop(resized, [side])
            else:
                images[position] = random_crop(pixels, side, draws, position)
        except (RuntimeError, ValueError) as error:
            advice = "put an undamaged copy in its place"
            raise DataError(
                f"{path} is no image that can be decoded ({error}); {advice}"
            ) from None
    return images


def decoded(raw: bytes) -> Tensor:
    """Decode an image to red, green and blue, uint8 of shape (3, height, width)."""
    # A bytearray, since torch warns about memory that is read-only.
    encoded = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    pixels: Tensor = decode_image(encoded, ImageReadMode.RGB)
    return pixels


def random_crop(pixels: Tensor, side: int, draws: Draws, row: int) -> Tensor:
    """Crop by a row of the draws and resize, mirrored where it says so.

    The result is uint8 of shape (3, side, side).
    """
    height, width = pixels.shape[1:]
    box = crop_box(
        height, width, draws.attempts[row].tolist(), draws.places[row].tolist()
    )
    crop: Tensor = functional.resized_crop(pixels, *box, [side, side])
    if draws.flips[row]:
        return crop.flip(-1)
    return crop


TASK = ImageNet()
