"""Networks for images: shapes, sizes counted by hand, structure, initial values, types, gradients,
clear refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from cser_bench.harness.models import resnets
from cser_bench.harness.models.resnets import (
    PreActivationBlock,
    resnet50,
    resnet50_v2,
    wide_resnet,
)
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.run import ModelSpec
from cser_bench.harness.spec.spec_file import find_spec, load_spec
from cser_bench.harness.tasks.task import find_task
from cser_bench.harness.train.build import build_model

# Each shrunken to what a test can train.
SMALL: dict[str, dict[str, Any]] = {
    "wide_resnet": {"depth": 10, "width": 1},
    "resnet50_v2": {"width": 4},
}
every_model = pytest.mark.parametrize("name", list(SMALL))


def build(
    name: str, shape: tuple[int, ...], num_classes: int = 10, **options: Any
) -> nn.Module:
    model: nn.Module = getattr(resnets, name)(
        shape, num_classes, **(SMALL[name] | options)
    )
    return model


def images(shape: tuple[int, ...], batch: int = 4) -> Tensor:
    return torch.randn((batch, *shape), generator=torch.Generator().manual_seed(1))


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# All of them


@every_model
@pytest.mark.parametrize(
    "shape", [(1, 28, 28), (3, 64, 48), (3, 65, 65), (3, 224, 224)]
)
def test_shapes_and_a_stem_that_follows_the_size_of_the_image(
    name: str, shape: tuple[int, ...]
) -> None:
    sides: list[int] = []
    with torch.device("meta"):
        model = build(name, shape, num_classes=7)
        first = next(
            module for module in model.modules() if isinstance(module, nn.Conv2d)
        )
        first.register_forward_hook(
            lambda _module, _inputs, output: sides.append(output.shape[-2])
        )
        assert model(torch.empty(2, *shape)).shape == (2, 7)
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    halves = shape[1] > 64 and name != "wide_resnet"
    assert sides == [(shape[1] + 1) // 2 if halves else shape[1]]
    assert any(isinstance(each, nn.MaxPool2d) for each in model.modules()) == halves


@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_trains_in_every_precision_and_layout(name: str, dtype: torch.dtype) -> None:
    """A gradient reaches every parameter; in float64 channels last change nothing but rounding."""
    torch.manual_seed(0)
    model = build(name, (3, 32, 32))
    inputs = images((3, 32, 32))
    expected = model.double().eval()(inputs.double())
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(inputs.double()), expected)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        outputs = model.float().train()(inputs)
    assert outputs.dtype == dtype
    outputs.float().log_softmax(1)[:, 0].sum().backward()
    for key, parameter in model.named_parameters():
        assert (
            parameter.grad is not None
            and parameter.grad.isfinite().all()
            and parameter.grad.any()
        ), key


BAD_OPTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("mlp", {"hidden": 0}, "hidden: Input should be greater than or equal to 1"),
    ("wide_resnet", {"depth": 41, "width": 8}, "6n + 4"),
    (
        "wide_resnet",
        {"depth": 40.0, "width": 8},
        "depth: Input should be a valid integer (given: 40.0)",
    ),
    (
        "wide_resnet",
        {"depth": 40, "width": 0.3},
        "width must be a multiple of 1/16, not 0.3",
    ),
    ("wide_resnet", {"depth": 40}, "needs the setting 'width'"),
    ("resnet50", {"depth": 50}, "has no setting 'depth'; it has none"),
    ("resnet50", {}, "takes colour images"),
    ("small_densenet", {"growth_rate": 4, "blocks": [1, 1, 1, 1, 1]}, "at least 48"),
    ("small_shufflenet", {"units": [2, 2, 2], "widths": [16, 33, 64, 64, 128]}, "even"),
]


@pytest.mark.parametrize(("name", "options", "words"), BAD_OPTIONS)
def test_a_bad_option_is_refused_in_a_sentence(
    name: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecError, match=f"^model {name}:? ") as caught:
        build_model(
            ModelSpec(name=name, options=options),
            find_task("fashion_mnist"),
            0,
            torch.device("meta"),
        )
    assert words in str(caught.value)


# Pre-activation


@pytest.mark.parametrize(("width", "channels"), [(0.5, [8, 16, 32]), (1, [16, 32, 64])])
def test_a_residual_networks_width_may_be_a_fraction(
    width: float, channels: list[int]
) -> None:
    model = build_model(
        ModelSpec(name="wide_resnet", options={"depth": 10, "width": width}),
        find_task("fashion_mnist"),
        0,
        torch.device("meta"),
    )
    stages = list(model.children())[3:6]
    convolutions = [
        [each for each in stage.modules() if isinstance(each, torch.nn.Conv2d)]
        for stage in stages
    ]
    assert [{each.out_channels for each in stage} for stage in convolutions] == [
        {number} for number in channels
    ]


def test_sizes_are_those_of_gluoncv() -> None:
    with torch.device("meta"):
        large = resnet50_v2((3, 224, 224), 1000)
        wide = wide_resnet((3, 32, 32), 100, depth=40, width=8)
        thumbnail = resnet50_v2((3, 32, 32), 1000)
    # The stem's 3, 16 blocks of 9, 4 projections, and the last batch norm and classifier of 2 each.
    assert count(large) == 25_549_480
    assert len(list(large.parameters())) == 3 + 16 * 9 + 4 + 2 + 2
    assert count(wide) == 35_794_516
    assert len(list(wide.parameters())) == 118
    assert count(large) - count(thumbnail) == (49 - 9) * 3 * 64 + 2 * 64


@pytest.mark.parametrize(
    ("name", "side"), [("wide_resnet", 32), ("resnet50_v2", 32), ("resnet50_v2", 224)]
)
def test_the_input_is_normalised_without_parameters(name: str, side: int) -> None:
    torch.manual_seed(0)
    model = build(name, (3, side, side))
    first = next(model.children())
    assert isinstance(first, nn.BatchNorm2d)
    assert list(first.parameters()) == []
    # So the scale and the shift of the data do not matter while training.
    inputs = images((3, side, side))
    torch.testing.assert_close(
        model(3 * inputs + 5), model(inputs), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("widens", [False, True])
def test_a_block_without_weights_is_its_shortcut(widens: bool) -> None:
    """The identity, which a ReLU on the way would spoil, or a projection of the activated input."""
    channels, stride = (8, 2) if widens else (4, 1)
    convolutions = (
        nn.Conv2d(4, channels, 3, stride=stride, padding=1),
        nn.Conv2d(channels, channels, 3, padding=1),
    )
    block = PreActivationBlock([*convolutions])
    inputs = images((4, 6, 6), batch=2) - 1
    for parameter in block.convolve.parameters():
        nn.init.zeros_(parameter)
    if not widens:
        assert torch.equal(block(inputs), inputs)
        return
    assert block.shortcut is not None
    nn.init.ones_(block.shortcut.weight)
    activated = torch.relu(nn.functional.batch_norm(inputs, None, None, training=True))
    expected = activated[:, :, ::2, ::2].sum(1, keepdim=True).expand(2, 8, 3, 3)
    torch.testing.assert_close(block(inputs), expected)


def test_the_stride_is_in_the_middle_of_the_first_block_of_a_stage() -> None:
    with torch.device("meta"):
        blocks = [
            m
            for m in resnet50_v2((3, 224, 224), 10).modules()
            if isinstance(m, PreActivationBlock)
        ]
    strides = [
        [m.stride[0] for m in block.convolve if isinstance(m, nn.Conv2d)]
        for block in blocks
    ]
    assert [middle for _, middle, _ in strides] == [
        1,
        1,
        1,
        2,
        1,
        1,
        1,
        2,
        1,
        1,
        1,
        1,
        1,
        2,
        1,
        1,
    ]
    assert all(first == last == 1 for first, _, last in strides)
    assert [i for i, block in enumerate(blocks) if block.shortcut is not None] == [
        0,
        3,
        7,
        13,
    ]


@pytest.mark.parametrize(
    ("name", "options", "variance"),
    [("resnet50_v2", {"width": 16}, 2 / 1.0625), ("wide_resnet", {"width": 4}, 1.0)],
)
def test_initial_values_are_mxnets(
    name: str, options: dict[str, Any], variance: float
) -> None:
    """Normal for ResNet-50 v2, Glorot's uniform ones for Wide ResNet."""
    torch.manual_seed(0)
    for module in build(name, (3, 32, 32), **options).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            fan = (
                module.kernel_size[0] ** 2
                * (module.in_channels + module.out_channels)
                / 2
            )
            assert module.weight.std().item() == pytest.approx(
                math.sqrt(variance / fan), rel=0.03
            )
            assert (module.weight.abs().max() <= math.sqrt(3 / fan)) == (
                name == "wide_resnet"
            )
        if isinstance(module, nn.Linear):
            assert not module.bias.any()


