"""The table of checks: rows are on disk as soon as they are known, whatever becomes of the checks after them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
