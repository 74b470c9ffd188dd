"""Methods whose workers talk to their neighbours, in experiments: what a plan says, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.__main__ import main
from tests.harness.support import BLOCK, Table, only, small_spec, write_spec
from tests.harness.test_regime_plans import RING, foreseen

DPSGD = {"topology": "ring", "order": "adapt_then_combine"}
SIGN = (8 * 93 + 32) / (32 * 742)
"""A message of signs, in models."""


@pytest.mark.parametrize(
    ("algorithm", "table", "in_training", "exchange"),
    [
        ("dpsgd", DPSGD, 2 * 20, True),
        ("dpsgd", DPSGD | {"order": "combine_while_adapt"}, 2 * 20, True),
        ("dpsgd", DPSGD | {"topology": "one_peer"}, 20, True),
        ("dpsgd", DPSGD | {"topology": "complete"}, 3 * 20, False),
        ("choco_sgd", {"topology": "exponential", "compressor": BLOCK, "gamma": 0.5}, 2 * 20 * 186 / 742, True),
        ("deep_squeeze", {"topology": "ring", "compressor": {"kind": "sign"}, "gamma": 0.5}, 2 * 20 * SIGN, True),
    ],
)
def test_models_sent_and_what_a_link_carries(algorithm: str, table: Table, in_training: float, exchange: bool) -> None:
    """Of four workers: a link carries once what goes to neighbours, and the average at the end is all-reduced."""
    expected = (pytest.approx(in_training + exchange), pytest.approx(in_training + RING * exchange), exchange)
    assert foreseen(algorithm, table) == expected


# Plans.


def spec_with(topology: Any, num_workers: int = 4, algorithm: str = "dpsgd", **more: Any) -> Table:
    """An experiment of one row with this topology; 742 parameters, and 20 steps where there are four workers."""
    table = {"topology": topology} | ({"order": "adapt_then_combine"} if algorithm == "dpsgd" else {}) | more
    row = {"row": "mixed", "label": "Mixed", "algorithm": algorithm, "learning_rate": 0.05, "settings": table}
    spec = only(small_spec() | {"rows": [row]}, "mixed")
    return spec | {"training": spec["training"] | {"num_workers": num_workers}}


@pytest.mark.parametrize(
    ("topology", "sentence"),
    [
        ("ring", f"mixed: spectral gap 0.667; {2 * 20 * 32 * 742:,} bits in all from one worker to its neighbours"),
        ("one_peer", f"mixed: spectral gap 1 over 2 steps; {20 * 32 * 742:,} bits in all"),
        ("complete", f"mixed: spectral gap 1; {3 * 20 * 32 * 742:,} bits in all"),
    ],
)  # fmt: skip
def test_a_plan_prints_the_gap_and_the_bits(
    topology: Any, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_spec(tmp_path, spec_with(topology))
    assert main(["plan", str(path), "--results", str(tmp_path)]) == 0
    assert sentence in capsys.readouterr().out


REFUSED: dict[str, tuple[Table, str]] = {
    "not a power of two": (spec_with("one_peer", 3), "one_peer needs a power of two of workers, not 3"),
    "unknown": (spec_with("torus"), "dpsgd: topology: unknown topology 'torus'; it must be one of ring, exponential"),
    "changes": (
        spec_with("one_peer", 4, "choco_sgd", compressor=BLOCK, gamma=0.5), "needs the same neighbours in each step"
    ),
    "gamma": (spec_with("ring", 4, "choco_sgd", compressor=BLOCK, gamma=2), "gamma must be a number above 0"),
    "order": (spec_with("ring", order="adapt"), "dpsgd: order: Input should be"),
    "no order": (spec_with("ring", 4, "choco_sgd", gamma=0.5), "choco_sgd needs the setting 'compressor'"),
}  # fmt: skip


@pytest.mark.parametrize("key", REFUSED)
def test_a_topology_that_does_not_fit_is_refused_in_a_sentence(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, words = REFUSED[key]
    assert main(["plan", str(write_spec(tmp_path, spec)), "--results", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "row mixed: " in said and words in said and said.count("\n") == 1
