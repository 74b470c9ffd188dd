"""The efficiency that a method needs, and encoding: by hand, and from the records a second time."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cser_bench.harness.records.store import VERSION, write_record
from cser_bench.harness.records.timings import (
    EncodingTimes,
    TimedMethod,
    Timing,
    Workload,
)
from cser_bench.report.speed.encoding import (
    Encoding,
    encoding_of,
    name_of,
    selection_seconds,
)
from cser_bench.report.speed.needed import (
    COLUMNS,
    needed_efficiency,
    needed_frame,
    net_speedup,
    ratio_interval,
    spread_between,
    spread_of_ratio,
)

FOLDER = Path(__file__).parents[2] / "results/scored_speedups"
NUMBERS = 25_557_032
RATES = (1e9, 10e9, 25e9)


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    paths = sorted(FOLDER.glob("scored-*.json"))
    return [json.loads(path.read_text()) for path in paths]


@pytest.fixture(scope="module")
def sessions(records: list[dict[str, Any]]) -> list[Timing]:
    return [Timing.model_validate(record) for record in records]


@pytest.fixture(scope="module")
def frame(sessions: list[Timing]) -> pd.DataFrame:
    return needed_frame(sessions, Path("no record of a GPU"))


def line(frame: pd.DataFrame, method: str, rate: float) -> pd.Series:
    is_method = frame["method"] == method
    is_rate = frame["bits_per_second"] == rate
    [found] = frame.index[is_method & is_rate]
    return frame.loc[found]


# By hand.


def test_steps_of_a_third_of_the_time_need_a_third() -> None:
    assert needed_efficiency(30.0, 90.0) == pytest.approx(1 / 3)
    encoded = needed_efficiency(30.0, 90.0, encoding=20.0, rival_encoding=10.0)
    assert encoded == 0.5


def test_who_needs_what_its_steps_are_worth_is_as_fast_as_the_rival() -> None:
    needed = needed_efficiency(30.0, 90.0)
    assert net_speedup(needed, 30.0, 90.0) == pytest.approx(1.0)
    assert net_speedup(0.5, 30.0, 90.0) == 1.5


def test_the_spread_is_of_logarithms_and_pooled() -> None:
    # Squares about the means: 2 of ln 1.1, and none; degrees: 1 and 1.
    groups = [[1.0, 1.21], [5.0, 5.0], [7.0]]
    expected = math.log(1.1)
    assert spread_between(groups) == pytest.approx(expected)
    single = [[1.0], [2.0]]
    assert math.isnan(spread_between(single))
    expected = 0.03 * math.sqrt(1.5)
    assert spread_of_ratio(0.03, 2, 1) == pytest.approx(expected)
    low, high = ratio_interval(0.5, 0.1)
    assert low * high == pytest.approx(0.25)
    half = 0.1 * 1.959964
    relative = math.exp(half)
    assert high / 0.5 == pytest.approx(relative, rel=1e-6)


def method(algorithm: str, **settings: Any) -> TimedMethod:
    return TimedMethod(
        name="any",
        label="any",
        algorithm=algorithm,
        settings=settings,
        momentum=0.9,
        rows=[],
        baseline=False,
        overlap=False,
        period=1,
        messages=[],
    )


def workload(device: str = "V100-16GB, mixed", num_parameters: int = 900) -> Workload:
    """On 900 GB/s a byte per parameter of 900 is a nanosecond."""
    return Workload(
        name="any",
        model="any",
        batch_size=1,
        num_parameters=num_parameters,
        device=device,
        forward_seconds=1.0,
        backward_seconds=1.0,
        source="",
    )


TOP_K = {"kind": "top_k", "ratio": 16}
BLOCK = {"kind": "block", "ratio": 24}


def test_encoding_is_bytes_over_bandwidth() -> None:
    found = encoding_of(method("ddp_fp16"), workload(), 8)
    assert found is not None
    assert found.basis == "bytes over bandwidth"
    # Read 4 and write 2, read 2 and write 4.
    assert found.seconds == pytest.approx(12e-9)
    # The error read and written, and 24 bytes of one number in 24.
    ef_sgd = method("ef_sgd", compressor=BLOCK)
    by_blocks = encoding_of(ef_sgd, workload(), 8)
    assert by_blocks is not None
    assert by_blocks.seconds == pytest.approx(9e-9)


def test_what_is_encoded_every_h_steps_costs_a_share_of_it() -> None:
    costs = []
    for interval in (1, 4):
        settings = {"error_compressor": BLOCK, "reset_interval": interval}
        cser_pl = method("cser_pl", **settings)
        found = encoding_of(cser_pl, workload(), 8)
        assert found is not None
        costs.append(found.seconds)
    assert costs[0] == pytest.approx(4 * costs[1])


def test_gathered_numbers_arrive_from_all_workers_and_the_error_is_kept_in_each_step() -> (
    None
):
    def of(algorithm: str, workers: int, **settings: Any) -> Encoding:
        timed = method(algorithm, **settings)
        found = encoding_of(timed, workload(), workers)
        assert found is not None
        return found

    eight = of("csea", 8, error_compressor=TOP_K)
    sixteen = of("csea", 16, error_compressor=TOP_K)
    assert eight.basis == "published"
    added = sixteen.seconds - eight.seconds
    assert added == pytest.approx(8 * 72 / 16 * 1e-9)
    blocks = {
        "gradient_compressor": BLOCK,
        "error_compressor": BLOCK,
        "reset_interval": 4,
    }
    shared = of("mcser", 8, **blocks).seconds
    by_top_k = blocks | {"error_compressor": TOP_K}
    kept = of("mcser", 8, **by_top_k).seconds
    # A quarter of the reset's cost, and all of the error's 8 bytes.
    reset = (8 + 72 * 8 / 16) * 1e-9 + selection_seconds(900)
    expected = 8e-9 + (reset - 24 / 24 * 1e-9) / 4
    assert kept - shared == pytest.approx(expected)


def test_the_published_selection_is_scaled_by_what_it_reads() -> None:
    # 128 rows of 8,000,000 in fp16: 2 passes and one that gathers, of 2 bytes. In fp32 5 of 4.
    expected = 11.30892170800103e-3 * 20 / 6
    assert selection_seconds(128 * 8_000_000) == pytest.approx(expected)


def test_what_is_not_known_has_no_encoding() -> None:
    assert encoding_of(method("choco_sgd"), workload(), 8) is None
    signs = method("ef_sgd", compressor={"kind": "sign"})
    assert encoding_of(signs, workload(), 8) is None
    on_cpu = workload("CPU")
    assert encoding_of(method("ddp"), on_cpu, 8) is None


def gpu_times(
    device: str = "Tesla V100-SXM2-16GB", num_parameters: int = NUMBERS
) -> EncodingTimes:
    top_k = name_of({"kind": "top_k", "ratio": 192})
    return EncodingTimes(
        version=VERSION,
        device=device,
        torch="2.6",
        num_parameters=num_parameters,
        num_workers=8,
        seconds={top_k: 0.004, "ddp_fp16": 0.001},
    )


def test_a_gpu_of_the_workloads_device_and_size_is_believed_first(
    sessions: list[Timing], frame: pd.DataFrame, tmp_path: Path
) -> None:
    path = tmp_path / "encoding.json"
    write_record(path, gpu_times())
    measured = needed_frame(sessions, path)
    expected = {"ddp_fp16": 0.001, "ef_topk-96": 0.004 + 8 * NUMBERS / 900e9}
    for name, seconds in expected.items():
        found = line(measured, name, 10e9)
        assert found["encoding_basis"] == "measured"
        assert found["encoding_seconds"] == pytest.approx(seconds)
    # What was not measured is as before.
    before = line(frame, "diloco-96", 10e9)
    after = line(measured, "diloco-96", 10e9)
    assert after["encoding_seconds"] == before["encoding_seconds"]


@pytest.mark.parametrize(
    "times", [gpu_times("NVIDIA H100 80GB HBM3"), gpu_times(num_parameters=1000)]
)
def test_times_of_another_device_or_size_say_nothing(
    sessions: list[Timing], frame: pd.DataFrame, times: EncodingTimes, tmp_path: Path
) -> None:
    path = tmp_path / "encoding.json"
    write_record(path, times)
    found = needed_frame(sessions, path)
    pd.testing.assert_frame_equal(found, frame)


# From the records, a second time.


def mean_steps(records: list[dict[str, Any]], rate: float) -> dict[str, list[float]]:
    """Each method's mean step in each session at one rate."""
    found: dict[str, list[float]] = {}
    for record in records:
        own: dict[str, float] = defaultdict(float)
        for cell in record["cells"]:
            if cell["bits_per_second"] in (rate, None):
                mean = statistics.fmean(cell["seconds"])
                own[cell["method"]] += cell["share"] * mean
        for name, seconds in own.items():
            found.setdefault(name, []).append(seconds)
    return found


