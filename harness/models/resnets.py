"""Residual networks: torchvision's ResNet-50, and GluonCV's ResNet-50 v2 and Wide ResNet.

Sources: He et al., "Deep Residual Learning for Image Recognition" (2016), with the stride in the 3
x 3 convolution of a block ("version 1.5"); He et al., "Identity Mappings in Deep Residual Networks"
(2016), as GluonCV's `resnet50_v2`; Zagoruyko and Komodakis, "Wide Residual Networks" (2016),
without dropout, as GluonCV's `cifar_wideresnet40_8`. The CSER authors trained the last two.

The stem of ResNet-50 v2 is a bare 3 x 3 convolution of stride 1 for images with sides of at most
64. Images of the last two need not have three channels.

GluonCV's forms have a batch norm without affine parameters on the input. ResNet-50 v2 has the
stride in the 3 x 3 convolution of a block (the article's code has it in the first 1 x 1). Wide
ResNet has a batch norm without ReLU between the first convolution and the first block.

Parameters of Wide ResNet d-k, d = 6n + 4, C classes, from c channels, with w = 16k, 32k, 64k the
stages' channels and u = 16, 16k, 32k what enters them:
    144c + 32 + sum over stages of [9uw + 9(2n - 1)w^2 + 2u + 2(2n - 1)w + (uw where u != w)] + 128k
    + 64kC + C
in 18n + 10 tensors (18n + 9 where k = 1). For 40-8, 3 channels and 100 classes: 35,794,516 in 118.

Initial values are torchvision's and those of the CSER authors' scripts, with zero biases. ResNet-50
v2: MXNet's `MSRAPrelu()`, normal weights of variance 2 / (1 + 0.25^2) over the mean of fan-in and
fan-out. Wide ResNet: MXNet's `Xavier()`, Glorot uniform weights.

Deviations: ResNet-50 v2's `width` and Wide ResNet's `stem_stride` are additions, and the precision
(the authors': float16 with a float32 copy) is up to the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn
from torchvision import models

from cser_bench.harness.spec.values import Count, Positive

SMALL_SIDE = 64
"""Sides of the largest images for which the stem of ResNet-50 v2 is a bare convolution."""

EXPANSION = 4
"""Channels of a bottleneck's output for each channel of its 3 x 3 convolution."""


