"""A perceptron with one hidden layer: cheap enough that a laptop does hundreds of long runs."""

from __future__ import annotations

import math

from torch import nn


def build(input_shape: tuple[int, ...], num_classes: int, hidden: int) -> nn.Module:
    """Two linear layers with a ReLU between.

    Args:
        input_shape: of one sample; it is flattened.
        num_classes: outputs.
        hidden: width of the hidden layer.
    """
    if hidden < 1:
        raise ValueError(f"mlp takes a hidden width of at least 1, not {hidden}")
    return nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(input_shape), hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
    )
