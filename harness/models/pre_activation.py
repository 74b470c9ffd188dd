"""ResNets with pre-activation, in the forms of GluonCV that the CSER authors trained: ResNet-50 v2 and Wide ResNet.

Sources: He et al., "Identity Mappings in Deep Residual Networks" (2016), as GluonCV's `resnet50_v2`; Zagoruyko and
Komodakis, "Wide Residual Networks" (2016), without dropout, as GluonCV's `cifar_wideresnet40_8`.

These forms have a batch norm without affine parameters on the input. ResNet-50 v2 has the stride in the 3 x 3
convolution of a block (the article's code has it in the first 1 x 1), and of images with sides of at most 64 its stem
is GluonCV's `thumbnail`: a bare 3 x 3 convolution of stride 1. Wide ResNet has a batch norm without ReLU between the
first convolution and the first block.

Parameters of Wide ResNet d-k, d = 6n + 4, C classes, from c channels, with w = 16k, 32k, 64k the stages' channels and
u = 16, 16k, 32k what enters them:
    144c + 32 + sum over stages of [9uw + 9(2n - 1)w^2 + 2u + 2(2n - 1)w + (uw where u != w)] + 128k + 64kC + C
in 18n + 10 tensors (18n + 9 where k = 1). For 40-8, 3 channels and 100 classes: 35,794,516 in 118.

Initial values are those of the CSER authors' scripts, with zero biases. ResNet-50 v2: MXNet's `MSRAPrelu()`, normal
weights of variance 2 / (1 + 0.25^2) over the mean of fan-in and fan-out. Wide ResNet: MXNet's `Xavier()`, Glorot
uniform weights.

Deviations: ResNet-50's `width` is an addition, and the precision (the authors': float16 with a float32 copy) is up to
the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

SMALL_SIDE = 64
EXPANSION = 4
"""Channels of a bottleneck's output for each channel of its 3 x 3 convolution."""


def resnet50_v2(input_shape: tuple[int, ...], num_classes: int, width: int = 64) -> nn.Module:
    """Four stages of 3, 4, 6 and 3 bottlenecks.

    Args:
        input_shape: (channels, height, width).
        num_classes: outputs.
        width: channels of the stem, and of the 3 x 3 convolutions in the first stage; all other widths follow it.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, not {width}")
    channels = [EXPANSION * width * 2**number for number in range(4)]
    entering = [width, *channels]
    stages = [
        _stage(PreActivationBottleneck, *sizes, stride=2 if number else 1)
        for number, sizes in enumerate(zip(entering, channels, (3, 4, 6, 3), strict=False))
    ]
    model = nn.Sequential(*_stem(input_shape, width), *stages, *_head(channels[-1], num_classes))
    gain = math.sqrt(2 / (1 + 0.25**2))
    return model.apply(partial(_initialise, lambda weight: nn.init.xavier_normal_(weight, gain=gain)))


def wide_resnet(input_shape: tuple[int, ...], num_classes: int, depth: int, width: int) -> nn.Module:
    """Three stages of n blocks, the second and third at half the resolution of the one before.

    Args:
        input_shape: (channels, height, width), of about 32 x 32.
        num_classes: outputs.
        depth: 6n + 4, for n blocks in each of three stages.
        width: the factor k; the stages have 16k, 32k and 64k channels.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth must be 6n + 4 (10, 16, 22, 28, 34, 40, ...), not {depth}")
    if width < 1:
        raise ValueError(f"width must be at least 1, not {width}")
    num_blocks = (depth - 4) // 6
    model = nn.Sequential(
        nn.BatchNorm2d(input_shape[0], affine=False),
        nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        _stage(PreActivationBlock, 16, 16 * width, num_blocks, stride=1),
        _stage(PreActivationBlock, 16 * width, 32 * width, num_blocks, stride=2),
        _stage(PreActivationBlock, 32 * width, 64 * width, num_blocks, stride=2),
        *_head(64 * width, num_classes),
    )
    return model.apply(partial(_initialise, nn.init.xavier_uniform_))


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
        self.shortcut = _projection(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x), inplace=True)
        # A projection starts from the activated input; the identity, from the input itself.
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        branch: Tensor = self.conv1(activated)
        branch = self.conv2(F.relu(self.bn2(branch), inplace=True))
        branch = self.conv3(F.relu(self.bn3(branch), inplace=True))
        return branch + shortcut


class PreActivationBlock(nn.Module):
    """Twice batch norm, ReLU and a 3 x 3 convolution, added to the input."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut = _projection(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        branch: Tensor = self.conv1(activated)
        branch = self.conv2(F.relu(self.bn2(branch), inplace=True))
        return branch + shortcut


def _projection(in_channels: int, channels: int, stride: int) -> nn.Conv2d | None:
    """What a block's shortcut goes through; a stride comes only with more channels."""
    return nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False) if channels != in_channels else None


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


def _stage(
    block: Callable[[int, int, int], nn.Module], in_channels: int, channels: int, num_blocks: int, stride: int
) -> nn.Sequential:
    """So many blocks, of which the first has the stride."""
    first = block(in_channels, channels, stride)
    return nn.Sequential(first, *(block(channels, channels, 1) for _ in range(num_blocks - 1)))


def _head(channels: int, num_classes: int) -> list[nn.Module]:
    normalise = nn.BatchNorm2d(channels)
    return [normalise, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]


def _initialise(draw: Callable[[Tensor], Tensor], module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        draw(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
