"""The largest numbers of a long vector on the CPU, found by a threshold, are those of `torch.topk`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cser_bench.algorithms import TopK
from cser_bench.algorithms.core import largest
from cser_bench.algorithms.core.compressors import Draw
from cser_bench.algorithms.core.largest import places_of_largest

NUMEL = 1_300_003


def normal(dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator()
    generator.manual_seed(3)
    numbers = torch.randn(NUMEL, generator=generator)
    return numbers.to(dtype)


def spoilt(value: float, count: int) -> Tensor:
    """Random numbers of which `count`, far apart, are this value."""
    numbers = normal()
    last = NUMEL - 1
    places = torch.linspace(0, last, count).long()
    numbers[places] = value
    return numbers


def periodic() -> Tensor:
    """Large numbers where the sample never looks."""
    numbers = normal()
    stride = NUMEL // largest.SAMPLED
    numbers[1::stride] += 100
    return numbers


ALL_NAN = torch.full((NUMEL,), torch.nan)
VECTORS: dict[str, Callable[[], Tensor]] = {
    "random": normal,
    "float64": lambda: normal(torch.float64),
    "bfloat16, with many equal numbers": lambda: normal(torch.bfloat16),
    "few values": lambda: (4 * normal()).round(),
    "ties at the last place": lambda: normal().clamp(-2, 2),
    "constant": lambda: torch.full((NUMEL,), 0.5),
    "zero": lambda: torch.zeros(NUMEL),
    "one number and zeros": lambda: torch.eye(1, NUMEL)[0],
    "ascending": lambda: normal().sort().values,
    "descending by magnitude": lambda: normal().abs().sort(descending=True).values,
    "heavy-tailed": lambda: normal() / normal().roll(1).abs().pow(3),
    "the sample sees small ones": periodic,
    "a NaN": lambda: spoilt(torch.nan, 1),
    "some NaN": lambda: spoilt(torch.nan, 40),
    "many NaN": lambda: spoilt(torch.nan, 20_000),
    "NaN alone": lambda: ALL_NAN,
    "infinite numbers": lambda: spoilt(-torch.inf, 40),
    "many infinite numbers": lambda: spoilt(torch.inf, 20_000),
}


@pytest.mark.parametrize("ratio", [192, 3, NUMEL])
@pytest.mark.parametrize("name", VECTORS)
def test_the_places_are_those_of_torch_topk(name: str, ratio: int) -> None:
    make = VECTORS[name]
    numbers = make().abs()
    count = NUMEL // ratio
    expected = numbers.topk(count, sorted=False).indices
    found = places_of_largest(numbers, count)
    assert found.dtype == expected.dtype
    assert len(found) == count
    in_order = found.sort().values
    expected_in_order = expected.sort().values
    assert torch.equal(in_order, expected_in_order)


@pytest.mark.parametrize(
    "name", ["random", "float64", "ascending", "heavy-tailed", "infinite numbers"]
)
def test_a_threshold_saves_the_search_through_all(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else equality would hold since `torch.topk` did it."""
    searched = []
    topk = Tensor.topk

    def counted(numbers: Tensor, *arguments: int, **options: bool) -> object:
        searched.append(numbers.numel())
        return topk(numbers, *arguments, **options)

    monkeypatch.setattr(Tensor, "topk", counted)
    make = VECTORS[name]
    numbers = make().abs()
    count = NUMEL // 192
    places_of_largest(numbers, count)
    assert sum(searched) < NUMEL / 4


@pytest.mark.parametrize("name", ["random", "few values"])
def test_a_message_says_what_it_said(name: str) -> None:
    make = VECTORS[name]
    vector = make()
    compressor = TopK(192)
    draw = Draw(0, 1, "gradient")
    message = compressor.encode(vector, draw, 0)
    count = NUMEL // 192
    magnitudes = vector.abs()
    places = magnitudes.topk(count, sorted=False).indices
    expected = torch.zeros(NUMEL)
    expected[places] = vector[places]
    found = compressor.decode(message, NUMEL, vector.dtype)
    assert torch.equal(found, expected)


def test_a_short_vector_has_the_order_of_torch_topk_too() -> None:
    numel = largest.LEAST_NUMEL - 1
    long = normal()
    short = long[:numel]
    numbers = short.abs()
    found = places_of_largest(numbers, 1000)
    expected = numbers.topk(1000, sorted=False).indices
    assert torch.equal(found, expected)
