"""Checks of GPUs and benchmarks as tests, of which one table says at the end what each measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tabulate import tabulate

from cser_bench.harness.workers.attempt import prepare_thread
from tests.measured.subjects import FULL, TINY, Scale


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.getoption("-m") == "gpu" and not torch.cuda.is_available():
        pytest.exit("gpu-check: skipped, since torch sees no GPU on this machine", 0)


def pytest_report_header() -> str:
    names = [
        torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
    ]
    return f"torch {torch.__version__}, CUDA {torch.version.cuda}, on {', '.join(names) or 'a CPU'}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Show a row for each check, where checks are all that was asked for."""
    if terminalreporter.config.getoption("-m") not in ("gpu", "bench"):
        return
    reports = [
        each
        for kind in ("passed", "failed", "error")
        for each in terminalreporter.stats.get(kind, [])
    ]
    rows = [
        [
            each.nodeid.partition("::")[2],
            _words(dict(each.user_properties)),
            _remark(each),
            each.outcome,
        ]
        for each in reports
        if each.when == "call" or each.failed
    ]
    headers = ["what", "measured", "remark", ""]
    widths = [48, 72, 48, 6]
    terminalreporter.write_line("")
    terminalreporter.write_line(
        tabulate(rows, headers, disable_numparse=True, maxcolwidths=widths)
    )


def _remark(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return (
        ""
        if report.passed
        else str(crash.message if crash else report.longrepr).splitlines()[0][:300]
    )


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_words(each)}" for key, each in value.items())
    if isinstance(value, list):
        return " ".join(map(_words, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@pytest.fixture
def device() -> Iterator[torch.device]:
    """The first GPU, or where there is none the CPU, so that the checks themselves are tried
    everywhere."""
    found = (
        torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    )
    prepare_thread(str(found))
    yield found
    if found.type == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture
def scale(device: torch.device) -> Scale:
    return FULL if device.type == "cuda" else TINY
