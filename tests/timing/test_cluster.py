"""Tests of `harness time`: what it refuses, what it reads of srun, and the study that it makes under torchrun."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.records.store import read_record
from harness.records.timings import Sweep, Timing, TimingStudy
from harness.timing.cluster import add_to_study, environment, fabric_here
from report.speed.workload_model import read_study

SHIPPED = Path(__file__).parents[2] / "results/speedups"
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what is set in a test is undone after it
        monkeypatch.delenv(name)


def test_a_single_process_is_told_how_to_start_several(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["time"]) == 2
    assert "torchrun" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--methods", "sdg"], "unknown method 'sdg'"), (["--workload", "resnet"], "unknown workload 'resnet'")],
)
def test_unknown_names_are_refused(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    assert main(["time", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_srun_says_what_torchrun_would(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"PROCID": "5", "NTASKS": "8", "LOCALID": "1", "STEP_TASKS_PER_NODE": "4(x2)", "LAUNCH_NODE_IPADDR": "::1"}
    for name, value in said.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert environment() == "srun"
    layout = fabric_here("gloo")
    assert (layout.num_machines, layout.workers_per_machine) == (2, 4)


def test_torchrun_makes_a_study_that_can_be_reported(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    time = ["-m", "harness", "time", "--workload", "fashion_mnist", "--visits", "1", "--steps", "1"]
    methods = ["--methods", "ddp", "mcser", "--output", str(folder)]
    done = subprocess.run([sys.executable, *start, *time, *methods], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    study = read_study(folder)
    records = study.records
    assert [method.name for method in records.timings[0].methods] == ["ddp", "mcser"]
    assert records.timings[0].basis == "measured"
    # The network was swept, so every timed step has a prediction of the model beside it.
    assert len(study.cells) == 2 and study.cells["predicted_seconds"].notna().all()


def test_another_workload_joins_the_study(tmp_path: Path) -> None:
    sweep = read_record(SHIPPED / "sweep-8x1-0.625mbps.json", Sweep)
    small = read_record(SHIPPED / "timing-fashion_mnist-8x1-10mbps.json", Timing)
    large = read_record(SHIPPED / "timing-cmudict-8x1-1000mbps.json", Timing)
    for timing in (small, large, small):
        add_to_study(tmp_path, sweep, timing)
    study = read_record(tmp_path / "study.json", TimingStudy)
    assert study.sweeps == ["sweep.json"] and study.timings == ["timing-fashion_mnist.json", "timing-cmudict.json"]
    assert read_record(tmp_path / "timing-cmudict.json", Timing) == large
