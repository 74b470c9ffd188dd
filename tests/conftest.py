"""Which tests stay together where pytest-xdist has several workers, and what none may read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests import only_shipped

if TYPE_CHECKING:
    from tests.harness.support import CommandLine

only_shipped.hold()

FOLDERS = ("tests/slurm/", "tests/measured/")
"""Whose tests share a cluster, or time things one after another."""
FILES = (
    "tests/examples/",
    "tests/report/",
    "tests/harness/test_baselines.py",
    "tests/harness/test_command_line.py",
    "tests/harness/test_search.py",
    "tests/harness/test_installed.py",
    "tests/harness/test_try.py",
    "tests/timing/test_trainees.py",
    "tests/timing/test_sessions.py",
    "tests/timing/test_study.py",
    "tests/algorithms/test_ddp_hook.py",
    "tests/algorithms/test_processes.py",
)
"""Beginnings of files whose tests share a slow fixture."""
ONE_BY_ONE = ("tests/report/test_accuracy_report.py::test_a_shipped_report",)
"""Tests of such files that need none of it."""


def group_of(test: str) -> str:
    """What a test shares a worker with: those of its folder, those of its file, or none."""
    for folder in FOLDERS:
        if test.startswith(folder):
            return folder
    if test.startswith(FILES) and not test.startswith(ONE_BY_ONE):
        return test.partition("::")[0]
    return test


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out tests by their groups. xdist's own `loadgroup` does so no more with pytest 9.2."""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Together(config, log)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The harness's command line, called in this process."""
    from tests.harness.support import CommandLine

    return CommandLine(capsys)
