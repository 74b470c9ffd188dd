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


@pytest.fixture(scope="module")
def draws() -> Draws:
    return draw(generator("tests"), MANY, 0.4, 0.1)


def images(count: int, height: int = 9, width: int = 12) -> Tensor:
    return torch.randint(
        0,
        256,
        (count, 3, height, width),
        dtype=torch.uint8,
        generator=generator("tests", "images"),
    )


def test_padded_crops_equal_torchvisions_given_the_same_offsets() -> None:
    originals = images(7, 32, 32)
    index = torch.tensor([3, 0, 6, 3, 5, 1, 2, 4] * 4)
    shifts = draw_shifts(generator("tests", "shifts"), len(index), 4)
    crops = shifted_crops(
        torch.nn.functional.pad(originals, [4] * 4), index, shifts, 32
    )
    for crop, number, (down, right, flip) in zip(
        crops, index, shifts.tolist(), strict=True
    ):
        expected = functional.crop(
            functional.pad(originals[number], [4]), down, right, 32, 32
        )
        assert torch.equal(crop, functional.hflip(expected) if flip else expected)


def assert_uniform(numbers: Tensor, num_kinds: int) -> None:
    """By chi-square of counts, p = 0.0001 by the normal approximation of Wilson and Hilferty."""
    counts = torch.unique(numbers, return_counts=True)[1].double()
    expected = len(numbers) / num_kinds
    freedom = num_kinds - 1
    assert len(counts) == num_kinds
    spread = 2 / (9 * freedom)
    assert ((counts - expected) ** 2 / expected).sum() < freedom * (
        1 - spread + 3.72 * spread**0.5
    ) ** 3


def test_offsets_and_flips_are_uniform_and_no_draw_touches_the_global_generator() -> (
    None
):
    before = torch.get_rng_state()
    shifts = draw_shifts(generator("tests"), MANY, 4)
    draw(generator("tests"), 3, 0.4, 0.1)
    assert torch.equal(torch.get_rng_state(), before)
    for column, num_kinds in enumerate((9, 9, 2)):
        assert_uniform(shifts[:, column], num_kinds)


def test_crops_have_the_areas_and_aspects_of_the_definition(draws: Draws) -> None:
    width = 3000
    height = 2500
    rows = zip(draws.attempts.tolist(), draws.places.tolist(), strict=True)
    top, left, h, w = torch.tensor(
        [crop_box(height, width, *row) for row in rows], dtype=torch.float64
    ).unbind(1)
    assert top.min() >= 0
    assert left.min() >= 0
    assert (top + h).max() <= height
    assert (left + w).max() <= width
    areas = h * w / (width * height)
    aspects = (w / h).log()
    assert areas.min() > 0.0795
    assert areas.max() <= 1.0
    assert aspects.abs().max() < math.log(4 / 3) + 0.003
    # Below half the area every shape fits, so there the draws are as drawn: uniform, and uniform in
    # the logarithm.
    small = areas < 0.5
    share = ((areas[small] - 0.08) / 0.42).sort().values
    steps = torch.arange(1, len(share) + 1) / len(share)
    # Kolmogorov-Smirnov, p = 0.001
    assert (share - steps).abs().max() < 1.95 / len(share) ** 0.5
    assert abs(aspects[small].mean()) < 0.01
    assert abs(aspects[small].std() - 2 * math.log(4 / 3) / 12**0.5) < 0.005
    assert abs(((left + w / 2) / width).mean() - 0.5) < 0.01


def test_crops_reach_every_edge_and_one_that_never_fits_is_central_and_of_a_permitted_shape() -> (
    None
):
    assert crop_box(100, 100, [[0.2, 0.5]], [0.0, 0.0]) == (0, 0, 51, 51)
    assert crop_box(100, 100, [[0.2, 0.5]], [0.9999, 0.9999]) == (49, 49, 51, 51)
    never = [[0.99, 0.5]] * augment.CROP_ATTEMPTS
    assert crop_box(30, 1000, never, [0.9, 0.9]) == (0, 480, 30, 40)
    assert crop_box(1000, 30, never, [0.9, 0.9]) == (480, 0, 40, 30)
    assert crop_box(1, 1, never, [0.9, 0.9]) == (0, 0, 1, 1)


def test_factors_orders_and_flips_are_uniform(draws: Draws) -> None:
    assert draws.factors.min() >= 0.6
    assert draws.factors.max() <= 1.4
    assert (draws.factors.mean(0) - 1).abs().max() < 0.006
    assert (draws.factors.std(0) - 0.8 / 12**0.5).abs().max() < 0.005
    assert (draws.orders.sort(1).values == torch.arange(3)).all()
    assert_uniform((draws.orders * torch.tensor([9, 3, 1])).sum(1), 6)
    assert_uniform(draws.flips, 2)


def test_lighting_has_the_covariance_of_its_principal_components(draws: Draws) -> None:
    vectors = torch.tensor(augment.LIGHTING_EIGENVECTORS)
    assert torch.allclose(vectors.T @ vectors, torch.eye(3), atol=2e-3)
    along = draws.lighting @ vectors
    assert torch.allclose(
        along.std(0), 0.1 * torch.tensor(augment.LIGHTING_EIGENVALUES), rtol=0.03
    )
    assert (torch.corrcoef(along.T) - torch.eye(3)).abs().max() < 0.03
    assert along.mean(0).abs().max() < 0.1


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_jitter_equals_torchvisions_in_every_order(order: tuple[int, ...]) -> None:
    changes = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
    )
    factors = [1.37, 0.64, 1.29]
    image, other = batch = images(2)
    expected = image.float() / 255
    for each in order:
        expected = changes[each](expected, factors[each])
    # Beside another image, whose order and factors are its own.
    orders = torch.tensor([order, order[::-1]])
    both = torch.tensor([factors, [1.0, 1.0, 1.0]])
    pixels = augment.jittered(batch, orders, both, torch.zeros(2, 3))
    assert torch.allclose(pixels[0], 255 * expected, atol=0.1)
    assert torch.allclose(pixels[1], other.float(), atol=1e-3)
    assert torch.equal(batch, images(2))


def test_lighting_is_added_and_clamped() -> None:
    bright = torch.full((1, 3, 2, 2), 250, dtype=torch.uint8)
    lighting = torch.tensor([[3.0, 9.0, -255.0]])
    pixels = augment.jittered(
        bright, torch.tensor([[0, 1, 2]]), torch.ones(1, 3), lighting
    )
    assert torch.allclose(
        pixels[0, :, 0, 0], torch.tensor([253.0, 255.0, 0.0]), atol=1e-3
    )
