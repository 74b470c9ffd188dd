"""Training: interrupted equals uninterrupted, divergence is a result, what is sent was expected,
and clocks."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cser_bench.algorithms import Purpose
from cser_bench.algorithms.core import Replica
from cser_bench.algorithms.registry import algorithms
from cser_bench.algorithms.sgd import SGD
from cser_bench.harness.plan.footprint import footprint_of
from cser_bench.harness.records.store import Failure, read_record, read_run
from cser_bench.harness.spec.run import RunConfig
from cser_bench.harness.tasks import blobs
from cser_bench.harness.train.clock import PHASES
from cser_bench.harness.workers.attempt import attempt_stacked
from tests.harness.support import (
    BLOCK,
    CSER,
    DoctoredBlobs,
    Table,
    comparable,
    done,
    job_for,
    settings_of,
    small_config,
    stop_before,
)

QSGD = {"kind": "qsgd", "bits": 4}


def train_through_stops(
    config: RunConfig, results: Path, stops: list[int], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The run's folder after attempts that end at each of these steps, and a last one that does
    not."""
    job = job_for(config, results)
    for last in stops:
        monkeypatch.setattr(
            blobs, "TASK", DoctoredBlobs(hook=partial(stop_before, last))
        )
        assert not attempt_stacked(job_for(config, results))
        assert not (job.folder / "result.json").exists()
    monkeypatch.undo()
    assert attempt_stacked(job_for(config, results))
    return job.folder


RESTARTS: list[tuple[str, Table, Table]] = [
    (
        "choco_sgd",
        BLOCK,
        {"restart": {"without": ["estimate", "mixed_estimates"], "worker": 1}},
    ),
    ("powersgd", BLOCK, {"restart": {"without": ["right_factors", "error"]}}),
    *(
        (name, BLOCK, {"restart": {"everything_sent": True}})
        for name in ("mcser", "ef_sgd", "choco_sgd")
    ),
]
CASES: list[tuple[str, Table, Table]] = [
    *((name, BLOCK, {}) for name in algorithms()),
    *(
        (name, QSGD, {})
        for name in ("ef_sgd", "mcser", "qsparse_local_sgd", "choco_sgd")
    ),
    ("diloco", BLOCK, {"local_step": "muon"}),
    *RESTARTS,  # in the middle, where there is a score and a checkpoint too
]
"""Every algorithm with a shared support, and some of each family besides."""


