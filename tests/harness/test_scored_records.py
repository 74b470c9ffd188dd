"""The mean step of a method whose steps are of two kinds, and its interval."""

from __future__ import annotations

import pytest
from scipy import stats

from harness.records.timings import Cell, StepKind, mean_step


def cell(kind: StepKind, share: float, seconds: list[float]) -> Cell:
    zeros = [0.0] * len(seconds)
    return Cell(
        method="local_sgd-4",
        kind=kind,
        share=share,
        bits_per_second=1e9,
        dilation=4.0,
        visits=[0] * len(seconds),
        seconds=seconds,
        compute_seconds=zeros,
        codec_seconds=zeros,
        waiting_seconds=zeros,
        transfer_seconds=zeros,
    )


def test_steps_of_one_kind_have_students_interval() -> None:
    seconds = [0.1, 0.12, 0.11, 0.13]
    mean, low, high = mean_step([cell("every", 1.0, seconds)])
    expected = stats.ttest_1samp(seconds, 0.0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((0.115, expected.low, expected.high))


def test_kinds_are_mixed_by_their_exact_shares() -> None:
    ordinary, synchronising = [1.0, 1.2, 1.1], [9.0, 9.6]
    mean, low, high = mean_step([cell("ordinary", 0.75, ordinary), cell("synchronising", 0.25, synchronising)])
    assert mean == pytest.approx(0.75 * 1.1 + 0.25 * 9.3)
    # Welch's interval of the difference of two samples that are scaled by the shares, one of them negated.
    welch = stats.ttest_ind(
        [0.75 * each for each in ordinary], [-0.25 * each for each in synchronising], equal_var=False
    )
    interval = welch.confidence_interval(0.95)
    assert (low, high) == pytest.approx((interval.low, interval.high))


def test_a_mix_that_lacks_a_kind_is_refused() -> None:
    with pytest.raises(AssertionError, match="sum to 1"):
        mean_step([cell("ordinary", 0.75, [1.0, 1.1])])
