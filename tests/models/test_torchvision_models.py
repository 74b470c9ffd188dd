"""The networks taken from torchvision: its own in their native form, and what a small image changes in them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from harness.models import densenet121, resnet50, shufflenet_v2


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def stem_difference(channels: int, kernel: int) -> int:
    """What a 3 x 3 kernel on colour images saves."""
    return 3 * channels * (kernel**2 - 9)


# Of torchvision's table of models.
@pytest.mark.parametrize(
    ("name", "options", "published", "stem", "features"),
    [
        ("resnet50", {}, 25_557_032, stem_difference(64, 7), 2048),
        ("resnet50", {"width": 128}, 68_883_240, stem_difference(64, 7), 2048),
        ("densenet121", {}, 7_978_856, stem_difference(64, 7), 1024),
        ("shufflenet_v2", {"width": 0.5}, 1_366_792, 0, 1024),
        ("shufflenet_v2", {"width": 1.0}, 2_278_604, 0, 1024),
        ("shufflenet_v2", {"width": 1}, 2_278_604, 0, 1024),
        ("shufflenet_v2", {"width": 1.5}, 3_503_624, 0, 1024),
        ("shufflenet_v2", {"width": 2.0}, 7_393_996, 0, 2048),
    ],
)
def test_counts(name: str, options: dict[str, Any], published: int, stem: int, features: int) -> None:
    build = import_module(f"harness.models.{name}").build
    with torch.device("meta"):
        assert count(build((3, 224, 224), 1000, **options)) == published
        assert count(build((3, 32, 32), 100, **options)) == published - stem - 900 * (features + 1)


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("resnet50", models.resnet50),
        ("densenet121", models.densenet121),
        ("shufflenet_v2", models.shufflenet_v2_x1_0),
    ],
)
def test_for_large_images_it_is_torchvisions_own(name: str, original: Any) -> None:
    torch.manual_seed(3)
    found = import_module(f"harness.models.{name}").build((3, 224, 224), 10).state_dict()
    torch.manual_seed(3)
    expected = original(weights=None, num_classes=10).state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_resnet50_can_start_with_every_block_its_shortcut() -> None:
    for zero in False, True:
        model = resnet50.build((3, 32, 32), 10, width=4, zero_init_residual=zero)
        last = [module.weight for key, module in model.named_modules() if key.endswith("bn3")]
        assert len(last) == 16
        assert all(bool(weight.any()) != zero for weight in last)


def test_a_new_stem_is_drawn_as_torchvision_draws() -> None:
    torch.manual_seed(0)
    stem = resnet50.build((3, 32, 32), 10, width=4).get_parameter("conv1.weight")
    assert stem.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.1)
    stem = densenet121.build((3, 32, 32), 10, growth_rate=16).get_parameter("features.conv0.weight")
    assert stem.std().item() == pytest.approx((2 / (9 * 3)) ** 0.5, rel=0.1)
    stem = shufflenet_v2.build((3, 32, 32), 10, width=0.5).get_parameter("conv1.0.weight")
    assert stem.abs().max().item() <= (1 / (9 * 3)) ** 0.5


def test_densenet121_refuses_what_its_transitions_cannot_halve() -> None:
    with pytest.raises(ValueError, match="at least 8"):
        densenet121.build((1, 7, 8), 10)