@pytest.mark.whole
@pytest.mark.parametrize(("name", "compressor", "more"), CASES)
def test_interrupted_equals_uninterrupted(
    name: str,
    compressor: Table,
    more: Table,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = small_config(name, settings_of(name, compressor), **more)
    whole = train_through_stops(config, tmp_path / "whole", [], monkeypatch)
    # Checkpoints are at 20 (where there is a score too) and 25.
    broken = train_through_stops(config, tmp_path / "broken", [12, 22, 30], monkeypatch)
    assert comparable(broken) == comparable(whole)
    assert [attempt.resumed_from_step for attempt in read_run(broken).run.attempts] == [
        0,
        0,
        20,
        25,
    ]
    assert not (broken / "failure.json").exists()
    assert not (broken / "heartbeat.json").exists()


def test_a_plan_knows_what_a_rule_of_the_learning_rate_will_send(
    tmp_path: Path,
) -> None:
    """40 steps: warm-up to step 10, then a cosine; and the second half at its end, which is sent at
    another rate."""
    config = small_config("qsr", {"sync_interval": 2, "alpha": 0.1})
    slower = config.model_copy(update={"learning_rate": 0.025})
    settings = {"sync_interval": 2, "alpha": 0.1, "total_steps": 40}
    ends = small_config("qsr", settings)
    assert (
        footprint_of(ends).bits
        > footprint_of(config).bits
        > footprint_of(slower).bits
        > 0
    )
    for each in (config, slower, ends):
        assert (
            done(each, tmp_path).result.traffic["model"].bits == footprint_of(each).bits
        )


def test_training_learns(tmp_path: Path) -> None:
    record = done(small_config(num_epochs=3), tmp_path)
    steps = [event.step for event in record.events]
    assert steps == [20, 40, 60, 80, 100, 120]
    first, *_, last = record.events
    assert last.train_loss < first.train_loss
    # Ten classes: chance is 0.1.
    assert record.result.test_accuracy > 0.5
    seconds = record.result.clock_seconds
    assert set(seconds) == set(PHASES)
    for value in seconds.values():
        assert value > 0
    wall = record.result.wall_seconds
    assert sum(seconds.values()) == pytest.approx(wall, rel=1e-9)
    walls = [event.wall_seconds for event in record.events]
    assert walls == sorted(walls)
    assert walls[-1] <= record.result.wall_seconds


def test_result_is_the_last_event(tmp_path: Path) -> None:
    record = done(small_config("cser", CSER), tmp_path)
    last = record.events[-1].model_dump()
    result = record.result.model_dump(by_alias=True)
    shared = ["train_loss", "test_loss", "test_correct", "test_count", "test_accuracy"]
    for key in shared:
        assert last[key] == result[key], key
    assert (result["status"], result["num_steps"], result["world_size"]) == (
        "done",
        40,
        2,
    )
    sent = {
        key: entry
        for key, entry in result["traffic"].items()
        if key in ("gradient", "error", "model")
    }
    assert sent == result["expected_traffic"]
    # 742 parameters: 93 of them in each eighth, 186 in each quarter; a reset at every third of 40
    # steps.
    bits = {}
    for key, entry in sent.items():
        bits[key] = (entry["bits"], entry["collectives"])
    assert bits == {
        "gradient": (40 * 32 * 93, 40),
        "error": (13 * 32 * 186, 13),
        "model": (0, 0),
    }
    num_numbers = 40 * 93 + 13 * 186
    assert last["bits_sent"] == 32 * num_numbers
    ratio = 742 * 40 / (40 * 93 + 13 * 186)
    assert result["overall_ratio"] == pytest.approx(ratio)
    config = small_config("cser", CSER)
    assert record.run.config == config.model_dump(mode="json")


def test_recorded_loss_is_the_mean_over_workers_and_steps_since_the_last_score_and_the_rate_the_last_step_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []
    original = torch.nn.functional.cross_entropy

    def spy(*arguments: Any, **options: Any) -> Any:
        loss = original(*arguments, **options)
        if "reduction" not in options:
            losses.append(loss.item())
        return loss

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", spy)
    schedule = {"kind": "cosine", "warmup_epochs": 0.75}
    config = small_config(learning_rate=0.08, schedule=schedule)
    events = done(config, tmp_path).events
    assert len(losses) == 80
    first_mean = math.fsum(losses[:40]) / 40
    second_mean = math.fsum(losses[40:]) / 40
    found = [event.train_loss for event in events]
    assert found == pytest.approx([first_mean, second_mean], rel=1e-5)
    # 30 of 40 steps are warm-up: its step 20, then the last of 10 steps that fall from 1 to 0.
    in_warm_up = 0.08 * 20 / 30
    cosine = math.cos(0.9 * math.pi)
    falling = 0.08 * (1 + cosine) / 2
    expected = [in_warm_up, falling]
    rates = [event.learning_rate for event in events]
    assert rates == pytest.approx(expected)


DIVERGING: dict[str, tuple[dict[str, Any], int, list[int]]] = {
    # What is changed, the step at which it is seen, and those of scores before.
    "at once": ({"learning_rate": 1e30}, 20, []),
    # The rate grows at step 22, so the score at step 20 still stands.
    "after a score": (
        {"schedule": {"kind": "milestones", "milestones": [0.55], "factor": 1e30}},
        25,
        [20],
    ),
    # Only the last step, after the last look at the loss, goes to infinity: the average cannot be
    # scored.
    "at the last step": (
        {"schedule": {"kind": "milestones", "milestones": [0.97], "factor": 1e38}},
        40,
        [20],
    ),
}


@pytest.mark.parametrize("when", DIVERGING)
def test_divergence_is_a_result_with_its_step_and_nothing_filled_in(
    when: str, tmp_path: Path
) -> None:
    changes, step, scored = DIVERGING[when]
    record = done(small_config("cser", CSER, **changes), tmp_path)
    result = record.result
    assert record.failure is None
    assert (result.status, result.diverged_at_step, result.num_steps) == (
        "diverged",
        step,
        step,
    )
    scores = [
        result.train_loss,
        result.test_loss,
        result.test_correct,
        result.test_count,
        result.test_accuracy,
    ]
    assert scores == [None] * 5
    assert [event.step for event in record.events] == scored
    for event in record.events:
        assert math.isfinite(event.test_loss)
    assert result.expected_traffic["gradient"].collectives == step
    for path in record.folder.glob("*.json*"):  # plain JSON, without NaN or Infinity
        for line in (
            path.read_text().splitlines()
            if path.suffix == ".jsonl"
            else [path.read_text()]
        ):
            json.loads(line, parse_constant=pytest.fail)


def test_a_loss_that_explodes_and_stays_finite_is_no_divergence_but_a_score(
    tmp_path: Path,
) -> None:
    config = small_config("cser", CSER, learning_rate=30.0)
    record = done(config, tmp_path)
    # Ten classes: a guess has a loss of 2.3 and an accuracy of 0.1.
    of_events = [event.train_loss for event in record.events]
    losses = [record.result.train_loss, *of_events]
    assert all(map(math.isfinite, losses))
    assert max(losses) > 1e6
    assert record.result.status == "done"
    assert record.result.test_accuracy < 0.3


class LeakySGD(SGD):
    """SGD that sends one number more than it says, at its fifth step."""

    name = "leaky"

    def _update(self, replica: Replica, step: int) -> None:
        super()._update(replica, step)
        if step == 5:
            self.collectives.all_reduce_mean_(
                torch.zeros(len(self.collectives.own_ranks), 1), Purpose.GRADIENT
            )


def test_a_method_that_sends_other_than_its_closed_form_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(algorithms(), "leaky", LeakySGD)
    job = job_for(small_config("leaky"), tmp_path)
    assert not attempt_stacked(job)
    assert not (job.folder / "result.json").exists()
    failure = read_record(job.folder / "failure.json", Failure)
    assert failure.kind == "bug"
    assert "closed form of leaky" in failure.message
