"""Topologies: their weights against matrices written by hand, their gaps, and when workers
agree."""

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from cser_bench.algorithms import StackedCollectives, algorithms
from cser_bench.algorithms.core.topology import Topology, rounds_of, spectral_gap
from tests.algorithms import transcription
from tests.algorithms.problems import NAMES, own_settings

GOSSIP = [name for name in NAMES if "topology" in own_settings(name)]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("kind", get_args(Topology))
def test_each_step_mixes_as_the_matrix_written_by_hand_and_who_sends_is_who_is_received_from(
    kind: Any, n: int
) -> None:
    is_power = n & (n - 1) == 0
    if kind == "one_peer" and not (is_power and n > 1):
        return
    rounds = rounds_of(kind, n)
    expected = int(np.log2(n)) if kind == "one_peer" else 1
    assert len(rounds) == expected
    num_messages = {
        "ring": min(2, n - 1),
        "exponential": int(np.log2(n)),
        "one_peer": 1,
        "complete": n - 1,
    }
    for step, mixing in enumerate(rounds, start=1):
        if kind != "exponential" or is_power:
            np.testing.assert_allclose(
                mixing.matrix, transcription.WEIGHTS[kind](n, step), rtol=0, atol=1e-15
            )
            assert mixing.num_messages == num_messages[kind]
        is_mean = np.ptp(mixing.matrix) < 1e-12
        assert mixing.averages == is_mean
        sent = {
            (sender, rank)
            for rank, senders in enumerate(mixing.senders)
            for sender in senders
        }
        assert sent == {
            (rank, receiver)
            for rank, receivers in enumerate(mixing.receivers)
            for receiver in receivers
        }
        assert sent == {
            (j, i) for i, j in zip(*np.nonzero(mixing.matrix), strict=True) if i != j
        }
        for row in (*mixing.senders, *mixing.receivers):
            assert list(row) == sorted(row)
        for axis in (0, 1):
            np.testing.assert_allclose(
                mixing.matrix.sum(axis=axis), 1, rtol=0, atol=1e-15
            )


@pytest.mark.parametrize("n", [4, 8, 16, 32])
def test_spectral_gaps(n: int) -> None:
    """A ring's eigenvalues are 1/3 + 2/3 cos(2 pi k / n)."""
    cosines = [math.cos(2 * math.pi * k / n) for k in range(1, n)]
    ring = max(abs(1 / 3 + 2 / 3 * cosine) for cosine in cosines)
    gaps = {
        "ring": 1 - ring,
        "exponential": 2 / (1 + math.log2(n)),
        "complete": 1,
        "one_peer": 1,
    }
    for kind, gap in gaps.items():
        found = spectral_gap(rounds_of(kind, n))  # type: ignore[arg-type]
        assert found == pytest.approx(gap)


@pytest.mark.parametrize("name", GOSSIP)
def test_when_workers_are_known_to_agree(name: str) -> None:
    def says(
        num_workers: int,
        num_steps: int,
        communication_dtype: torch.dtype | None = None,
        **changes: Any,
    ) -> bool:
        own = own_settings(name) | changes
        common = {
            "collectives": StackedCollectives(num_workers),
            "communication_dtype": communication_dtype,
        }
        optimizer = algorithms()[name](
            [nn.Parameter(torch.zeros(num_workers, 9))], lr=0.1, **own, **common
        )
        return optimizer.agree_after(num_steps)

    assert says(4, 7)
    assert says(1, 7, topology="ring")
    assert says(4, 0, topology="ring")
    assert says(3, 7, topology="ring"), "of three all are neighbours"
    assert not says(4, 7, topology="ring")
    assert not says(4, 7, torch.float16)
    other: dict[str, Any] = (
        {"gamma": 0.5}
        if "gamma" in own_settings(name)
        else {"order": "combine_while_adapt"}
    )
    assert not says(4, 7, **other)
