"""The compressor that docs/adding-a-compressor.md shows keeps what every compressor promises."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from algorithms import Collectives
from algorithms.core.compressors import SharedSupport
from algorithms.core.layout import Layout
from algorithms.core.randomness import Draw
from algorithms.registry import _by_name, _classes, compressors
from tests.algorithms.problems import make_model, make_optimizer, train, workers

ROOT = Path(__file__).parents[2]


@pytest.fixture
def stride(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[SharedSupport]:
    """As the registry finds it: a file beside others, imported by its name."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/adding-a-compressor.md").read_text(), re.M | re.S)
    package = tmp_path / "shown_compressors"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "stride.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = _classes("shown_compressors", SharedSupport)  # type: ignore[type-abstract]
    assert _by_name([(found.kind, found), *compressors().items()])["stride"] is found  # type: ignore[list-item]
    return found


def test_it_keeps_every_rth_coordinate(stride: type[SharedSupport]) -> None:
    layout = Layout.of([torch.empty(100)])
    kept = [stride(8).support(layout, Draw(0, step, "gradient")).gather(torch.arange(100.0)) for step in range(64)]  # type: ignore[call-arg]
    assert {int(each[0]) for each in kept} == set(range(8))
    assert all((each.diff() == 8).all() and len(each) == 12 for each in kept)


def test_a_method_sends_with_it_what_it_says(stride: type[SharedSupport]) -> None:
    def work(collectives: Collectives) -> torch.Tensor:
        model = make_model(torch.float32)
        settings = {"gradient_compressor": stride(8), "error_compressor": stride(2), "reset_interval": 2}  # type: ignore[call-arg]
        optimizer = make_optimizer("cser", model, settings, collectives)
        train(optimizer, model, collectives.rank, range(1, 5))
        assert optimizer.traffic.training() == optimizer.expected_traffic(4).training()
        numel = optimizer.flat.layout.numel
        assert optimizer.traffic.training_bits == 32 * (4 * (numel // 8) + 2 * (numel // 2))
        return optimizer.flat.parameters

    assert all(torch.isfinite(each).all() for each in workers(work, 2))


def test_two_of_one_name_are_refused(stride: type[SharedSupport]) -> None:
    with pytest.raises(ValueError, match="two classes are named 'stride'"):
        _by_name([("stride", stride), ("stride", stride)])
