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
    make = getattr(resnets, name)
    settings = SMALL[name] | options
    model: nn.Module = make(shape, num_classes, **settings)
    return model


def built(name: str, device: str = "meta", **options: Any) -> nn.Module:
    """The model of a spec, for the images of Fashion-MNIST."""
    spec = ModelSpec(name=name, options=options)
    task = find_task("fashion_mnist")
    return build_model(spec, task, 0, torch.device(device))


def parts_of(model: nn.Module, kind: type[nn.Module]) -> list[Any]:
    """All modules of a kind, in the order of definition."""
    return [module for module in model.modules() if isinstance(module, kind)]


def images(shape: tuple[int, ...], batch: int = 4) -> Tensor:
    generator = torch.Generator()
    generator.manual_seed(1)
    size = (batch, *shape)
    return torch.randn(size, generator=generator)


def count(model: nn.Module) -> int:
    sizes = [parameter.numel() for parameter in model.parameters()]
    return sum(sizes)


# All of them


@every_model
@pytest.mark.parametrize(
    "shape", [(1, 28, 28), (3, 64, 48), (3, 65, 65), (3, 224, 224)]
)
def test_shapes_and_a_stem_that_follows_the_size_of_the_image(
    name: str, shape: tuple[int, ...]
) -> None:
    sides: list[int] = []

    def note_side(module: nn.Module, inputs: object, output: Tensor) -> None:
        sides.append(output.shape[-2])

    with torch.device("meta"):
        model = build(name, shape, num_classes=7)
        convolutions = parts_of(model, nn.Conv2d)
        stem = convolutions[0]
        stem.register_forward_hook(note_side)
        inputs = torch.empty(2, *shape)
        outputs = model(inputs)

    assert outputs.shape == (2, 7)
    tensors = [*model.parameters(), *model.buffers()]
    for tensor in tensors:
        assert tensor.is_meta
    height = shape[1]
    is_large = height > 64
    halves = is_large and name != "wide_resnet"
    expected = height
    if halves:
        expected = (height + 1) // 2
    assert sides == [expected]
    pools = parts_of(model, nn.MaxPool2d)
    has_pool = bool(pools)
    assert has_pool == halves


@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_trains_in_every_precision_and_layout(name: str, dtype: torch.dtype) -> None:
    """A gradient reaches every parameter; in float64 channels last change nothing but rounding."""
    torch.manual_seed(0)
    model = build(name, (3, 32, 32))
    inputs = images((3, 32, 32))
    in_float64 = inputs.double()
    model.double()
    model.eval()
    expected = model(in_float64)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    in_float64 = inputs.double()
    found = model(in_float64)
    torch.testing.assert_close(found, expected)
    model.float()
    model.train()
    is_mixed = dtype != torch.float32
    with torch.autocast("cpu", dtype=dtype, enabled=is_mixed):
        outputs = model(inputs)
    assert outputs.dtype == dtype
    in_float32 = outputs.float()
    scores = in_float32.log_softmax(1)
    of_first_class = scores[:, 0]
    loss = of_first_class.sum()
    loss.backward()
    for key, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None, key
        assert gradient.isfinite().all(), key
        assert gradient.any(), key


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
    beginning = f"^model {name}:? "
    with pytest.raises(SpecError, match=beginning) as caught:
        built(name, **options)
    message = str(caught.value)
    assert words in message


# Pre-activation


@pytest.mark.parametrize(("width", "channels"), [(0.5, [8, 16, 32]), (1, [16, 32, 64])])
def test_a_residual_networks_width_may_be_a_fraction(
    width: float, channels: list[int]
) -> None:
    model = built("wide_resnet", depth=10, width=width)
    children = list(model.children())
    stages = children[3:6]
    for stage, expected in zip(stages, channels, strict=True):
        convolutions = parts_of(stage, nn.Conv2d)
        assert convolutions
        for convolution in convolutions:
            assert convolution.out_channels == expected


def test_sizes_are_those_of_gluoncv() -> None:
    with torch.device("meta"):
        large = resnet50_v2((3, 224, 224), 1000)
        wide = wide_resnet((3, 32, 32), 100, depth=40, width=8)
        thumbnail = resnet50_v2((3, 32, 32), 1000)
    stem = 3
    blocks = 16 * 9
    projections = 4
    last_batch_norm = 2
    classifier = 2
    num_tensors = stem + blocks + projections + last_batch_norm + classifier
    tensors = list(large.parameters())
    assert len(tensors) == num_tensors
    assert count(large) == 25_549_480
    assert count(wide) == 35_794_516
    tensors_of_wide = list(wide.parameters())
    assert len(tensors_of_wide) == 118
    # The stem's kernels, of 7 x 7 against 3 x 3, and the batch norm that follows the larger one.
    kernels = (49 - 9) * 3 * 64
    batch_norm = 2 * 64
    saved = count(large) - count(thumbnail)
    assert saved == kernels + batch_norm


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
    scaled_and_shifted = 3 * inputs + 5
    found = model(scaled_and_shifted)
    expected = model(inputs)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("widens", [False, True])
