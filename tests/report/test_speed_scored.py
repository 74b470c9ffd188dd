"""Step times joined to accuracy: by settings as data, with intervals that say what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from cser_bench.harness.records.timings import Timing
from cser_bench.report.frame import Frames, read_frames
from cser_bench.report.speed import timed as timed_steps
from cser_bench.report.speed.timed import joined_frame, scored_steps_frame
from cser_bench.report.statistics import against_baseline

ROOT = Path(__file__).parents[2]
LINKS = (1e9, 10e9)
ROWS = ("sgd", "local_sgd-96", "mcser-96", "ef_topk-96")


@pytest.fixture(scope="module")
def frames() -> Frames:
    return read_frames(ROOT / "results/reference/fashion_mnist_long")


def method(frames: Frames, row: str, **changes: Any) -> dict[str, Any]:
    """As a session has it: the row's own settings."""
    [found] = [each for each in frames.experiment.rows if each.row == row]
    plain = {
        "name": row,
        "label": row,
        "overlap": False,
        "baseline": False,
        "rows": [],
        "period": 1,
        "messages": [],
    }
    own = {
        "algorithm": found.algorithm,
        "settings": found.settings,
        "momentum": found.momentum,
        "codec_alone_seconds": 0.5,
    }
    return plain | own | changes


def cell(
    name: str,
    seconds: list[float],
    bits: float | None,
    kind: str = "every",
    share: float = 1.0,
) -> dict[str, Any]:
    zeros = [0] * len(seconds)
    return {
        "method": name,
        "kind": kind,
        "share": share,
        "bits_per_second": bits,
        "dilation": 4.0,
        "seconds": seconds,
        "compute_seconds": zeros,
        "codec_seconds": zeros,
        "waiting_seconds": zeros,
        "transfer_seconds": zeros,
        "visits": zeros,
    }


def session(methods: list[dict[str, Any]], cells: list[dict[str, Any]]) -> Timing:
    path = ROOT / "results/speedups/timing-resnet50_v100-8x1-10000mbps.json"
    timing = json.loads(path.read_text())
    made_up = {"methods": methods, "cells": cells}
    return Timing.model_validate(timing | made_up)


def steps(base: float, count: int = 12) -> list[float]:
    return [base * (1 + 0.01 * (number % 3)) for number in range(count)]


def made(frames: Frames, slower: float = 1.0) -> Timing:
    """SGD by itself and by DDP, and rows of which the last sends most of its steps nothing."""
    methods = [method(frames, row) for row in ROWS]
    ddp = {
        "name": "ddp",
        "label": "DDP",
        "algorithm": "ddp",
        "rows": ["fashion_mnist_long/sgd"],
    }
    methods.append(method(frames, "sgd", **ddp))
    seconds = {"sgd": 0.2, "mcser-96": 0.03, "ef_topk-96": 0.05, "ddp": 0.15}
    without_sync = cell("local_sgd-96", steps(0.02), None, "ordinary", 0.75)
    cells = [without_sync]
    for bits in LINKS:
        for name, own in seconds.items():
            at_link = slower * own * 1e9 / bits
            cells.append(cell(name, steps(at_link), bits))
        own_steps = steps(0.9)
        cells.append(cell("local_sgd-96", own_steps, bits, "synchronising", 0.25))
    return session(methods, cells)


def test_rows_are_joined_by_settings_and_not_by_names(frames: Frames) -> None:
    methods = [
        method(frames, "mcser-96", name="a name", label="another"),
        method(frames, "mcser-384", momentum=0.5),
    ]
    other_step = {"algorithm": "ddp", "rows": ["of/another"], "local_step": "adamw"}
    methods += [
        method(frames, "ef_topk-96", local_step="adamw"),
        method(frames, "sgd", name="ddp", **other_step),
    ]
    cells = [cell("a name", steps(0.1), 1e9)]
    for each in methods[1:]:
        cells.append(cell(each["name"], steps(1.0), 1e9))
    found = joined_frame(frames, [session(methods, cells)])
    timed = found.dropna(subset=["seconds"])
    assert timed["row"].to_list() == ["mcser-96"]
    assert timed["method"].to_list() == ["a name"]
    # Rows that were not timed are there, without a time.
    assert {"mcser-384", "ef_topk-96", "alone"} <= set(found["row"])
    assert found["row"].is_unique


