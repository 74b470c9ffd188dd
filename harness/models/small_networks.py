"""Networks so small that a laptop does hundreds of long runs: a perceptron, and a network of two convolutions."""

from __future__ import annotations

import math

from torch import nn


def mlp(input_shape: tuple[int, ...], num_classes: int, hidden: int) -> nn.Module:
    """Two linear layers with a ReLU between; `hidden` is the width there. Samples of any shape are flattened."""
    if hidden < 1:
        raise ValueError(f"mlp takes a hidden width of at least 1, not {hidden}")
    return nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(input_shape), hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
    )


def small_cnn(input_shape: tuple[int, ...], num_classes: int, widths: list[int]) -> nn.Module:
    """A 5 x 5 convolution of stride 3, a 3 x 3 of stride 2, each with batch norm and ReLU, and a linear classifier.

    Args:
        input_shape: (channels, height, width), of about 28 x 28.
        num_classes: outputs.
        widths: channels of the two convolutions.
    """
    channels, height, width = input_shape
    if len(widths) != 2:
        raise ValueError(f"small_cnn takes two widths, not {len(widths)}")
    first, second = widths
    pixels = math.ceil(height / 6) * math.ceil(width / 6)
    return nn.Sequential(
        nn.Conv2d(channels, first, 5, stride=3, padding=2, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(second),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * pixels, num_classes),
    )
