"""DiLoCo: what it sends, what rounding takes from it, and settings that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from algorithms import Collectives
from algorithms.core.traffic import Entry
from tests.algorithms.problems import make_model, make_optimizer, train, trained, workers


def settings(interval: int, num_fragments: int = 1, outer_lr: float = 0.7, outer_momentum: float = 0.9) -> Any:
    return {
        "sync_interval": interval,
        "num_fragments": num_fragments,
        "outer_lr": outer_lr,
        "outer_momentum": outer_momentum,
    }


@pytest.mark.parametrize(
    ("own", "num_steps", "numbers", "num_syncs"),
    [
        (settings(4), 13, 3 * 51, 3),
        (settings(6, 3), 13, 2 * 51, 6),
        (settings(6, 3), 5, 17 + 17, 2),
        (settings(4, 4), 3, 12 + 13 + 13, 3),  # fragments end at 12, 25, 38, 51
        (settings(4, 4), 13, 3 * 51 + 12, 13),
        (settings(102, 51), 5, 2, 2),
    ],
    ids=str,
)
def test_traffic_counted_by_hand(own: Any, num_steps: int, numbers: int, num_syncs: int) -> None:
    def work(collectives: Collectives) -> None:
        model = make_model(torch.float32)
        optimizer = make_optimizer("diloco", model, own, collectives)
        train(optimizer, model, collectives.rank, range(1, num_steps + 1))
        expected = {"gradient": Entry(), "error": Entry(), "model": Entry(32 * numbers, num_syncs)}
        assert optimizer.traffic.training() == expected == optimizer.expected_traffic(num_steps).training()

    workers(work, 2)


def test_rounding_is_kept_by_the_worker_whose_number_it_was() -> None:
    """So with one worker, outer learning rate 1 and no momentum nothing is lost."""
    for num_fragments in (1, 3):
        (short,) = trained("diloco", settings(3, num_fragments, 1.0, 0.0), 1, 12, communication_dtype=torch.float16)
        (full,) = trained("alone", {}, 1, 12)
        torch.testing.assert_close(short, full, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (settings(5, 2), "sync_interval = 5 must be a multiple of num_fragments = 2"),
        (settings(52, 52), "num_fragments = 52 is more than the model's 51 parameters; lower it"),
        (settings(2, 0), "num_fragments must be an integer from 1 up, not 0"),
        *((settings(2, 1, lr), "outer_lr must be a number above 0") for lr in (0, -1.0, float("inf"), float("nan"))),
        (settings(2, 1, True), "outer_lr must be a number above 0, not True"),
        *((settings(2, 1, 1, mu), r"outer_momentum must lie in \[0, 1\)") for mu in (1.0, -0.1, float("nan"), True)),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_in_a_sentence(wrong: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"^diloco: {words}"):
        make_optimizer("diloco", make_model(), wrong)
