"""Topologies: their weights against matrices written by hand, and their gaps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from algorithms import Topology
from algorithms.core.topology import as_topology
from tests.algorithms import transcription

KINDS = ("ring", "exponential", "one_peer", "complete")


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_each_step_mixes_as_the_matrix_written_by_hand_and_who_sends_is_who_is_received_from(kind: Any, n: int) -> None:
    is_power = n & (n - 1) == 0
    if kind == "one_peer" and not (is_power and n > 1):
        return
    rounds = Topology(kind).rounds(n)
    assert len(rounds) == (int(np.log2(n)) if kind == "one_peer" else 1)
    assert Topology(kind).is_static == (kind != "one_peer")
    by_hand: dict[str, Callable[[int], Any]] = {
        "ring": lambda step: transcription.ring(n),
        "exponential": lambda step: transcription.exponential(n),
        "one_peer": lambda step: transcription.one_peer(n, step),
        "complete": lambda step: np.full((n, n), 1 / n),
    }
    num_messages = {"ring": min(2, n - 1), "exponential": int(np.log2(n)), "one_peer": 1, "complete": n - 1}
    for step, mixing in enumerate(rounds, start=1):
        if kind != "exponential" or is_power:
            np.testing.assert_allclose(mixing.matrix, by_hand[kind](step), rtol=0, atol=1e-15)
            assert mixing.num_messages == num_messages[kind]
        assert mixing.averages == (np.ptp(mixing.matrix) < 1e-12)
        sent = {(sender, rank) for rank, senders in enumerate(mixing.senders) for sender in senders}
        assert sent == {(rank, receiver) for rank, receivers in enumerate(mixing.receivers) for receiver in receivers}
        assert sent == {(j, i) for i, j in zip(*np.nonzero(mixing.matrix), strict=True) if i != j}
        assert all(list(row) == sorted(row) for row in (*mixing.senders, *mixing.receivers))
        for axis in (0, 1):
            np.testing.assert_allclose(mixing.matrix.sum(axis=axis), 1, rtol=0, atol=1e-15)


# Spectral gaps.


@pytest.mark.parametrize("n", [4, 8, 16, 32])
def test_the_gap_of_a_ring(n: int) -> None:
    """1/3 + 2/3 cos(2 pi k / n) are its eigenvalues."""
    values = [1 / 3 + 2 / 3 * math.cos(2 * math.pi * k / n) for k in range(1, n)]
    assert Topology("ring").spectral_gap(n) == pytest.approx(1 - max(map(abs, values)))
    assert Topology("ring").spectral_gap(n) == pytest.approx({4: 0.667, 8: 0.195, 16: 0.051, 32: 0.013}[n], abs=5e-4)


@pytest.mark.parametrize("n", [2, 4, 8, 16, 32])
def test_the_gaps_of_exponential_and_complete_graphs(n: int) -> None:
    assert Topology("exponential").spectral_gap(n) == pytest.approx(2 / (1 + math.log2(n)))
    assert Topology("complete").spectral_gap(n) == pytest.approx(1)
    assert Topology("one_peer").spectral_gap(n) == pytest.approx(1), "exact after log2 n rounds"


# What cannot be.


@pytest.mark.parametrize("n", [3, 5, 6, 7, 12])
def test_one_peer_needs_a_power_of_two(n: int) -> None:
    with pytest.raises(ValueError, match=f"one_peer needs a power of two of workers, not {n}"):
        Topology("one_peer").rounds(n)


def test_names_that_are_none() -> None:
    with pytest.raises(ValueError, match="unknown topology 'torus'; it must be one of ring, exponential, one_peer, "):
        Topology("torus")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="some_method: unknown topology 3"):
        as_topology("some_method", 3)  # type: ignore[arg-type]


def test_a_topology_is_known_by_its_name() -> None:
    assert repr(Topology("ring")) == repr("ring") and Topology("ring").spectral_gap(1) == 1
    assert as_topology("m", "ring") == as_topology("m", Topology("ring")) == Topology("ring")