@pytest.mark.parametrize("rate", RATES)
def test_every_scored_method_needs_its_share_of_the_rivals_step(
    records: list[dict[str, Any]], frame: pd.DataFrame, rate: float
) -> None:
    steps = mean_steps(records, rate)
    fp16 = statistics.fmean(steps["ddp_fp16"])
    ddp = statistics.fmean(steps["ddp"])
    is_rate = frame["bits_per_second"] == rate
    methods = set(frame.loc[is_rate, "method"])
    assert methods == set(steps)
    for name, sessions in steps.items():
        found = line(frame, name, rate)
        seconds = statistics.fmean(sessions)
        assert found["seconds"] == pytest.approx(seconds)
        assert found["needed_fp16"] == pytest.approx(seconds / fp16)
        assert found["needed_ddp"] == pytest.approx(seconds / ddp)


def test_intervals_are_of_the_spread_between_sessions(
    records: list[dict[str, Any]], frame: pd.DataFrame
) -> None:
    squares = 0.0
    degrees = 0
    for rate in RATES:
        for seconds in mean_steps(records, rate).values():
            if len(seconds) > 1:
                logs = [math.log(each) for each in seconds]
                own_degrees = len(logs) - 1
                squares += statistics.variance(logs) * own_degrees
                degrees += own_degrees
    deviation = math.sqrt(squares / degrees)
    found = line(frame, "mcser_block-96", 10e9)
    # It was in two sessions, and the rival in one.
    of_ratio = deviation * math.sqrt(1 / 2 + 1)
    half = statistics.NormalDist().inv_cdf(0.975) * of_ratio
    needed = found["needed_fp16"]
    lower = needed * math.exp(-half)
    higher = needed * math.exp(half)
    assert found["needed_fp16_low"] == pytest.approx(lower)
    assert found["needed_fp16_high"] == pytest.approx(higher)
    itself = line(frame, "ddp_fp16", 10e9)
    assert itself["needed_fp16_low"] == 1
    assert itself["needed_fp16_high"] == 1


