"""Measuring, measured itself: rows are on disk as soon as they are known, and a benchmark's step is training's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.profiler import profile

from algorithms import SoloCollectives, algorithms
from tests.measured import subjects

ROOT = Path(__file__).parents[2]
CHECKS = """
from pathlib import Path
import pytest

pytestmark = pytest.mark.gpu

def test_good(record_property):
    record_property("relative distance", 0.25)
    record_property("loss", float("nan"))

def test_bad():
    raise RuntimeError("no kernel image is available")

def test_rows_before_are_on_disk():
    assert len(Path("{rows}").read_text().splitlines()) == 3
"""


def test_one_bad_check_does_not_lose_the_table(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    (tmp_path / "test_checks.py").write_text(CHECKS.format(rows=rows))
    plugins = ["-p", "tests.conftest", "-p", "tests.measured.conftest", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), *plugins]
    words = ["--table", str(rows), "-m", "gpu or bench", str(tmp_path / "test_checks.py")]
    done = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    machine, good, bad, last = map(json.loads, rows.read_text().splitlines())
    assert {"packages", "driver", "gpus", "git_commit"} <= set(machine["machine"])
    assert good["passed"] and good["measured"] == {"relative distance": 0.25, "loss": "NaN"}
    assert not bad["passed"] and bad["remark"] == "RuntimeError: no kernel image is available"
    assert last["passed"] and "2 of 3 are well" in done.stdout and "no kernel image" in done.stdout


# A benchmark's step takes the path that training takes


def operations(work: Callable[[], object]) -> list[str]:
    with profile() as seen:
        work()
    return [event.name for event in seen.events() if event.name.startswith("aten::")]


@pytest.mark.filterwarnings("error:no parameter has a gradient")
@pytest.mark.parametrize("name", algorithms())
def test_benchmarked_steps_do_what_steps_in_training_do(name: str) -> None:
    stepper, benchmarked = subjects.own_stepper(name, subjects.random_parameters(subjects.SMALL_SHAPES)), []
    watched = stepper._replace(step=lambda: benchmarked.append(operations(stepper.step)))
    subjects.interval_seconds({name: watched}, 1, torch.device("cpu"))
    parameters, in_training = subjects.random_parameters(subjects.SMALL_SHAPES), []
    trained = subjects.build(name, parameters, SoloCollectives())
    for _ in benchmarked:
        trained.zero_grad()
        torch.stack([1e-3 * parameter.sum() for parameter in parameters]).sum().backward()  # type: ignore[no-untyped-call]
        in_training.append(operations(trained.step))
    # The first step looks, besides, at gradients that no backward pass left.
    assert benchmarked[1:] == in_training[1:] and all(benchmarked[1:])
