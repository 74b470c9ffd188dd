"""The method that docs/adding-an-algorithm.md shows keeps what every method promises."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from algorithms import BlockSparsifier, Collectives, DistributedOptimizer, Identity, algorithms
from tests.algorithms.problems import make_model, make_optimizer, own_settings, train, trained, workers

PAGE = Path(__file__).parents[2] / "docs" / "adding-an-algorithm.md"


def shown() -> str:
    """The page's module."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return str(code)


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch) -> str:
    """What the shown method is found by while a test runs."""
    module = ModuleType("my_method")
    exec(compile(shown(), str(PAGE), "exec"), module.__dict__)
    (method,) = (
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, DistributedOptimizer) and each is not DistributedOptimizer
    )
    monkeypatch.setitem(algorithms(), method.name, method)
    return method.name


def test_without_compression_it_is_sgd(name: str) -> None:
    for ours, plain in zip(trained(name, {"compressor": Identity()}, 3, 9), trained("sgd", {}, 3, 9), strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)


def test_its_settings_reach_a_ratio(name: str) -> None:
    own = algorithms()[name].at_ratio(4)
    assert own == {"compressor": BlockSparsifier(4)}
    assert make_optimizer(name, make_model(), own).overall_ratio() == pytest.approx(51 / 13)


def test_it_sends_what_its_stages_say_and_the_workers_agree(name: str) -> None:
    def work(collectives: Collectives) -> torch.Tensor:
        model = make_model(torch.float32)
        optimizer = make_optimizer(name, model, own_settings(name, [BlockSparsifier(4)]), collectives)
        train(optimizer, model, collectives.rank, range(1, 8))
        assert optimizer.traffic.training() == optimizer.expected_traffic(7).training()
        assert optimizer.traffic.training_bits == 7 * 32 * 13
        assert optimizer.agree_after(7)
        assert len(optimizer.early_messages(8)) == 1
        return optimizer.flat.parameters

    first, second = workers(work, 2)
    assert torch.equal(first, second)
