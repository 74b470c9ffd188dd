"""Timed steps to numbers, and speed-ups to break-even rates, against other ways to compute them."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.records.timings import Message, Timing
from report.speed.cost_model import Compute
from report.speed.ratios import needed_ratio
from report.speed.records import read_speed_records
from report.speed.speedups import HIGHEST, LOWEST, RateRange, faster_spans, implied, spans_where
from report.speed.steps import median_interval, timed
from report.speed.study import Bench, study_of
from tests.report.made_up_timings import (
    ALPHA,
    BACKWARD,
    CODEC,
    DEVICES,
    EFFICIENCY,
    FORWARD,
    RATES,
    Made,
    sweep,
    timing,
    write_study,
)


def _step(seconds: float, synchronises: bool = False, codec: float = 0.0) -> dict[str, object]:
    parts = {"compute_seconds": 1.0, "codec_seconds": codec, "waiting_seconds": None, "transfer_seconds": 0.5}
    return {"method": "mcser", "visit": 0, "synchronises": synchronises, "seconds": seconds, **parts}


def _timing(name: str, steps: list[dict[str, object]]) -> Timing:
    return Timing.model_validate(timing(name, 1e9) | {"steps": steps})


def test_a_period_weighs_the_medians_of_its_two_kinds_of_step() -> None:
    steps = [_step(s) for s in (1.0, 2.0, 90.0)] + [_step(s, True) for s in (34.0, 4.0, 35.0)]
    record = _timing("fashion_mnist", steps)
    numbers = timed(record, next(m for m in record.methods if m.name == "mcser"))
    assert numbers is not None
    assert numbers.seconds == pytest.approx((31 * 2.0 + 34.0) / 32)
    assert (numbers.low, numbers.high) == pytest.approx(((31 * 1.0 + 4.0) / 32, (31 * 90.0 + 35.0) / 32))
    assert numbers.waiting is None and numbers.num_steps == 6


def test_an_emulated_step_is_without_the_codec_and_with_the_clock_undone() -> None:
    record = _timing("resnet50_v100", [_step(10.0, codec=2.0), _step(10.0, True, codec=2.0)])
    numbers = timed(record, next(m for m in record.methods if m.name == "mcser"))
    assert numbers is not None
    assert DEVICES["resnet50_v100"]["dilation"] == 20
    assert numbers.seconds == pytest.approx(0.4) and numbers.codec == pytest.approx(2.0)
    assert (numbers.compute, numbers.transfer) == pytest.approx((0.05, 0.025))


def test_half_a_period_is_no_number() -> None:
    record = _timing("fashion_mnist", [_step(1.0)])
    assert timed(record, next(m for m in record.methods if m.name == "mcser")) is None


def test_the_interval_of_a_median() -> None:
    # P(fewer than two of nine below the median) = 10/512 on each side, under 2.5 %; of three it is 46/512.
    assert median_interval([9, 1, 8, 2, 7, 3, 6, 4, 5]) == (2, 8)
    # Of six, 1/64 on each side; of five, 1/32 on each side are over 5 %, and no less can be had.
    assert median_interval([1, 2, 3, 4, 5, 6]) == (1, 6)
    assert median_interval([3, 1, 5, 4, 2]) == (1, 5)
    assert median_interval([7]) == (7, 7)


def test_spans_have_their_edges_found() -> None:
    spans = spans_where(lambda x: 30 < x < 400 or x > 7000, 1, 10_000)
    assert [(span.low, span.high) for span in spans] == [
        (pytest.approx(30, rel=1e-5), pytest.approx(400, rel=1e-5)),
        (pytest.approx(7000, rel=1e-5), 10_000),
    ]
    assert spans_where(lambda _: True, 1, 10) == [RateRange(1, 10)] and spans_where(lambda _: False, 1, 10) == []


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """One message of all the gradient against two of a hundredth each, nothing overlapped."""
    methods = (Made("all_reduce", True, [(1.0, 1, 1.0)]), Made("two", False, [(0.01, 1, 1.0), (0.01, 1, 1.0)]))
    records = [timing("fashion_mnist", rate, methods) for rate in RATES]
    return study_of(read_speed_records(write_study(tmp_path, [sweep(rate) for rate in RATES], records))).benches[0]


def test_break_even_is_where_the_closed_form_has_it(bench: Bench) -> None:
    # 14 alpha + 14/8 b beta = 28 alpha + 14/8 2 b/100 beta, so beta = 8 alpha / (0.98 b); the compute cancels out.
    whole = 4 * DEVICES["fashion_mnist"]["num_parameters"]
    sent = round(0.01 * whole)
    beta = 8 * ALPHA / (whole - 2 * sent)
    [span] = faster_spans(bench, bench.compared[0], bench.baselines[0])
    assert span.low == LOWEST and span.high < HIGHEST
    assert span.high == pytest.approx(8 / (EFFICIENCY * beta), rel=1e-4)


def test_what_a_factor_asks_for_is_what_the_closed_form_has(bench: Bench) -> None:
    # C + 14 a + 14/8 b beta = s (C + 28 a + 14/8 2 b/100 beta) for the rate, and the same for C.
    whole = 4 * DEVICES["fashion_mnist"]["num_parameters"]
    sent = round(0.01 * whole)
    fixed, target = FORWARD + BACKWARD + CODEC, 1.5
    beta = (target * (fixed + 28 * ALPHA) - fixed - 14 * ALPHA) / (1.75 * (whole - target * 2 * sent))
    found = implied(bench, bench.compared[0], bench.baselines[0], target, at=50e6)
    assert found.bits_per_second == pytest.approx(8 / (EFFICIENCY * beta), rel=1e-4)
    there = 8 / (EFFICIENCY * 50e6)
    first = 14 * ALPHA + 1.75 * whole * there
    second = 28 * ALPHA + 1.75 * 2 * sent * there
    compute = (first - target * second) / (target - 1) - CODEC
    assert found.compute_seconds == pytest.approx(compute, rel=1e-4)
    assert found.at_rate == pytest.approx((fixed + first) / (fixed + second), rel=1e-4)


def test_a_factor_that_no_rate_gives_is_never_reached(bench: Bench) -> None:
    # The messages differ by 50 times, and each step has compute on top.
    found = implied(bench, bench.compared[0], bench.baselines[0], 51.0, at=50e6)
    assert found.bits_per_second is None and found.compute_seconds is None


def test_the_needed_ratio_is_what_the_closed_form_has(bench: Bench) -> None:
    # C + 14 alpha + 14/8 b/R beta is 1.1 C for R = 14/8 b beta / (0.1 C - 14 alpha).
    whole, rate = 4 * DEVICES["fashion_mnist"]["num_parameters"], 10e6
    message = Message(collective="all_reduce", payload_bytes=whole, every=1, ready=1.0)
    network = bench.network(rate)
    assert network is not None
    ratio = 1.75 * whole * 8 / (EFFICIENCY * rate) / (0.1 * (FORWARD + BACKWARD) - 14 * ALPHA)
    assert needed_ratio(Compute(FORWARD, BACKWARD), [message], network) == pytest.approx(ratio, rel=1e-4)
    assert needed_ratio(Compute(5.0, 5.0), [message], network) == 1
    # 14 hops of 0.1 ms are more than a tenth of 10 ms.
    assert needed_ratio(Compute(5e-3, 5e-3), [message], network) is None
