"""ResNet-50 as torchvision has it ("version 1.5"), for images of 224 x 224 or, with another stem, of about 32 x 32.

Source: He et al., "Deep Residual Learning for Image Recognition" (2016), through `torchvision.models.resnet50`.

Deviations of torchvision's from the article: the stride is in the 3 x 3 convolution of a block, not in the first 1 x 1.
Deviations from torchvision: images with sides of at most 64 meet a stem of a 3 x 3 convolution of stride 1 without
max-pooling, and images need not have three channels. Initial values are torchvision's.
"""

from __future__ import annotations

from torch import nn
from torchvision import models

SMALL_SIDE = 64


def build(
    input_shape: tuple[int, ...], num_classes: int, width: int = 64, zero_init_residual: bool = False
) -> nn.Module:
    """Four stages of 3, 4, 6 and 3 bottlenecks.

    Args:
        input_shape: (channels, height, width).
        num_classes: outputs.
        width: channels of the 3 x 3 convolutions in the first stage, torchvision's `width_per_group`; it widens these
            convolutions in all stages and leaves what a block takes and gives (256 to 2048 channels) as it is.
        zero_init_residual: start the last batch norm of every block with zero weights, so that a block is its shortcut.
    """
    if type(width) is not int or width < 1:
        raise ValueError(f"width must be a whole number of at least 1, not {width!r}")
    if type(zero_init_residual) is not bool:
        raise ValueError(f"zero_init_residual must be true or false, not {zero_init_residual!r}")
    model: nn.Module = models.resnet50(
        weights=None, num_classes=num_classes, width_per_group=width, zero_init_residual=zero_init_residual
    )
    channels, *sides = input_shape
    small = max(sides) <= SMALL_SIDE
    if small:
        model.maxpool = nn.Identity()
    if small or channels != 3:
        kernel, stride = (3, 1) if small else (7, 2)
        stem = nn.Conv2d(channels, 64, kernel, stride=stride, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        model.conv1 = stem
    return model
