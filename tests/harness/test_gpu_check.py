"""The GPU check's own code, on the CPU at tiny size: that it runs, that it finds what is wrong, and what it writes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from algorithms import DistributedOptimizer, StackedCollectives, algorithms
from algorithms.registry import baselines
from harness import gpu_check
from harness.__main__ import main
from harness.gpu_check import memory, memory_format, mixed_precision, nccl, training, workers
from harness.gpu_check.problem import SMALL, Scale
from harness.gpu_check.record import CheckResult, Outcome, as_table, record

pytestmark = pytest.mark.timeout(400)  # All checks at once take their time on a busy machine.

CPU = torch.device("cpu")
TINY = Scale(model=SMALL, batch_size=4, num_steps=12, shapes=((64, 32), (48,), (3, 3, 16)), num_intervals=2)


def test_without_a_gpu_it_is_skipped_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["gpu-check", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "gpu-check: skipped, since torch sees no GPU on this machine\n"
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def records() -> list[CheckResult]:
    return list(gpu_check.make_checks(CPU, TINY))


def test_every_check_passes_on_a_cpu(records: list[CheckResult]) -> None:
    assert [(each.name, each.remark) for each in records if not each.passed] == []
    assert all(each.seconds > 0 and each.expected for each in records)


def test_every_method_is_trained_timed_and_weighed(records: list[CheckResult]) -> None:
    names = [each.name for each in records]
    assert len(set(names)) == len(names)
    for name in algorithms():
        assert {f"training: {name}", f"memory: {name}"} <= set(names)
    assert {f"training: {name}" for name in baselines()} <= set(names)
    (times,) = [each.measured for each in records if each.name == "step time"]
    assert set(times) == {"torch fused", "torch fused, no momentum", *algorithms()}
    for name in algorithms():
        low, high = times[name]["quartiles"]
        assert times[name]["ms"] > 0 and low <= times[name]["ratio"] <= high


def test_the_document_is_plain_json_with_the_machine(records: list[CheckResult]) -> None:
    machine = gpu_check.machine(CPU) | {"gpus": ["a", "b"]}
    written = json.loads(gpu_check.document(records, machine), parse_constant=pytest.fail)
    assert [check["name"] for check in written["checks"]] == [each.name for each in records]
    assert set(written["checks"][0]) == {"name", "passed", "expected", "measured", "seconds", "remark"}
    assert {"packages", "cuda", "driver", "gpus", "host", "git_commit"} <= set(written["machine"])


# What is wrong is found


def outcomes(checks: gpu_check.Checks) -> dict[str, Outcome]:
    return {name: check() for name, check in checks}


def test_a_skipped_step_that_leaves_a_trace_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = DistributedOptimizer._overflowed

    def tracing(self: DistributedOptimizer) -> bool:
        overflowed = plain(self)
        if overflowed:
            self._buffers["momentum"].add_(1e-3)
        return overflowed

    monkeypatch.setattr(DistributedOptimizer, "_overflowed", tracing)
    outcome = mixed_precision.overflow_is_skipped(CPU, TINY, "mcser")
    assert not outcome.passed and "no change" in outcome.expected


def test_a_method_that_learns_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DistributedOptimizer, "local_step_", lambda self, *target, **options: None)
    outcome = training.learns(CPU, TINY, "sgd")
    assert not outcome.passed and "less than half" in outcome.expected


def test_stacked_workers_that_go_elsewhere_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, trained = StackedCollectives._sum_, [workers._trained(CPU, "ef_sgd")]

    def drifting(self: StackedCollectives, tensor: torch.Tensor) -> None:
        plain(self, tensor)
        tensor[1].mul_(1 + 1e-6)

    monkeypatch.setattr(StackedCollectives, "_sum_", drifting)
    trained.append(workers._trained(CPU, "ef_sgd"))
    monkeypatch.setattr(workers, "_trained", lambda *way: trained.pop())
    outcome = workers.same_parameters(CPU, "ef_sgd")
    assert not outcome.passed and "1e-08" in outcome.expected


def test_a_format_that_is_lost_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = memory_format._trainee

    def losing(device: torch.device, scale: Scale, precision: str, wanted: torch.memory_format) -> object:
        return plain(device, scale, precision, torch.contiguous_format)  # type: ignore[arg-type]

    monkeypatch.setattr(memory_format, "_trainee", losing)
    assert not memory_format.same_losses(CPU, TINY).passed


def test_a_method_that_takes_more_memory_than_counted_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    numel = sum(nn.Parameter(torch.empty(shape)).numel() for shape in TINY.shapes or ())

    class Greedy:
        """Stands for the allocator's count, which a CPU has not: eight vectors."""

        bytes = 8 * 4 * numel

        def __enter__(self) -> Greedy:
            return self

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(memory, "peak_bytes", lambda device: Greedy())
    outcome = memory.step_memory(CPU, TINY, "mcser")
    assert outcome.measured == {"peak / parameters": 8.0, "counted / parameters": 3}
    assert not outcome.passed


