"""Fixtures: labs with prefixes of their own, of processes that can be killed, and a process group of one."""

from __future__ import annotations

import itertools
import os
import string
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from harness.timing.ddp_buckets import Groups
from harness.timing.lab import why_not
from harness.timing.leftovers import release

ROOT = Path(__file__).parents[2]
OWNER = """
import subprocess, sys, time
from harness.timing.lab import lab
from harness.timing.layout import LabTopology
with lab(LabTopology(2, 2, 1e8), prefix=sys.argv[1]) as network:
    print(subprocess.Popen(network.command(3, ["sleep", "600"])).pid, flush=True)
    time.sleep(600)
"""
_endings = itertools.cycle(string.ascii_lowercase)


@pytest.fixture
def prefix() -> Iterator[str]:
    """One that no other test has; what a failed test leaves of it is removed."""
    name = f"t{os.getpid():x}{next(_endings)}"
    yield name
    if why_not() is None:
        release(name)


@pytest.fixture
def start_owner(prefix: str) -> Iterator[Callable[[], tuple[subprocess.Popen[str], int]]]:
    """Starts a process that has a lab of 2 x 2 workers up; gives it, and the pid of a process in the last namespace."""
    started: list[subprocess.Popen[str]] = []

    def start() -> tuple[subprocess.Popen[str], int]:
        command = [sys.executable, "-c", OWNER, prefix]
        owner = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        started.append(owner)
        assert owner.stdout is not None
        return owner, int(owner.stdout.readline())

    yield start
    for owner in started:
        owner.kill()
        owner.wait()
        assert owner.stdout is not None
        owner.stdout.close()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Groups]:
    """A process group whose only worker is this process."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield Groups(None, [None] * 10)
    dist.destroy_process_group()
