"""The report of a folder of records loads no torch, which it does not need."""

import subprocess
import sys
from pathlib import Path

RECORDS = Path(__file__).parents[2] / "results" / "study_tail"

PROGRAM = """
import sys
from cser_bench.__main__ import main
assert main(["report", sys.argv[1], "--output", sys.argv[2]]) == 0
assert "cser_bench.report.build" in sys.modules
assert "torch" not in sys.modules, "torch was loaded"
"""


def test_a_report_of_a_folder_loads_no_torch(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(RECORDS), str(tmp_path / "made")],
        check=True,
        capture_output=True,
        cwd=tmp_path,
    )
