"""Augmentation against its definitions: other people's code, plain loops, and statistics of the
draws."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional

from cser_bench.harness.seeds import generator
from cser_bench.harness.tasks import augment
from cser_bench.harness.tasks.augment import (
    Draws,
    crop_box,
    draw,
    draw_shifts,
    shifted_crops,
)

MANY = 10_000
SMALLEST_AREA = 0.08
WIDEST_ASPECT = math.log(4 / 3)
"""The largest |log(width / height)| of a crop."""
ROOT_OF_12 = 12**0.5
"""A uniform distribution of width 1 has the standard deviation 1 over this."""


@pytest.fixture(scope="module")
def draws() -> Draws:
    return draw(generator("tests"), MANY, 0.4, 0.1)


def images(count: int, height: int = 9, width: int = 12) -> Tensor:
    pixels_drawn = generator("tests", "images")
    shape = (count, 3, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=pixels_drawn)


def test_padded_crops_equal_torchvisions_given_the_same_offsets() -> None:
    originals = images(7, 32, 32)
    index = torch.tensor([3, 0, 6, 3, 5, 1, 2, 4] * 4)
    drawn = generator("tests", "shifts")
    shifts = draw_shifts(drawn, len(index), 4)
    padded = torch.nn.functional.pad(originals, [4] * 4)
    crops = shifted_crops(padded, index, shifts, 32)
    for crop, number, shift in zip(crops, index, shifts.tolist(), strict=True):
        down, right, flip = shift
        original = originals[number]
        alone = functional.pad(original, [4])
        expected = functional.crop(alone, down, right, 32, 32)
        if flip:
            expected = functional.hflip(expected)
        assert torch.equal(crop, expected)


def assert_uniform(numbers: Tensor, num_kinds: int) -> None:
    """By chi-square of counts, p = 0.0001 by the normal approximation of Wilson and Hilferty."""
    _, counts = torch.unique(numbers, return_counts=True)
    assert len(counts) == num_kinds
    expected = len(numbers) / num_kinds
    squares = (counts.double() - expected) ** 2
    chi_square = (squares / expected).sum()
    freedom = num_kinds - 1
    spread = 2 / (9 * freedom)
    root = 1 - spread + 3.72 * spread**0.5
    assert chi_square < freedom * root**3


def test_offsets_and_flips_are_uniform_and_no_draw_touches_the_global_generator() -> (
    None
):
    before = torch.get_rng_state()
    shifts = draw_shifts(generator("tests"), MANY, 4)
    draw(generator("tests"), 3, 0.4, 0.1)
    assert torch.equal(torch.get_rng_state(), before)
    down, right, flips = shifts.unbind(1)
    assert_uniform(down, 9)
    assert_uniform(right, 9)
    assert_uniform(flips, 2)


def test_crops_have_the_areas_and_aspects_of_the_definition(draws: Draws) -> None:
    width = 3000
    height = 2500
    attempts = draws.attempts.tolist()
    places = draws.places.tolist()
    boxes = []
    for tried, place in zip(attempts, places, strict=True):
        box = crop_box(height, width, tried, place)
        boxes.append(box)
    table = torch.tensor(boxes, dtype=torch.float64)
    top, left, h, w = table.unbind(1)
    bottom = top + h
    right = left + w
    assert top.min() >= 0
    assert left.min() >= 0
    assert bottom.max() <= height
    assert right.max() <= width
    whole = width * height
    areas = h * w / whole
    aspects = (w / h).log()
    # Sides are whole pixels, which moves areas and aspects a little beyond their ends.
    assert areas.min() > SMALLEST_AREA - 0.0005
    assert areas.max() <= 1.0
    assert aspects.abs().max() < WIDEST_ASPECT + 0.003
    # Below half the area every shape fits, so there the draws are as drawn: uniform, and uniform in
    # the logarithm.
    small = areas < 0.5
    beyond_smallest = areas[small] - SMALLEST_AREA
    share = beyond_smallest / (0.5 - SMALLEST_AREA)
    count = len(share)
    steps = torch.arange(1, count + 1) / count
    off = share.sort().values - steps
    furthest = off.abs().max()
    # Kolmogorov-Smirnov, p = 0.001
    assert furthest < 1.95 / count**0.5
    of_small = aspects[small]
    assert abs(of_small.mean()) < 0.01
    deviation = 2 * WIDEST_ASPECT / ROOT_OF_12
    off_deviation = of_small.std() - deviation
    assert abs(off_deviation) < 0.005
    middle = left + w / 2
    centres = middle / width
    off_centre = centres.mean() - 0.5
    assert abs(off_centre) < 0.01


def test_crops_reach_every_edge_and_one_that_never_fits_is_central_and_of_a_permitted_shape() -> (
    None
):
    fits = [[0.2, 0.5]]
    first_corner = crop_box(100, 100, fits, [0.0, 0.0])
    assert first_corner == (0, 0, 51, 51)
    last_corner = crop_box(100, 100, fits, [0.9999, 0.9999])
    assert last_corner == (49, 49, 51, 51)
    never = [[0.99, 0.5]] * augment.CROP_ATTEMPTS
    place = [0.9, 0.9]
    wide = crop_box(30, 1000, never, place)
    high = crop_box(1000, 30, never, place)
    one_pixel = crop_box(1, 1, never, place)
    assert wide == (0, 480, 30, 40)
    assert high == (480, 0, 40, 30)
    assert one_pixel == (0, 0, 1, 1)


def test_factors_orders_and_flips_are_uniform(draws: Draws) -> None:
    factors = draws.factors
    assert factors.min() >= 0.6
    assert factors.max() <= 1.4
    off_mean = factors.mean(0) - 1
    assert off_mean.abs().max() < 0.006
    off_spread = factors.std(0) - 0.8 / ROOT_OF_12
    assert off_spread.abs().max() < 0.005
    places = draws.orders.sort(1).values
    is_in_place = places == torch.arange(3)
    assert is_in_place.all()
    # A number for each of the 3! orders.
    digits = torch.tensor([9, 3, 1])
    numbers = (draws.orders * digits).sum(1)
    assert_uniform(numbers, 6)
    assert_uniform(draws.flips, 2)


def test_lighting_has_the_covariance_of_its_principal_components(draws: Draws) -> None:
    vectors = torch.tensor(augment.LIGHTING_EIGENVECTORS)
    products = vectors.T @ vectors
    identity = torch.eye(3)
    assert torch.allclose(products, identity, atol=2e-3)
    along = draws.lighting @ vectors
    values = torch.tensor(augment.LIGHTING_EIGENVALUES)
    deviations = along.std(0)
    assert torch.allclose(deviations, 0.1 * values, rtol=0.03)
    correlations = torch.corrcoef(along.T)
    off_diagonal = correlations - identity
    assert off_diagonal.abs().max() < 0.03
    means = along.mean(0)
    assert means.abs().max() < 0.1


ORDERS = list(itertools.permutations(range(3)))


@pytest.mark.parametrize("order", ORDERS)
def test_jitter_equals_torchvisions_in_every_order(order: tuple[int, ...]) -> None:
    changes = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
    )
    factors = [1.37, 0.64, 1.29]
    batch = images(2)
    image, other = batch
    expected = image.float() / 255
    for each in order:
        change = changes[each]
        expected = change(expected, factors[each])
    # Beside another image, whose order and factors are its own.
    reverse = order[::-1]
    neutral = [1.0, 1.0, 1.0]
    orders = torch.tensor([order, reverse])
    both = torch.tensor([factors, neutral])
    no_lighting = torch.zeros(2, 3)
    pixels = augment.jittered(batch, orders, both, no_lighting)
    jittered, left_alone = pixels
    expected_pixels = 255 * expected
    assert torch.allclose(jittered, expected_pixels, atol=0.1)
    assert torch.allclose(left_alone, other.float(), atol=1e-3)
    assert torch.equal(batch, images(2))


def test_lighting_is_added_and_clamped() -> None:
    shape = (1, 3, 2, 2)
    bright = torch.full(shape, 250, dtype=torch.uint8)
    lighting = torch.tensor([[3.0, 9.0, -255.0]])
    orders = torch.tensor([[0, 1, 2]])
    factors = torch.ones(1, 3)
    pixels = augment.jittered(bright, orders, factors, lighting)
    first_pixel = pixels[0, :, 0, 0]
    expected = torch.tensor([253.0, 255.0, 0.0])
    assert torch.allclose(first_pixel, expected, atol=1e-3)
