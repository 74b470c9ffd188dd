"""Tests of the benchmarks' machinery at tiny size; how long anything takes is no test's business."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms import Collectives
from harness import bench
from harness.bench import memory, methods, run_shares, training, workers
from harness.bench.measurement import Aim, Measurement, not_measured, ratio, show
from harness.spec import SpecError
from harness.tasks.task import find_task
from harness.train.build import build_model
from harness.train.stopwatch import interleave, sums
from harness.train.trainee import StackedTrainee, Trainee
from tests.threads import run_workers


def test_a_ratio_is_the_median_of_ratios_within_repetitions() -> None:
    timings = {"slow": [2.0, 30.0, 8.0], "fast": [1.0, 10.0, 2.0]}
    figure = ratio("speed-up", "slow / fast", timings, "slow", "fast", Aim("at least", 3.0))
    assert figure.samples == [2.0, 3.0, 4.0]
    assert figure.measured == 3.0 and figure.quartiles == (2.5, 3.5) and figure.met is True
    assert figure.raw == timings


@pytest.mark.parametrize(
    ("aim", "met"),
    [(Aim("at most", 1.0), True), (Aim("at most", 0.9), False), (Aim("at least", 1.1), False), (None, None)],
)
def test_an_aim_is_met_or_not(aim: Aim | None, met: bool | None) -> None:
    assert Measurement("name", "what", 1.0, "x", aim).met is met


def test_calls_go_there_and_back_again() -> None:
    order: list[str] = []
    seconds = interleave({name: lambda name=name: order.append(name) for name in "ABC"}, repetitions=3)  # type: ignore[misc]
    assert "".join(order) == "ABC" + "ABC" + "CBA" + "ABC"
    assert {name: len(each) for name, each in seconds.items()} == {"A": 3, "B": 3, "C": 3}


def test_sums_leave_out_a_shorter_rest() -> None:
    assert sums([1.0, 2.0, 3.0, 4.0, 5.0], 2) == [3.0, 7.0]


def test_speed_ups_are_the_slower_over_the_faster() -> None:
    timings = {
        workers.ONE_THREAD: [1.5],
        workers.PROCESSES: [3.0],
        workers.DDP: [4.5],
        workers.TOGETHER: [0.8],
        workers.IN_TURN: [1.6],
        workers.STACKED: [0.5],
    }
    assert [figure.measured for figure in workers.figures_of(timings)] == [3.0, 2.0, 6.0, 1.5]


def test_stacked_workers_of_a_benchmark_do_what_each_alone_does() -> None:
    config = methods.config_of("mcser")
    model = build_model(config.model, find_task(config.task.name), config.seed, torch.device("cpu"))
    stacked = StackedTrainee(config, model, num_batches=2)

    def work(collectives: Collectives) -> Tensor:
        trainee = Trainee(config, copy.deepcopy(model), collectives, num_batches=2)
        for _ in range(3):
            trainee.step()
        return trainee.optimizer.flat.parameters

    for _ in range(3):
        stacked.step()
    assert torch.equal(stacked.optimizer.flat.parameters, torch.stack(run_workers(work, config.num_workers)))


@pytest.mark.timeout(300)
def test_stacked_workers_are_started_and_obey() -> None:
    with training.start_training("stacked") as run:
        workers.together([run])


def test_a_benchmark_that_fails_says_so_and_spares_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(results: Path) -> list[Measurement]:
        raise RuntimeError("no such luck")

    def works(results: Path) -> list[Measurement]:
        assert results == tmp_path
        return [Measurement("one", "this with that", 1.25, "x", Aim("at most", 1.0), [1.0, 1.5], {"this": [1.0, 3.0]})]

    monkeypatch.setattr(bench, "SUBJECTS", ("memory", "run_shares"))
    monkeypatch.setattr(memory, "measure", broken)
    monkeypatch.setattr(run_shares, "measure", works)
    bench.run_benchmarks(tmp_path / "bench")
    written = json.loads((tmp_path / "bench/bench.json").read_text())
    machine = written["machine"]
    assert machine["num_cpus"] >= 1 and machine["cpu"] and machine["packages"]["torch"] and "git_commit" in machine
    failed, worked = written["figures"]
    assert failed["measured"] is None and "no such luck" in failed["reason"]
    assert worked["raw"] == {"this": [1.0, 3.0]} and worked["met"] is False and worked["quartiles"] == [1.125, 1.375]
    assert worked["aim"] == {"kind": "at most", "value": 1.0}
    printed = capsys.readouterr().out
    assert "no such luck" in printed and "1.25 x" in printed


def test_an_unknown_benchmark_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="optimizer_step"):
        bench.run_benchmarks(tmp_path, only="nothing")


def test_what_was_not_measured_keeps_its_aim_and_its_reason() -> None:
    cells = show(not_measured("report", "", "there is none", Aim("at most", 20.0)))
    assert cells == ["report", "not measured", "<= 20", "", "there is none"]


def test_shares_without_records_give_the_reason(tmp_path: Path) -> None:
    [figure] = run_shares.measure(tmp_path)
    assert figure.measured is None and str(tmp_path) in (figure.reason or "")


def test_every_method_has_settings() -> None:
    from algorithms.registry import methods as known

    assert set(methods.SETTINGS) == set(known())
    assert all(methods.config_of(name).algorithm == name for name in methods.SETTINGS)


def block(ratio: int) -> dict[str, Any]:
    return {"kind": "block", "ratio": ratio}


def test_what_is_measured_stays_comparable_with_what_was() -> None:
    """Settings of records that were made before, as a spec has them."""
    cser = {"gradient_compressor": block(512), "error_compressor": block(16), "reset_interval": 32}
    expected = {
        "sgd": {},
        "sgd_accumulate": {"accumulation_steps": 256},
        "alone": {},
        "dpsgd": {"topology": "ring", "order": "adapt_then_combine"},
        "choco_sgd": {"topology": "ring", "compressor": block(512), "gamma": 0.5 / 256},
        "deep_squeeze": {"topology": "ring", "compressor": block(512), "gamma": 0.001},
        "ef_sgd": {"compressor": block(256)},
        "powersgd": {"rank": 1},
        "qsparse_local_sgd": {"compressor": block(32), "sync_interval": 8},
        "local_sgd": {"sync_interval": 256},
        "diloco": {"sync_interval": 256},
        "ef21_sgdm": {"compressor": block(256)},
        "csea": {"error_compressor": block(256)},
        "cser_pl": {"error_compressor": block(16), "reset_interval": 16},
        **dict.fromkeys(("cser", "mcser", "cser_released", "mcser_released"), cser),
    }
    assert {name: methods.SETTINGS[name] for name in expected} == expected
    assert methods.RESET_INTERVAL == 32
