"""Whether NoLoCo's workers drift apart: the closed form against all meetings that there can be, and
against runs."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from cser_bench.algorithms import NoLoCo, StackedCollectives
from cser_bench.algorithms.noloco import spread_factor

Settings = tuple[int, int, float, float]
"""Workers, how many meet, outer rate and outer momentum."""
FEW: list[Settings] = [
    *(
        (2, 2, 0.7, 0.9),
        (3, 2, 0.7, 0.9),
        (4, 2, 0.7, 0.9),
        (4, 2, 0.5, 0.9),
        (5, 2, 0.7, 0.5),
        (5, 3, 0.7, 0.9),
    ),
    *(
        (6, 2, 0.7, 0.9),
        (6, 3, 1.2, 0.6),
        (6, 4, 0.7, 0.9),
        (4, 4, 0.7, 0.9),
        (3, 9, 2.5, 0.0),
        (4, 1, 0.7, 0.5),
    ),
]
DRIFTING: list[Settings] = [
    (3, 2, 0.7, 0.9),
    (8, 2, 0.7, 0.9),
    (8, 2, 0.5, 0.9),
    (32, 2, 0.7, 0.9),
    (4, 4, 2.5, 0.1),
]
MEETING: list[Settings] = [
    *(
        (8, 2, 0.7, 0.5),
        (32, 2, 0.7, 0.5),
        (1000, 2, 0.7, 0.5),
        (8, 8, 0.7, 0.9),
        (2, 2, 0.7, 0.9),
        (1, 2, 0.7, 0.9),
    ),
    *((8, 2, 0.7, 0.8), (8, 2, 0.3, 0.9)),
]


def over_all_meetings(settings: Settings) -> float:
    """The factor by how the mean of all products of two numbers of phi and m changes, each meeting
    being as likely."""
    n, size, rate, momentum = settings
    apart = np.eye(n) - 1 / n
    size_of_product = 4 * n * n
    products = np.zeros((size_of_product, size_of_product))
    for order in itertools.permutations(range(n)):
        mean = np.zeros((n, n))
        for first in range(0, n, size):
            group = list(order[first : first + size])
            mean[np.ix_(group, group)] = 1 / len(group)
        pull = rate * (mean @ apart - apart)
        first_row = [apart + pull, momentum * apart]
        second_row = [pull, momentum * apart]
        meeting = np.block([first_row, second_row])
        products += np.kron(meeting, meeting)
    mean_product = products / math.factorial(n)
    eigenvalues = np.linalg.eigvals(mean_product)
    largest = np.abs(eigenvalues).max()
    return float(largest**0.5)


def spreads(settings: Settings, seed: int, num_meetings: int) -> list[float]:
    """The squared spread of the method's own workers, which train nothing, after each meeting."""
    n, size, rate, momentum = settings
    zeros = torch.zeros(n, 8, dtype=torch.float64)
    x = nn.Parameter(zeros)
    own = {
        "sync_interval": 1,
        "group_size": size,
        "outer_lr": rate,
        "outer_momentum": momentum,
    }
    optimizer = NoLoCo([x], lr=1.0, collectives=StackedCollectives(n), seed=seed, **own)  # type: ignore[arg-type]
    start = torch.randn(
        n, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    found: list[float] = []
    for step in range(num_meetings):
        # A first gradient takes the workers apart.
        x.grad = start if step == 0 else torch.zeros_like(x)
        optimizer.step()
        apart = (x - x.mean(0)).detach()
        squares = apart.square()
        found.append(float(squares.sum()))
    return found


@pytest.mark.parametrize("settings", FEW)
def test_the_closed_form_is_the_mean_over_all_meetings(settings: Settings) -> None:
    assert spread_factor(*settings) == pytest.approx(
        over_all_meetings(settings), rel=1e-9
    )


@pytest.mark.whole
@pytest.mark.filterwarnings("ignore:noloco. with outer_lr")
@pytest.mark.parametrize(
    "settings",
    [(8, 2, 0.7, 0.9), (16, 2, 0.5, 0.9), (8, 2, 0.7, 0.5), (8, 3, 0.7, 0.5)],
)
def test_the_methods_own_workers_spread_by_the_closed_form(settings: Settings) -> None:
    begin = 8
    end = 18
    by_seed = [spreads(settings, seed, end) for seed in range(80)]
    runs = np.array(by_seed).mean(0)
    growth = runs[end - 1] / runs[begin - 1]
    num_meetings = end - begin
    factor = growth ** (1 / (2 * num_meetings))
    expected = spread_factor(*settings)
    assert factor == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("settings", [*DRIFTING, *MEETING])
def test_settings_by_which_workers_drift_apart_are_warned_of(
    settings: Settings,
) -> None:
    n, size, rate, momentum = settings
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        x = nn.Parameter(torch.zeros(n, 8))
        own = {
            "sync_interval": 1,
            "group_size": size,
            "outer_lr": rate,
            "outer_momentum": momentum,
        }
        NoLoCo([x], lr=1.0, collectives=StackedCollectives(n), **own)  # type: ignore[arg-type]
    expected = (
        f"groups of {size} grows {spread_factor(*settings):.3f} times a meeting without "
        "end, as a root mean square over draws"
    )
    assert [expected in str(each.message) for each in said] == [True] * (
        settings in DRIFTING
    )
    assert (spread_factor(*settings) > 1) == (settings in DRIFTING)
