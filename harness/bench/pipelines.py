"""Training images per second and core: both pipelines against torchvision's, and files against a packed shard."""

from __future__ import annotations

import io
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.datasets import ImageFolder

from harness.bench.measurement import Aim, Measurement, ratio
from harness.seeds import generator
from harness.spec import TaskSpec
from harness.tasks import cifar100, imagenet
from harness.tasks.augment import LIGHTING_EIGENVALUES, LIGHTING_EIGENVECTORS, draw
from harness.tasks.image_files import decoded, random_crop, read_file

REPETITIONS = 9
IMAGENET_AIM, CIFAR_AIM = Aim("at least", 1.5), Aim("at least", 10.0)
IMAGENET_BATCH, IMAGENET_BATCHES = 32, 3
CIFAR_BATCH, CIFAR_BATCHES = 16, 32
SIZES = ((500, 375), (500, 375), (375, 500), (500, 333))
"""Widths and heights: most of ILSVRC's images have a longer side of 500."""


def measure(results: Path) -> list[Measurement]:
    """Both pipelines, and what it would bring to read images from one file."""
    return [*imagenet_pipeline(), *cifar_pipeline(), packed_shard()]


def imagenet_pipeline() -> list[Measurement]:
    """From JPEG files to normalised batches: decode, crop, flip, jitter, lighting."""
    count = IMAGENET_BATCH * IMAGENET_BATCHES
    with tempfile.TemporaryDirectory(prefix="cser-bench-") as temporary:
        train = Path(temporary) / "train"
        for number in range(count):
            file = train / f"n{number % 2}" / f"{number}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(made_up_jpeg(number))
        # One sample is held out, so that no validation set is asked for.
        task = imagenet.ImageNet(num_train=count + 1, num_classes=2)
        (train / "n0" / "held_out.JPEG").write_bytes(made_up_jpeg(count))
        samples = task.load(Path(temporary), TaskSpec(name="imagenet", held_out=1), torch.device("cpu"))
        order = torch.split(torch.arange(count), IMAGENET_BATCH)
        calls: dict[str, Callable[[], object]] = {
            "torchvision": lambda: _collated(ImageFolder(str(train), _imagenet_transforms()), order),
            "ours": lambda: [images for images, _ in samples.training_batches(order, 1, 0, 0)],
        }
        return _figures("ImageNet", "ImageFolder with PIL transforms", calls, count, IMAGENET_AIM)


def cifar_pipeline() -> list[Measurement]:
    """From images in memory to normalised batches: padded crop and flip."""
    count = CIFAR_BATCH * CIFAR_BATCHES
    pixels = np.random.default_rng(1).integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
    labels = torch.zeros(len(pixels), dtype=torch.int64)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    order = torch.split(torch.randperm(len(pixels), generator=torch.Generator().manual_seed(1))[:count], CIFAR_BATCH)
    samples = cifar100.CIFAR100Samples(cifar100.padded(images), labels, images[:1], labels[:1])
    calls: dict[str, Callable[[], object]] = {
        "torchvision": lambda: _collated(_InMemory(pixels), order),
        "ours": lambda: [images for images, _ in samples.training_batches(order, 1, 0, 0)],
    }
    return _figures("CIFAR-100", "torchvision transforms per sample", calls, count, CIFAR_AIM)