def test_every_scored_method_has_an_encoding_with_its_basis(
    frame: pd.DataFrame,
) -> None:
    assert frame.columns.to_list() == COLUMNS
    assert frame["encoding_seconds"].notna().all()
    assert (frame["encoding_seconds"] >= 0).all()
    assert set(frame["encoding_basis"]) <= {"published", "bytes over bandwidth"}
    # The error of EF-SGD with top-k, by hand: 8 bytes, the magnitudes 8, what arrives 3.
    top_k = line(frame, "ef_topk-96", 10e9)
    num_bytes = 8 + 8 + 8 * 72 / 192
    expected = num_bytes * NUMBERS / 900e9 + selection_seconds(NUMBERS)
    assert top_k["encoding_basis"] == "published"
    assert top_k["encoding_seconds"] == pytest.approx(expected)
    hook = line(frame, "ddp_fp16", 10e9)
    encoded = top_k["seconds"] + expected
    rival = hook["seconds"] + 12 * NUMBERS / 900e9
    assert top_k["needed_fp16_encoded"] == pytest.approx(encoded / rival)


def test_without_the_rival_nothing_is_said_of_it(sessions: list[Timing]) -> None:
    alone = needed_frame(sessions[:1], Path("no record of a GPU"))
    assert alone["needed_fp16"].isna().all()
    assert alone["needed_fp16_encoded"].isna().all()
    assert alone["needed_ddp"].notna().all()
