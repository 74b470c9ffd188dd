"""The cluster that the tests share, and the mark of those that need one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.local_cluster import LocalCluster, start, stop
from tests.slurm.local_processes import MissingPackagesError, require_packages

CLUSTER_FIXTURES = {"cluster", "cluster_folder"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if CLUSTER_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Six idle nodes, the last with four GPUs; it takes arrays of three tasks. Tests leave it as they found it."""
    _require_slurm()
    folder = tmp_path_factory.mktemp("slurm")
    try:
        yield start(folder, gpus_per_node=(1, 1, 1, 1, 1, 4), max_array_size=3)
    finally:
        stop(folder)


@pytest.fixture
def slurm_conf(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the test, Slurm's commands mean the shared cluster, in this process and those it starts."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def cluster_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder for a cluster of the test's own; what runs there at the end is stopped."""
    _require_slurm()
    folder = tmp_path_factory.mktemp("own")
    yield folder
    stop(folder)


def _require_slurm() -> None:
    """Skip the test where Slurm is not installed; fail it where CI_REQUIRES_SLURM=1 says that it must be."""
    try:
        require_packages()
    except MissingPackagesError as error:
        if os.environ.get("CI_REQUIRES_SLURM") == "1":
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
