"""Images in files: folders of class folders, and batches that threads read, decode and crop ahead of their use."""

from __future__ import annotations

import io
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets.folder import find_classes, make_dataset
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional

from harness.tasks import DataError
from harness.tasks.augment import Draws, crop_box

MAX_READERS = 8
"""Reading threads of a process at the most; fewer where there are fewer cores."""

READING_SECONDS = 1.2e-3
"""What a modern core takes for a training image of ImageNet, from the file to the crop; plans reckon with it."""

UNDECODABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError)
"""What decoders raise at the contents of a file."""

T = TypeVar("T")


@dataclass(frozen=True)
class ImageIndex:
    """The JPEG files of class folders, both in the order of their names; `names` are paths below `root`, as bytes."""

    root: Path
    classes: tuple[str, ...]
    names: npt.NDArray[np.bytes_]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, numbers: Tensor) -> ImageIndex:
        """These images alone, in this order."""
        return replace(self, names=self.names[numbers.numpy()], labels=self.labels[numbers])

    def path(self, number: int) -> str:
        return f"{self.root}/{os.fsdecode(self.names[number])}"

    def paths(self, numbers: Tensor) -> list[str]:
        return [self.path(number) for number in numbers.tolist()]


def image_index(root: Path) -> ImageIndex:
    """Look through a folder as torchvision's `ImageFolder` does.

    Raises:
        DataError: no folder, no class folders, one without an image, or an unreadable one.
    """
    try:
        classes, labels = find_classes(root)
        found = make_dataset(root, labels, (".jpeg", ".jpg"))
    except OSError as error:
        advice = f"it must hold one folder per class, as in {root.name}/n01440764/NAME.JPEG"
        raise DataError(f"{root} cannot be used ({error.strerror or error}); {advice}") from None
    names = np.array([os.fsencode(os.path.relpath(path, root)) for path, _ in found], dtype=np.bytes_)
    return ImageIndex(root, tuple(classes), names, torch.tensor([label for _, label in found]))


def num_readers(cores: int) -> int:
    """Threads that read for a local rank with so many cores: one for each, 8 at most."""
    return min(max(1, cores), MAX_READERS)


def own_cores() -> int:
    """Cores that this local rank has to itself: of those that it may use its share, unless they are its own already.

    Slurm binds each task to its own cores, torchrun lets all ranks of a machine use all of them. Where Slurm binds no
    task, it still says how many each was promised.
    """
    usable, ranks = len(os.sched_getaffinity(0)), _number("LOCAL_WORLD_SIZE") or 1
    share = max(1, (os.cpu_count() or usable) // ranks)
    cores = usable if usable <= share else usable // ranks
    return max(1, min(cores, _number("SLURM_CPUS_PER_TASK") or cores))


def _number(variable: str) -> int:
    """What the environment says; 0 where that is no number."""
    said = os.environ.get(variable, "")
    return int(said) if said.isdecimal() else 0


@cache
def readers() -> ThreadPoolExecutor:
    """The reading threads of this process. Decoding and resizing hold no lock of Python's, so they scale."""
    return ThreadPoolExecutor(num_readers(own_cores()), "reader", lambda: torch.set_num_threads(1))


def in_order(calls: Iterable[Callable[[], T]]) -> Iterator[T]:
    """What the calls return, in their order, made ahead by `readers` so that every one of these has work."""
    waiting, ahead = iter(calls), deque[Future[T]]()
    try:
        while True:
            free = num_readers(own_cores()) + 1 - len(ahead)
            ahead.extend(readers().submit(call) for call in itertools.islice(waiting, free))
            if not ahead:
                return
            yield ahead.popleft().result()
    finally:
        for future in ahead:
            future.cancel()


def read_images(
    paths: Sequence[str], side: int, resize: int, draws: Draws | None = None
) -> tuple[Tensor, dict[int, str]]:
    """Read a batch: random resized crops by these draws, or else central crops after resizing to `resize`.

    Returns:
        Pixels, uint8 of shape (batch, 3, side, side), and for each position that could not be decoded the reason.

    Raises:
        DataError: a file cannot be read.
    """
    images, failures = torch.zeros((len(paths), 3, side, side), dtype=torch.uint8), {}
    for position, path in enumerate(paths):
        raw = read_file(path)
        try:
            pixels = decoded(raw)
            if draws is None:
                images[position] = functional.center_crop(functional.resize(pixels, [resize]), [side])
            else:
                images[position] = random_crop(pixels, side, draws, position)
        except UNDECODABLE as error:
            failures[position] = str(error) or type(error).__name__
    return images, failures


def read_file(path: str) -> bytes:
    """The contents of a file. Raises DataError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); put it back, or make it readable") from None


def decoded(raw: bytes) -> Tensor:
    """All pixels of an image as red, green and blue, uint8 of shape (3, height, width).

    Raises:
        One of `UNDECODABLE`.
    """
    try:
        # A bytearray, since torch warns about memory that is read-only.
        pixels: Tensor = decode_jpeg(torch.frombuffer(bytearray(raw), dtype=torch.uint8), ImageReadMode.RGB)
    except RuntimeError:  # PIL takes files that this does not (CMYK, and other formats), and says what is wrong.
        pixels = functional.pil_to_tensor(Image.open(io.BytesIO(raw)).convert("RGB"))
    return pixels


def random_crop(pixels: Tensor, side: int, draws: Draws, row: int) -> Tensor:
    """A random resized crop by a row of the draws, mirrored where it says so; uint8 of shape (3, side, side)."""
    height, width = pixels.shape[1:]
    box = crop_box(width, height, draws.attempts[row].tolist(), draws.places[row].tolist())
    crop: Tensor = functional.resized_crop(pixels, box.top, box.left, box.height, box.width, [side, side])
    return crop.flip(-1) if draws.flips[row] else crop
