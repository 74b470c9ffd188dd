"""Random augmentation of images: the draws, each row one image's, and plain functions of those draws."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.tasks.task import to_device

Channels = tuple[float, float, float]
"""A number each for red, green and blue."""

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in an image's grey version (ITU-R BT.601; those of PIL, torchvision and MXNet)."""

LIGHTING_EIGENVALUES = (55.46, 4.794, 1.148)
LIGHTING_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
"""Eigen-decomposition of the covariance of ImageNet's pixels in 0 to 255; columns are vectors, rows are colours.

Source: the operator `random_lighting` of Apache MXNet (src/operator/image/image_random-inl.h), which GluonCV's
`transforms.RandomLighting` calls; the method is that of Krizhevsky et al., NeurIPS 2012, section 4.1.
"""

CROP_AREA = (0.08, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
"""After so many boxes that do not fit, the largest central box of a permitted shape is taken, as torchvision does."""

CONTRAST, SATURATION = 1, 2
JITTER_ORDERS = torch.tensor([(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
"""The orders in which brightness (0), contrast (1) and saturation (2) are changed."""


@dataclass(frozen=True)
class Shifts:
    """Draws for padded crops: offsets, int64 of shape (batch, 2), down and right; flips, bool of shape (batch,)."""

    offsets: Tensor
    flips: Tensor


def draw_shifts(generator: torch.Generator, batch_size: int, padding: int) -> Shifts:
    """Offsets uniform in 0 to 2 `padding`, flips with probability 1/2."""
    offsets = torch.randint(2 * padding + 1, (batch_size, 2), generator=generator)
    return Shifts(offsets, torch.randint(2, (batch_size,), generator=generator).bool())


def moved(index: Tensor, shifts: Shifts, device: torch.device) -> tuple[Tensor, Shifts]:
    """The images to take, and what was drawn for them, on the device: in one transfer."""
    packed = to_device(torch.cat([index[:, None], shifts.offsets, shifts.flips[:, None]], dim=1), device)
    return packed[:, 0], Shifts(packed[:, 1:3], packed[:, 3].bool())


def shifted_crops(padded: Tensor, index: Tensor, shifts: Shifts, side: int) -> Tensor:
    """Crops of `side` x `side` out of padded images, mirrored where the draws say so; two gathers for the batch.

    Args:
        padded: shape (num_images, channels, height, width), contiguous.
        index, shifts: the images to take, int64 of shape (batch,), and their draws, on the device of `padded`.

    Returns:
        Shape (batch, channels, side, side).
    """
    _, channels, height, width = padded.shape
    along = torch.arange(side, device=padded.device)
    offsets, flips = shifts.offsets, shifts.flips
    # Whole rows first: they are copied in one go, where single pixels are not.
    planes = index[:, None] * channels + along[:channels]
    rows = planes[:, :, None] * height + (offsets[:, 0, None] + along)[:, None, :]
    lines = padded.view(-1, width).index_select(0, rows.view(-1)).view(len(index), channels, side, width)
    columns = offsets[:, 1, None] + torch.where(flips[:, None], side - 1 - along, along)
    return lines.gather(3, columns[:, None, None, :].expand(-1, channels, side, -1))


def normalised(images: Tensor, mean: Channels, standard_deviation: Channels) -> Tensor:
    """Pixels of 0 to 255 scaled to [0, 1] and normalised per channel; a new contiguous float32 tensor.

    Args:
        images: shape (batch, 3, height, width).
    """
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    normalise_(pixels, mean, standard_deviation)
    return pixels


def normalise_(pixels: Tensor, mean: Channels, standard_deviation: Channels) -> None:
    """Do what `normalised` does, in place."""
    scale, shift = _scale_and_shift(mean, standard_deviation, pixels.device)
    pixels.mul_(scale).add_(shift)


@functools.cache
def _scale_and_shift(mean: Channels, standard_deviation: Channels, device: torch.device) -> tuple[Tensor, Tensor]:
    scale = [1 / (255 * deviation) for deviation in standard_deviation]
    shift = [-centre / deviation for centre, deviation in zip(mean, standard_deviation, strict=True)]
    return torch.tensor(scale, device=device)[:, None, None], torch.tensor(shift, device=device)[:, None, None]


@dataclass(frozen=True)
class Draws:
    """Draws for one batch of ImageNet's augmentation; row i is image i's, whatever the batch's size.

    Attributes:
        attempts: in [0, 1), shape (batch, CROP_ATTEMPTS, 2): the crop's area and aspect, try by try.
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

    def row(self, number: int) -> Draws:
        """The draws of one image, as a batch of one."""
        return Draws(*(each[number : number + 1] for each in vars(self).values()))


def draw(generator: torch.Generator, batch_size: int, jitter: float, lighting: float) -> Draws:
    """Factors are uniform in 1 +- `jitter`, lighting's weights normal with standard deviation `lighting`."""
    # One call whose numbers are consumed row by row, so that a row does not depend on how many follow.
    uniform = torch.rand((batch_size, 2 * CROP_ATTEMPTS + 10), generator=generator, dtype=torch.float64)
    attempts, places, flips, orders, factors, weights = torch.split(uniform, [2 * CROP_ATTEMPTS, 2, 1, 1, 3, 3], dim=1)
    normal = torch.special.ndtri(weights.clamp(min=2.0**-53))
    scaled = torch.tensor(LIGHTING_EIGENVECTORS, dtype=torch.float64) * torch.tensor(LIGHTING_EIGENVALUES)
    return Draws(
        attempts=attempts.view(batch_size, CROP_ATTEMPTS, 2),
        places=places,
        flips=flips[:, 0] < 0.5,
        orders=JITTER_ORDERS[(orders[:, 0] * len(JITTER_ORDERS)).long()],
        factors=(1 + jitter * (2 * factors - 1)).float(),
        lighting=(lighting * normal @ scaled.T).float(),
    )


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels."""

    left: int
    top: int
    width: int
    height: int


def crop_box(width: int, height: int, attempts: Sequence[Sequence[float]], place: Sequence[float]) -> Box:
    """The box of a random resized crop: its area's share uniform, its aspect's logarithm uniform.

    Args:
        width, height: of the image.
        attempts, place: a row of `Draws.attempts` and of `Draws.places`.
    """
    low, high = math.log(CROP_ASPECT[0]), math.log(CROP_ASPECT[1])
    for area_draw, aspect_draw in attempts:
        area = width * height * (CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * area_draw)
        aspect = math.exp(low + (high - low) * aspect_draw)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int((width - w + 1) * place[1]), int((height - h + 1) * place[0]), w, h)
    w = min(width, round(height * CROP_ASPECT[1]))
    h = min(height, round(width / CROP_ASPECT[0]))
    return Box((width - w) // 2, (height - h) // 2, w, h)


def photometric(images: Tensor, draws: Draws, mean: Channels, standard_deviation: Channels) -> Tensor:
    """Jittered, lit and normalised images; see `jitter_and_light_`. A new contiguous float32 tensor.

    Args:
        images: pixels of 0 to 255, shape (batch, 3, height, width), on any device.
    """
    pixels = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    # On a CPU an image is done with before the next, since one fits its cache and a batch does not.
    size = 1 if images.device.type == "cpu" else max(1, len(images))
    for start in range(0, len(images), size):
        rows = slice(start, start + size)
        part = pixels[rows].copy_(images[rows])
        jitter_and_light_(part, draws.orders[rows], draws.factors[rows], draws.lighting[rows])
        normalise_(part, mean, standard_deviation)
    return pixels


def jitter_and_light_(pixels: Tensor, orders: Tensor, factors: Tensor, lighting: Tensor) -> None:
    """Change brightness, contrast and saturation in the drawn orders, then add lighting; in place.

    Each change blends the image with something darker or greyer: x <- f x + (1 - f) target, where the target is black
    for brightness, the mean of the grey image for contrast, and the grey image for saturation. The pixels are clamped
    to 0 to 255 after each, as images of bytes are, but are not rounded.

    Args:
        pixels: of 0 to 255, float32, shape (batch, 3, height, width), on any device.
        orders, factors, lighting: see `Draws`; on the CPU, from where they go to the device in one transfer.
    """
    amounts = to_device(torch.cat([_amounts(orders, factors), lighting], dim=1), pixels.device)
    for place, change in enumerate(orders.T):
        factor, contrast, saturation = amounts[:, 3 * place : 3 * place + 3].unbind(1)
        _blend_(
            pixels,
            factor,
            contrast if (change == CONTRAST).any() else None,
            saturation if (change == SATURATION).any() else None,
        )
    pixels.add_(amounts[:, 9:, None, None]).clamp_(0, 255)


def _amounts(orders: Tensor, factors: Tensor) -> Tensor:
    """The factor of each change in its turn and the weights of its two targets, of which one at most counts.

    Shape (batch, 9): the targets are the mean of the grey image, for contrast, and the grey image, for saturation.
    """
    factors = factors.gather(1, orders)
    rest = 1 - factors
    return torch.stack([factors, rest * (orders == CONTRAST), rest * (orders == SATURATION)], dim=2).flatten(1)


def _blend_(pixels: Tensor, factors: Tensor, contrast: Tensor | None, saturation: Tensor | None) -> None:
    """One change to every image, by its factor and towards its targets; all of shape (batch,).

    `contrast` and `saturation` are the weights of these targets, None where no image has them.
    """
    targets = []
    if contrast is not None:
        grey = pixels.mean((2, 3)) @ _grey(pixels.device)
        targets.append((grey * contrast)[:, None, None, None])
    if saturation is not None:
        greys = (pixels[:, 0] * GREY[0]).add_(pixels[:, 1], alpha=GREY[1]).add_(pixels[:, 2], alpha=GREY[2])
        targets.append(greys.mul_(saturation[:, None, None])[:, None])
    pixels.mul_(factors[:, None, None, None])
    for target in targets:
        pixels.add_(target)
    pixels.clamp_(0, 255)


@functools.cache
def _grey(device: torch.device) -> Tensor:
    return torch.tensor(GREY, device=device)
