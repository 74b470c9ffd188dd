"""Shared randomness: stateless, the same everywhere, different by seed, step and purpose, and uniform."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algorithms.core.compressors import Draw

CPU = torch.device("cpu")

# Of Draw(1, 2, "gradient").
KEY = 41110946149140371502579049581479416615
INTEGERS = [4669931351255624814, 1927422963798753732]
CHOSEN = [40, 103, 551]
CHOSEN_MANY = [252, 254, 331]
NORMAL = [[0.045874737203121185, -0.6580430269241333], [0.7310401201248169, 1.4066272974014282]]


def test_the_numbers_never_change() -> None:
    """Runs made today must be repeatable with any later version."""
    draw = Draw(1, 2, "gradient")
    assert draw.key() == KEY
    assert draw.integers(2).tolist() == INTEGERS
    assert draw.choose(1000, 3) == CHOSEN
    assert draw.choose_many(1000, 3).tolist() == CHOSEN_MANY
    assert draw.normal((2, 2), 7).tolist() == NORMAL


@pytest.mark.parametrize(
    "other", [Draw(4, 5, "error"), Draw(3, 6, "error"), Draw(3, 5, "gradient"), Draw(35, 0, "error")], ids=str
)
def test_other_draws_give_other_numbers(other: Draw) -> None:
    draw = Draw(3, 5, "error")
    assert draw.key() != other.key()
    assert not np.array_equal(draw.integers(4), other.integers(4))
    assert draw.choose(1000, 30) != other.choose(1000, 30)
    assert not torch.equal(draw.choose_many(1000, 30), other.choose_many(1000, 30))
    assert not torch.equal(torch.rand(4, generator=draw.generator(CPU)), torch.rand(4, generator=other.generator(CPU)))


def test_extra_numbers_give_streams_of_their_own_and_global_generators_are_left_alone() -> None:
    def states() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()

    draw, before = Draw(3, 5, "error"), states()
    streams = [torch.rand(4, generator=draw.generator(CPU, rank)).tolist() for rank in range(5)]
    assert len({tuple(stream) for stream in streams}) == 5
    assert not np.array_equal(draw.integers(3, 0), draw.integers(3, 1))
    first = draw.choose(100, 5), draw.choose_many(10, 3).tolist(), draw.normal((2, 3)).tolist()
    assert states() == before
    torch.manual_seed(2)
    np.random.seed(2)
    random.seed(2)
    assert (draw.choose(100, 5), draw.choose_many(10, 3).tolist(), draw.normal((2, 3)).tolist()) == first


def test_normal_numbers_are_normal() -> None:
    """Of 40,000: mean 0, variance 1, fourth moment 3, each within five standard deviations of its estimate."""
    numbers = Draw(0, 0, "gradient").normal((200, 200)).double()
    for power, expected, spread in ((1, 0, 1), (2, 1, 2), (4, 3, 96)):
        assert abs(float((numbers**power).mean()) - expected) < 5 * (spread / 40_000) ** 0.5


@given(st.integers(1, 60), st.data(), st.integers(0, 2**40))
def test_choices_are_without_replacement_ascending_and_in_range(
    population: int, data: st.DataObject, seed: int
) -> None:
    count = data.draw(st.integers(1, population))
    draw = Draw(seed, 1, "gradient")
    for chosen in (draw.choose(population, count), draw.choose_many(population, count).tolist()):
        assert len(chosen) == count
        assert chosen == sorted(set(chosen))
        assert chosen[0] >= 0 and chosen[-1] < population


@pytest.mark.parametrize("count", [1, 3, 6])
@pytest.mark.parametrize("many", [False, True])
def test_each_is_chosen_equally_often(count: int, many: bool) -> None:
    """Expected 1500 count / 7 times each, standard deviation at most 20: five of them are allowed."""
    counts = np.zeros(7)
    for step in range(1500):
        draw = Draw(0, step, "gradient")
        counts[draw.choose_many(7, count).numpy() if many else draw.choose(7, count)] += 1
    share = count / 7
    assert np.abs(counts - 1500 * share).max() < 5 * np.sqrt(1500 * share * (1 - share))
