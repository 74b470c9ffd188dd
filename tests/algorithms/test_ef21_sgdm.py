"""EF21-SGDM: the direction of a step, the first message, and what frozen parameters do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from algorithms import BlockSparsifier, Identity, Purpose, TopK, Zero, algorithms
from algorithms.core.compressors import Gathered
from algorithms.core.traffic import Entry
from tests.algorithms.problems import COMPRESSORS, make_model, make_optimizer


def walk(gradients: list[float], momenta: list[float], compressor: object = None) -> list[float]:
    """Where one coordinate goes from 0, at learning rate 1, with these gradients and momenta."""
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = algorithms()["ef21_sgdm"]([parameter], lr=1.0, momentum=momenta[0], compressor=compressor or Identity())
    places = []
    for gradient, momentum in zip(gradients, momenta, strict=True):
        optimizer.param_groups[0]["momentum"] = momentum
        parameter.grad = torch.full((1,), gradient, dtype=torch.float64)
        optimizer.step()
        places.append(parameter.item())
    return places


@pytest.mark.parametrize("compressor", [Zero(), TopK(1), BlockSparsifier(1), Identity()], ids=str)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_where_nothing_changes_nothing_is_news_and_yet_all_go_on(momentum: float, compressor: object) -> None:
    """Whoever steps with what was sent, in place of the sum of it, stands still after the first step."""
    assert walk([2.0] * 4, [momentum] * 4, compressor) == pytest.approx([-2, -4, -6, -8])


def test_the_average_begins_with_the_first_gradient_and_takes_in_a_share_of_each_later_one() -> None:
    # v = 8, 0.75 * 8 + 0.25 * 4 = 7, 0.75 * 7 = 5.25
    assert walk([8.0, 4.0, 0.0], [0.75] * 3) == pytest.approx([-8, -15, -20.25])


def test_momentum_that_is_switched_on_begins_with_that_steps_gradient() -> None:
    # v = 1, 2, 8 and then 0.5 * 8 + 0.5 * 4 = 6
    assert walk([1.0, 2.0, 8.0, 4.0], [0.0, 0.0, 0.5, 0.5]) == pytest.approx([-1, -3, -11, -17])


@pytest.mark.parametrize("key", COMPRESSORS)
def test_the_first_message_is_whole_and_counted(key: str) -> None:
    optimizer = make_optimizer("ef21_sgdm", make_model(), {"compressor": COMPRESSORS[key]})
    whole = 32 * 51
    for num_steps, expected in ((0, Entry()), (1, Entry(whole, 1))):
        assert optimizer.expected_traffic(num_steps)[Purpose.GRADIENT] == expected
    if key == "per_tensor":
        return  # whose messages differ in size
    plain = make_optimizer("ef_sgd", make_model(), {"compressor": COMPRESSORS[key]}).expected_traffic(12).training()
    later = plain["gradient"]
    gathered = later.bits if isinstance(COMPRESSORS[key], Gathered) else 0
    expected = Entry(whole + later.bits, 1 + later.collectives, gathered)
    assert optimizer.expected_traffic(13).training() == {"gradient": expected, "error": Entry(), "model": Entry()}
