"""Benchmark: the report over ten thousand made-up runs."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from harness.bench.measurement import Aim, Measurement, not_measured

NUM_RUNS = 10_000
NAME = f"report of {NUM_RUNS:,} runs"
AIM = Aim("at most", 20.0)
ROOT = Path(__file__).parents[2]


def measure(results: Path) -> list[Measurement]:
    """Seconds from records to report.md and report.pdf, by the report's own benchmark."""
    # A process of its own: the harness does not know the report.
    if not (ROOT / "report/bench.py").is_file():
        return [not_measured(NAME, "", "there is no module report.bench", AIM)]
    with tempfile.TemporaryDirectory(prefix="cser-bench-") as folder:
        path = Path(folder) / "numbers.json"
        command = [sys.executable, "-m", "report.bench", "--runs", str(NUM_RUNS), "--json", str(path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            return [not_measured(NAME, "", f"report.bench failed: {last}", AIM)]
        numbers: dict[str, float] = json.loads(path.read_text())
    compared = f"records of {numbers['runs']:.0f} made-up runs to report.md and report.pdf, built twice: first"
    raw = {key: [value] for key, value in numbers.items()}
    return [
        Measurement(NAME, compared, numbers["report_seconds"], "s", AIM, raw=raw),
        Measurement(f"{NAME}, again", compared.replace(": first", ": second"), numbers["rebuild_seconds"], "s", AIM),
    ]
