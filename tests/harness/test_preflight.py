"""The checks before a long experiment: what they let pass, and what they say is to be done."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from algorithms import SoloCollectives
from harness.__main__ import main
from harness.plan.plan import make_plan
from harness.spec import TaskSpec
from harness.spec_file import load_spec
from harness.tasks.task import find_task
from harness.train import checkpoint
from harness.train.build import build_model, build_optimizer
from harness.workers import preflight
from harness.workers.preflight import (
    check_disk,
    check_reading,
    check_results,
    check_writable,
)
from tests.harness.support import changed, small_config, small_spec, write_spec


def test_reading_is_said_beside_what_the_gpu_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader is measured; a worker of the run has four cores."""
    monkeypatch.setattr("harness.tasks.imagenet.ImageNet.measured_reading_rate", lambda *arguments: 500.0)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    config = small_config(task=TaskSpec(name="imagenet"))
    for taken, words in (
        (None, "4 readers a worker reach about 2,000 images/s, 500 each"),
        (1200.0, "2,000 images/s, 500 each; its GPU takes 1,200"),
        (2500.0, "its GPU takes 2,500, and would wait for them: give a worker more cores"),
    ):
        seconds = SimpleNamespace(seconds=config.batch_size / taken if taken else None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda taken=taken: taken is not None)
        monkeypatch.setattr(preflight, "dry_steps", lambda config, device, seconds=seconds: seconds)
        (check,) = check_reading(config, None, "cuda", cores=4)
        assert check.passed and check.detail.endswith(words)

    def fail(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(preflight, "dry_steps", fail)
    (check,) = check_reading(config, None, "cuda", cores=4)
    assert not check.passed and "CUDA out of memory.; if memory is short" in check.detail


def test_disk_that_is_asked_for_is_what_checkpoints_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = changed(small_spec(), "model.options.widths", [32, 128])  # large enough for headers not to matter
    plan = make_plan(load_spec(write_spec(tmp_path, spec)), tmp_path)
    taken = {}
    for run in plan.runs:
        model = build_model(run.config.model, find_task("blobs"), 1, torch.device("cpu"))
        state = {"models": [model.state_dict()], "optimizer": build_optimizer(run.config, model, None, 40).state_dict()}
        folder = tmp_path / run.row
        for step in range(4):
            checkpoint.save(folder, step, state, SoloCollectives(), "attempt")
        taken[run.row] = sum(path.stat().st_size for path in folder.rglob("rank-0.pt")) / checkpoint.GENERATIONS
    expected = {row: footprint.checkpoint_bytes for row, footprint in plan.footprints.items()}
    assert expected.keys() == taken.keys()
    assert all(1.0 <= taken[row] / each < 1.1 for row, each in expected.items())

    # Of two runs of two workers at once, with a generation being written beside the two that stay.
    needed = 2 * 2 * 3 * max(expected.values())
    for free, suffices in ((needed, False), (needed + 1, True)):
        usage = shutil._ntuple_diskusage(free, 0, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, usage=usage: usage)
        check = check_disk(plan, tmp_path / "not" / "there", jobs=2)
        assert check.passed == suffices and ("make room" in check.detail) != suffices
    assert check_disk(plan, tmp_path, jobs=10**6).detail == check_disk(plan, tmp_path, jobs=len(plan.runs)).detail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_disk_that_cannot_be_written_to_is_one_sentence(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_writable("scratch", tmp_path / "not" / "there").passed and not list(tmp_path.iterdir())

    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    plan = make_plan(load_spec(write_spec(tmp_path, small_spec())), tmp_path)
    for check in (check_writable("scratch", tmp_path), check_results(plan, tmp_path, jobs=1)):
        assert not check.passed and os.strerror(number) in check.detail and str(tmp_path) in check.detail
        assert "make room or give permission" in check.detail and "\n" not in check.detail


def test_the_command_prints_a_line_per_check_and_then_what_the_runs_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = write_spec(tmp_path, small_spec())
    assert main(["preflight", str(spec), "--results", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["ok   data", "ok   disk"]
    assert lines[2].startswith("6 runs; ") and "CPU core hours" in lines[3]
