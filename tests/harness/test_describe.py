"""A row's settings in words."""

from __future__ import annotations

from harness.plan.describe import describe

TOP_K = {"compressor": {"kind": "top_k", "ratio": 4.0}}


def test_momentum_that_is_not_nesterovs_is_said_to_be() -> None:
    """The page on how an experiment was run says that momentum is Nesterov's unless a row says otherwise."""
    assert describe("ef_sgd", TOP_K, 0.9) == "compressor: top_k (ratio 4.0); momentum 0.9"
    assert describe("ef21_sgdm", TOP_K, 0.9) == f"{describe('ef_sgd', TOP_K, 0.9)} (heavy ball with dampening)"
    assert describe("ef21_sgdm", TOP_K, 0.0) == "compressor: top_k (ratio 4.0); momentum 0"
