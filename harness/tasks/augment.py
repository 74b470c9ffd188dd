"""Random augmentation of images: the draws for a batch, and plain functions of those draws."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from cser_bench.harness.seeds import generator
from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks.samples import Batch, Modality
from cser_bench.harness.tasks.task import subset, to_device

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

CONTRAST = 1
SATURATION = 2
"""Changes by number; brightness is 0."""

EVALUATION_BATCH = 1000
PADDING = 4
"""Padding of images, in pixels, before a crop of their own size, as in the paper's released scripts."""


@functools.cache
def _per_channel(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """Put the numbers on the device, shape (channels, 1, 1).

    It is done once, since the host would wait for a GPU to have them.
    """
    return torch.tensor(numbers, device=device)[:, None, None]


def normalised(
    images: Tensor, mean: Sequence[float], standard_deviation: Sequence[float]
) -> Tensor:
    """Scale copies of images of 0 to 255 to [0, 1], and normalise them per channel.

    Their shape is (batch, channels, ...).
    """
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    # (x / 255 - mean) / deviation as one product and one sum.
    scale = tuple(1 / (255 * deviation) for deviation in standard_deviation)
    shift = tuple(
        -centre / deviation
        for centre, deviation in zip(mean, standard_deviation, strict=True)
    )
    return pixels.mul_(_per_channel(scale, images.device)).add_(
        _per_channel(shift, images.device)
    )


def draw_shifts(random: torch.Generator, batch_size: int, padding: int) -> Tensor:
    """Draw padded crops, int64 of shape (batch, 3).

    These are offsets down and right, in 0 to 2 `padding`, and flips.
    """
    # padding is the middle, an image that is not shifted.
    offsets = torch.randint(2 * padding + 1, (batch_size, 2), generator=random)
    return torch.cat(
        [offsets, torch.randint(2, (batch_size, 1), generator=random)], dim=1
    )


def shifted_crops(padded: Tensor, index: Tensor, shifts: Tensor, side: int) -> Tensor:
    """Crop padded images to `side` x `side`, mirrored where the draws say so.

    It is one gather for the batch.

    Args:
        padded: shape (num_images, channels, height, width).
        index: the images to take, int64 of shape (batch,), on the device of `padded`.
        shifts: their draws, see `draw_shifts`, there too.

    Returns:
        Shape (batch, channels, side, side).
    """
    along = torch.arange(side, device=padded.device)
    # Each (batch, 1), so that a row of offsets comes of each: (batch, side).
    down, right, flips = shifts[:, :, None].unbind(1)
    rows = down + along
    # Mirrored: the columns of the same crop, from the right.
    columns = right + torch.where(flips.bool(), side - 1 - along, along)
    # An index on both sides of the channels puts these last.
    crops = padded[index[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return crops.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class CroppedSamples:
    """Images in memory, bytes on the device.

    Those trained on are shifted by up to PADDING pixels and mirrored.

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
    modality: Modality = field(default_factory=Modality)

    @classmethod
    def of(
        cls,
        train: Batch,
        test: Batch | None,
        spec: TaskSpec,
        device: torch.device,
        mean: Sequence[float],
        standard_deviation: Sequence[float],
        modality: Modality | None = None,
    ) -> CroppedSamples:
        """Hold bytes and labels as `subset` divides them."""
        samples = subset(train, spec, test)
        # Once, on bytes: black before normalisation, as the released scripts have it.
        padded = torch.nn.functional.pad(samples.train_inputs, [PADDING] * 4)
        return cls(
            padded.to(device),
            samples.train_labels.to(device),
            samples.evaluation_inputs.to(device),
            samples.evaluation_labels.to(device),
            mean,
            standard_deviation,
            modality or Modality(),
        )

    def training_batches(
        self, indices: Iterable[Tensor], seed: int, rank: int, first_step: int
    ) -> Iterator[Batch]:
        side = self.evaluation_images.shape[-1]
        padding = (self.padded.shape[-1] - side) // 2
        for step, index in enumerate(indices, first_step):
            shifts = draw_shifts(
                generator(seed, "augmentation", rank, step), len(index), padding
            )
            # Both go to the device in one transfer.
            chosen = to_device(
                torch.cat([index[:, None], shifts], dim=1), self.padded.device
            )
            # (batch,), on the device.
            there = chosen[:, 0]
            crops = shifted_crops(self.padded, there, chosen[:, 1:], side)
            images = normalised(crops, self.mean, self.standard_deviation)
            yield images, self.train_labels[there]

    def evaluation_batches(self, indices: Tensor) -> Iterator[Batch]:
        for index in torch.split(indices.to(self.padded.device), EVALUATION_BATCH):
            if len(index):
                images = self.evaluation_images[index]
                pixels = normalised(images, self.mean, self.standard_deviation)
                yield pixels, self.evaluation_labels[index]


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


def draw(
    random: torch.Generator, batch_size: int, jitter: float, lighting: float
) -> Draws:
    """Draw a batch's augmentation.

    Factors are uniform in 1 +- `jitter`, lighting's weights normal with standard deviation
    `lighting`.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand((batch_size, *shape), generator=random)

    # Columns are eigenvectors by their eigenvalues: (colours, 3).
    scaled = torch.tensor(LIGHTING_EIGENVECTORS) * torch.tensor(LIGHTING_EIGENVALUES)
    # Each draw has its place in the generator's stream by the order of these lines: to move one
    # changes every run.
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
    """Find top, left, height and width of a random resized crop.

    Its area's share is uniform, and so is its aspect's logarithm.

    Args:
        attempts: a row of `Draws.attempts`.
        place: a row of `Draws.places`.
    """
    low = math.log(CROP_ASPECT[0])
    high = math.log(CROP_ASPECT[1])
    for area_draw, aspect_draw in attempts:
        # Uniform in area, and in the logarithm of the aspect: 3/4 is as likely as 4/3.
        area = (
            width * height * (CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * area_draw)
        )
        aspect = math.exp(low + (high - low) * aspect_draw)
        # w h = area and w / h = aspect.
        w = round(math.sqrt(area * aspect))
        h = round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return (
                int((height - h + 1) * place[0]),
                int((width - w + 1) * place[1]),
                h,
                w,
            )
    # No try fitted: the largest central box.
    w = min(width, round(height * CROP_ASPECT[1]))
    h = min(height, round(width / CROP_ASPECT[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def jittered(
    images: Tensor, orders: Tensor, factors: Tensor, lighting: Tensor
) -> Tensor:
    """Change brightness, contrast and saturation in the drawn orders, then add lighting.

    The result is a new float32 tensor.

    Each change blends the image with something darker or greyer: x <- f x + (1 - f) target, where
    the target is black for brightness, the mean of the grey image for contrast, and the grey image
    for saturation. The pixels are clamped to 0 to 255 after each, as images of bytes are, but are
    not rounded.

    Args:
        images: pixels of 0 to 255, shape (batch, 3, height, width), on any device.
        orders: see `Draws`, as the next two; on the CPU, from where they go to the device in one
            transfer.
    """
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    # Columns 0 to 2 the changes, 3 to 5 their factors in that order, 6 to 8 lighting.
    together = torch.cat([orders, factors.gather(1, orders), lighting], dim=1)
    drawn = to_device(together, pixels.device)
    changes = drawn[:, :3, None, None, None].unbind(1)
    factors_in_order = drawn[:, 3:6, None, None, None].unbind(1)
    for change, factor in zip(changes, factors_in_order, strict=True):
        # (batch, 1, height, width)
        grey = functional.rgb_to_grayscale(pixels)
        # Each image of the batch has a change of its own, so all targets are made.
        flat = grey.mean((2, 3), keepdim=True) * (change == CONTRAST)
        target = torch.where(change == SATURATION, grey, flat)
        # x + (1 - f) (target - x) = f x + (1 - f) target
        pixels.lerp_(target, 1 - factor).clamp_(0, 255)
    return pixels.add_(drawn[:, 6:, None, None]).clamp_(0, 255)
