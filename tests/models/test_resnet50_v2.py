"""ResNet-50 v2: its parameters, counted by hand, and its structure."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from harness.models.resnet50_v2 import PreActivationBottleneck, build


def count_by_hand(side: int, num_classes: int, width: int = 64) -> int:
    """Stem, blocks and classifier, with 2 parameters for each channel of a batch norm."""
    total = 9 * 3 * width if side <= 64 else 49 * 3 * width + 2 * width
    before = width
    for stage, num_blocks in enumerate((3, 4, 6, 3)):
        inner = width * 2**stage
        after = 4 * inner
        middle = 2 * inner + 9 * inner**2 + 2 * inner  # the 3 x 3 convolution between its batch norms
        first = 2 * before + before * inner + middle + inner * after + before * after
        other = 2 * after + after * inner + middle + inner * after
        total += first + (num_blocks - 1) * other
        before = after
    return total + 2 * before + before * num_classes + num_classes


@pytest.mark.parametrize(
    ("side", "num_classes", "width"), [(224, 1000, 64), (32, 100, 64), (64, 10, 64), (224, 1000, 96), (32, 10, 4)]
)
def test_count(side: int, num_classes: int, width: int) -> None:
    with torch.device("meta"):
        model = build((3, side, side), num_classes, width)
    assert sum(parameter.numel() for parameter in model.parameters()) == count_by_hand(side, num_classes, width)


def test_the_protocols_network() -> None:
    assert count_by_hand(224, 1000) == 25_549_480
    with torch.device("meta"):
        # The stem's 3, 16 blocks of 9, 4 projections, and the last batch norm and classifier of 2 each.
        assert len(list(build((3, 224, 224), 1000).parameters())) == 3 + 16 * 9 + 4 + 2 + 2


def test_the_input_is_normalised_without_parameters() -> None:
    for side in 32, 224:
        first = next(build((3, side, side), 10, 4).children())
        assert isinstance(first, nn.BatchNorm2d) and list(first.parameters()) == []


def test_a_block_without_weights_is_the_identity() -> None:
    block = PreActivationBottleneck(16, 16, stride=1)
    assert block.shortcut is None
    for convolution in block.conv1, block.conv2, block.conv3:
        nn.init.zeros_(convolution.weight)
    inputs = torch.randn(2, 16, 8, 8) - 1  # a ReLU on the way would show
    assert torch.equal(block(inputs), inputs)


def test_the_stride_is_in_the_middle_of_the_first_block_of_a_stage() -> None:
    with torch.device("meta"):
        blocks = [m for m in build((3, 224, 224), 10).modules() if isinstance(m, PreActivationBottleneck)]
    strides = [block.conv2.stride[0] for block in blocks]
    assert strides == [1, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1]
    assert all(block.conv1.stride == block.conv3.stride == (1, 1) for block in blocks)
    assert [i for i, block in enumerate(blocks) if block.shortcut is not None] == [0, 3, 7, 13]


def test_initial_values_are_mxnets() -> None:
    torch.manual_seed(0)
    model = build((3, 32, 32), 10, 16)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            fan = module.kernel_size[0] ** 2 * (module.in_channels + module.out_channels) / 2
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / 1.0625 / fan), rel=0.03)
        if isinstance(module, nn.Linear):
            assert not module.bias.any()
