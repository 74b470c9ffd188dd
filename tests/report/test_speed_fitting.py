"""Fits of sweeps that were made from a known alpha and beta, and what is predicted at other rates."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from harness.records.timings import Fabric, Sweep
from report.speed.cost_model import collective_seconds
from report.speed.fitting import Fit, fit_line, fits_of, network_on
from tests.report.made_up_timings import ALPHA, EFFICIENCY, fabric, ring_seconds, sweep


def _fits(*records: dict[str, Any]) -> list[Fit]:
    return [fit for record in records for fit in fits_of(Sweep.model_validate(record))]


def test_a_fit_recovers_alpha_beta_and_the_share_of_the_limit() -> None:
    reduced, gathered = _fits(sweep(100e6))
    for fit in (reduced, gathered):
        assert fit.link.alpha == pytest.approx(ALPHA, rel=1e-6)
        assert fit.link.beta == pytest.approx(8 / (EFFICIENCY * 100e6), rel=1e-6)
        assert fit.efficiency == pytest.approx(EFFICIENCY, rel=1e-6)
        assert fit.worst < 1e-6
    assert (reduced.collective, gathered.collective) == ("all_reduce", "all_gather")


def test_a_fit_takes_small_messages_as_seriously_as_large_ones() -> None:
    record, noise = sweep(100e6), random.Random(1)
    for point in record["points"]:
        point["seconds"] = [seconds * (1 + noise.uniform(-0.02, 0.02)) for seconds in point["seconds"]]
    for fit in _fits(record):
        # Of absolute errors the largest message alone, seconds long, would decide, and alpha be anything.
        assert fit.link.alpha == pytest.approx(ALPHA, rel=0.05)
        assert fit.worst < 0.05


def test_latency_that_hides_behind_sending_is_found() -> None:
    # Each hop takes the root of the sum of squares of what it would take alone for its latency and for its bytes.
    record, rate = sweep(100e6), EFFICIENCY * 100e6 / 8
    for point in record["points"]:
        size, hops = point["payload_bytes"], 7
        if point["collective"] == "all_reduce":
            size, hops = size / 8, 14
        point["seconds"] = [hops * math.hypot(ALPHA, size / rate)]
    for fit in _fits(record):
        assert (fit.link.alpha, fit.link.beta) == pytest.approx((ALPHA, 1 / rate), rel=1e-6)
        assert fit.link.power == 2 and fit.worst < 1e-6
        assert fit.link.hop(1e9) == pytest.approx(1e9 / rate) and fit.link.hop(0) == pytest.approx(ALPHA)


def test_no_fit_is_negative() -> None:
    # Through (1, 1) and (10, 30) the best line falls below nothing at 0; kept at 0 it has the slope 2.4 by hand:
    # sum(y/t) / sum((y/t)^2) with y/t = 1 and 1/3 is (4/3) / (10/9) = 1.2.
    assert fit_line([1, 1], [1, 10], [1, 30]) == pytest.approx((0.0, 1.2))
    assert fit_line([1, 1], [1, 10], [2, 1]) == pytest.approx((1.2, 0.0))


def test_one_size_alone_is_no_sweep() -> None:
    record = sweep(100e6)
    record["points"] = record["points"][:2]
    assert _fits(record) == []


def test_a_rate_that_was_not_swept_keeps_alpha_and_the_share_of_the_limit() -> None:
    fits = _fits(sweep(20e6), sweep(500e6))
    for rate in (1e6, 100e6, 10e9):
        network = network_on(Fabric.model_validate(fabric(rate)), fits)
        assert network is not None
        assert collective_seconds(network, "all_reduce", 123_456) == pytest.approx(
            ring_seconds(123_456, rate), rel=1e-6
        )


def test_between_two_limits_the_share_is_in_between() -> None:
    slow, fast = sweep(10e6), sweep(1e9)
    for point in fast["points"]:
        # Half as fast as it could be, beside the alpha: 0.45 of the limit instead of 0.9.
        hops = 14 if point["collective"] == "all_reduce" else 7
        point["seconds"] = [2 * point["seconds"][0] - hops * ALPHA]
    fits = _fits(slow, fast)
    network = network_on(Fabric.model_validate(fabric(math.sqrt(10e6 * 1e9))), fits)
    assert network is not None
    # Half-way between the limits on the axis of logarithms: (0.9 + 0.45) / 2 of 100 Mb/s.
    assert 8 / network.links["all_reduce"].between.beta == pytest.approx(67.5e6, rel=1e-6)


def test_another_layout_is_modelled_from_what_was_swept_and_its_links() -> None:
    fits = _fits(sweep(100e6))
    network = network_on(Fabric.model_validate(fabric(100e6, machines=2)), fits)
    assert network is not None
    assert network.links["all_reduce"].between.beta == pytest.approx(8 / (EFFICIENCY * 100e6))
    assert network.links["all_reduce"].inside.beta == pytest.approx(8 / (EFFICIENCY * 1e9))
    assert network_on(Fabric.model_validate(fabric(100e6) | {"backend": "nccl"}), fits) is None


def test_a_dilated_network_stands_for_one_so_many_times_as_fast() -> None:
    fits = _fits(sweep(100e6))
    real, dilated = (network_on(Fabric.model_validate(fabric(100e6, dilation=k)), fits) for k in (1.0, 20.0))
    assert real is not None and dilated is not None
    slow, fast = (collective_seconds(each, "all_gather", 5000) for each in (real, dilated))
    assert fast == pytest.approx(slow / 20)