def packed_shard() -> Measurement:
    """From JPEGs to crops: a file for each image, as the task reads them, against one file with an index."""
    count = IMAGENET_BATCH * IMAGENET_BATCHES
    jpegs = [made_up_jpeg(number) for number in range(count)]
    ends = list(accumulate(map(len, jpegs)))
    with tempfile.TemporaryDirectory(prefix="cser-bench-") as temporary:
        files = [f"{temporary}/{number}.JPEG" for number in range(count)]
        for file, jpeg in zip(files, jpegs, strict=True):
            Path(file).write_bytes(jpeg)
        shard = Path(temporary) / "shard"
        shard.write_bytes(b"".join(jpegs))
        draws = draw(generator("bench"), count, 0.0, 0.0)

        def from_shard() -> list[Tensor]:
            with shard.open("rb") as opened:
                return [
                    random_crop(decoded(os.pread(opened.fileno(), len(jpeg), end - len(jpeg))), 224, draws, number)
                    for number, (jpeg, end) in enumerate(zip(jpegs, ends, strict=True))
                ]

        calls: dict[str, Callable[[], list[Tensor]]] = {
            "files": lambda: [
                random_crop(decoded(read_file(file)), 224, draws, number) for number, file in enumerate(files)
            ],
            "shard": from_shard,
        }
        assert all(map(torch.equal, *(call() for call in calls.values())))
        seconds = _cpu_seconds(calls)
    compared = f"{count} ImageNet-like images from one packed file, against a file each; in memory, processor time"
    return ratio("packed shard speed-up", compared, seconds, "files", "shard")


def _figures(
    name: str, baseline: str, calls: Mapping[str, Callable[[], object]], count: int, aim: Aim
) -> list[Measurement]:
    seconds = _cpu_seconds(calls)
    rates = [count / each for each in seconds["ours"]]
    compared = f"{count} training images, processor time, interleaved; against {baseline}"
    return [
        Measurement(
            f"{name} pipeline",
            "training images per second of processor time",
            median(rates),
            "images/s",
            None,
            rates,
            seconds,
        ),
        ratio(f"{name} pipeline speed-up", compared, seconds, "torchvision", "ours", aim),
    ]


def made_up_jpeg(seed: int) -> bytes:
    """Noise with the falling spectrum of photographs, some 90 kB: about an ILSVRC image's size and so its decoding."""
    random = np.random.default_rng(seed)
    width, height = SIZES[seed % len(SIZES)]
    pixels = np.full((height, width, 3), 128, dtype=np.float32)
    for cells in (4, 8, 16, 32, 64, 125, 250):
        shape = (max(2, height * cells // width), cells)
        noise = random.standard_normal((*shape, 3)) * 14 + random.standard_normal((*shape, 1)) * 30
        for channel in range(3):
            plane = Image.fromarray(noise[:, :, channel].astype(np.float32)).resize((width, height), 3)
            pixels[:, :, channel] += np.asarray(plane) / cells**0.35
    pixels += random.standard_normal((height, width, 1)) * 12
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=88)
    return file.getvalue()


def _imagenet_transforms() -> Callable[[Image.Image], Tensor]:
    jitter = imagenet.JITTER
    made: Callable[[Image.Image], Tensor] = transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(jitter, jitter, jitter),
            transforms.ToTensor(),
            _lighting,
            transforms.Normalize(imagenet.MEAN, imagenet.STANDARD_DEVIATION),
        ]
    )
    return made


def _lighting(image: Tensor) -> Tensor:
    weights = torch.randn(3) * imagenet.LIGHTING * torch.tensor(LIGHTING_EIGENVALUES) / 255
    return image + (torch.tensor(LIGHTING_EIGENVECTORS) @ weights)[:, None, None]


class _InMemory:
    """As torchvision.datasets.CIFAR100 does it: an array to a PIL image to a tensor."""

    def __init__(self, pixels: npt.NDArray[np.uint8]) -> None:
        self.pixels = pixels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(cifar100.SIDE, cifar100.PADDING),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(cifar100.MEAN, cifar100.STANDARD_DEVIATION),
            ]
        )

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[number])), 0


def _collated(samples: Any, order: tuple[Tensor, ...]) -> list[Tensor]:
    return [torch.stack([samples[number][0] for number in index.tolist()]) for index in order]


def _cpu_seconds(calls: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """As `timing.interleave`, but of processor time over all threads, so that readers on other cores count as well."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(REPETITIONS + 1):
        for name in list(calls) if repetition % 2 else reversed(list(calls)):
            started = time.process_time()
            calls[name]()
            seconds[name].append(time.process_time() - started)
    return {name: each[1:] for name, each in seconds.items()}