def test_a_block_without_weights_is_its_shortcut(widens: bool) -> None:
    """The identity, which a ReLU on the way would spoil, or a projection of the activated input."""
    channels = 4
    stride = 1
    if widens:
        channels = 8
        stride = 2
    first = nn.Conv2d(4, channels, 3, stride=stride, padding=1)
    second = nn.Conv2d(channels, channels, 3, padding=1)
    block = PreActivationBlock([first, second])
    inputs = images((4, 6, 6), batch=2) - 1
    for parameter in block.convolve.parameters():
        nn.init.zeros_(parameter)
    if not widens:
        found = block(inputs)
        assert torch.equal(found, inputs)
        return
    assert block.shortcut is not None
    nn.init.ones_(block.shortcut.weight)
    normalised = nn.functional.batch_norm(inputs, None, None, training=True)
    activated = torch.relu(normalised)
    # A projection by ones gives each of the 8 channels the sum of the 4, at every second place.
    every_second = activated[:, :, ::2, ::2]
    sums = every_second.sum(1, keepdim=True)
    expected = sums.expand(2, 8, 3, 3)
    found = block(inputs)
    torch.testing.assert_close(found, expected)


def test_the_stride_is_in_the_middle_of_the_first_block_of_a_stage() -> None:
    with torch.device("meta"):
        model = resnet50_v2((3, 224, 224), 10)
    blocks = parts_of(model, PreActivationBlock)
    # Stages of 3, 4, 6 and 3 blocks, of which the first keeps the resolution.
    begins_stage = [0, 3, 7, 13]
    halves = [3, 7, 13]
    assert len(blocks) == 16
    for place, block in enumerate(blocks):
        convolutions = parts_of(block.convolve, nn.Conv2d)
        strides = [each.stride[0] for each in convolutions]
        expected = [1, 1, 1]
        if place in halves:
            expected = [1, 2, 1]
        assert strides == expected
        has_shortcut = block.shortcut is not None
        assert has_shortcut == (place in begins_stage)


@pytest.mark.parametrize(
    ("name", "options", "variance"),
    [("resnet50_v2", {"width": 16}, 2 / 1.0625), ("wide_resnet", {"width": 4}, 1.0)],
)
def test_initial_values_are_mxnets(
    name: str, options: dict[str, Any], variance: float
) -> None:
    """Normal for ResNet-50 v2, Glorot's uniform ones for Wide ResNet."""
    torch.manual_seed(0)
    model = build(name, (3, 32, 32), **options)
    for layer in parts_of(model, nn.Conv2d):
        weight = layer.weight
        # Of fewer numbers the standard deviation is too uncertain.
        if weight.numel() <= 10_000:
            continue
        channels = (layer.in_channels + layer.out_channels) / 2
        side = layer.kernel_size[0]
        fan = side**2 * channels
        deviation = math.sqrt(variance / fan)
        found = weight.std().item()
        assert found == pytest.approx(deviation, rel=0.03)
        limit = math.sqrt(3 / fan)
        largest = weight.abs().max()
        is_bounded = bool(largest <= limit)
        is_uniform = name == "wide_resnet"
        assert is_bounded == is_uniform
    for layer in parts_of(model, nn.Linear):
        assert not layer.bias.any()


def test_resnet50_is_torchvisions_own() -> None:
    torch.manual_seed(3)
    model = resnet50((3, 224, 224), 1000)
    torch.manual_seed(3)
    theirs = models.resnet50(weights=None)
    assert count(model) == 25_557_032
    found = model.state_dict()
    expected = theirs.state_dict()
    assert list(found) == list(expected)
    for key, tensor in found.items():
        assert torch.equal(tensor, expected[key]), key


# The small ones of the studies of kinds of network


@pytest.mark.parametrize(
    "study", ["network_cnn", "group_norm", "network_densenet", "network_shufflenet"]
)
def test_a_study_s_network_is_about_as_large_as_the_perceptron(study: str) -> None:
    path = find_spec(f"studies/{study}")
    spec = load_spec(path)
    network = spec.model
    model = built(network.name, "cpu", **network.options)
    perceptron = built("mlp", "cpu", hidden=32)
    inputs = images((1, 28, 28))
    outputs = model(inputs)
    assert outputs.shape == (4, 10)
    loss = outputs.sum()
    loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
    relative_size = count(model) / count(perceptron)
    assert 0.7 < relative_size < 1.5
    batch_norms = parts_of(model, nn.BatchNorm2d)
    if study == "group_norm":
        assert not batch_norms
    else:
        assert batch_norms


def test_a_stem_of_stride_2_halves_all_resolutions_and_keeps_every_parameter() -> None:
    inputs = images((1, 28, 28))
    full = build("wide_resnet", (1, 28, 28), stem_stride=1)
    halved = build("wide_resnet", (1, 28, 28), stem_stride=2)
    shapes = [each.shape for each in full.parameters()]
    shapes_of_halved = [each.shape for each in halved.parameters()]
    assert shapes == shapes_of_halved
    assert count(halved) == 77_594
    outputs = halved(inputs)
    assert outputs.shape == (4, 10)

    def last_side(model: nn.Module) -> int:
        """Of the images that the last stage gives to the pooling."""
        layers = list(model.children())
        up_to_pooling = layers[:-3]
        stages = nn.Sequential(*up_to_pooling)
        outputs = stages(inputs)
        side: int = outputs.shape[-1]
        return side

    assert last_side(full) == 7
    assert last_side(halved) == 4
