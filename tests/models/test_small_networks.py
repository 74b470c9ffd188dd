"""The small networks of the studies of kinds of network: shapes, sizes beside the perceptron's, options refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.models import small_densenet, small_shufflenet
from harness.spec import ModelSpec, SpecError
from harness.spec_file import find_spec, load_spec
from harness.tasks.task import find_task
from harness.train.build import build_model

PERCEPTRON_NUMEL = 28 * 28 * 32 + 32 + 32 * 10 + 10
STUDIES = ("studies/network_cnn", "studies/network_densenet", "studies/network_shufflenet")


@pytest.mark.parametrize("study", STUDIES)
def test_its_network_classifies_and_is_about_as_large_as_the_perceptron(study: str) -> None:
    spec = load_spec(find_spec(study))
    model = build_model(spec.model, find_task("fashion_mnist"), 0, torch.device("cpu"))
    outputs = model(torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(1)))
    assert outputs.shape == (4, 10)
    outputs.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert 0.7 < sum(parameter.numel() for parameter in model.parameters()) / PERCEPTRON_NUMEL < 1.5


def test_a_layer_of_the_densenet_adds_as_many_channels_as_the_growth_rate() -> None:
    model = small_densenet.build((1, 28, 28), 10, growth_rate=6, blocks=[2, 3])
    # 6 from the stem, 2 x 6 from the first block, halved by the transition, 3 x 6 from the second.
    assert model.get_parameter("classifier.weight").shape == (10, (6 + 12) // 2 + 18)


def test_a_unit_of_the_shufflenet_keeps_half_of_its_channels_as_they_are() -> None:
    model = small_shufflenet.build((1, 28, 28), 10, units=[2, 1, 1], widths=[8, 16, 16, 16, 32]).eval()
    unit = model.get_submodule("stage2.1")
    images = torch.randn(2, 16, 7, 7, generator=torch.Generator().manual_seed(1))
    # A channel shuffle of two groups takes the untouched half to the even channels.
    assert torch.equal(unit(images)[:, 0::2], images[:, :8])


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("small_densenet", {"growth_rate": 0, "blocks": [2]}, "growth_rate must be"),
        ("small_densenet", {"growth_rate": 4, "blocks": []}, "blocks must be"),
        ("small_densenet", {"growth_rate": 4, "blocks": [2, 0]}, "blocks must be"),
        ("small_densenet", {"growth_rate": 4, "blocks": [1, 1, 1, 1, 1]}, "at least 48"),
        ("small_shufflenet", {"units": [2, 2], "widths": [16, 32, 64, 64, 128]}, "units must be 3"),
        ("small_shufflenet", {"units": [2, 2, 2], "widths": [16, 32]}, "widths must be 5"),
        ("small_shufflenet", {"units": [2, 2, 2], "widths": [16, 33, 64, 64, 128]}, "even"),
    ],
)
def test_a_bad_option_is_refused_in_a_sentence(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=f"^model {name}: .*{words}"):
        build_model(ModelSpec(name=name, options=options), find_task("fashion_mnist"), 0, torch.device("meta"))
