"""Checks of GPUs and benchmarks as tests: each writes its row to a file at once; one table ends them all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tabulate import tabulate

from harness.records.provenance import new_attempt, output_of
from harness.workers.attempt import prepare_thread
from tests.measured.subjects import FULL, TINY, Scale


class Table:
    """A row for each check, in a file whose first line is the machine."""

    def __init__(self, file: Path) -> None:
        self.rows: list[dict[str, Any]] = []
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"machine": _machine()}) + "\n")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the row of a test whose call is over, or which could not begin, whatever becomes of those after it."""
        if not {"gpu", "bench"} & set(report.keywords) or not (report.when == "call" or report.failed):
            return
        row = {
            "name": report.nodeid.partition("::")[2],
            "passed": report.outcome == "passed",
            "seconds": round(report.duration, 2),
            # JSON knows no infinity and no NaN.
            "measured": json.loads(json.dumps(dict(report.user_properties)), parse_constant=str),
            "remark": _last_line(report),
        }
        self.rows.append(row)
        with self._file.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show all rows."""
        cells = [[r["name"], _words(r["measured"]), r["remark"], "ok" if r["passed"] else "FAIL"] for r in self.rows]
        headers, widths = ["what", "measured", "remark", ""], [48, 72, 48, 4]
        terminalreporter.write_line("")
        terminalreporter.write_line(tabulate(cells, headers, disable_numparse=True, maxcolwidths=widths))
        well = f"{sum(row['passed'] for row in self.rows)} of {len(self.rows)} are well"
        terminalreporter.write_line(f"{well}; every row is in {self._file}")


def pytest_sessionstart(session: pytest.Session) -> None:
    config = session.config
    if config.getoption("--table") is None:
        return
    if config.getoption("-m") == "gpu" and not torch.cuda.is_available():
        pytest.exit("gpu-check: skipped, since torch sees no GPU on this machine", 0)
    config.pluginmanager.register(Table(Path(config.getoption("--table"))))


def _machine() -> dict[str, Any]:
    """The code, the packages and the GPUs that the rows belong to."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    backend = "nccl" if device.type == "cuda" else "gloo"
    attempt = new_attempt("tests", backend, device).model_dump(exclude={"attempt", "resumed_from_step", "launch"})
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {**attempt, "gpus": names, "cuda": torch.version.cuda, "driver": driver}


def _last_line(report: pytest.TestReport) -> str:
    if report.passed:
        return ""
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr).splitlines()[0][:300]


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_words(each)}" for key, each in value.items())
    if isinstance(value, list):
        return " ".join(map(_words, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@pytest.fixture
def device() -> Iterator[torch.device]:
    """The first GPU, or where there is none the CPU, so that the checks themselves are tried everywhere."""
    found = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    prepare_thread(str(found))
    yield found
    if found.type == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture
def scale(device: torch.device) -> Scale:
    return FULL if device.type == "cuda" else TINY
