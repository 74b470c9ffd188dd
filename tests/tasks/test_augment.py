"""Augmentation against its definitions: other people's code, plain loops, and statistics of the draws."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional

from harness.seeds import generator
from harness.tasks import augment
from harness.tasks.augment import Box, Draws, crop_box, draw, draw_shifts, shifted_crops

MANY = 10_000


@pytest.fixture(scope="module")
def draws() -> Draws:
    return draw(generator("tests"), MANY, 0.4, 0.1)


def images(count: int, height: int = 9, width: int = 12) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator("tests", "images"))


def test_padded_crops_equal_torchvisions_given_the_same_offsets() -> None:
    originals, index = images(7, 32, 32), torch.tensor([3, 0, 6, 3, 5, 1, 2, 4] * 4)
    shifts = draw_shifts(generator("tests", "shifts"), len(index), 4)
    crops = shifted_crops(torch.nn.functional.pad(originals, [4] * 4), index, shifts, 32)
    for crop, number, (down, right), flip in zip(crops, index, shifts.offsets.tolist(), shifts.flips, strict=True):
        expected = functional.crop(functional.pad(originals[number], [4]), down, right, 32, 32)
        assert torch.equal(crop, functional.hflip(expected) if flip else expected)


def test_offsets_and_flips_are_uniform() -> None:
    shifts = draw_shifts(generator("tests"), MANY, 4)
    for axis in (0, 1):
        counts = torch.bincount(shifts.offsets[:, axis], minlength=9).double()
        assert len(counts) == 9
        assert ((counts - MANY / 9) ** 2 / (MANY / 9)).sum() < 26.1  # chi-square, 8 degrees of freedom, p = 0.001
    assert abs(shifts.flips.double().mean() - 0.5) < 0.017


def test_a_row_of_draws_depends_neither_on_the_batch_nor_on_the_global_generator() -> None:
    before = torch.get_rng_state()
    few, more = (draw(generator("tests", 1), count, 0.4, 0.1) for count in (3, 33))
    for name in ("attempts", "places", "flips", "orders", "factors", "lighting"):
        assert torch.equal(getattr(few, name), getattr(more, name)[:3])
    draw_shifts(generator("tests"), 4, 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_crops_have_the_areas_and_aspects_of_the_definition(draws: Draws) -> None:
    width, height = 3000, 2500
    rows = zip(draws.attempts.tolist(), draws.places.tolist(), strict=True)
    boxes = [crop_box(width, height, *row) for row in rows]
    for box in boxes:
        assert 0 <= box.left <= width - box.width and 0 <= box.top <= height - box.height
    areas = torch.tensor([box.width * box.height / (width * height) for box in boxes], dtype=torch.float64)
    aspects = torch.tensor([math.log(box.width / box.height) for box in boxes], dtype=torch.float64)
    assert areas.min() > 0.0795 and areas.max() <= 1.0
    assert aspects.abs().max() < math.log(4 / 3) + 0.003
    # Below half the area every shape fits, so there the draws are as drawn: uniform, and uniform in the logarithm.
    small = areas < 0.5
    share = ((areas[small] - 0.08) / 0.42).sort().values
    steps = torch.arange(1, len(share) + 1) / len(share)
    assert (share - steps).abs().max() < 1.95 / len(share) ** 0.5  # Kolmogorov-Smirnov, p = 0.001
    assert abs(aspects[small].mean()) < 0.01
    assert abs(aspects[small].std() - 2 * math.log(4 / 3) / 12**0.5) < 0.005
    centres = torch.tensor([(box.left + box.width / 2) / width for box in boxes], dtype=torch.float64)
    assert abs(centres.mean() - 0.5) < 0.01


def test_crops_reach_every_edge_and_one_that_never_fits_is_central_and_of_a_permitted_shape() -> None:
    assert crop_box(100, 100, [[0.2, 0.5]], [0.0, 0.0]) == Box(0, 0, 51, 51)
    assert crop_box(100, 100, [[0.2, 0.5]], [0.9999, 0.9999]) == Box(49, 49, 51, 51)
    never = [[0.99, 0.5]] * augment.CROP_ATTEMPTS
    assert crop_box(1000, 30, never, [0.9, 0.9]) == Box(480, 0, 40, 30)
    assert crop_box(30, 1000, never, [0.9, 0.9]) == Box(0, 480, 30, 40)
    assert crop_box(1, 1, never, [0.9, 0.9]) == Box(0, 0, 1, 1)


def test_factors_orders_and_flips_are_uniform(draws: Draws) -> None:
    assert draws.factors.min() >= 0.6 and draws.factors.max() <= 1.4
    assert (draws.factors.mean(0) - 1).abs().max() < 0.006
    assert (draws.factors.std(0) - 0.8 / 12**0.5).abs().max() < 0.005
    codes = (draws.orders * torch.tensor([9, 3, 1])).sum(1)
    kinds, counts = torch.unique(codes, return_counts=True)
    assert len(kinds) == 6 and (draws.orders.sort(1).values == torch.arange(3)).all()
    assert ((counts - MANY / 6) ** 2 / (MANY / 6)).sum() < 20.5  # chi-square, 5 degrees of freedom, p = 0.001
    assert abs(draws.flips.double().mean() - 0.5) < 0.017


def test_lighting_has_the_covariance_of_its_principal_components(draws: Draws) -> None:
    vectors = torch.tensor(augment.LIGHTING_EIGENVECTORS, dtype=torch.float64)
    values = torch.tensor(augment.LIGHTING_EIGENVALUES, dtype=torch.float64)
    assert torch.allclose(vectors.T @ vectors, torch.eye(3, dtype=torch.float64), atol=2e-3)
    lighting = draws.lighting.double()
    assert lighting.mean(0).abs().max() < 0.1
    along = lighting @ vectors
    assert torch.allclose(along.std(0), 0.1 * values, rtol=0.03)
    correlation = torch.corrcoef(along.T)
    assert (correlation - torch.eye(3)).abs().max() < 0.03
    assert abs((along[:, 0] / along[:, 0].std()).abs().lt(1).double().mean() - 0.6827) < 0.01  # as normal as that


@pytest.mark.parametrize("order", augment.JITTER_ORDERS.tolist())
def test_jitter_equals_torchvisions_in_every_order(order: list[int]) -> None:
    changes = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    factors = [1.37, 0.64, 1.29]
    (image,) = images(1)
    expected = image.float() / 255
    for each in order:
        expected = changes[each](expected, factors[each])
    pixels = image.float()[None]
    augment.jitter_and_light_(pixels, torch.tensor([order]), torch.tensor([factors]), torch.zeros(1, 3))
    assert torch.allclose(pixels[0], 255 * expected, atol=0.1)  # its grey has 0.2989 where PIL's has 0.299


def test_photometric_is_jitter_lighting_and_normalisation_image_by_image() -> None:
    batch, draws = images(4), draw(generator("tests", 2), 4, 0.4, 0.1)
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    out = augment.photometric(batch, draws, mean, deviation)
    whole = batch.float()
    augment.jitter_and_light_(whole, draws.orders, draws.factors, draws.lighting)
    assert torch.allclose(out, functional.normalize(whole / 255, mean, deviation), atol=1e-4)
    assert torch.equal(batch, images(4))


def test_lighting_is_added_and_clamped() -> None:
    pixels = torch.full((1, 3, 2, 2), 250.0)
    augment.jitter_and_light_(pixels, torch.tensor([[0, 1, 2]]), torch.ones(1, 3), torch.tensor([[3.0, 9.0, -255.0]]))
    assert torch.allclose(pixels[0, :, 0, 0], torch.tensor([253.0, 255.0, 0.0]), atol=1e-3)
