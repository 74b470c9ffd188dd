"""Which tests stay together where pytest-xdist has several workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.harness.support import CommandLine

TOGETHER = (
    "tests/slurm/",
    "tests/report/",
    "tests/harness/test_baselines.py",
    "tests/harness/test_command_line.py",
    "tests/harness/test_search.py",
    "tests/measured/",
    "tests/harness/test_installed.py",
    "tests/timing/test_trainees.py",
    "tests/timing/test_sessions.py",
    "tests/timing/test_study.py",
    "tests/algorithms/test_processes.py",
)
"""Beginnings of tests' ids: those with the same one share a cluster or a slow fixture, and so run
on one worker."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out tests one by one, but these by the group. xdist's own `loadgroup` does so no more
    with pytest 9.2."""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next(filter(nodeid.startswith, TOGETHER), nodeid)

    return Together(config, log)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The harness's command line, called in this process."""
    from tests.harness.support import CommandLine

    return CommandLine(capsys)
