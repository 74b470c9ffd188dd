"""What is said of a loss: one direction, its unit, and what was shown of it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cser_bench.report import verdicts


def line(estimate: float, low: float, high: float, **others: Any) -> dict[str, Any]:
    """Return a comparison of M-CSER with local SGD, of which scores differ by `estimate`."""
    return {
        "estimate": estimate,
        "low": low,
        "high": high,
        "unit": "points",
        "margin": 0.005,
        "kind": "equivalence",
        "verdict": "undecided",
        "label": "M-CSER block",
        "other": "local SGD",
        **others,
    }


def test_a_loss_is_positive_and_a_gain_says_so() -> None:
    estimates = (-0.0127, 0.0002, 0.00001, math.nan)
    assert [verdicts.loss(estimate, "points") for estimate in estimates] == [
        *("1.27", "gain 0.02", "0.00", "–")
    ]
    assert verdicts.loses({"estimate": -0.136, "unit": "nats"}) == "loses 0.1360 nats"
    assert verdicts.loses({"estimate": 0.0002, "unit": "points"}) == "gains 0.02 points"


@pytest.mark.parametrize(
    ("low", "high", "interval"),
    [
        (-0.0085, -0.0025, "0.25 to 0.85"),
        (0.0005, 0.0044, "gain 0.05 to 0.44"),
        (-0.0028, 0.0033, "gain 0.33 to loss 0.28"),
        (-0.0031, 0.00001, "0.00 to 0.31"),
    ],
)
def test_an_interval_of_losses_goes_from_the_least_to_the_most(
    low: float, high: float, interval: str
) -> None:
    assert verdicts.loss_interval(low, high, "points") == interval


@pytest.mark.parametrize(
    ("kind", "low", "high", "word"),
    [
        ("non-inferiority", -0.006, 0.001, "undecided: between a gain of 0.10 and a loss of 0.60"),
        ("non-inferiority", -0.009, -0.003, "a loss; whether more than the margin is undecided"),
        ("superiority", -0.006, 0.001, "no difference seen"),
        ("superiority", -0.006, -0.001, "a loss, not shown after correction"),
    ],
)
def test_what_is_not_shown_is_undecided_or_no_difference_seen(
    kind: str, low: float, high: float, word: str
) -> None:
    shown = "no difference seen" if kind == "superiority" else "undecided"
    said = verdicts.verdict_in_words(line((low + high) / 2, low, high, verdict=shown))
    assert said.startswith(word)


@pytest.mark.parametrize(
    ("question", "others", "answer"),
    [
        (
            "Does local SGD do as well as M-CSER at a load of one model in 6 steps?",
            {"verdict": "worse by more than the margin"},
            "Yes: local SGD is 1.27 points better than M-CSER block, more than the margin",
        ),
        (
            "Does M-CSER do as well as local SGD?",
            {"verdict": "worse by more than the margin"},
            "No: M-CSER block is 1.27 points worse than local SGD, more than the margin",
        ),
        (
            "Is there a difference between M-CSER and local SGD?",
            {"verdict": "worse", "kind": "superiority"},
            "M-CSER block is 1.27 points worse than local SGD",
        ),
        (
            "Does M-CSER lose less than the margin?",
            {"verdict": "loses more than the margin", "kind": "non-inferiority"},
            "No: it loses 1.27 points",
        ),
    ],
)
def test_a_question_is_answered_in_its_own_direction(
    question: str, others: dict[str, str], answer: str
) -> None:
    assert verdicts.answer(line(-0.0127, -0.0158, -0.0096, **others), question) == answer
