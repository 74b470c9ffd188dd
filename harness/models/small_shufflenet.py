"""A small ShuffleNet V2, for images of about 28 x 28 on a laptop.

Source: Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design" (2018), through
`torchvision.models.ShuffleNetV2`, with a stem of a 3 x 3 convolution of stride 2 without pooling.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision import models


def build(input_shape: tuple[int, ...], num_classes: int, units: list[int], widths: list[int]) -> nn.Module:
    """Three stages, each of which halves the image.

    Args:
        input_shape: (channels, height, width).
        num_classes: outputs.
        units: of each of the three stages.
        widths: channels of the stem, the three stages and the last convolution.
    """
    for name, numbers, wanted in (("units", units, 3), ("widths", widths, 5)):
        if len(numbers) != wanted or any(type(number) is not int or number < 1 for number in numbers):
            raise ValueError(f"{name} must be {wanted} whole numbers of at least 1, not {numbers!r}")
    if any(width % 2 for width in widths[1:4]):
        raise ValueError(f"widths must be even in the three stages, which split them, not {widths!r}")
    # An object of a library without types; Any lets its attributes be reached.
    network: Any = models.ShuffleNetV2(units, widths, num_classes=num_classes)
    network.maxpool = nn.Identity()
    network.conv1[0] = nn.Conv2d(input_shape[0], widths[0], 3, stride=2, padding=1, bias=False)
    model: nn.Module = network
    return model
