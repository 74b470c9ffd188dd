"""The Slurm on one machine: it runs jobs as a cluster would, dies in parts, mends, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests.slurm import local_processes
from tests.slurm.local_cluster import LocalCluster, main, start
from tests.slurm.local_processes import process_of
from tests.slurm.support import wait_until


def test_a_cluster_of_ones_own_starts_mends_and_ends_with_all_that_ran_on_it(
    cluster: LocalCluster, cluster_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--folder", str(cluster_folder)]
    assert main(["start", *where, "--nodes", "2"]) == 0
    assert capsys.readouterr().out.startswith(f"export SLURM_CONF={cluster_folder}/etc/slurm.conf\n")
    own = start(cluster_folder)
    assert len(own.node_states()) == 2 and len(cluster.node_states()) == 6
    kept, killed = process_of(cluster_folder, "node2"), ("munged", "slurmctld", "node1")
    for name in killed:
        process = process_of(cluster_folder, name)
        assert process is not None
        os.kill(process, signal.SIGKILL)
    wait_until(lambda: not any(process_of(cluster_folder, name) for name in killed), "the killed daemons are gone")
    assert main(["start", *where]) == 0 and own.answering()
    assert process_of(cluster_folder, "node2") == kept
    script = f"srun sleep 1000 & setsid sleep 1000 & echo on >{tmp_path}/on; wait"
    own.call("sbatch", "--output=/dev/null", "--wrap", script)
    wait_until((tmp_path / "on").exists, "the job is on")
    assert main(["stop", *where]) == 0 and "stopped" in capsys.readouterr().out
    names = [f"SLURM_CLUSTER_NAME={own.settings.name}".encode(), str(cluster_folder).encode()]
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended, or is somebody else's
            words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            assert int(entry.name) == os.getpid() or not any(name in words for name in names)
    assert main(["stop", *where]) == 0 and "nothing runs" in capsys.readouterr().out
    assert cluster.answering()


def test_missing_packages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local_processes, "PATH", str(tmp_path))
    assert main(["start", "--folder", str(tmp_path / "new")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert "apt-get install --no-install-recommends munge slurmctld slurmd slurm-client\n" in said
    assert not (tmp_path / "new").exists()


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.slurm.local_cluster.require_packages", lambda: None)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds other files|at most 64"):
        start(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
