"""Tasks that Slurm has bound to cores of their own, as clusters do: how many they read with, and what they compute."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.plan.plan import make_plan
from harness.spec_file import load_spec
from harness.workers.attempt import attempt_in_threads
from slurm.local.cluster import LocalCluster, start, stop
from slurm.status import campaign_status
from tests.harness.support import ROOT, comparable, job_for, write_spec
from tests.slurm.conftest import require_slurm
from tests.slurm.support import one_run, small_profile, submitted, wait_until, write_profile

CORES = len(os.sched_getaffinity(0))

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(CORES < 2 or os.cpu_count() != CORES, reason="needs two cores, and all of the machine's"),
]


@pytest.fixture(scope="module")
def bound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A node whose tasks have cores of their own."""
    require_slurm()
    folder = tmp_path_factory.mktemp("bound")
    try:
        yield start(folder, 1, bind_cores=True)
    finally:
        stop(folder)


def test_a_nodes_tasks_share_its_cores_out_and_each_reads_with_all_of_its_own(bound: LocalCluster) -> None:
    each = CORES // 2
    script = (
        "import os; from harness.tasks.image_reading import own_cores;"
        "print(own_cores(), *sorted(os.sched_getaffinity(0)))"
    )
    given = ["env", f"PYTHONPATH={ROOT}", "LOCAL_WORLD_SIZE=2", sys.executable, "-c", script]
    said = bound.call("srun", "--nodes=1", "--ntasks=2", f"--cpus-per-task={each}", *given, seconds=300)
    one, other = ([int(word) for word in line.split()] for line in said.splitlines())
    assert one[0] == other[0] == each
    assert len(one[1:]) == len(other[1:]) == each and not set(one[1:]) & set(other[1:])


def test_a_run_of_bound_workers_is_to_the_bit_as_if_it_were_local(
    bound: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in bound.environment.items():
        monkeypatch.setenv(name, value)
    spec = write_spec(tmp_path, one_run("cser"))
    profile = write_profile(tmp_path, small_profile(nodes=1, workers_per_node=2))
    results = tmp_path / "results"
    submitted(spec, "--cluster", profile, "--results", results, "--no-preflight")
    wait_until(lambda: not campaign_status(results / "small").in_hand(), "the run has ended", 400.0)
    (run,) = make_plan(load_spec(spec), tmp_path).runs
    local = job_for(run.config, tmp_path / "local", checkpoint_minutes=60.0)
    assert attempt_in_threads(local)
    assert comparable(results / "small" / run.run_id) == comparable(local.folder)
