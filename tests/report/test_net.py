"""Net speed-ups from steps and efficiencies of one network, by their definition."""

from __future__ import annotations

import pandas as pd
import pytest

from cser_bench.report.answers.net import Net, net_speedups
from cser_bench.report.collection import Collection
from cser_bench.report.speed.needed import FP16, FP32

STEPS = pd.DataFrame(
    [
        {"method": "ddp", "label": "DDP", "seconds": 0.5, "passes_seconds": 0.1},
        {"method": "seldom", "label": "S", "seconds": 0.125, "passes_seconds": 0.1},
        {"method": "alone", "label": "A", "seconds": 0.1, "passes_seconds": 0.1},
    ]
)
WORTH = pd.DataFrame(
    [
        {
            "row": "seldom",
            "kind": "estimate",
            "efficiency": 0.6,
            "low": 0.5,
            "high": 0.8,
        },
        {"row": "alone", "kind": "at most", "efficiency": 0.1},
        {
            "row": "not timed",
            "kind": "estimate",
            "efficiency": 0.9,
            "low": 0.8,
            "high": 1,
        },
    ]
)


def net() -> Net:
    queries = Net(Collection(()))
    queries._kept[0] = net_speedups(WORTH, STEPS)
    return queries


def test_a_net_speedup_is_ddps_time_to_the_score_over_the_methods() -> None:
    """In 1,000 steps of 0.125 s the method reaches what DDP has after 600 of 0.5 s."""
    ddp_seconds = 600 * 0.5
    own_seconds = 1000 * 0.125
    assert net().net("seldom").startswith(f"{ddp_seconds / own_seconds:.1f} (")
    assert net().net("seldom") == "2.4 (2.0 to 3.2)"


def test_a_bound_on_the_efficiency_is_one_on_the_speedup() -> None:
    assert net().net("alone") == "at most 0.5"


def test_ddp_in_sixteen_bits_waits_half_as_long_for_the_link() -> None:
    frame = net_speedups(WORTH, STEPS)
    [line] = frame.query("row == 'seldom'").to_dict("records")
    assert line[FP32] == 4
    # 0.4 s of the 0.5 are the link's.
    expected = (0.1 + 0.2) / 0.125
    assert line[FP16] == pytest.approx(expected)


def test_a_table_has_a_line_a_row() -> None:
    table = net().net_table("seldom", "alone")
    *_, first, second = table.splitlines()
    assert (
        first
        == "| S | 125 | 0.25 | 0.60 (0.50 to 0.80) | 2.4 (2.0 to 3.2) | 1.4 (1.2 to 1.9) |"
    )
    assert second == "| A | 100 | 0.20 | at most 0.10 | at most 0.5 | at most 0.3 |"


@pytest.mark.parametrize("row", ["not timed", "nobody"])
def test_a_row_that_was_not_timed_is_refused(row: str) -> None:
    with pytest.raises(Exception, match=f"{row} was not both timed and scored"):
        net().net(row)
