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
    return [fit for record in records for fit in fits_of(Sweep.model_validate(record))]


def _network(fits: list[Fit], rate: float, **given: Any) -> Network:
    network = network_on(Fabric.model_validate(fabric(rate, **given)), fits)
    assert network is not None
    return network


def hidden(point: dict[str, Any]) -> list[float]:
    """Each hop takes the root of the sum of squares of what it would take alone for its latency and
    for its bytes."""
    is_sum = point["collective"] == "all_reduce"
    size, hops = (
        (point["payload_bytes"] / 8, 14) if is_sum else (point["payload_bytes"], 7)
    )
    return [hops * math.hypot(ALPHA, size / RATE)]


@pytest.mark.parametrize(
    ("seconds_of", "power", "error"),
    [
        (lambda point: point["seconds"], 1, 1e-6),
        # By absolute errors the largest message, seconds long, would decide alone, and alpha could
        # be anything.
        (
            lambda point: [
                seconds * (1 + NOISE.uniform(-0.02, 0.02))
                for seconds in point["seconds"]
            ],
            1,
            0.05,
        ),
        (hidden, 2, 1e-6),
    ],
    ids=["exact", "with noise", "latency behind sending"],
)
def test_a_fit_recovers_alpha_beta_and_the_share_of_the_limit(
    seconds_of: Callable[[dict[str, Any]], list[float]], power: int, error: float
) -> None:
    record = sweep(100e6)
    for point in record["points"]:
        point["seconds"] = seconds_of(point)
    reduced, gathered = _fits(record)
    assert (reduced.collective, gathered.collective) == ("all_reduce", "all_gather")
    for fit in (reduced, gathered):
        assert (fit.link.alpha, fit.link.beta) == pytest.approx(
            (ALPHA, 1 / RATE), rel=error
        )
        assert fit.efficiency == pytest.approx(EFFICIENCY, rel=error)
        assert fit.worst < error
        assert fit.link.hop(1e9) == pytest.approx(1e9 * fit.link.beta, rel=1e-3)
        assert fit.link.hop(0) == pytest.approx(fit.link.alpha)
        assert error > 1e-6 or fit.link.power == power


def test_no_fit_is_negative_and_one_size_alone_is_no_sweep() -> None:
    # Through (1, 1) and (10, 30) the best line falls below nothing at 0; kept at 0 it has the slope
    # 2.4 by hand: sum(y/t) / sum((y/t)^2) with y/t = 1 and 1/3 is (4/3) / (10/9) = 1.2.
    assert fit_line([1, 1], [1, 10], [1, 30]) == pytest.approx((0.0, 1.2))
    assert fit_line([1, 1], [1, 10], [2, 1]) == pytest.approx((1.2, 0.0))
    record = sweep(100e6)
    assert _fits(record | {"points": record["points"][:2]}) == []


def test_a_rate_that_was_not_swept_keeps_alpha_and_the_share_of_the_limit() -> None:
    fits = _fits(sweep(20e6), sweep(500e6))
    for rate in (1e6, 100e6, 10e9):
        seconds = collective_seconds(_network(fits, rate), "all_reduce", 123_456)
        assert seconds == pytest.approx(ring_seconds(123_456, rate), rel=1e-6)


def test_between_two_limits_the_share_is_in_between() -> None:
    slow = sweep(10e6)
    fast = sweep(1e9)
    for point in fast["points"]:
        # Half as fast as it could be, beside the alpha: 0.45 of the limit instead of 0.9.
        hops = 14 if point["collective"] == "all_reduce" else 7
        point["seconds"] = [2 * point["seconds"][0] - hops * ALPHA]
    network = _network(_fits(slow, fast), math.sqrt(10e6 * 1e9))
    # Half-way between the limits on the axis of logarithms: (0.9 + 0.45) / 2 of 100 Mb/s.
    assert 8 / network.links["all_reduce"].between.beta == pytest.approx(
        67.5e6, rel=1e-6
    )


def test_other_layouts_and_dilated_networks_are_modelled_from_what_was_swept() -> None:
    fits = _fits(sweep(100e6))
    links = _network(fits, 100e6, machines=2).links["all_reduce"]
    assert (links.between.beta, links.inside.beta) == pytest.approx(
        (1 / RATE, 8 / (EFFICIENCY * 1e9))
    )
    assert (
        network_on(Fabric.model_validate(fabric(100e6) | {"backend": "nccl"}), fits)
        is None
    )
    real, dilated = (_network(fits, 100e6, dilation=k) for k in (1.0, 20.0))
    slow, fast = (
        collective_seconds(each, "all_gather", 5000) for each in (real, dilated)
    )
    assert fast == pytest.approx(slow / 20)
