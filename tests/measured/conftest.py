"""Checks of GPUs and benchmarks as tests: each writes its row to a file at once; one table ends them all."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tabulate import tabulate

from harness.records.provenance import new_attempt, output_of
from harness.workers.attempt import prepare_thread
from tests.measured.scale import FULL, TINY, Scale

ROWS = pytest.StashKey[list[dict[str, Any]]]()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the row of a test whose call is over, or which could not begin, whatever becomes of those after it."""
    config = _Session.config
    kinds = {"gpu", "bench"} & set(report.keywords)
    if config is None or not kinds or not (report.when == "call" or report.failed):
        return
    row = {
        "name": report.nodeid.partition("::")[2],
        "passed": report.outcome == "passed",
        "seconds": round(report.duration, 2),
        "measured": {key: _plain(value) for key, value in report.user_properties},
        "remark": _last_line(report),
    }
    config.stash[ROWS].append(row)
    with _table_file(config).open("a") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


class _Session:
    """The configuration, where a table is asked for; a hook on reports is not given it."""

    config: pytest.Config | None = None


def pytest_sessionstart(session: pytest.Session) -> None:
    config = session.config
    if config.getoption("--table") is None:
        return
    if config.getoption("-m") == "gpu" and not torch.cuda.is_available():
        pytest.exit("gpu-check: skipped, since torch sees no GPU on this machine", 0)
    _Session.config, config.stash[ROWS] = config, []
    file = _table_file(config)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"machine": _machine()}) + "\n")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if ROWS not in config.stash:
        return
    rows = config.stash[ROWS]
    table = [[row["name"], _words(row["measured"]), row["remark"], "ok" if row["passed"] else "FAIL"] for row in rows]
    terminalreporter.write_line("")
    widths = [48, 72, 48, 4]
    terminalreporter.write_line(
        tabulate(table, ["what", "measured", "remark", ""], disable_numparse=True, maxcolwidths=widths)
    )
    terminalreporter.write_line(
        f"{sum(row['passed'] for row in rows)} of {len(rows)} are well; every row is in {_table_file(config)}"
    )


def _table_file(config: pytest.Config) -> Path:
    return Path(config.getoption("--table"))


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


def _plain(value: Any) -> Any:
    """The value as JSON has it, which knows no infinity and no NaN."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


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
