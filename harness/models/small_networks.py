"""Networks so small that a laptop does hundreds of long runs, for images of about 28 x 28.

Sources: DenseNet-BC, Huang et al., "Densely Connected Convolutional Networks" (2017); ShuffleNet
V2, Ma et al., "Practical Guidelines for Efficient CNN Architecture Design" (2018); both as
torchvision has them, with its initial values, but with a stem of a 3 x 3 convolution of stride 3 or
2 without max-pooling.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field
from torch import nn
from torchvision import models

from cser_bench.harness.spec.values import Count


def mlp(input_shape: tuple[int, ...], num_classes: int, hidden: Count) -> nn.Module:
    """Build two linear layers with a ReLU between, for samples of any shape, which are flattened.

    Args:
        hidden: the width between the two.
    """
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(input_shape), hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )


def small_cnn(
    input_shape: tuple[int, ...],
    num_classes: int,
    widths: Annotated[list[Count], Field(min_length=2, max_length=2)],
    group_norm: Annotated[int, Field(ge=0)] = 0,
) -> nn.Module:
    """Build two convolutions, each with a norm and ReLU, and a linear classifier.

    The first is of 5 x 5 with stride 3, the second of 3 x 3 with stride 2.

    Args:
        widths: channels of the two.
        group_norm: groups of a group norm in place of batch norm; 0 for batch norm.
    """
    channels, height, width = input_shape
    first, second = widths
    # Strides of 3 and 2; with their padding both convolutions round sides up.
    pixels = math.ceil(height / 6) * math.ceil(width / 6)
    return nn.Sequential(
        nn.Conv2d(channels, first, 5, stride=3, padding=2, bias=False),
        nn.GroupNorm(group_norm, first) if group_norm else nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, stride=2, padding=1, bias=False),
        nn.GroupNorm(group_norm, second) if group_norm else nn.BatchNorm2d(second),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * pixels, num_classes),
    )


def small_densenet(
    input_shape: tuple[int, ...],
    num_classes: int,
    growth_rate: Count,
    blocks: Annotated[list[Count], Field(min_length=1)],
) -> nn.Module:
    """Build dense blocks, with a transition that halves the image between each two.

    Bottlenecks have twice the growth rate.

    Args:
        growth_rate: channels that each layer adds, and of the stem.
        blocks: layers of each dense block.
    """
    # The stem divides sides by 3, and each transition by 2.
    smallest = 3 * 2 ** (len(blocks) - 1)
    if min(input_shape[1:]) < smallest:
        raise ValueError(
            f"images must have sides of at least {smallest} for so many blocks, not "
            f"{input_shape[1:]}"
        )
    network: nn.Module = models.DenseNet(
        growth_rate,
        tuple(blocks),
        num_init_features=growth_rate,
        bn_size=2,
        num_classes=num_classes,
    )
    stem = nn.Conv2d(input_shape[0], growth_rate, 3, stride=3, padding=1, bias=False)
    # As torchvision draws a DenseNet's convolutions; this one was not there yet when it did.
    nn.init.kaiming_normal_(stem.weight)
    # By name, as torchvision's constructor has no choice of stem.
    network.set_submodule("features.pool0", nn.Identity())
    network.set_submodule("features.conv0", stem)
    return network


def small_shufflenet(
    input_shape: tuple[int, ...],
    num_classes: int,
    units: Annotated[list[Count], Field(min_length=3, max_length=3)],
    widths: Annotated[list[Count], Field(min_length=5, max_length=5)],
) -> nn.Module:
    """Build three stages of so many units, each of which halves the image.

    Args:
        widths: channels of the stem, the three stages and the last convolution.
    """
    if any(width % 2 for width in widths[1:4]):
        raise ValueError(
            f"widths must be even in the three stages, which split them, not {widths!r}"
        )
    network: nn.Module = models.ShuffleNetV2(units, widths, num_classes=num_classes)
    stem = nn.Conv2d(input_shape[0], widths[0], 3, stride=2, padding=1, bias=False)
    # As in the DenseNet: images of 28 x 28 must leave something for three halvings.
    network.set_submodule("maxpool", nn.Identity())
    network.set_submodule("conv1.0", stem)
    return network
