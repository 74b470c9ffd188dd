"""The cluster that the tests share, and the mark of those that need one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.slurm.local_cluster import LocalCluster, missing_packages, running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "slurm" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def slurm() -> None:
    """Skip the test where Slurm is not installed; fail it where CI_REQUIRES_SLURM=1 says that it
    must be."""
    if missing := missing_packages():
        if os.environ.get("CI_REQUIRES_SLURM") == "1":
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)


@pytest.fixture(scope="session")
def cluster(
    slurm: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalCluster]:
    """Six idle nodes; it takes arrays of three tasks. Tests leave it as they found it."""
    with running(
        tmp_path_factory.mktemp("slurm"), num_nodes=6, max_array_size=3
    ) as shared:
        yield shared


@pytest.fixture
def slurm_conf(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the test, Slurm's commands mean the shared cluster, in this process and those it
    starts."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
