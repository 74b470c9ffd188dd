"""Wide ResNet: the parameters of the protocol's network, counted by hand, and its structure."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from harness.models.wide_resnet import PreActivationBlock, build


def count_by_hand(depth: int, width: int, num_classes: int, channels: int = 3) -> tuple[int, int]:
    """Parameters and tensors, layer after layer; a batch norm has a weight and a bias for each channel."""
    sizes = [channels * 16 * 9, 16, 16]  # the first convolution and the batch norm behind it
    before = 16
    for stage in range(3):
        after = 16 * width * 2**stage
        for _ in range((depth - 4) // 6):
            sizes += [before, before, before * after * 9, after, after, after * after * 9]
            if before != after:
                sizes.append(before * after)
            before = after
    sizes += [before, before, before * num_classes, num_classes]
    return sum(sizes), len(sizes)


@pytest.mark.parametrize(("depth", "width", "num_classes"), [(40, 8, 100), (28, 10, 10), (16, 4, 10), (10, 1, 10)])
def test_count(depth: int, width: int, num_classes: int) -> None:
    with torch.device("meta"):
        sizes = [parameter.numel() for parameter in build((3, 32, 32), num_classes, depth, width).parameters()]
    assert (sum(sizes), len(sizes)) == count_by_hand(depth, width, num_classes)


def test_the_protocols_network_has_the_published_count() -> None:
    assert count_by_hand(40, 8, 100) == (35_794_516, 118)


def test_the_input_is_normalised_without_parameters() -> None:
    torch.manual_seed(0)
    model = build((3, 32, 32), 10, 10, 1)
    first = next(model.children())
    assert isinstance(first, nn.BatchNorm2d) and list(first.parameters()) == []
    # So the scale and the shift of the data do not matter while training.
    inputs = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(3 * inputs + 5), model(inputs), rtol=1e-3, atol=1e-4)


def test_a_block_without_weights_is_the_identity() -> None:
    model = build((3, 32, 32), 10, 16, 2)
    inputs = torch.randn(2, 32, 8, 8) - 1  # a ReLU on the way would show
    identities = [m for m in model.modules() if isinstance(m, PreActivationBlock) and m.shortcut is None]
    assert len(identities) == 3
    block = identities[0]
    for convolution in block.conv1, block.conv2:
        nn.init.zeros_(convolution.weight)
    assert torch.equal(block(inputs), inputs)


def test_a_projection_starts_from_the_activated_input() -> None:
    torch.manual_seed(0)
    block = PreActivationBlock(4, 8, stride=2)
    nn.init.zeros_(block.conv2.weight)
    assert block.shortcut is not None
    nn.init.ones_(block.shortcut.weight)
    inputs = torch.randn(2, 4, 6, 6)
    activated = torch.relu(nn.functional.batch_norm(inputs, None, None, training=True))
    expected = activated[:, :, ::2, ::2].sum(1, keepdim=True).expand(2, 8, 3, 3)
    torch.testing.assert_close(block(inputs), expected)


def test_initial_values_are_glorots() -> None:
    torch.manual_seed(0)
    model = build((3, 32, 32), 10, 10, 4)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            fan = module.kernel_size[0] ** 2 * (module.in_channels + module.out_channels) / 2
            assert module.weight.abs().max() <= math.sqrt(3 / fan)
            assert module.weight.std().item() == pytest.approx(math.sqrt(1 / fan), rel=0.03)
        if isinstance(module, nn.Linear):
            assert not module.bias.any()
