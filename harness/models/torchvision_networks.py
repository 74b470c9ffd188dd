"""Networks as torchvision has them, for images of 224 x 224 or, with another stem, for small ones.

Sources: ResNet-50, He et al., "Deep Residual Learning for Image Recognition" (2016), with the stride in the 3 x 3
convolution of a block ("version 1.5"); DenseNet-BC, Huang et al., "Densely Connected Convolutional Networks" (2017);
ShuffleNet V2, Ma et al., "Practical Guidelines for Efficient CNN Architecture Design" (2018).

Deviations from torchvision: images with sides of at most 64 meet a stem of a 3 x 3 convolution of stride 1 without
max-pooling, those of the two small networks one of stride 3 or 2; images need not have three channels. Initial values
are torchvision's.
"""

from __future__ import annotations

from torch import nn
from torchvision import models

SMALL_SIDE = 64


def resnet50(
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
    _check_positive("width", width)
    network: nn.Module = models.resnet50(
        weights=None, num_classes=num_classes, width_per_group=width, zero_init_residual=zero_init_residual
    )
    stem = _new_stem(network, input_shape, "conv1", "maxpool")
    if stem is not None:
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    return network


def densenet121(input_shape: tuple[int, ...], num_classes: int, growth_rate: int = 32) -> nn.Module:
    """Four dense blocks of 6, 12, 24 and 16 layers.

    Args:
        input_shape: (channels, height, width).
        num_classes: outputs.
        growth_rate: channels that each layer adds; the stem has twice as many, as in the article.
    """
    _check_positive("growth_rate", growth_rate)
    _check_sides("densenet121", input_shape, 8)  # three transitions halve the image
    network: nn.Module = models.DenseNet(growth_rate, num_init_features=2 * growth_rate, num_classes=num_classes)
    stem = _new_stem(network, input_shape, "features.conv0", "features.pool0")
    if stem is not None:
        nn.init.kaiming_normal_(stem.weight)
    return network


def small_densenet(input_shape: tuple[int, ...], num_classes: int, growth_rate: int, blocks: list[int]) -> nn.Module:
    """Dense blocks with a transition, which halves the image, between each two; bottlenecks of twice the growth rate.

    Args:
        input_shape: (channels, height, width), of about 28 x 28.
        num_classes: outputs.
        growth_rate: channels that each layer adds; the stem has as many.
        blocks: layers of each dense block.
    """
    _check_positive("growth_rate", growth_rate)
    if not blocks:
        raise ValueError("blocks must name the layers of at least one dense block")
    _check_positive("blocks", *blocks)
    _check_sides("small_densenet", input_shape, 3 * 2 ** (len(blocks) - 1))
    network: nn.Module = models.DenseNet(
        growth_rate, tuple(blocks), num_init_features=growth_rate, bn_size=2, num_classes=num_classes
    )
    stem = nn.Conv2d(input_shape[0], growth_rate, 3, stride=3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight)
    network.set_submodule("features.pool0", nn.Identity())
    network.set_submodule("features.conv0", stem)
    return network


def shufflenet_v2(input_shape: tuple[int, ...], num_classes: int, width: float = 1.0) -> nn.Module:
    """Three stages of 4, 8 and 4 units; `width` is about the factor on their channels: 0.5, 1.0, 1.5 or 2.0."""
    sizes = {
        0.5: models.shufflenet_v2_x0_5,
        1.0: models.shufflenet_v2_x1_0,
        1.5: models.shufflenet_v2_x1_5,
        2.0: models.shufflenet_v2_x2_0,
    }
    if width not in sizes:
        raise ValueError(f"width must be one of {', '.join(map(str, sizes))}, not {width!r}")
    network: nn.Module = sizes[width](weights=None, num_classes=num_classes)
    _new_stem(network, input_shape, "conv1.0", "maxpool")
    return network


def small_shufflenet(input_shape: tuple[int, ...], num_classes: int, units: list[int], widths: list[int]) -> nn.Module:
    """Three stages, each of which halves the image.

    Args:
        input_shape: (channels, height, width), of about 28 x 28.
        num_classes: outputs.
        units: of each of the three stages.
        widths: channels of the stem, the three stages and the last convolution.
    """
    if len(units) != 3 or len(widths) != 5:
        raise ValueError(f"units must be 3 numbers and widths must be 5, not {units!r} and {widths!r}")
    _check_positive("units", *units)
    _check_positive("widths", *widths)
    if any(width % 2 for width in widths[1:4]):
        raise ValueError(f"widths must be even in the three stages, which split them, not {widths!r}")
    network: nn.Module = models.ShuffleNetV2(units, widths, num_classes=num_classes)
    network.set_submodule("maxpool", nn.Identity())
    network.set_submodule("conv1.0", nn.Conv2d(input_shape[0], widths[0], 3, stride=2, padding=1, bias=False))
    return network


def _new_stem(network: nn.Module, input_shape: tuple[int, ...], stem: str, pool: str) -> nn.Conv2d | None:
    """Replace the first convolution where these images need another, which is returned, and leave out the pooling."""
    (channels, *sides), old = input_shape, network.get_submodule(stem)
    assert isinstance(old, nn.Conv2d)
    small = max(sides) <= SMALL_SIDE
    if small:
        network.set_submodule(pool, nn.Identity())
    elif channels == old.in_channels:
        return None
    kernel, stride = (3, 1) if small else (old.kernel_size[0], old.stride[0])
    new = nn.Conv2d(channels, old.out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    network.set_submodule(stem, new)
    return new


def _check_positive(name: str, *numbers: int) -> None:
    if min(numbers) < 1:
        raise ValueError(f"{name} must be at least 1, not {min(numbers)}")


def _check_sides(name: str, input_shape: tuple[int, ...], smallest: int) -> None:
    if min(input_shape[1:]) < smallest:
        raise ValueError(f"{name} takes images with sides of at least {smallest}, not {tuple(input_shape[1:])}")
