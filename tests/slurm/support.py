"""Profiles, doctored checkouts and commands that the tests of campaigns share."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from cser_bench.__main__ import main
from cser_bench.harness.places import PACKAGE
from cser_bench.slurm.campaign import Submission
from cser_bench.slurm.requeue import Allocation
from tests.harness.support import ROOT, Table, small_spec

PATIENCE_SECONDS = 150.0
"""A busy machine takes its time to load torch in one process after another."""


def small_profile(flags: Table | None = None, **changes: Any) -> Table:
    """Workers as gloo processes on two nodes of the tests' cluster, one on each; every look at the
    loss saves."""
    return {
        "device": "cpu",
        "nodes": 2,
        "workers_per_node": 1,
        "cpus_per_worker": 1,
        "time_limit_minutes": 10,
        "warning_seconds": 10,
        "array_parallelism": 2,
        "checkpoint_minutes": 0.0,
        "timeout_seconds": 60.0,
        "network_interface": "lo",
        "master_address": "127.0.0.1",
        "sbatch": {"partition": "main", "mem": "512M"} | (flags or {}),
    } | changes


def write_profile(folder: Path, profile: Table) -> Path:
    """The profile as a file in `folder`."""
    path = folder / "cluster.toml"
    path.write_text(tomli_w.dumps(profile))
    return path


def one_run(row: str, **training: Any) -> Table:
    """The small experiment with this row alone and one seed."""
    spec = small_spec()
    rows = [each for each in spec["rows"] if each["row"] == row]
    statistics = spec["statistics"] | {"baseline": row, "seeds": [1]}
    return spec | {
        "rows": rows,
        "statistics": statistics,
        "training": spec["training"] | training,
    }


def slow_checkout(folder: Path, seconds: float) -> Path:
    """A copy of the sources in which the task `blobs` sleeps before each batch, which changes no
    result."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / PACKAGE, folder / PACKAGE, ignore=ignored)
    path = folder / PACKAGE / "harness" / "tasks" / "task.py"
    text = path.read_text()
    batch = "        for index in indices:\n"
    assert text.count(batch) == 1
    path.write_text(
        text.replace(batch, f"{batch}            __import__('time').sleep({seconds})\n")
    )
    return folder


def slurm_command(
    *words: str | Path, checkout: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """`python -m harness ...` with the sources of a checkout; our own are here already, and do so
    without a process."""
    said = list(map(str, words))
    if checkout == ROOT:
        out = io.StringIO()
        err = io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            patch.setattr(sys, "argv", ["__main__.py", *said])
            code = main(said)
        return subprocess.CompletedProcess(said, code, out.getvalue(), err.getvalue())
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cser_bench.harness", *said]
    return subprocess.run(
        command,
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )


def submitted(*words: str | Path, checkout: Path = ROOT) -> str:
    """What `submit` says, which must go well."""
    done = slurm_command("submit", *words, "--yes", checkout=checkout)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_until(
    condition: Callable[[], bool], what: str, patience_seconds: float = PATIENCE_SECONDS
) -> None:
    """Until it is so; fails where it never is."""
    ends = time.monotonic() + patience_seconds
    while not condition():
        assert time.monotonic() < ends, f"waited in vain until {what}"
        # A look may start programs of Slurm's, on the cores that the jobs need
        time.sleep(0.5)


def submission(folder: Path, *runs: str, **changes: Any) -> Submission:
    """A made-up submission of these runs as the array 7."""
    given: Table = {
        "submitted_at": "2026-01-01T00:00:00+00:00",
        "cluster": "mycluster",
        "data": None,
        "jobs_folder": str(folder / "jobs"),
        "runs": list(runs),
        "jobs": [f"7_{number}" for number in range(len(runs))],
    }
    return Submission(**(given | changes))


def allocation(**changes: Any) -> Allocation:
    """The first start of job 7_0 as its rank 0 sees it."""
    given: Table = {
        "job": "7_0",
        "restart": 0,
        "task": 0,
        "rank": 0,
        "local_rank": 0,
        "world_size": 4,
        "first_node": "node1",
    }
    return Allocation(**(given | changes))