def resnet50(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build torchvision's ResNet-50, for colour images of any size."""
    if input_shape[0] != 3:
        raise ValueError(
            f"resnet50 takes colour images, not samples of shape {input_shape}; give resnet50_v2"
        )
    network: nn.Module = models.resnet50(weights=None, num_classes=num_classes)
    return network


def resnet50_v2(
    input_shape: tuple[int, ...], num_classes: int, width: Count = 64
) -> nn.Module:
    """Build four stages of 3, 4, 6 and 3 bottlenecks.

    Args:
        width: channels of the stem, and of the 3 x 3 convolutions in the first stage; all other
            widths follow it.
    """
    channels, *sides = input_shape
    # Without an affine part: it scales the input and has nothing to train.
    stem: list[nn.Module] = [nn.BatchNorm2d(channels, affine=False)]
    if max(sides) <= SMALL_SIDE:
        stem += [nn.Conv2d(channels, width, 3, padding=1, bias=False)]
    else:
        stem += [
            nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        ]
    # 8 times the first stage's: channels double in each of the three stages after it.
    last = 4 * EXPANSION * width * 2
    stages = [
        _stage(_bottleneck, width, EXPANSION * width, 3, stride=1),
        _stage(_bottleneck, EXPANSION * width, 2 * EXPANSION * width, 4, stride=2),
        _stage(_bottleneck, 2 * EXPANSION * width, 4 * EXPANSION * width, 6, stride=2),
        _stage(_bottleneck, 4 * EXPANSION * width, last, 3, stride=2),
    ]
    model = nn.Sequential(*stem, *stages, *_head(last, num_classes))
    # MXNet's MSRAPrelu() assumes a slope of 1/4 below 0.
    gain = math.sqrt(2 / (1 + 0.25**2))
    draw = partial(nn.init.xavier_normal_, gain=gain)
    return model.apply(partial(_initialise, draw))


def wide_resnet(
    input_shape: tuple[int, ...],
    num_classes: int,
    depth: int,
    width: Positive,
    stem_stride: Count = 1,
) -> nn.Module:
    """Build three stages of n blocks, each but the first at half the resolution of the one before.

    Images are about 32 x 32.

    Args:
        depth: 6n + 4, for n blocks in each of three stages.
        width: the factor k, of which 16k is whole; the stages have 16k, 32k and 64k channels.
        stem_stride: of the first convolution; 2 takes a quarter of the arithmetic.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(
            f"depth must be 6n + 4 (10, 16, 22, 28, 34, 40, ...), not {depth}"
        )
    if 16 * width % 1:
        raise ValueError(f"width must be a multiple of 1/16, not {width}")
    # d = 6n + 4: two convolutions a block in three stages, the stem's, and the shortcuts'.
    # n in the header's formula.
    num_blocks = (depth - 4) // 6
    least = int(16 * width)
    model = nn.Sequential(
        nn.BatchNorm2d(input_shape[0], affine=False),
        nn.Conv2d(input_shape[0], 16, 3, stride=stem_stride, padding=1, bias=False),
        nn.BatchNorm2d(16),
        _stage(_two_convolutions, 16, least, num_blocks, stride=1),
        _stage(_two_convolutions, least, 2 * least, num_blocks, stride=2),
        _stage(_two_convolutions, 2 * least, 4 * least, num_blocks, stride=2),
        *_head(4 * least, num_classes),
    )
    return model.apply(partial(_initialise, nn.init.xavier_uniform_))


class PreActivationBlock(nn.Module):
    """Convolutions, each after batch norm and ReLU, added to the input.

    One of them may have a stride. Where channels change, the shortcut is a convolution of 1 x 1 and
    starts from the activated input.
    """

    def __init__(self, convolutions: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        first, *others = convolutions
        # Before the convolutions, and shared by the shortcut: "pre-activation".
        self.activate = nn.Sequential(
            nn.BatchNorm2d(first.in_channels), nn.ReLU(inplace=True)
        )
        layers: list[nn.Module] = [first]
        for convolution in others:
            layers.append(nn.BatchNorm2d(convolution.in_channels))
            layers.append(nn.ReLU(inplace=True))
            layers.append(convolution)
        self.convolve = nn.Sequential(*layers)
        entering = first.in_channels
        leaving = convolutions[-1].out_channels
        self.shortcut = None
        if leaving != entering:
            # The shortcut must end at the resolution at which the branch does.
            stride = math.prod(convolution.stride[0] for convolution in convolutions)
            self.shortcut = nn.Conv2d(entering, leaving, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # The ReLU writes into what the batch norm returns, so that x stays the input.
        activated = self.activate(x)
        branch: Tensor = self.convolve(activated)
        if self.shortcut is None:
            return branch + x
        return branch + self.shortcut(activated)  # type: ignore[no-any-return]


def _bottleneck(in_channels: int, channels: int, stride: int) -> PreActivationBlock:
    middle = channels // EXPANSION
    return PreActivationBlock(
        [
            nn.Conv2d(in_channels, middle, 1, bias=False),
            nn.Conv2d(middle, middle, 3, stride=stride, padding=1, bias=False),
            nn.Conv2d(middle, channels, 1, bias=False),
        ]
    )


def _two_convolutions(
    in_channels: int, channels: int, stride: int
) -> PreActivationBlock:
    return PreActivationBlock(
        [
            nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        ]
    )


def _stage(
    block: Callable[[int, int, int], nn.Module],
    in_channels: int,
    channels: int,
    num_blocks: int,
    stride: int,
) -> nn.Sequential:
    """Put so many blocks one after the other, of which the first has the stride."""
    first = block(in_channels, channels, stride)
    return nn.Sequential(
        first, *(block(channels, channels, 1) for _ in range(num_blocks - 1))
    )


def _head(channels: int, num_classes: int) -> list[nn.Module]:
    normalise = nn.BatchNorm2d(channels)
    return [
        normalise,
        nn.ReLU(inplace=True),
        # (batch, channels, 1, 1), whatever the image's size.
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, num_classes),
    ]


def _initialise(draw: Callable[[Tensor], Tensor], module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        draw(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
