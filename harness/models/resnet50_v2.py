"""ResNet-50 with pre-activation ("version 2"), for images of 224 x 224 or, with another stem, of about 32 x 32.

Source: He et al., "Identity Mappings in Deep Residual Networks" (2016), in the form of GluonCV's `resnet50_v2`, which
the CSER authors trained.

That form has a batch norm without affine parameters on the input, and the stride in the 3 x 3 convolution of a block
(the article's code has it in the first 1 x 1). Of images with sides of at most 64 the stem is GluonCV's `thumbnail`: a
bare 3 x 3 convolution of stride 1.

Initial values are those of the CSER authors' script, MXNet's `MSRAPrelu()`: normal weights of variance
2 / (1 + 0.25^2) over the mean of fan-in and fan-out, zero biases.

Deviations: `width` is an addition, and the precision (the authors': float16 with a float32 copy) is up to the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = (3, 4, 6, 3)
SMALL_SIDE = 64
EXPANSION = 4
"""Channels of a block's output for each channel of its 3 x 3 convolution."""


def build(input_shape: tuple[int, ...], num_classes: int, width: int = 64) -> nn.Module:
    """Four stages of 3, 4, 6 and 3 bottlenecks.

    Args:
        input_shape: (channels, height, width).
        num_classes: outputs.
        width: channels of the stem, and of the 3 x 3 convolutions in the first stage; all other widths follow it.
    """
    if type(width) is not int or width < 1:
        raise ValueError(f"width must be a whole number of at least 1, not {width!r}")
    stages: list[nn.Module] = []
    in_channels = width
    for number, num_blocks in enumerate(BLOCKS):
        channels = EXPANSION * width * 2**number
        stages.append(stage(PreActivationBottleneck, in_channels, channels, num_blocks, stride=1 if number == 0 else 2))
        in_channels = channels
    model = nn.Sequential(
        *_stem(input_shape, width),
        *stages,
        *head(in_channels, num_classes),
    )
    model.apply(_initialise)
    return model


class PreActivationBottleneck(nn.Module):
    """Convolutions of 1 x 1, 3 x 3 and 1 x 1, each after batch norm and ReLU, added to the input."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        middle = channels // EXPANSION
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, middle, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, channels, 1, bias=False)
        changes = channels != in_channels  # a stride comes only with more channels
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x), inplace=True)
        # A projection starts from the activated input; the identity, from the input itself.
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        branch: Tensor = self.conv1(activated)
        branch = self.conv2(F.relu(self.bn2(branch), inplace=True))
        branch = self.conv3(F.relu(self.bn3(branch), inplace=True))
        return branch + shortcut


def _stem(input_shape: tuple[int, ...], width: int) -> list[nn.Module]:
    in_channels = input_shape[0]
    normalise = nn.BatchNorm2d(in_channels, affine=False)
    if max(input_shape[1:]) <= SMALL_SIDE:
        return [normalise, nn.Conv2d(in_channels, width, 3, padding=1, bias=False)]
    return [
        normalise,
        nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]


def stage(
    block: Callable[[int, int, int], nn.Module], in_channels: int, channels: int, num_blocks: int, stride: int
) -> nn.Sequential:
    """So many blocks, which are made from channels in, channels out, and stride; the first one has the stride."""
    first = block(in_channels, channels, stride)
    return nn.Sequential(first, *(block(channels, channels, 1) for _ in range(num_blocks - 1)))


def head(channels: int, num_classes: int) -> list[nn.Module]:
    """What follows the last stage of a network with pre-activation."""
    normalise = nn.BatchNorm2d(channels)
    return [normalise, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_normal_(module.weight, gain=math.sqrt(2 / (1 + 0.25**2)))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
