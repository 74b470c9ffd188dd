"""The table of checks: rows are on disk as soon as they are known, whatever becomes of the checks after them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHECKS = """
import os
import pytest

pytestmark = pytest.mark.gpu

def test_good(record_property):
    record_property("relative distance", 0.25)
    record_property("loss", float("nan"))

def test_bad():
    raise RuntimeError("no kernel image is available")

def test_last():
    if {ends}:
        os._exit(9)
"""


def table(folder: Path, ends: bool) -> tuple[list[dict[str, object]], str]:
    """The rows on disk after these checks, and what was printed."""
    (folder / "test_checks.py").write_text(CHECKS.format(ends=ends))
    plugins = ["-p", "tests.conftest", "-p", "tests.measured.conftest", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), *plugins]
    words = ["--table", str(folder / "rows.jsonl"), "-m", "gpu or bench", str(folder / "test_checks.py")]
    done = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    lines = (folder / "rows.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], done.stdout


def test_one_bad_check_does_not_lose_the_table(tmp_path: Path) -> None:
    (machine, good, bad, last), printed = table(tmp_path, ends=False)
    assert {"packages", "driver", "gpus", "git_commit"} <= set(machine["machine"])  # type: ignore[call-overload]
    assert good["passed"] and good["measured"] == {"relative distance": 0.25, "loss": "nan"}
    assert not bad["passed"] and bad["remark"] == "RuntimeError: no kernel image is available"
    assert last["passed"] and "2 of 3 are well" in printed and "no kernel image" in printed


def test_a_process_that_dies_leaves_the_rows_before_it(tmp_path: Path) -> None:
    _, good, bad = table(tmp_path, ends=True)[0]
    assert (good["name"], bad["name"]) == ("test_good", "test_bad")
