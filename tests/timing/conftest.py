"""What tests of timing share: labs with prefixes of their own, a process group of one, a small
model and a workload."""

from __future__ import annotations

import itertools
import json
import os
import string
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cser_bench.harness.records.timings import TimedMethod, Workload
from cser_bench.harness.timing import lab
from cser_bench.harness.timing.lab import LOCKS, remove_namespaces, why_not
from cser_bench.harness.timing.turn import Turn
from cser_bench.harness.timing.workloads import Gradients, Trainee

needs_lab = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
_endings = itertools.cycle(string.ascii_lowercase)

# A first module with a fifth of the arithmetic, a norm, and a last module.
GRADIENTS = Gradients(
    ((300, 20), (300,), (300,), (40, 300)), {3: 0.8, 1: 0.8, 2: 0.8, 0: 1.0}
)
NUMEL = 6000 + 300 + 300 + 12000
HEADER_BYTES = 14 + 20 + 20 + 12
"""Ethernet, IPv4, TCP and its timestamps."""
WORKLOAD = Workload(
    name="fashion_mnist",
    model="small_cnn",
    batch_size=16,
    num_parameters=NUMEL,
    device="made up",
    forward_seconds=1e-4,
    backward_seconds=2e-4,
    source="made up",
)


def turn_of(
    method: TimedMethod, num_workers: int = 8, trainee: Trainee | None = None
) -> Turn:
    """A turn of a worker that is alone and by default waits, on the small model, with messages that
    are seen."""
    waiting = Trainee(WORKLOAD.name, GRADIENTS, torch.device("cpu"), WORKLOAD)
    return Turn(trainee or waiting, method, num_workers, [None] * 10, visible=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group whose only worker is this process."""
    path = tmp_path_factory.mktemp("group") / "store"
    store = dist.FileStore(str(path), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def prefix(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A lab's, that no other test has; what a failed test leaves of it is removed."""
    name = f"t{os.getpid():x}{next(_endings)}"
    monkeypatch.setattr(lab, "PREFIX", name)
    yield name
    if why_not() is None:
        remove_namespaces(name)
        (LOCKS / name).unlink(missing_ok=True)


def namespaces(prefix: str = "") -> set[str]:
    """Those that `ip` lists, with this prefix."""
    listed = output("ip", "netns", "list").splitlines()
    return {line.split()[0] for line in listed if line.startswith(prefix)}


def limits(namespace: str) -> dict[str, int]:
    """The rate of each interface in a namespace that `tc` limits, in bits a second."""
    found: list[dict[str, Any]] = json.loads(
        output("tc", "-n", namespace, "-j", "qdisc", "show")
    )
    return {
        each["dev"]: 8 * each["options"]["rate"]
        for each in found
        if each["kind"] == "tbf"
    }


def output(*command: str) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return ended.stdout


def is_alive(pid: int) -> bool:
    """A process that has ended may wait for whoever it now belongs to."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        )
    except OSError:
        return False
