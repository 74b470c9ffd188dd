"""The rule by which runs at further lengths are added, as the specs of steps to a score declare it."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

SCRIPT = Path(__file__).parents[2] / "results" / "statistics" / "next_lengths.py"
TARGET = 0.5
TARGET_LENGTH = 1000


@pytest.fixture(scope="module")
def script() -> dict[str, Callable[..., object]]:
    return cast(dict[str, Callable[..., object]], runpy.run_path(str(SCRIPT)))


@pytest.mark.parametrize(
    ("losses", "round_steps", "said"),
    [
        ({1000: 0.51, 1440: 0.49}, 1, "crosses"),
        ({1000: 0.51, 1440: 0.50}, 1, "crosses"),
        ({1000: float("inf"), 1440: 0.49}, 1, "crosses"),
        # 1.4 times further on the side that is missing, in whole rounds.
        ({1000: 0.53, 1440: 0.51}, 1, "2,016"),
        ({1008: 0.53, 1440: 0.51}, 48, "2,016"),
        ({1400: 0.45, 2016: 0.40}, 1, "1,000"),
        ({1392: 0.45, 2016: 0.40}, 24, "984"),
        # No further than four times the target length.
        ({2500: 0.53, 3600: 0.51}, 1, "4,000"),
        ({2496: 0.53, 3600: 0.51}, 48, "3,984"),
        ({2784: 0.53, 3984: 0.51}, 48, "not within 4 times"),
    ],
)
def test_the_next_length_is_on_the_side_that_no_run_is_on(
    script: dict[str, Callable[..., object]],
    losses: dict[int, float],
    round_steps: int,
    said: str,
) -> None:
    assert script["verdict"](losses, TARGET, TARGET_LENGTH, round_steps) == said


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, 1),
        ({"compressor": {"kind": "top_k", "ratio": 192}}, 1),
        ({"sync_interval": 24}, 24),
        # Blocks of the error: one of three at each reset, so all of them in three resets.
        (
            {
                "gradient_compressor": {"kind": "block", "ratio": 48},
                "error_compressor": {"kind": "block", "ratio": 3},
                "reset_interval": 16,
            },
            48,
        ),
    ],
)
def test_a_round_is_what_all_communication_fits_into(
    script: dict[str, Callable[..., object]], settings: dict[str, object], steps: int
) -> None:
    assert script["round_steps_of"](settings) == steps
