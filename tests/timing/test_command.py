"""Tests of `harness time`, as far as it goes before workers find each other."""

from __future__ import annotations

import pytest

from harness.__main__ import main
from harness.timing.command import _environment, _fabric

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
    assert _environment() == "srun"
    layout = _fabric("gloo")
    assert (layout.num_machines, layout.workers_per_machine) == (2, 4)
