"""The methods that are timed are those that are scored: the list from the experiments' plans, and a session's cells."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from harness.plan.plan import plan_experiment
from harness.records.timings import Message
from harness.timing.methods import METHODS
from harness.timing.passes import workload
from harness.timing.scored import (
    EXPERIMENTS,
    HIGHEST_DILATION_BEHIND,
    LINKS,
    NUM_WORKERS,
    Scored,
    cells_of,
    scored_methods,
)

RESULTS = Path(__file__).parents[2] / "results"
MODEL_BYTES = 102_228_128


@pytest.fixture(scope="module")
def scored() -> dict[str, Scored]:
    return scored_methods(RESULTS)


def test_every_row_of_the_regime_and_of_the_main_ratio_is_timed_as_it_is(
    scored: dict[str, Scored],
) -> None:
    timed = {
        row: (method.algorithm, method.settings, method.momentum)
        for name, (method, rows) in scored.items()
        for row in rows
        if not name.startswith("ddp")
    }
    for experiment in EXPERIMENTS:
        for run in plan_experiment(experiment, RESULTS).runs:
            wanted = experiment == EXPERIMENTS[1] or (run.row.endswith("-96") and "~" not in run.row)
            if wanted:
                config = run.config
                expected = (config.algorithm, config.settings, config.momentum)
                assert timed.pop(f"{experiment}/{run.row}", expected) == expected
    left = {row.partition("/")[2] for row in timed}
    assert {"sgd", "alone", "final_average", "dpsgd", "powersgd_rank_1"} <= left, "the bounds, and who has no ratio 96"
    assert not any(row.endswith(("-12", "-384", "-1536")) for row in left)


def test_baselines_stand_beside_them_and_ddp_is_joined_with_sgd(scored: dict[str, Scored]) -> None:
    assert list(scored)[:3] == ["ddp", "ddp_fp16", "ddp_powersgd_1"]
    assert [rows for _, rows in list(scored.values())[:3]] == [[f"{name}/sgd" for name in EXPERIMENTS], [], []]


def test_a_method_whose_run_ends_with_its_only_exchange_has_that_as_its_period(scored: dict[str, Scored]) -> None:
    assert scored["final_average"][0].period == 28050
    assert {
        name: scored[name][0].period for name in ("local_sgd-96", "mcser-96", "ef_topk-96", "sgd_accumulate-96")
    } == {
        "local_sgd-96": 96,
        "mcser-96": 24,
        "ef_topk-96": 1,
        "sgd_accumulate-96": 96,
    }


def message(payload_bytes: int, every: int = 1, ready: float = 1.0) -> Message:
    return Message(collective="all_reduce", payload_bytes=payload_bytes, every=every, ready=ready)


def test_each_kind_of_step_is_timed_on_each_link_and_what_sends_nothing_once(scored: dict[str, Scored]) -> None:
    cells = partial(cells_of, 4e9, workload("resnet50_v100", "cpu"))
    local = cells(scored["local_sgd-96"][0], [message(MODEL_BYTES, every=96)])
    assert [(cell.kind, cell.link) for cell in local] == [
        ("ordinary", None),
        *(("synchronising", link) for link in LINKS),
    ]
    assert [cell.share for cell in local] == [95 / 96, *[1 / 96] * 3]
    both = cells(scored["mcser-96"][0], [message(10**6), message(10**7, every=24)])
    assert [(cell.kind, cell.link) for cell in both] == [
        (kind, link) for kind in ("ordinary", "synchronising") for link in LINKS
    ]


def test_links_are_slowed_down_as_far_as_this_machine_needs_and_small_messages_further() -> None:
    most = 4e9
    cells = partial(cells_of, most, workload("resnet50_v100", "cpu"))
    large, small = (cells(METHODS["all_reduce"], [message(size)]) for size in (MODEL_BYTES, 1000))
    for cell in (*large, *small):
        assert cell.link is not None and NUM_WORKERS * cell.link / cell.dilation <= most * (1 + 1e-9)
    assert all(one.dilation <= other.dilation for one, other in zip(large, small, strict=True))
    behind = cells(METHODS["powersgd_1"], [message(1000)])
    assert {cell.dilation for cell in behind} == {HIGHEST_DILATION_BEHIND}
