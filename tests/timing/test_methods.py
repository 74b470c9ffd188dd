"""What is timed is what is scored: the list from the experiments' plans, and the cells of each."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from harness.plan.plan import plan_experiment
from harness.records.timings import Message, Method
from harness.timing.methods import EXPERIMENTS, METHODS, scored_methods
from harness.timing.study import HIGHEST_DILATION_BEHIND, SCORED_LINKS, SCORED_WORKERS, scored_cells
from harness.timing.trainees import workload

RESULTS = Path(__file__).parents[2] / "results"
MODEL_BYTES, MOST = 102_228_128, 4e9


@pytest.fixture(scope="module")
def scored() -> dict[str, Method]:
    return scored_methods(RESULTS)


def test_every_row_of_the_regime_and_of_the_main_ratio_is_timed_as_it_is(scored: dict[str, Method]) -> None:
    timed = {
        row: (method.algorithm, method.settings, method.momentum)
        for name, method in scored.items()
        for row in method.rows
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


def test_baselines_stand_beside_them_and_ddp_is_joined_with_sgd(scored: dict[str, Method]) -> None:
    rivals = list(scored.values())[:3]
    assert [(each.name, each.rows) for each in rivals] == [
        ("ddp", [f"{name}/sgd" for name in EXPERIMENTS]),
        ("ddp_fp16", []),
        ("ddp_powersgd_1", []),
    ]
    assert all(each.baseline for each in rivals) and not scored["mcser-96"].baseline


def test_periods_are_those_of_the_settings(scored: dict[str, Method]) -> None:
    assert {name: timed.period for name, timed in METHODS.items() if timed.period > 1} == {
        "qsparse_local_sgd": 8,
        "local_sgd": 256,
        "diloco": 256,
        "cser_pl": 16,
        "mcser": 32,
        "mcser_32": 16,
        "mcser_1024": 256,
        "mcser_overlap": 32,
    }
    expected = {"local_sgd-96": 96, "mcser-96": 24, "ef_topk-96": 1, "sgd_accumulate-96": 96, "final_average": 28050}
    assert {name: scored[name].period for name in expected} == expected, "the last is of its run's only exchange"


def sending(method: Method, *sent: tuple[int, int]) -> Method:
    """The method with messages of so many bytes, each once in so many steps."""
    messages = [Message(collective="all_reduce", payload_bytes=size, every=every, ready=1.0) for size, every in sent]
    return method.model_copy(update={"messages": messages})


def test_each_kind_of_step_is_timed_on_each_link_and_what_sends_nothing_once(scored: dict[str, Method]) -> None:
    cells = partial(scored_cells, MOST, workload("resnet50_v100", "cpu"))
    local = cells(sending(scored["local_sgd-96"], (MODEL_BYTES, 96)))
    assert [(cell.kind, cell.link) for cell in local] == [
        ("ordinary", None),
        *(("synchronising", link) for link in SCORED_LINKS),
    ]
    assert [cell.share for cell in local] == [95 / 96, *[1 / 96] * 3]
    both = cells(sending(scored["mcser-96"], (10**6, 1), (10**7, 24)))
    assert [(cell.kind, cell.link) for cell in both] == [
        (kind, link) for kind in ("ordinary", "synchronising") for link in SCORED_LINKS
    ]


def test_links_are_slowed_down_as_far_as_this_machine_needs_and_small_messages_further() -> None:
    cells = partial(scored_cells, MOST, workload("resnet50_v100", "cpu"))
    large, small = (cells(sending(METHODS["all_reduce"], (size, 1))) for size in (MODEL_BYTES, 1000))
    for cell in (*large, *small):
        assert cell.link is not None and SCORED_WORKERS * cell.link / cell.dilation <= MOST * (1 + 1e-9)
    assert all(one.dilation <= other.dilation for one, other in zip(large, small, strict=True))
    behind = cells(sending(METHODS["powersgd_1"], (1000, 1)))
    assert {cell.dilation for cell in behind} == {HIGHEST_DILATION_BEHIND}
