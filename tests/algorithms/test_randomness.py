"""Shared randomness: stateless, the same everywhere, different by seed, step and purpose, and
uniform."""

import random
import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cser_bench.algorithms import SGD, Collectives
from cser_bench.algorithms.core.compressors import Draw
from tests.algorithms.problems import workers

# Key and numbers of Draw(1, 2, "gradient").
KEY = 41110946149140371502579049581479416615
INTEGERS = [4669931351255624814, 1927422963798753732]
CHOSEN = [40, 103, 551]
CHOSEN_MANY = [252, 254, 331]
NORMAL = [
    [0.045874737203121185, -0.6580430269241333],
    [0.7310401201248169, 1.4066272974014282],
]


def test_the_numbers_never_change() -> None:
    """Runs made today must be repeatable with any later version."""
    draw = Draw(1, 2, "gradient")
    assert draw.key() == KEY
    assert draw.integers(2).tolist() == INTEGERS
    assert draw.choose(1000, 3) == CHOSEN
    assert draw.choose_many(1000, 3).tolist() == CHOSEN_MANY
    found = draw.normal((2, 2), 7).tolist()
    assert found == NORMAL


def test_other_draws_give_other_numbers_and_global_generators_neither_matter_nor_move() -> (
    None
):
    def numbers(draw: Draw, *extra: int) -> tuple[Any, ...]:
        uniform = torch.rand(
            4, generator=draw.generator(torch.device("cpu"), *extra)
        ).tolist()
        many = [] if extra else draw.choose_many(1000, 30).tolist()
        return (
            draw.key(*extra),
            draw.integers(4, *extra).tolist(),
            draw.choose(1000, 30, *extra),
            uniform,
            many,
        )

    def states() -> tuple[Any, ...]:
        return (
            torch.get_rng_state().tolist(),
            str(np.random.get_state()),
            random.getstate(),
        )

    draw = Draw(3, 5, "error")
    before = states()
    others = [
        Draw(4, 5, "error"),
        Draw(3, 6, "error"),
        Draw(3, 5, "gradient"),
        Draw(35, 0, "error"),
    ]
    found = [numbers(each) for each in (draw, *others)]
    found += [numbers(draw, 0), numbers(draw, 1)]
    for kind in zip(*found, strict=True):
        assert len({str(each) for each in kind if each != []}) == len(
            [each for each in kind if each != []]
        )
    assert states() == before
    torch.manual_seed(2)
    np.random.seed(2)
    random.seed(2)
    assert numbers(draw) == found[0]


@pytest.mark.parametrize("method", ["normal", "choose_many"])
def test_workers_whose_numpy_draws_otherwise_are_told_so(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PowerSGD's first factors, and random-k's coordinates, must be the same on all."""
    draw_as_ever = getattr(Draw, method)
    is_another = threading.local()

    def drawn(draw: Draw, *given: Any) -> torch.Tensor:
        numbers: torch.Tensor = draw_as_ever(draw, *given)
        return numbers.flip(0) if hasattr(is_another, "version") else numbers

    def work(collectives: Collectives) -> None:
        if collectives.rank == 2:
            is_another.version = True
        with pytest.raises(
            ValueError,
            match=r"numpy draws .* on ranks 0, 1; .* on rank 2\); .* seed and packages",
        ):
            parameter = nn.Parameter(torch.zeros(4))
            SGD([parameter], lr=0.1, collectives=collectives)

    monkeypatch.setattr(Draw, method, drawn)
    workers(work, 3)


@given(st.integers(1, 60), st.data(), st.integers(0, 2**40))
def test_choices_are_without_replacement_ascending_and_in_range(
    population: int, data: st.DataObject, seed: int
) -> None:
    count = data.draw(st.integers(1, population))
    draw = Draw(seed, 1, "gradient")
    for chosen in (
        draw.choose(population, count),
        draw.choose_many(population, count).tolist(),
    ):
        assert len(chosen) == count
        assert chosen == sorted(set(chosen))
        assert chosen[0] >= 0
        assert chosen[-1] < population


@pytest.mark.parametrize("count", [1, 3, 6])
@pytest.mark.parametrize("many", [False, True])
def test_each_is_chosen_equally_often(count: int, many: bool) -> None:
    """Expected 1500 count / 7 times each, standard deviation at most 20: five of them are
    allowed."""
    counts = np.zeros(7)
    for step in range(1500):
        draw = Draw(0, step, "gradient")
        counts[
            draw.choose_many(7, count).numpy() if many else draw.choose(7, count)
        ] += 1
    share = count / 7
    off = np.abs(counts - 1500 * share)
    deviation = np.sqrt(1500 * share * (1 - share))
    assert off.max() < 5 * deviation