def test_resnet50_is_torchvisions_own() -> None:
    torch.manual_seed(3)
    model = resnet50((3, 224, 224), 1000)
    torch.manual_seed(3)
    found = model.state_dict()
    expected = models.resnet50(weights=None).state_dict()
    assert count(model) == 25_557_032
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in found)


# The small ones of the studies of kinds of network


@pytest.mark.parametrize(
    "study", ["network_cnn", "group_norm", "network_densenet", "network_shufflenet"]
)
def test_a_study_s_network_is_about_as_large_as_the_perceptron(study: str) -> None:
    spec = load_spec(find_spec(f"studies/{study}"))
    task = find_task("fashion_mnist")
    model = build_model(spec.model, task, 0, torch.device("cpu"))
    perceptron = build_model(
        ModelSpec(name="mlp", options={"hidden": 32}), task, 0, torch.device("cpu")
    )
    outputs = model(images((1, 28, 28)))
    assert outputs.shape == (4, 10)
    outputs.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert 0.7 < count(model) / count(perceptron) < 1.5
    assert any(isinstance(each, nn.BatchNorm2d) for each in model.modules()) == (
        study != "group_norm"
    )


def test_a_stem_of_stride_2_halves_all_resolutions_and_keeps_every_parameter() -> None:
    full, halved = (
        build("wide_resnet", (1, 28, 28), stem_stride=stride) for stride in (1, 2)
    )
    assert [each.shape for each in full.parameters()] == [
        each.shape for each in halved.parameters()
    ]
    assert count(halved) == 77_594
    assert halved(images((1, 28, 28))).shape == (4, 10)
    heads = [
        nn.Sequential(*list(model.children())[:-3])(images((1, 28, 28))).shape[-1]
        for model in (full, halved)
    ]
    assert heads == [7, 4]
