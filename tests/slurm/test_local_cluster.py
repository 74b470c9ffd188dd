"""The Slurm on one machine: it runs jobs as a cluster would, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.slurm import local_cluster
from tests.slurm.support import wait_until


@pytest.mark.usefixtures("slurm")
def test_a_cluster_of_ones_own_runs_until_it_is_ended_with_all_that_ran_on_it(tmp_path: Path) -> None:
    command = [sys.executable, local_cluster.__file__, "--nodes", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name, _, conf = process.stdout.readline().strip().removeprefix("export ").partition("=")
        script = f"srun sleep 1000 & setsid sleep 1000 & echo on >{tmp_path}/on; wait"
        submit = ["sbatch", "--nodes=2", "--output=/dev/null", "--wrap", script]
        subprocess.run(submit, env=os.environ | {name: conf}, check=True, capture_output=True)
        wait_until((tmp_path / "on").exists, "the job is on")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert name == "SLURM_CONF" and not Path(conf).exists()
    folder = str(Path(conf).parents[1]).encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended, or is somebody else's
            assert folder not in (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()


def test_missing_packages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local_cluster, "PATH", str(tmp_path))
    assert local_cluster.main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert "apt-get install --no-install-recommends munge slurmctld slurmd slurm-client\n" in said
