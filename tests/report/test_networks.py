"""What carries over between kinds of network: shares of what can be lost, their spread, and the order of methods."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import stdev

import pandas as pd
import pytest

from cser_bench.report.questions.evidence import Evidence, evidence_of
from cser_bench.report.questions.networks import KINDS, rank_correlation, shares_lost, spread_between_kinds


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return evidence_of(Path(__file__).parents[2] / "results")


def table(*kinds: list[float], half_width: float = 0.001) -> pd.DataFrame:
    """Methods a, b, c, ... of each kind at these shares."""
    lines = [(f"kind {n}", "abcdef"[m], share) for n, kind in enumerate(kinds) for m, share in enumerate(kind)]
    frame = pd.DataFrame(lines, columns=["network", "method", "share"])
    return frame.assign(low=frame["share"] - half_width, high=frame["share"] + half_width)


def test_a_share_is_the_loss_over_what_a_worker_alone_loses(evidence: Evidence) -> None:
    """By the scores of the shipped runs alone."""
    shares = shares_lost(evidence).set_index(["network", "method"])
    for kind in KINDS:
        known = evidence.experiment(kind.experiment)
        if known:
            scores = known.frames.runs.groupby("row")["score"].mean()
            best, floor = scores[known.baseline], scores[known.frames.experiment.floor]
            for method, row in kind.rows.items():
                line = shares.loc[(kind.network, method)]
                assert line["share"] == pytest.approx((best - scores[row]) / (best - floor), abs=1e-9)
                assert line["low"] < line["share"] < line["high"]
    assert {"Perceptron", "Convolutions"} <= set(shares.index.get_level_values("network"))


def test_the_spread_is_the_standard_deviation_over_kinds() -> None:
    frame = table([0.1, 0.3], [0.2, 0.3, 0.5], [0.6, 0.3])
    assert spread_between_kinds(frame) == pytest.approx({"a": stdev([0.1, 0.2, 0.6]), "b": 0.0})


def test_the_order_of_methods_is_compared_over_pairs_of_kinds_with_three_in_common() -> None:
    assert rank_correlation(table([0.1, 0.2, 0.3], [0.4, 0.5, 0.9])) == pytest.approx((1, 1, 1))
    assert rank_correlation(table([0.1, 0.2, 0.3], [0.9, 0.5, 0.4]))[0] == pytest.approx(-1)
    # 1 - 6 (1 + 1) / (3 x 8) for the one pair; the third kind has too few methods.
    assert rank_correlation(table([0.1, 0.2, 0.3], [0.2, 0.1, 0.3], [0.3, 0.1]))[0] == pytest.approx(0.5)
    mean, low, high = rank_correlation(table([0.1, 0.2, 0.3], [0.1, 0.2, 0.3], half_width=0.5))
    assert (mean, low) == pytest.approx((1, -1)) and high == pytest.approx(1)
    assert all(map(math.isnan, rank_correlation(table([0.1, 0.2], [0.1, 0.2]))))
