"""What holds for every network: shapes, layouts, types, gradients, seeds, counting without memory, clear refusals."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.spec import ModelSpec, SpecError
from harness.tasks.task import find_task
from harness.train.build import build_model

# Each shrunken to what a test can train.
SMALL: dict[str, dict[str, Any]] = {
    "wide_resnet": {"depth": 10, "width": 1},
    "resnet50_v2": {"width": 4},
    "resnet50": {"width": 4},
    "densenet121": {"growth_rate": 4},
    "shufflenet_v2": {"width": 0.5},
}
every_model = pytest.mark.parametrize("name", list(SMALL))


def build(name: str, shape: tuple[int, ...], num_classes: int = 10, **options: Any) -> nn.Module:
    model: nn.Module = import_module(f"harness.models.{name}").build(shape, num_classes, **(SMALL[name] | options))
    return model


def images(shape: tuple[int, ...], batch: int = 4) -> Tensor:
    return torch.randn((batch, *shape), generator=torch.Generator().manual_seed(1))


@every_model
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (1, 8, 8), (3, 64, 48), (3, 224, 224), (1, 96, 96)])
def test_shapes(name: str, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model = build(name, shape, num_classes=7)
        assert model(torch.empty(2, *shape)).shape == (2, 7)
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


@every_model
def test_a_large_image_is_classified(name: str) -> None:
    model = build(name, (3, 224, 224)).eval()
    with torch.no_grad():
        assert model(images((3, 224, 224), batch=1)).isfinite().all()


@every_model
def test_the_stem_follows_the_size_of_the_image(name: str) -> None:
    after_stem = [_first_convolution(name, side) for side in (64, 65)]
    assert after_stem == ([64, 65] if name == "wide_resnet" else [64, 33])
    with torch.device("meta"):
        pools = [any(isinstance(m, nn.MaxPool2d) for m in build(name, (3, side, side)).modules()) for side in (64, 65)]
    assert pools == [False, name != "wide_resnet"]


def _first_convolution(name: str, side: int) -> int:
    """The side of what the first convolution makes of an image."""
    sides: list[int] = []
    with torch.device("meta"):
        model = build(name, (3, side, side))
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        first.register_forward_hook(lambda _module, _inputs, output: sides.append(output.shape[-1]))
        model(torch.empty(2, 3, side, side))
    return sides[0]


@every_model
def test_gradient_reaches_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, (3, 32, 32))
    model(images((3, 32, 32))).log_softmax(1)[:, 0].sum().backward()
    without = [key for key, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert without == []


@every_model
def test_channels_last_changes_nothing_but_rounding(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, (3, 32, 32)).double().eval()
    inputs = images((3, 32, 32)).double()
    expected = model(inputs)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = model(inputs.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected)


@every_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = build(name, (3, 16, 16)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.autocast("cpu", dtype=dtype):
        outputs = model(images((3, 16, 16)).contiguous(memory_format=torch.channels_last))
    assert outputs.dtype == dtype
    outputs.float().square().sum().backward()
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None and parameter.grad.isfinite().all()


@every_model
def test_initial_values_follow_the_global_generator(name: str) -> None:
    states = []
    for seed in 5, 5, 6:
        torch.manual_seed(seed)
        states.append(build(name, (1, 28, 28)).state_dict())
    first, again, other = states
    assert all(torch.equal(first[key], again[key]) for key in first)
    # Batch norm starts from constants, and so do some biases; every matrix and kernel is drawn.
    assert not any(torch.equal(first[key], other[key]) for key in first if first[key].dim() > 1)


@every_model
def test_a_spec_builds_it(name: str) -> None:
    task = find_task("blobs")
    model = build_model(ModelSpec(name=name, options=SMALL[name]), task, 3, torch.device("cpu")).eval()
    assert model(images(task.input_shape)).shape == (4, task.num_classes)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("wide_resnet", {"depth": 41, "width": 8}, "6n + 4"),
        ("wide_resnet", {"depth": 4, "width": 8}, "6n + 4"),
        ("wide_resnet", {"depth": -2, "width": 8}, "6n + 4"),
        ("wide_resnet", {"depth": 40.0, "width": 8}, "6n + 4"),
        ("wide_resnet", {"depth": 40, "width": 0}, "width"),
        ("wide_resnet", {"depth": 40, "width": 1.5}, "width"),
        ("resnet50_v2", {"width": 0}, "width"),
        ("resnet50_v2", {"width": True}, "width"),
        ("resnet50", {"width": "64"}, "width"),
        ("resnet50", {"zero_init_residual": 1}, "zero_init_residual"),
        ("densenet121", {"growth_rate": 0}, "growth_rate"),
        ("shufflenet_v2", {"width": 0.75}, "0.5, 1.0, 1.5, 2.0"),
        ("shufflenet_v2", {"width": True}, "0.5, 1.0, 1.5, 2.0"),
        ("shufflenet_v2", {"width": [1.0]}, "0.5, 1.0, 1.5, 2.0"),
    ],
)
def test_a_bad_option_is_refused_in_a_sentence(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        build(name, (3, 32, 32), **options)
    assert words in str(caught.value)
    with pytest.raises(SpecError, match=f"^model {name}: "):
        build_model(ModelSpec(name=name, options=options), find_task("blobs"), 0, torch.device("meta"))
