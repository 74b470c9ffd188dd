"""Fits of sweeps that were made from a known alpha and beta, and what is predicted at other
rates."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from cser_bench.harness.records.timings import Fabric, Sweep
from cser_bench.report.speed.cost_model import Network, collective_seconds
from cser_bench.report.speed.fitting import Fit, fit_line, fits_of, network_on
from tests.report.made_up_timings import ALPHA, EFFICIENCY, fabric, ring_seconds, sweep

RATE = EFFICIENCY * 100e6 / 8
NOISE = random.Random(1)


def _fits(*records: dict[str, Any]) -> list[Fit]:
    fits: list[Fit] = []
    for record in records:
        each = Sweep.model_validate(record)
        fits += fits_of(each)
    return fits


def _network(fits: list[Fit], rate: float, **given: Any) -> Network:
    record = fabric(rate, **given)
    made_up = Fabric.model_validate(record)
    network = network_on(made_up, fits)
    assert network is not None
    return network


def hidden(point: dict[str, Any]) -> list[float]:
    """Each hop takes the root of the sum of squares of what it would take alone for its latency and
    for its bytes."""
    size = point["payload_bytes"]
    hops = 7
    if point["collective"] == "all_reduce":
        size /= 8
        hops = 14
    sending = size / RATE
    seconds = hops * math.hypot(ALPHA, sending)
    return [seconds]


def as_made_up(point: dict[str, Any]) -> list[float]:
    seconds: list[float] = point["seconds"]
    return seconds


def with_noise(point: dict[str, Any]) -> list[float]:
    """By absolute errors the largest message, seconds long, would decide alone, and alpha could be
    anything."""
    found = []
    for seconds in point["seconds"]:
        noise = NOISE.uniform(-0.02, 0.02)
        found.append(seconds * (1 + noise))
    return found


@pytest.mark.parametrize(
    ("seconds_of", "power", "error"),
    [(as_made_up, 1, 1e-6), (with_noise, 1, 0.05), (hidden, 2, 1e-6)],
    ids=["exact", "with noise", "latency behind sending"],
)
def test_a_fit_recovers_alpha_beta_and_the_share_of_the_limit(
    seconds_of: Callable[[dict[str, Any]], list[float]], power: int, error: float
) -> None:
    record = sweep(100e6)
    for point in record["points"]:
        point["seconds"] = seconds_of(point)
    reduced, gathered = _fits(record)
    assert reduced.collective == "all_reduce"
    assert gathered.collective == "all_gather"
    beta = 1 / RATE
    for fit in (reduced, gathered):
        link = fit.link
        assert link.alpha == pytest.approx(ALPHA, rel=error)
        assert link.beta == pytest.approx(beta, rel=error)
        assert fit.efficiency == pytest.approx(EFFICIENCY, rel=error)
        assert fit.worst < error
        large = link.hop(1e9)
        sending = 1e9 * link.beta
        assert large == pytest.approx(sending, rel=1e-3)
        empty = link.hop(0)
        assert empty == pytest.approx(link.alpha)
        if error <= 1e-6:
            assert link.power == power


def test_no_fit_is_negative_and_one_size_alone_is_no_sweep() -> None:
    # Through (1, 1) and (10, 30) the best line falls below nothing at 0; kept at 0 it has the slope
    # 2.4 by hand: sum(y/t) / sum((y/t)^2) with y/t = 1 and 1/3 is (4/3) / (10/9) = 1.2.
    rising = fit_line([1, 1], [1, 10], [1, 30])
    falling = fit_line([1, 1], [1, 10], [2, 1])
    assert rising == pytest.approx((0.0, 1.2))
    assert falling == pytest.approx((1.2, 0.0))
    record = sweep(100e6)
    points = record["points"]
    record["points"] = points[:2]
    assert _fits(record) == []


def test_a_rate_that_was_not_swept_keeps_alpha_and_the_share_of_the_limit() -> None:
    slow = sweep(20e6)
    fast = sweep(500e6)
    fits = _fits(slow, fast)
    for rate in (1e6, 100e6, 10e9):
        network = _network(fits, rate)
        seconds = collective_seconds(network, "all_reduce", 123_456)
        expected = ring_seconds(123_456, rate)
        assert seconds == pytest.approx(expected, rel=1e-6)


def test_between_two_limits_the_share_is_in_between() -> None:
    slow = sweep(10e6)
    fast = sweep(1e9)
    for point in fast["points"]:
        # Half as fast as it could be, beside the alpha: 0.45 of the limit instead of 0.9.
        hops = 7
        if point["collective"] == "all_reduce":
            hops = 14
        first, *_ = point["seconds"]
        latency = hops * ALPHA
        point["seconds"] = [2 * first - latency]
    half_way = math.sqrt(10e6 * 1e9)
    fits = _fits(slow, fast)
    network = _network(fits, half_way)
    link = network.links["all_reduce"].between
    # Half-way between the limits on the axis of logarithms: (0.9 + 0.45) / 2 of 100 Mb/s.
    bits_a_second = 8 / link.beta
    assert bits_a_second == pytest.approx(67.5e6, rel=1e-6)


def test_other_layouts_and_dilated_networks_are_modelled_from_what_was_swept() -> None:
    swept = sweep(100e6)
    fits = _fits(swept)
    network = _network(fits, 100e6, machines=2)
    links = network.links["all_reduce"]
    between = 1 / RATE
    assert links.between.beta == pytest.approx(between)
    inside = 8 / (EFFICIENCY * 1e9)
    assert links.inside.beta == pytest.approx(inside)
    record = fabric(100e6) | {"backend": "nccl"}
    by_nccl = Fabric.model_validate(record)
    assert network_on(by_nccl, fits) is None
    real = _network(fits, 100e6, dilation=1.0)
    dilated = _network(fits, 100e6, dilation=20.0)
    slow = collective_seconds(real, "all_gather", 5000)
    fast = collective_seconds(dilated, "all_gather", 5000)
    assert fast == pytest.approx(slow / 20)
