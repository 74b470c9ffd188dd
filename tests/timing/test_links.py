"""Layouts and rates as text, on any machine: names, addresses, bursts, and numbers that no lab can have."""

from __future__ import annotations

import pytest

from harness.timing.links import (
    LabError,
    LabLayout,
    LabTopology,
    burst_bytes,
    rate_text,
    train_lines,
)


@pytest.mark.parametrize("topology", [LabTopology(250, 1, 1e8), LabTopology(2, 250, 1e8), LabTopology(1, 8, 1e8)])
def test_names_fit_into_the_kernel_s_limit_and_addresses_are_distinct(topology: LabTopology) -> None:
    layout = LabLayout("8letters", topology)
    ends = [end for link in [*layout.uplinks(), *layout.inside_links()] for end in link.ends()]
    assert all(len(interface) <= 15 for _, interface in ends)
    assert len(set(ends)) == len(ends), "no interface is in two links"
    assert {namespace for namespace, _ in ends} == set(layout.namespaces())
    assert all(name.startswith("8letters-") for end in ends for name in end)
    assert len({layout.address(rank) for rank in range(topology.num_workers)}) == topology.num_workers


@pytest.mark.parametrize("rate", [1e5, 1e7, 125e6, 1e9, 1e12])
def test_a_burst_is_short_and_no_piece_of_tcp_s_is_larger(rate: float) -> None:
    assert burst_bytes(rate) <= max(2 * 1514, rate / 8 / 1000), "two frames or a millisecond"
    for lines in train_lines(LabLayout("x", LabTopology(2, 2, rate))).values():
        frames = int(lines[0].split()[-1])
        assert 1514 <= 1514 * frames <= burst_bytes(rate)


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
