"""A small DenseNet, for images of about 28 x 28 on a laptop.

Source: Huang et al., "Densely Connected Convolutional Networks" (2017), through `torchvision.models.DenseNet`: with
bottlenecks of twice the growth rate, compression by 1/2, and a stem of a 3 x 3 convolution of stride 3 without pooling.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision import models


def build(input_shape: tuple[int, ...], num_classes: int, growth_rate: int, blocks: list[int]) -> nn.Module:
    """Dense blocks with a transition, which halves the image, between each two.

    Args:
        input_shape: (channels, height, width).
        num_classes: outputs.
        growth_rate: channels that each layer adds; the stem has as many.
        blocks: layers of each dense block.
    """
    channels, *sides = input_shape
    if type(growth_rate) is not int or growth_rate < 1:
        raise ValueError(f"growth_rate must be a whole number of at least 1, not {growth_rate!r}")
    if not blocks or any(type(layers) is not int or layers < 1 for layers in blocks):
        raise ValueError(f"blocks must be whole numbers of at least 1, not {blocks!r}")
    smallest = 3 * 2 ** (len(blocks) - 1)
    if min(sides) < smallest:
        raise ValueError(f"small_densenet takes images with sides of at least {smallest}, not {tuple(sides)}")
    # An object of a library without types; Any lets its attributes be reached.
    network: Any = models.DenseNet(
        growth_rate, tuple(blocks), num_init_features=growth_rate, bn_size=2, num_classes=num_classes
    )
    network.features.pool0 = nn.Identity()
    network.features.conv0 = nn.Conv2d(channels, growth_rate, 3, stride=3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.features.conv0.weight)
    model: nn.Module = network
    return model
