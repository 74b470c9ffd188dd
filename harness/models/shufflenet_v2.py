"""ShuffleNet V2 as torchvision has it, for images of 224 x 224 or, with another stem, of about 32 x 32.

Source: Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design" (2018), through
`torchvision.models.shufflenet_v2_x1_0` and its siblings.

Deviations from torchvision: images with sides of at most 64 meet a stem whose convolution has stride 1, without
max-pooling, and images need not have three channels. Initial values are torchvision's.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision import models

SMALL_SIDE = 64
STEM_CHANNELS = 24
MAKERS = {
    0.5: models.shufflenet_v2_x0_5,
    1.0: models.shufflenet_v2_x1_0,
    1.5: models.shufflenet_v2_x1_5,
    2.0: models.shufflenet_v2_x2_0,
}


def build(input_shape: tuple[int, ...], num_classes: int, width: float = 1.0) -> nn.Module:
    """Three stages of 4, 8 and 4 units.

    Args:
        input_shape: (channels, height, width).
        num_classes: outputs.
        width: about the factor on the stages' channels: 0.5, 1.0, 1.5 or 2.0.
    """
    if type(width) not in (int, float) or width not in MAKERS:
        raise ValueError(f"width must be one of {', '.join(map(str, MAKERS))}, not {width!r}")
    # An object of a library without types; Any lets its attributes be reached.
    network: Any = MAKERS[width](weights=None, num_classes=num_classes)
    channels, *sides = input_shape
    small = max(sides) <= SMALL_SIDE
    if small:
        network.maxpool = nn.Identity()
    if small or channels != 3:
        stride = 1 if small else 2
        network.conv1[0] = nn.Conv2d(channels, STEM_CHANNELS, 3, stride=stride, padding=1, bias=False)
    model: nn.Module = network
    return model
