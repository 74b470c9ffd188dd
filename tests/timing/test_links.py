"""What a lab can be, on any machine: bursts, texts, and numbers that no lab can have."""

from __future__ import annotations

import pytest

from harness.timing.links import LabError, LabTopology, burst_bytes, frames_in_one_piece, rate_text


@pytest.mark.parametrize("rate", [1e5, 1e7, 125e6, 1e9, 1e12])
def test_a_burst_is_short_and_no_piece_of_tcp_s_is_larger(rate: float) -> None:
    assert burst_bytes(rate) <= max(2 * 1514, rate / 8 / 1000), "two frames or a millisecond"
    assert 1514 <= 1514 * frames_in_one_piece(rate) <= burst_bytes(rate)


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ((0, 1, 1e8), "a lab has 1 to 250 machines, not 0"),
        ((2, 251, 1e8), "a lab has 1 to 250 workers a machine, not 251"),
        ((2, 1, 0.0), "a link's rate is at least 10 kb/s, not 0 bit/s"),
        ((2, 1, float("nan")), "a link's rate is at least 10 kb/s, not nan bit/s"),
    ],
)
def test_numbers_that_no_lab_can_have(numbers: tuple[int, int, float], sentence: str) -> None:
    with pytest.raises(LabError) as caught:
        LabTopology(*numbers)
    assert str(caught.value) == sentence


def test_texts() -> None:
    assert str(LabTopology(8, 1, 1e9)) == "8 x 1 Gb/s"
    assert str(LabTopology(2, 4, 250e6)) == "2 x 4 x 250 Mb/s"
    assert [rate_text(rate) for rate in (2.4e9, 12.5e6, 5e4)] == ["2.4 Gb/s", "12.5 Mb/s", "50 kb/s"]