def test_ddp_stands_for_sgd_which_loses_nothing_to_itself(frames: Frames) -> None:
    found = joined_frame(frames, [made(frames)])
    is_sgd = found["row"] == "sgd"
    is_at_1_gb = found["bits_per_second"] == 1e9
    own = found[is_sgd & is_at_1_gb].set_index("method")
    assert set(own.index) == {"sgd", "ddp"}
    assert set(own["estimate"]) == {0.0}
    by_ddp = own.loc["ddp", "seconds"]
    assert by_ddp < own.loc["sgd", "seconds"]
    line = found[found["row"] == "mcser-96"].iloc[0]
    sgd = frames.done("sgd").mean()
    gain = frames.done("mcser-96").mean() - sgd
    assert line["estimate"] == pytest.approx(gain, abs=1e-12)


def test_an_experiment_that_has_just_begun_has_steps_and_no_losses(
    frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = against_baseline(frames).iloc[:0].astype(object)
    monkeypatch.setattr(timed_steps, "against_baseline", lambda frames: nothing)
    every = joined_frame(frames, [made(frames)])
    found = every.dropna(subset=["seconds"])
    has_estimate = found["estimate"].notna()
    assert set(found.loc[has_estimate, "row"]) == {"sgd"}
    on_frontier = found.loc[found["frontier"], "row"]
    assert set(on_frontier) == {"sgd"}


def test_no_line_of_the_frontier_is_beaten(frames: Frames) -> None:
    every = joined_frame(frames, [made(frames)])
    found = every.dropna(subset=["seconds", "estimate"])
    for _, group in found.groupby("bits_per_second"):
        for line in group.itertuples():
            is_as_fast = group["seconds"] <= line.seconds
            is_as_good = group["estimate"] >= line.estimate
            is_faster = group["seconds"] < line.seconds
            is_better = group["estimate"] > line.estimate
            beats = is_as_fast & is_as_good & (is_faster | is_better)
            assert line.frontier == (not beats.any()), line


def test_an_interval_is_called_what_it_is(frames: Frames) -> None:
    frame = scored_steps_frame([made(frames)])
    one = frame.set_index(["method", "bits_per_second"])
    line = one.loc[("mcser-96", 1e9)]
    seconds = steps(0.03)
    expected = stats.ttest_1samp(seconds, 0.0).confidence_interval(0.95)
    assert line["interval"] == "t"
    assert line["low"] == pytest.approx(expected.low)
    assert line["high"] == pytest.approx(expected.high)
    mean = 0.75 * 0.0202 + 0.25 * 0.909
    local = one.loc[("local_sgd-96", 1e9)]
    assert local["seconds"] == pytest.approx(mean)
    two = scored_steps_frame([made(frames), made(frames, 1.1)]).set_index(
        ["method", "bits_per_second"]
    )
    line = two.loc[("mcser-96", 1e9)]
    assert (line["interval"], line["num_sessions"], line["num_steps"]) == (
        "sessions",
        2,
        24,
    )
    assert line["low"] == pytest.approx(0.0303)
    assert line["high"] == pytest.approx(1.1 * 0.0303)
    methods = [method(frames, "mcser-96")]
    few = session(methods, [cell("mcser-96", [0.1, 0.3], 1e9)])
    line = scored_steps_frame([few]).iloc[0]
    assert (line["interval"], line["seconds"], line["low"], line["high"]) == (
        "range",
        pytest.approx(0.2),
        0.1,
        0.3,
    )
