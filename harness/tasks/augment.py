"""Random augmentation of images: the draws for a batch, and plain functions of those draws."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from cser_bench.harness.seeds import generator
from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks.task import Batch, subset, to_device

LIGHTING_EIGENVALUES = (55.46, 4.794, 1.148)
LIGHTING_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
"""Eigen-decomposition of the covariance of ImageNet's pixels in 0 to 255; columns are vectors, rows
are colours.

Source: the operator `random_lighting` of Apache MXNet (src/operator/image/image_random-inl.h),
which GluonCV's `transforms.RandomLighting` calls; the method is that of Krizhevsky et al., NeurIPS
2012, section 4.1.
"""

CROP_AREA = (0.08, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
"""After so many boxes that do not fit, the largest central box of a permitted shape is taken, as
torchvision does."""

CONTRAST, SATURATION = 1, 2
"""Changes by number; brightness is 0."""

EVALUATION_BATCH = 1000
PADDING = 4
"""Of images before they are cropped to their own size, as in the paper's released scripts."""


@functools.cache
def _per_channel(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """The numbers, shape (channels, 1, 1); made once, since the host would wait for a GPU to have
    them."""
    return torch.tensor(numbers, device=device)[:, None, None]


def normalised(
    images: Tensor, mean: Sequence[float], standard_deviation: Sequence[float]
) -> Tensor:
    """Copies of images of 0 to 255, shape (batch, channels, ...), scaled to [0, 1] and normalised
    per channel."""
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    scale = tuple(1 / (255 * deviation) for deviation in standard_deviation)
    shift = tuple(
        -centre / deviation for centre, deviation in zip(mean, standard_deviation, strict=True)
    )
    return pixels.mul_(_per_channel(scale, images.device)).add_(_per_channel(shift, images.device))


def draw_shifts(random: torch.Generator, batch_size: int, padding: int) -> Tensor:
    """Draws for padded crops, int64 of shape (batch, 3): offsets down and right, in 0 to 2
    `padding`, and flips."""
    offsets = torch.randint(2 * padding + 1, (batch_size, 2), generator=random)
    return torch.cat([offsets, torch.randint(2, (batch_size, 1), generator=random)], dim=1)


def shifted_crops(padded: Tensor, index: Tensor, shifts: Tensor, side: int) -> Tensor:
    """Crops of `side` x `side` out of padded images, mirrored where the draws say so, in one gather
    for the batch.

    Args:
        padded: shape (num_images, channels, height, width); the result's is (batch, channels, side,
        side). index, shifts: the images to take, int64 of shape (batch,), and their draws, on the
        device of `padded`.
    """
    along = torch.arange(side, device=padded.device)
    down, right, flips = shifts[:, :, None].unbind(1)
    rows, columns = down + along, right + torch.where(flips.bool(), side - 1 - along, along)
    return padded[index[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


@dataclass(frozen=True)
class CroppedSamples:
    """Images in memory, bytes on the device; those trained on are shifted by up to PADDING pixels
    and mirrored.

    Attributes:
        padded: training images with a border of zeros, shape (n, channels, side + 2 PADDING, ...).
        evaluation_images: square, shape (n, channels, side, side).
        mean, standard_deviation: per channel, of pixels scaled to [0, 1].
    """

    padded: Tensor
    train_labels: Tensor
    evaluation_images: Tensor
    evaluation_labels: Tensor
    mean: Sequence[float]
    standard_deviation: Sequence[float]

    @classmethod
    def of(
        cls,
        train: Batch,
        test: Batch | None,
        spec: TaskSpec,
        device: torch.device,
        *statistics: Sequence[float],
    ) -> CroppedSamples:
        """Bytes and labels as `subset` divides them; `statistics` are mean and standard
        deviation."""
        own = subset(train, spec, test)
        padded = torch.nn.functional.pad(own.train_inputs, [PADDING] * 4).to(device)
        scored = own.evaluation_inputs.to(device), own.evaluation_labels.to(device)
        return cls(padded, own.train_labels.to(device), *scored, *statistics)

    def training_batches(
        self, indices: Iterable[Tensor], seed: int, rank: int, first_step: int
    ) -> Iterator[Batch]:
        side, device = self.evaluation_images.shape[-1], self.padded.device
        padding = (self.padded.shape[-1] - side) // 2
        for step, index in enumerate(indices, first_step):
            shifts = draw_shifts(generator(seed, "augmentation", rank, step), len(index), padding)
            chosen = to_device(torch.cat([index[:, None], shifts], dim=1), device)
            crops = shifted_crops(self.padded, chosen[:, 0], chosen[:, 1:], side)
            yield (
                normalised(crops, self.mean, self.standard_deviation),
                self.train_labels[chosen[:, 0]],
            )

    def evaluation_batches(self, indices: Tensor) -> Iterator[Batch]:
        for index in torch.split(indices.to(self.padded.device), EVALUATION_BATCH):
            if len(index):
                images = self.evaluation_images[index]
                yield (
                    normalised(images, self.mean, self.standard_deviation),
                    self.evaluation_labels[index],
                )


@dataclass(frozen=True)
class Draws:
    """Draws for one batch of ImageNet's augmentation; row i is image i's.

    Attributes:
        attempts: in [0, 1), shape (batch, CROP_ATTEMPTS, 2): the crop's area and aspect, try by
            try.
        places: in [0, 1), shape (batch, 2): where the crop lies, down and right.
        flips: bool, shape (batch,).
        orders: int64, shape (batch, 3): what is changed first, second and third.
        factors: shape (batch, 3): of brightness, contrast and saturation.
        lighting: shape (batch, 3): added to red, green and blue, in the scale of 0 to 255.
    """

    attempts: Tensor
    places: Tensor
    flips: Tensor
    orders: Tensor
    factors: Tensor
    lighting: Tensor


def draw(random: torch.Generator, batch_size: int, jitter: float, lighting: float) -> Draws:
    """Factors are uniform in 1 +- `jitter`, lighting's weights normal with standard deviation
    `lighting`."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand((batch_size, *shape), generator=random)

    scaled = torch.tensor(LIGHTING_EIGENVECTORS) * torch.tensor(LIGHTING_EIGENVALUES)
    return Draws(
        attempts=uniform(CROP_ATTEMPTS, 2),
        places=uniform(2),
        flips=uniform() < 0.5,
        orders=uniform(3).argsort(1),
        factors=1 + jitter * (2 * uniform(3) - 1),
        lighting=lighting * torch.randn((batch_size, 3), generator=random) @ scaled.T,
    )


def crop_box(
    height: int, width: int, attempts: Sequence[Sequence[float]], place: Sequence[float]
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random resized crop: its area's share uniform, its aspect's
    logarithm uniform.

    `attempts` and `place` are a row of `Draws.attempts` and of `Draws.places`.
    """
    low, high = math.log(CROP_ASPECT[0]), math.log(CROP_ASPECT[1])
    for area_draw, aspect_draw in attempts:
        area = width * height * (CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * area_draw)
        aspect = math.exp(low + (high - low) * aspect_draw)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int((height - h + 1) * place[0]), int((width - w + 1) * place[1]), h, w
    w = min(width, round(height * CROP_ASPECT[1]))
    h = min(height, round(width / CROP_ASPECT[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def jittered(images: Tensor, orders: Tensor, factors: Tensor, lighting: Tensor) -> Tensor:
    """Brightness, contrast and saturation changed in the drawn orders, then lighting added; a new
    float32 tensor.

    Each change blends the image with something darker or greyer: x <- f x + (1 - f) target, where
    the target is black for brightness, the mean of the grey image for contrast, and the grey image
    for saturation. The pixels are clamped to 0 to 255 after each, as images of bytes are, but are
    not rounded.

    Args:
        images: pixels of 0 to 255, shape (batch, 3, height, width), on any device. orders, factors,
        lighting: see `Draws`; on the CPU, from where they go to the device in one transfer.
    """
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    drawn = to_device(
        torch.cat([orders, factors.gather(1, orders), lighting], dim=1), pixels.device
    )
    for change, factor in zip(
        drawn[:, :3, None, None, None].unbind(1), drawn[:, 3:6].unbind(1), strict=True
    ):
        grey = functional.rgb_to_grayscale(pixels)
        target = torch.where(
            change == SATURATION, grey, grey.mean((2, 3), keepdim=True) * (change == CONTRAST)
        )
        pixels.lerp_(target, 1 - factor[:, None, None, None]).clamp_(0, 255)
    return pixels.add_(drawn[:, 6:, None, None]).clamp_(0, 255)
