"""A row's settings in words."""

from __future__ import annotations

from harness.plan.describe import Stepping, describe

TOP_K = {"compressor": {"kind": "top_k", "ratio": 4.0}}


def in_words(algorithm: str, momentum: float) -> str:
    return describe(algorithm, TOP_K, Stepping("sgd", momentum, [0.9, 0.999], 1e-8))


def test_momentum_that_is_not_nesterovs_is_said_to_be() -> None:
    """The page on how an experiment was run says that momentum is Nesterov's unless a row says otherwise."""
    assert in_words("ef_sgd", 0.9) == "compressor: top_k (ratio 4.0); momentum 0.9"
    assert in_words("ef21_sgdm", 0.9) == f"{in_words('ef_sgd', 0.9)} (heavy ball with dampening)"
    assert in_words("ef21_sgdm", 0.0) == "compressor: top_k (ratio 4.0); momentum 0"


def test_adamw_is_said_with_its_numbers() -> None:
    said = describe("sgd", {}, Stepping("adamw", 0.0, [0.9, 0.98], 1e-9))
    assert said == "AdamW with betas 0.9 and 0.98, eps 1e-09"