def test_a_group_that_answers_wrongly_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        rank, world_size = 0, 2

        def __getattr__(self, name: str) -> object:
            return lambda tensor, purpose: tensor.expand(2, -1)

    assert nccl._collectives(Wrong(), CPU) == ["wrong sum", "wrong mean", "wrong gather"]  # type: ignore[arg-type]


# Records


def test_an_exception_is_a_record_and_numbers_that_json_lacks_are_words() -> None:
    def fails() -> Outcome:
        raise RuntimeError("no kernel image is available")

    failed = record("one", fails)
    assert not failed.passed and failed.remark == "RuntimeError: no kernel image is available"
    odd = record("two", lambda: Outcome(True, "", {"loss": float("nan"), "all": [1.0, float("inf")], "in": {"x": 2.0}}))
    assert odd.measured == {"loss": "nan", "all": [1.0, "inf"], "in": {"x": 2.0}}


FOUND = [
    CheckResult("memory: sgd", True, "at most 4", {"peak": 3.21987, "counted": 3}, 12.3, ""),
    CheckResult("bf16", True, "6 steps", {}, 0.04, "this GPU has no bf16; use fp16"),
    CheckResult("nccl group of 8", False, "an end without an error", {}, 120.0, "RuntimeError: NCCL error"),
]


def test_one_table_says_what_was_expected_and_what_was_found() -> None:
    lines = as_table(FOUND).splitlines()
    assert [re.split("  +", line.strip()) for line in lines] == [
        ["what", "expected", "found", "seconds"],
        ["-" * 15, "-" * 23, "-" * 30, "-" * 4, "-" * 9],
        ["memory: sgd", "at most 4", "peak: 3.22", "ok", "12.3"],
        ["counted: 3"],
        ["bf16", "6 steps", "this GPU has no bf16; use fp16", "ok", "0.0"],
        ["nccl group of 8", "an end without an error", "RuntimeError: NCCL error", "FAIL", "120.0"],
        [""],
        ["2 of 3 checks are well, in 2.2 min"],
    ]
    assert lines[3].index("counted") == lines[2].index("peak")


def test_more_than_ten_minutes_are_said_to_be_too_many() -> None:
    slow = [replace(each, seconds=250.0) for each in FOUND]
    assert as_table(slow).endswith("in 12.5 min, more than the 10 that it is meant to take")


def test_a_failed_check_is_the_commands_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = CheckResult("one", False, "x of 2", {"x": 1.5}, 0.25, "it is less")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "prepare_thread", lambda device: None)
    monkeypatch.setattr(gpu_check, "make_checks", lambda device, scale: iter([failed]))
    monkeypatch.setattr(gpu_check, "machine", lambda device: {"cuda": "12.6"})
    assert main(["gpu-check", "--output", str(tmp_path / "gpu")]) == 1
    said = capsys.readouterr().out
    assert said.startswith("gpu-check: one: FAIL\nwhat ") and said.endswith(
        f"all of this is in {tmp_path}/gpu/gpu_check.json\n"
    )
    written = json.loads((tmp_path / "gpu" / "gpu_check.json").read_text())
    assert written["machine"] == {"cuda": "12.6"}
    assert written["checks"] == [
        {
            "name": "one",
            "passed": False,
            "expected": "x of 2",
            "measured": {"x": 1.5},
            "seconds": 0.25,
            "remark": "it is less",
        }
    ]


def test_at_full_size_it_is_the_papers_network_and_resnet50() -> None:
    assert (Scale().model.name, Scale().model.options) == ("wide_resnet", {"depth": 40, "width": 8})
    assert sum(each.numel() for each in Scale().parameters(torch.device("meta"))) == 25_557_032
