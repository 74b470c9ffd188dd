"""DenseNet-121 as torchvision has it, for images of 224 x 224 or, with another stem, of about 32 x 32.

Source: Huang et al., "Densely Connected Convolutional Networks" (2017), through `torchvision.models.DenseNet`: with
bottlenecks and compression by 1/2, what the article calls DenseNet-BC.

Deviations from torchvision: images with sides of at most 64 meet a stem of a 3 x 3 convolution of stride 1 without
max-pooling, and images need not have three channels. Initial values are torchvision's.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision import models

SMALL_SIDE = 64
SMALLEST_SIDE = 8
"""Three transitions halve the image."""


def build(input_shape: tuple[int, ...], num_classes: int, growth_rate: int = 32) -> nn.Module:
    """Four dense blocks of 6, 12, 24 and 16 layers.

    Args:
        input_shape: (channels, height, width).
        num_classes: outputs.
        growth_rate: channels that each layer adds; the stem has twice as many, as in the article.
    """
    channels, *sides = input_shape
    if type(growth_rate) is not int or growth_rate < 1:
        raise ValueError(f"growth_rate must be a whole number of at least 1, not {growth_rate!r}")
    if min(sides) < SMALLEST_SIDE:
        raise ValueError(f"densenet121 takes images with sides of at least {SMALLEST_SIDE}, not {tuple(sides)}")
    width = 2 * growth_rate
    # An object of a library without types; Any lets its attributes be reached.
    network: Any = models.DenseNet(growth_rate=growth_rate, num_init_features=width, num_classes=num_classes)
    small = max(sides) <= SMALL_SIDE
    if small:
        network.features.pool0 = nn.Identity()
    if small or channels != 3:
        kernel, stride = (3, 1) if small else (7, 2)
        stem = nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(stem.weight)
        network.features.conv0 = stem
    model: nn.Module = network
    return model
